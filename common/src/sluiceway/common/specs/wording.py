"""How messages about specs show values and guess at what was meant. Pure."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable


def suggestion(word: str, known: Iterable[str]) -> str:
    """`; did you mean "x"?`, or nothing when nothing is near."""
    by_lower = {option.lower(): option for option in sorted(known)}
    near = difflib.get_close_matches(word.lower(), list(by_lower), n=1, cutoff=0.6)
    return f"; did you mean {quoted(by_lower[near[0]])}?" if near else ""


def quoted(value: object) -> str:
    """A value as JSON, shortened."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."
