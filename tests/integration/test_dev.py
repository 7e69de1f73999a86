"""`sluiceway dev`: starts once, stays, is found again, stops what it started and nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from sluiceway.cli.stack.kept import KeptStack
from sluiceway.cli.stack.process import http_status
from sluiceway.common.specs.documents import Source, parse

pytestmark = [pytest.mark.servers, pytest.mark.slow]

NAMES = ["etcd", "objectstore", "broker", "scheduler", "worker-1", "worker-2"]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "dev"
    KeptStack(tmp_path / "dev").down(wipe=False, note=lambda line: None)


def _dev(folder: Path, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sluiceway.cli", "dev", *arguments, "--dir", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == code, done.stderr
    return done


def _items(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    return {item["name"]: item for item in json.loads(done.stdout)["items"]}


def test_up_starts_all_once_and_down_stops_all_and_keeps_addresses(folder: Path) -> None:
    first = _items(_dev(folder, "up", "-o", "json"))
    assert list(first) == NAMES
    assert all(item["state"] == "running" for item in first.values())
    for name in ("scheduler", "worker-1", "worker-2"):
        assert http_status(int(first[name]["address"].rsplit(":", 1)[1]), "/readyz") == 200
    assert _items(_dev(folder, "up", "-o", "json")) == first
    assert _items(_dev(folder, "status", "-o", "json")) == first

    example = folder / "example.yaml"
    parse([Source(str(example), example.read_bytes())], {})

    psutil.Process(first["worker-2"]["pid"]).kill()
    psutil.Process(first["etcd"]["pid"]).kill()
    states = {name: item["state"] for name, item in _items(_dev(folder, "status", "-o", "json")).items()}
    assert [name for name, state in states.items() if state == "stopped"] == ["etcd", "worker-2"]
    repaired = _items(_dev(folder, "up", "-o", "json"))
    assert all(item["state"] == "running" for item in repaired.values())
    assert repaired["etcd"]["address"] == first["etcd"]["address"]
    assert repaired["broker"] == first["broker"]

    fewer = _items(_dev(folder, "up", "--workers", "1", "-o", "json"))
    assert list(fewer) == NAMES[:-1]

    stopped = json.loads(_dev(folder, "down", "-o", "json").stdout)["stopped"]
    assert sorted(stopped) == sorted(NAMES[:-1])
    assert not any(psutil.pid_exists(item["pid"]) for item in fewer.values())
    assert _items(_dev(folder, "status", "-o", "json")) == {}
    assert "nothing was running" in _dev(folder, "down").stdout

    again = _items(_dev(folder, "up", "--workers", "1", "-o", "json"))
    assert {name: item["address"] for name, item in again.items()} == {n: fewer[n]["address"] for n in again}
    refused = _dev(folder, "up", "--broker", "kafka", code=3)
    assert "sluiceway dev down" in refused.stderr
    _dev(folder, "down", "--wipe")
    assert not folder.exists()


def test_down_never_signals_a_process_that_only_has_the_same_id(folder: Path) -> None:
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    with bystander:
        process = psutil.Process(bystander.pid)
        kept = {"pid": process.pid, "started": process.create_time() - 60, "address": "", "log": ""}
        folder.mkdir()
        state = {"etcd": "127.0.0.1:1", "fleet": "dev", "broker": "embedded", "processes": {"etcd": kept}}
        (folder / "state.json").write_text(json.dumps(state))
        assert json.loads(_dev(folder, "down", "-o", "json").stdout)["stopped"] == []
        assert bystander.poll() is None
        bystander.kill()
