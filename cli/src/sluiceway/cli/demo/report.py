"""What the demo found, as one flat JSON object and as a summary for people. Pure but for printing."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoReport:
    """`seconds` is from the first record poured until the last one was committed to the sink."""

    produced: int
    delivered: int
    missing: int
    duplicated: int
    unexpected: int
    dead_letters: int
    rescued: int
    values_compared: int
    values_different: int
    moves: int
    killed: str | None
    recovery_seconds: float | None
    ttl_seconds: int
    seconds: float
    records_per_second: int
    mb_per_second: float
    workers: int
    peak_worker_rss_mb: int
    memory_budget_mb: int
    within_memory_budget: bool
    empty_lines: int
    topics: dict[str, int]
    files: int
    file_mb: float
    folder: str
    dead_letter_folder: str
    logs: str
    query: str
    differences: list[str]

    @property
    def exact(self) -> bool:
        """Every record of the source is in the sink exactly once, with its values."""
        return (
            self.missing == self.duplicated == self.unexpected == self.values_different == 0
            and self.produced == self.delivered + self.dead_letters
        )

    def as_json(self) -> dict[str, Any]:
        """The fields, and `exact`."""
        return {**asdict(self), "exact": self.exact}


def print_summary(report: DemoReport, console: Console) -> None:
    """The report as a table, the files, and a query to try."""
    table = Table(title="Delivered exactly once" if report.exact else "NOT delivered exactly once", show_header=False)
    for name, value in _lines(report):
        table.add_row(name, value)
    console.print(table)
    for line in report.differences:
        console.print(f"  {line}", style="red", markup=False, highlight=False)
    print(f"\nFiles:        {report.folder}\nDead letters: {report.dead_letter_folder}\nLogs:         {report.logs}")  # noqa: T201
    print(f"\nTry:\n  {command(report.query)}")  # noqa: T201


def command(query: str) -> str:
    """A shell command that runs a query with the DuckDB that this project installs."""
    return f'.venv/bin/python -c "import duckdb; duckdb.sql(\\"{query}\\").show()"'


def _lines(report: DemoReport) -> list[tuple[str, str]]:
    rate = f"{report.records_per_second:,} records/s, {report.mb_per_second} MB/s, {report.seconds} s"
    memory = f"{report.peak_worker_rss_mb} of {report.memory_budget_mb} MiB at the most"
    lines = [
        ("produced", f"{report.produced:,}"),
        ("delivered", f"{report.delivered:,} ({report.rescued:,} with rescued values)"),
        ("missing", f"{report.missing:,}"),
        ("duplicated", f"{report.duplicated:,}"),
        ("dead letters", f"{report.dead_letters:,}"),
        ("values compared", f"{report.values_compared:,}, of which {report.values_different:,} differ"),
        ("throughput", rate),
        ("files", f"{report.files:,} ({report.file_mb} MB)"),
        ("worker memory", memory + ("" if report.within_memory_budget else ": OVER the budget")),
        ("moves", f"{report.moves:,}"),
    ]
    if report.recovery_seconds is not None:
        lines.append(
            ("recovery", f"{report.recovery_seconds} s after kill -9 of {report.killed} (TTL {report.ttl_seconds} s)")
        )
    if report.empty_lines:
        lines.append(("empty lines", f"{report.empty_lines:,} of the files, passed over"))
    return lines
