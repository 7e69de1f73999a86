"""Secrets by reference: `env:NAME` or `file:/path`. Resolved where they are used, never stored, never logged."""

from __future__ import annotations

import os
from pathlib import Path

from sluiceway.common.errors import AccessDenied


def resolve(reference: str) -> str:
    """The secret that a reference names, without trailing newlines.

    Raises:
        AccessDenied: the variable is not set, or the file can't be read. The message names the reference only.
    """
    scheme, _, rest = reference.partition(":")
    if scheme == "env":
        value = os.environ.get(rest)
        if value is None:
            raise AccessDenied(
                f"environment variable {rest} is not set: give it to the workers (a Cluster's also to schedulers), "
                f"or correct {reference} in the spec"
            )
        return value
    try:
        return Path(rest).read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise AccessDenied(f"can't read the secret {reference}: {type(error).__name__}") from error
