"""`sluiceway demo`: the main job end to end on one machine, with the proof that nothing was lost or doubled."""
