"""Numbers and times as people read and write them. Pure."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Final

_SECONDS: Final = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|)")


def count(number: object) -> str:
    """A count with separators."""
    return f"{number:,}" if isinstance(number, int) else "-"


def amount(number: object) -> str:
    """Bytes in binary units."""
    if not isinstance(number, int | float):
        return "-"
    value = float(number)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def age(seconds: object) -> str:
    """A time span with its largest unit or two: `12s`, `3m20s`, `5h`, `12d`."""
    if not isinstance(seconds, int | float):
        return "-"
    whole = max(0, int(seconds))
    if whole < 100:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60}s" if whole % 60 and whole < 600 else f"{whole // 60}m"
    if whole < 2 * 86400:
        return f"{whole // 3600}h"
    return f"{whole // 86400}d"


def instant(at: float) -> str:
    """Seconds since the epoch as a UTC time."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def seconds(text: str) -> float:
    """A span like `90`, `90s`, `5m`, `1.5h` in seconds.

    Raises:
        ValueError: the text is no span.
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"expected a time span such as 90s, 5m or 1h, found {text!r}")
    return float(match[1]) * _SECONDS[match[2]]
