"""Observe, decide, commit, report: the scheduler estimates what partitions cost, places them and grants leases.

Role: the only writer of grants. Neighbours: `sluiceway.common`. It must never import the worker, and never touch data.
"""
