"""Which leases to grant, revoke and delete, and the guarded transactions that do it."""
