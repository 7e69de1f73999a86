"""`python -m sluiceway.cli.stack.kafka_jars`: has Apache Kafka ready before the tests, where that is possible.

Where Java and Maven are missing and we may install them, it does; where Kafka can't be had it says so in one line, and
that is not a failure. It is also where to ask whether Kafka can be had.
"""

from __future__ import annotations

import sys

from sluiceway.cli.stack.jars import KafkaMissing, fetch_jars, kafka_available

__all__ = ["kafka_available", "main"]


def main() -> int:
    """Fetches, and prints one line if Kafka can't be had. Never fails: those tests are skipped then."""
    try:
        fetch_jars()
    except KafkaMissing as reason:
        print(f"Apache Kafka can't be had ({reason}): tests marked kafka will be skipped", file=sys.stderr)  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
