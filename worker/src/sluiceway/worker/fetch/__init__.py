"""Fetching partitions through lanes.

`fetcher` keeps each open partition's feed filled; `feed` is what a runner reads; `lanes` decides what is asked for over
which connection; `records` turns fetched bytes into blocks.
"""
