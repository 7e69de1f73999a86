"""Guards and averages for measurements that come from other machines. Pure."""

from __future__ import annotations

import math

RISE = 0.5
FALL = 0.1


def sane(value: float, limit: float) -> bool:
    """Whether a measured value can be believed: finite and within [0, limit]."""
    return math.isfinite(value) and 0.0 <= value <= limit


def smoothed(before: float | None, observed: float) -> float:
    """An exponentially weighted mean that rises faster than it falls: a spike is priced soon and forgotten slowly."""
    if before is None:
        return observed
    weight = RISE if observed > before else FALL
    return before + weight * (observed - before)
