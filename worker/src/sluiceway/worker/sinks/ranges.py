"""Arithmetic on half-open offset ranges. Pure.

Neighbours: `cuts` and `shares`. Every result is normal: sorted, disjoint, not touching, without empty ranges.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sluiceway.common.records import Range


def merged(ranges: Iterable[Sequence[int]]) -> list[Range]:
    """The union, in normal form."""
    result: list[Range] = []
    for start, end in sorted((r[0], r[1]) for r in ranges if r[0] < r[1]):
        if result and start <= result[-1][1]:
            result[-1] = (result[-1][0], max(end, result[-1][1]))
        else:
            result.append((start, end))
    return result


def clipped(ranges: Iterable[Sequence[int]], start: int, end: int) -> list[Range]:
    """The part inside of `[start, end)`."""
    return merged((max(r[0], start), min(r[1], end)) for r in ranges)


def without(ranges: Iterable[Sequence[int]], removed: Iterable[Sequence[int]]) -> list[Range]:
    """The part of `ranges` that is not in `removed`."""
    result: list[Range] = []
    holes = merged(removed)
    first = 0
    for start, end in merged(ranges):
        while first < len(holes) and holes[first][1] <= start:
            first += 1
        index = first
        while index < len(holes) and holes[index][0] < end:
            if start < holes[index][0]:
                result.append((start, holes[index][0]))
            start = holes[index][1]
            index += 1
        if start < end:
            result.append((start, end))
    return result


def of_offsets(offsets: Iterable[int]) -> list[Range]:
    """The runs that single offsets form."""
    return merged((offset, offset + 1) for offset in offsets)


def size(ranges: Iterable[Sequence[int]]) -> int:
    """How many offsets disjoint ranges hold."""
    return sum(r[1] - r[0] for r in ranges)
