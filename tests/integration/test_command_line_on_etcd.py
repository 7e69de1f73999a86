"""The installed `sluiceway` command against real etcd: another process, as operators run it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sluiceway.cli.stack import EtcdServer
from sluiceway.common.etcd.client import connect
from sluiceway.common.ids import PartitionId
from sluiceway.common.keys import Keys
from sluiceway.common.records import InboxRecord, WorkerRecord, encode
from sluiceway.common.resources import Resources
from sluiceway.common.settings import EtcdSettings

ROOT = Path(__file__).parents[2]
COMMAND = Path(sys.executable).with_name("sluiceway")


class Shell:
    """Runs the command on one fleet of one etcd."""

    def __init__(self, endpoint: str, fleet: str, directory: Path) -> None:
        self.endpoint, self.fleet, self.directory = endpoint, fleet, directory

    def run(self, *args: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [COMMAND, *args],
            env=self._environment(),
            cwd=self.directory,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def start(self, *args: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [COMMAND, *args], env=self._environment(), cwd=self.directory, stdout=subprocess.PIPE, text=True
        )

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("SLUICEWAY_")}
        return kept | {"SLUICEWAY_ETCD__ENDPOINTS": self.endpoint, "SLUICEWAY_FLEET": self.fleet}

    def ok(self, *args: str, stdin: str = "") -> str:
        done = self.run(*args, stdin=stdin)
        assert (done.returncode, done.stderr) == (0, ""), done
        return done.stdout


@pytest.fixture
def shell(etcd_server: EtcdServer, unique_name: Callable[[str], str], tmp_path: Path) -> Shell:
    return Shell(etcd_server.endpoint, unique_name("fleet"), tmp_path)


def test_the_examples_are_applied_listed_described_and_deleted(shell: Shell) -> None:
    assert shell.ok("apply", "-f", str(ROOT / "examples")).count("created") == 7
    assert shell.ok("apply", "-f", str(ROOT / "examples")).count("unchanged") == 7
    names = [row["name"] for row in json.loads(shell.ok("get", "pipelines", "-o", "json"))["items"]]
    assert names == ["audit", "sales"]
    assert "file:///tmp/sluiceway/sales" in shell.ok("describe", "pipeline", "sales")
    assert shell.ok("delete", "-f", str(ROOT / "examples")).count("deleted") == 7


def test_a_wrong_document_among_right_ones_leaves_nothing_applied(shell: Shell) -> None:
    text = "kind: Cluster\nmetadata: {name: c}\nspec: {bootstrap: ['h:1']}\n---\nkind: Topic\nmetadata: {name: t}\n"
    done = shell.run("apply", "-f", "-", stdin=text)
    assert done.returncode == 1
    assert "<stdin>:5:1: spec: required, but missing" in done.stderr
    assert shell.ok("get", "clusters") == "no clusters; `sluiceway apply -f` makes one\n"


def test_two_who_apply_at_once_never_share_a_sink(shell: Shell) -> None:
    shell.ok("apply", "-f", str(ROOT / "examples/clusters.yaml"), "-f", str(ROOT / "examples/topics.yaml"))
    texts = [
        f"kind: Pipeline\nmetadata: {{name: p{n}}}\nspec: {{topics: [orders], sink: {{url: 's3://one/place'}}}}\n"
        for n in range(4)
    ]
    with ThreadPoolExecutor() as pool:
        codes = list(pool.map(lambda text: shell.run("apply", "-f", "-", stdin=text).returncode, texts))
    assert sorted(codes) == [0, 1, 1, 1]
    assert len(json.loads(shell.ok("get", "pipelines", "-o", "json"))["items"]) == 1


async def test_a_drain_waits_until_the_worker_holds_nothing(shell: Shell) -> None:
    etcd, keys = await connect(EtcdSettings(endpoints=[shell.endpoint])), Keys(shell.fleet)
    partition = PartitionId("sales", "orders", 0, 0)
    try:
        await etcd.put(keys.worker("w1"), encode(WorkerRecord(id="w1", session=1, capacity=Resources())))
        await etcd.put(keys.inbox_entry("w1", partition), encode(InboxRecord()))
        assert shell.run("drain", "w1", "--wait", "--deadline", "100ms").returncode == 4
        with ThreadPoolExecutor() as pool:
            waiting = pool.submit(shell.ok, "drain", "w1", "--wait")
            await etcd.delete(keys.inbox_entry("w1", partition))
            assert "worker/w1 holds no lease any more" in waiting.result()
    finally:
        await etcd.close()


def test_an_etcd_that_is_not_there_is_told_at_once(tmp_path: Path) -> None:
    done = Shell("127.0.0.1:1", "f", tmp_path).run("get", "pipelines")
    assert done.returncode == 1
    assert "can't reach etcd at 127.0.0.1:1 (from the settings)" in done.stderr


def test_an_etcd_that_never_answers_is_given_up(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"127.0.0.1:{silent.getsockname()[1]}"
        done = Shell(endpoint, "f", tmp_path).run("get", "pipelines")
    assert done.returncode == 1
    assert f"can't reach etcd at {endpoint}" in done.stderr


def test_following_events_shows_what_happens_one_line_each(shell: Shell) -> None:
    shell.ok("apply", "-f", str(ROOT / "examples"))
    with shell.start("events", "pipeline/sales", "--follow", "-o", "json") as following:
        assert following.stdout is not None
        assert json.loads(following.stdout.readline())["action"] == "created"
        shell.ok("pause", "sales")
        assert json.loads(following.stdout.readline())["reason"] == "spec.paused: false → true"
        following.send_signal(signal.SIGINT)
        assert following.wait(30) == 0
