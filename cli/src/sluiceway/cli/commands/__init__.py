"""The commands, one module a subject. Each reads, decides with pure functions, writes guarded, prints."""
