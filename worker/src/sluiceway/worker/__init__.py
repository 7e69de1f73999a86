"""Delivers leased partitions into sinks, exactly once, and gives leases up on failure.

Role: session, lease agent, one runner a partition, fetch, decode, cuts, sinks. Neighbours: `sluiceway.common`.
It must never import the scheduler, and never decide which partitions it holds.
"""
