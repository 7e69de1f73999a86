"""`sluiceway demo` as a user runs it: separate processes, real servers, a killed worker, every record compared."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
import psutil
import pytest

EVENTS = Path(__file__).resolve().parents[3] / "shared" / "data" / "security-events"
FILES = ("windows-ad", "windows-lsass", "windows-registry", "zeek-day1")

pytestmark = [pytest.mark.servers, pytest.mark.slow, pytest.mark.timeout(600)]


def demo(folder: Path, *arguments: str) -> tuple[int, dict[str, Any], str]:
    """Exit code, the JSON of the last line, and everything said on standard error."""
    command = [sys.executable, "-m", "sluiceway.cli", "demo", "--dir", str(folder), "-o", "json", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=580, check=False)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout.splitlines()[-1]), done.stderr


def rows_of(query: str) -> list[tuple[Any, ...]]:
    with duckdb.connect() as connection:
        return connection.execute(query).fetchall()


def children_in(folder: Path) -> list[int]:
    return [
        process.info["pid"]
        for process in psutil.process_iter(["pid", "cwd"])
        if process.info["cwd"] and process.info["cwd"].startswith(str(folder))
    ]


def test_generated_events_arrive_exactly_once_though_a_worker_is_killed(tmp_path: Path) -> None:
    code, report, said = demo(tmp_path, "--records", "40000", "--kill", "--partitions", "6", "--seed", "7")

    assert code == 0, said
    assert (report["missing"], report["duplicated"], report["unexpected"]) == (0, 0, 0)
    assert report["produced"] == 40_000 == report["delivered"] + report["dead_letters"]
    assert report["dead_letters"] > 0
    assert (report["values_compared"], report["values_different"]) == (40_000, 0)
    assert report["killed"]
    assert report["recovery_seconds"] > 0
    assert report["moves"] >= 1
    assert report["within_memory_budget"]
    assert rows_of(report["query"]) == [("security-events", report["delivered"], 6)]
    assert children_in(tmp_path) == []


def test_a_folder_sink_holds_the_same(tmp_path: Path) -> None:
    code, report, said = demo(tmp_path, "--records", "5000", "--store", "local", "--workers", "1", "--partitions", "2")

    assert code == 0, said
    assert report["exact"]
    assert rows_of(report["query"]) == [("security-events", report["delivered"], 2)]


@pytest.mark.skipif(not EVENTS.exists(), reason=f"the real security events are not at {EVENTS}")
def test_every_value_of_the_real_security_events_is_in_the_sink(tmp_path: Path) -> None:
    inputs = [part for name in FILES for part in ("--input", str(EVENTS / f"{name}.ndjson.gz"))]

    code, report, said = demo(tmp_path, *inputs, "--kill", "--partitions", "4")

    assert code == 0, said
    assert (report["missing"], report["duplicated"], report["unexpected"]) == (0, 0, 0)
    assert report["produced"] == 126_426 == report["delivered"] + report["dead_letters"]
    assert (report["values_compared"], report["values_different"]) == (126_426, 0), report["differences"]
    counts = {topic: records for topic, records, _ in rows_of(report["query"])}
    assert sum(counts.values()) == report["delivered"]
    assert set(counts) == set(FILES)
