"""The command line on an etcd in memory: what it prints, changes, refuses and exits with."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml
from typer.testing import CliRunner, Result

from sluiceway.cli.app import app
from sluiceway.cli.commands.workers import until_empty
from sluiceway.cli.connection import Fleet, Operator
from sluiceway.common.clock import SystemClock
from sluiceway.common.errors import EtcdUnavailable
from sluiceway.common.etcd.api import Etcd
from sluiceway.common.etcd.fake import FakeEtcd
from sluiceway.common.ids import PartitionId
from sluiceway.common.keys import Keys
from sluiceway.common.records import (
    Condition,
    CordonRecord,
    EventRecord,
    FailureKind,
    FailureRecord,
    InboxRecord,
    LeaseRecord,
    LoadReport,
    PartitionUsage,
    PipelineState,
    ProgressRecord,
    Record,
    SpecRecord,
    WorkerRecord,
    decode,
    encode,
)
from sluiceway.common.resources import Resources
from sluiceway.common.settings import EtcdSettings

ROOT = Path(__file__).parents[2]
KEYS = Keys("default")
FIRST = PartitionId("sales", "orders", 0, 0)
SECOND = PartitionId("sales", "orders", 0, 1)


class StoppedClock(SystemClock):
    """Wall time stands still."""

    def __init__(self, at: float = 1_000_000.0) -> None:
        self._at = at

    def now(self) -> float:
        return self._at


class Terminal:
    """Runs commands against one keyspace."""

    def __init__(self) -> None:
        self.etcd = FakeEtcd()
        self.commands = 0

    def run(self, *args: str, stdin: bytes = b"") -> Result:
        async def connect(_: EtcdSettings) -> Etcd:
            return self.etcd.connect()

        self.commands += 1
        clock = StoppedClock(1_000_000.0 + self.commands)
        operator = Operator(connect=connect, clock=clock, actor="ann@desk", stdin=io.BytesIO(stdin))
        return CliRunner().invoke(app, list(args), obj=operator)

    def ok(self, *args: str, stdin: bytes = b"") -> str:
        result = self.run(*args, stdin=stdin)
        assert (result.exit_code, result.stderr) == (0, ""), result.output
        return result.stdout

    def json(self, *args: str) -> Any:
        return orjson.loads(self.ok(*args, "-o", "json"))

    def put(self, key: str, record: Record) -> None:
        asyncio.run(self.etcd.put(key, encode(record)))

    def keys(self, prefix: str) -> list[str]:
        return [item.key for item in asyncio.run(self.etcd.list(prefix)).items]

    def state(self) -> list[Any]:
        return list(asyncio.run(self.etcd.list("/")).items)

    def events(self) -> list[EventRecord]:
        return [decode(EventRecord, item.value) for item in asyncio.run(self.etcd.list(KEYS.events)).items]


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither the developer's environment nor a running development stack counts."""
    for name in ("SLUICEWAY_FLEET", "SLUICEWAY_CONFIG", "SLUICEWAY_ETCD__ENDPOINTS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def terminal() -> Terminal:
    return Terminal()


@pytest.fixture
def busy(terminal: Terminal) -> Terminal:
    """The examples are applied; one partition runs, one is quarantined."""
    terminal.ok("apply", "-f", str(ROOT / "examples"))
    worker = WorkerRecord(id="w1", session=1, capacity=Resources(cpu=2, memory=2**31), started_at=999_000.0)
    usage = PartitionUsage(interval_s=5, position=120, log_end=1234)
    failure = FailureRecord(
        count=3, kind=FailureKind.SOURCE, error="no leader", workers=["w1"], last_at=1.0, quarantined=True
    )
    state = PipelineState(
        condition=Condition.DEGRADED, message="1 quarantined", partitions=2, leased=1, lag_records=1134, delivered=98
    )
    asyncio.run(terminal.etcd.put(KEYS.leader, b"scheduler-1"))
    terminal.put(KEYS.worker("w1"), worker)
    terminal.put(
        KEYS.load("w1"), LoadReport(worker="w1", sequence=1, interval_s=5, cpu_s=2, partitions={str(FIRST): usage})
    )
    terminal.put(KEYS.lease(FIRST), LeaseRecord(holder="w1", reason="fits best", granted_at=999_990.0))
    terminal.put(KEYS.inbox_entry("w1", FIRST), InboxRecord())
    terminal.put(KEYS.progress(FIRST), ProgressRecord(next_offset=100, delivered=98, dead_letters=2))
    terminal.put(KEYS.failure(SECOND), failure)
    terminal.put(KEYS.state("sales"), state)
    return terminal


def test_the_examples_apply_and_apply_again_without_change(terminal: Terminal) -> None:
    assert terminal.ok("apply", "-f", str(ROOT / "examples")).splitlines() == [
        "+ cluster/local created",
        "+ cluster/secured created",
        "+ topic/audit created",
        "+ topic/orders created",
        "+ topic/payments created",
        "+ pipeline/audit created",
        "+ pipeline/sales created",
    ]
    before = terminal.state()
    again = terminal.ok("apply", "-f", str(ROOT / "examples"))
    assert all(line.endswith("unchanged") for line in again.splitlines())
    assert terminal.state() == before


def test_a_wrong_spec_is_told_whole_and_nothing_is_applied(terminal: Terminal) -> None:
    text = b"kind: Cluster\nmetadata: {name: ok}\nspec: {bootstrap: ['h:1']}\n---\nkind: Topic\nspec: {cluser: ok}\n"
    result = terminal.run("apply", "-f", "-", stdin=text)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.splitlines() == [
        "invalid: 3 problem(s), nothing was changed",
        "<stdin>:5:1: metadata: required, but missing: What a document is called",
        (
            "<stdin>:6:1: spec.cluster: required, but missing: A name: letters, digits, dots, underscores and dashes, "
            "first and last a letter or digit"
        ),
        '<stdin>:6:8: spec.cluser: unknown field; did you mean "cluster"?',
    ]
    assert terminal.state() == []


def test_files_that_can_not_be_read_are_all_named(terminal: Terminal) -> None:
    result = terminal.run("apply", "-f", "a.yaml", "-f", "b.yaml")
    assert result.exit_code == 1
    assert "a.yaml: can't be read: No such file or directory" in result.stderr
    assert "b.yaml: can't be read: No such file or directory" in result.stderr


def test_an_update_prints_its_fields_and_is_in_the_event_log(terminal: Terminal, tmp_path: Path) -> None:
    terminal.ok("apply", "-f", str(ROOT / "examples"))
    changed = tmp_path / "pipelines.yaml"
    changed.write_text((ROOT / "examples/pipelines.yaml").read_text().replace("max_age_s: 15", "max_age_s: 30"))
    assert terminal.ok("apply", "-f", str(changed), "--dry-run").splitlines() == [
        "~ pipeline/audit would be updated",
        "    spec.cut.max_age_s: 15.0 → 30.0",
        "= pipeline/sales unchanged",
    ]
    assert "~ pipeline/audit updated" in terminal.ok("apply", "-f", str(changed))
    last = terminal.events()[-1]
    assert (last.actor, last.action, last.subject, last.reason) == (
        "ann@desk",
        "updated",
        "pipeline/audit",
        "spec.cut.max_age_s: 15.0 → 30.0",
    )
    record = decode(SpecRecord, asyncio.run(_value(terminal, KEYS.spec("pipelines", "audit"))))
    assert (record.applied_by, record.applied_at) == ("ann@desk", last.at)


async def _value(terminal: Terminal, key: str) -> bytes:
    item = await terminal.etcd.get(key)
    assert item is not None
    return item.value


def test_a_dry_run_changes_nothing(busy: Terminal) -> None:
    before = busy.state()
    for command in (
        ["apply", "-f", str(ROOT / "examples")],
        ["delete", "pipeline", "sales"],
        ["drain", "w1"],
        ["cordon", "w1"],
        ["retry", "sales"],
        ["pause", "sales"],
    ):
        busy.ok(*command, "--dry-run")
        assert busy.state() == before, command


def test_a_plan_is_applied_only_while_it_holds(terminal: Terminal) -> None:
    examples = str(ROOT / "examples")
    planned = terminal.json("plan", "-f", examples)
    assert {change["action"] for change in planned["changes"]} == {"create"}
    terminal.ok("apply", "-f", str(ROOT / "examples/clusters.yaml"))
    stale = terminal.run("apply", "-f", examples, "--plan", planned["hash"])
    assert stale.exit_code == 3
    assert f"the plan {planned['hash']} is stale" in stale.stderr
    terminal.ok("apply", "-f", examples, "--plan", terminal.json("plan", "-f", examples)["hash"])


def test_many_specs_are_applied_in_several_transactions(terminal: Terminal) -> None:
    texts = ["kind: Cluster\nmetadata: {name: c}\nspec: {bootstrap: ['h:1']}\n"]
    texts += [f"kind: Topic\nmetadata: {{name: t{n}}}\nspec: {{cluster: c}}\n" for n in range(200)]
    terminal.ok("apply", "-f", "-", stdin="---\n".join(texts).encode())
    assert len(terminal.keys(KEYS.specs)) == 201


def test_a_pipeline_with_progress_can_not_be_pointed_elsewhere(busy: Terminal) -> None:
    text = (ROOT / "examples/pipelines.yaml").read_text().replace("sluiceway/sales", "sluiceway/other").encode()
    before = busy.state()
    for command in ("apply", "plan"):
        result = busy.run(command, "-f", "-", stdin=text)
        assert result.exit_code == 3
        assert "Pipeline sales: it has delivered to file:///tmp/sluiceway/sales" in result.stderr
    assert busy.state() == before


def test_what_is_used_is_not_deleted_and_what_is_deleted_keeps_its_progress(busy: Terminal) -> None:
    refused = busy.run("delete", "topic", "orders")
    assert refused.exit_code == 3
    assert "Topic orders: still used by Pipeline sales" in refused.stderr
    assert "its progress is kept" in busy.ok("delete", "pipeline", "sales")
    assert busy.keys(KEYS.progress_of_all) == [KEYS.progress(FIRST)]
    assert "continues from the progress" in busy.ok("apply", "-f", str(ROOT / "examples"))
    busy.ok("delete", "pipeline", "sales")
    running = busy.run("delete", "pipeline", "sales", "--forget")
    assert running.exit_code == 3
    assert "it is running, and would write progress again" in running.stderr
    asyncio.run(busy.etcd.delete(KEYS.lease(FIRST)))
    assert "now its progress is forgotten" in busy.ok("delete", "pipelines", "sales", "--forget")
    assert busy.keys(KEYS.progress_of_all) + busy.keys(KEYS.failures) + busy.keys(KEYS.states) == []
    assert busy.ok("delete", "pipeline", "sales") == "nothing to change\n"


def test_files_name_what_to_delete(busy: Terminal) -> None:
    assert busy.ok("delete", "-f", str(ROOT / "examples")).splitlines() == [
        "- pipeline/audit deleted",
        "- pipeline/sales deleted (its progress is kept: applied again, it continues there)",
        "- topic/audit deleted",
        "- topic/orders deleted",
        "- topic/payments deleted",
        "- cluster/local deleted",
        "- cluster/secured deleted",
    ]
    assert busy.keys(KEYS.specs) == []


def test_pipelines_are_listed_with_their_condition(busy: Terminal) -> None:
    assert busy.ok("get", "pipelines").splitlines() == [
        "NAME    CONDITION   PARTITIONS     LAG   DELIVERED   DEAD LETTERS   MESSAGE",
        "audit   Pending     0/0              0           0              0   no scheduler has looked at it yet",
        "sales   Degraded    1/2          1,134          98              0   1 quarantined",
    ]
    (row,) = busy.json("get", "pipelines", "sales")["items"]
    assert (row["condition"], row["leased"], row["partitions"], row["lag_records"]) == ("Degraded", 1, 2, 1134)
    assert "file:///tmp/sluiceway/sales" in busy.ok("get", "pipelines", "-o", "wide")


@pytest.mark.parametrize("kind", ["pipelines", "topics", "clusters", "workers", "leases", "progress"])
@pytest.mark.parametrize("form", ["table", "wide", "json", "yaml"])
def test_every_kind_is_listed_in_every_form(busy: Terminal, terminal: Terminal, kind: str, form: str) -> None:
    text = busy.ok("get", kind, "-o", form)
    if form == "json":
        assert orjson.loads(text)["items"]
    elif form == "yaml":
        assert yaml.safe_load(text)["items"]
    else:
        assert len(text.splitlines()) > 1
        assert Terminal().run("get", kind, "-o", form).stdout.startswith(("no", "nothing"))


def test_without_a_leading_scheduler_the_list_says_so(busy: Terminal) -> None:
    asyncio.run(busy.etcd.delete(KEYS.leader))
    assert busy.run("get", "pipelines").stderr == "no scheduler is leading: conditions may be out of date\n"


def test_a_worker_is_listed_with_what_it_uses_and_whether_it_is_cordoned(busy: Terminal) -> None:
    (row,) = busy.json("get", "workers")["items"]
    assert (row["name"], row["status"], row["partitions"], row["cpu_used_cores"]) == ("w1", "Ready", 1, 0.4)
    busy.ok("cordon", "w1", "--reason", "disk")
    busy.put(KEYS.cordon("gone"), CordonRecord(worker="gone", drain=True))
    statuses = {row["name"]: row["status"] for row in busy.json("get", "workers")["items"]}
    assert statuses == {"w1": "Cordoned", "gone": "Absent"}


@pytest.mark.parametrize(
    ("kind", "name"),
    [("pipeline", "sales"), ("topic", "orders"), ("cluster", "local"), ("worker", "w1"), ("partition", str(FIRST))],
)
def test_everything_can_be_described_and_a_wrong_name_gets_a_suggestion(busy: Terminal, kind: str, name: str) -> None:
    assert name in busy.ok("describe", kind, name)
    assert busy.json("describe", kind, name)["events"] is not None
    result = busy.run("describe", kind, name + "x")
    assert result.exit_code == 1
    assert f'did you mean "{name}"?' in result.stderr


def test_a_partition_is_described_with_why_it_is_where_it_is(busy: Terminal) -> None:
    first = busy.json("describe", "partition", str(FIRST))
    assert (first["state"], first["worker"], first["why"], first["lag_records"]) == ("granted", "w1", "fits best", 1134)
    second = busy.json("describe", "partition", str(SECOND))
    assert (second["state"], second["why"]) == ("quarantined", "failed 3 time(s), last with source: no leader")


def test_cordon_drain_and_uncordon_are_recorded_once(busy: Terminal) -> None:
    assert busy.ok("drain", "w1", "--reason", "kernel") == "~ worker/w1 draining\n"
    assert busy.ok("drain", "w1") == "= worker/w1 unchanged: draining\n"
    record = decode(CordonRecord, asyncio.run(_value(busy, KEYS.cordon("w1"))))
    assert (record.drain, record.by, record.reason) == (True, "ann@desk", "kernel")
    assert busy.ok("cordon", "w1") == "~ worker/w1 cordoned\n"
    assert busy.ok("uncordon", "w1") == "~ worker/w1 uncordoned\n"
    assert busy.ok("uncordon", "w1") == "= worker/w1 unchanged: uncordoned\n"
    acts = [event.action for event in busy.events() if event.subject == "worker/w1"]
    assert acts == ["draining", "cordoned", "uncordoned"]


def test_a_worker_that_nobody_knows_is_not_cordoned(busy: Terminal) -> None:
    result = busy.run("cordon", "w11")
    assert result.exit_code == 1
    assert "no worker 'w11' is registered; did you mean \"w1\"?" in result.stderr


def test_waiting_for_a_drain_times_out_with_4(busy: Terminal) -> None:
    result = busy.run("drain", "w1", "--wait", "--deadline", "10ms")
    assert result.exit_code == 4
    assert "still holds 1 lease(s)" in result.stderr


async def test_waiting_for_a_drain_ends_when_the_last_lease_is_gone(capsys: pytest.CaptureFixture[str]) -> None:
    etcd = FakeEtcd()
    for partition in (FIRST, SECOND):
        await etcd.put(KEYS.inbox_entry("w1", partition), encode(InboxRecord()))
    fleet = Fleet(etcd=etcd, keys=KEYS, clock=StoppedClock(), actor="ann@desk")
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(until_empty(fleet, "w1", 30.0))
        await etcd.delete(KEYS.inbox_entry("w1", FIRST))
        await etcd.delete(KEYS.inbox_entry("w1", SECOND))
    assert "worker/w1 holds no lease any more" in capsys.readouterr().out
    await etcd.close()


@pytest.mark.parametrize("target", ["sales", str(SECOND)])
def test_retry_forgets_failures_and_says_what_they_were(busy: Terminal, target: str) -> None:
    assert busy.ok("retry", target) == f"- failures of {SECOND} forgotten\n"
    assert busy.keys(KEYS.failures) == []
    assert busy.events()[-1].reason == "had failed 3 time(s), last with source: no leader"
    assert busy.ok("retry", target) == f"nothing to retry: {target} has no recorded failure\n"


@pytest.mark.parametrize("target", ["saless", "saless/orders@0/0"])
def test_retry_of_a_pipeline_that_is_not_applied_fails(busy: Terminal, target: str) -> None:
    result = busy.run("retry", target)
    assert result.exit_code == 1
    assert "no pipeline 'saless' is applied; did you mean \"sales\"?" in result.stderr


def test_get_of_a_name_that_is_not_there_gets_a_suggestion(busy: Terminal) -> None:
    result = busy.run("get", "pipelines", "saless")
    assert result.exit_code == 1
    assert 'not found: saless; did you mean "sales"?' in result.stderr


def test_pause_and_resume_change_the_spec(busy: Terminal) -> None:
    assert busy.ok("pause", "sales").splitlines() == ["~ pipeline/sales updated", "    spec.paused: false → true"]
    assert busy.ok("pause", "sales") == "= pipeline/sales unchanged\n"
    assert "true → false" in busy.ok("resume", "sales")
    assert busy.run("pause", "sale").exit_code == 1


def test_events_are_shown_by_subject(busy: Terminal) -> None:
    busy.ok("pause", "sales")
    assert [row["action"] for row in busy.json("events", "pipeline/sales")["items"]] == ["created", "updated"]
    assert len(busy.json("events", "-n", "3")["items"]) == 3


def test_an_etcd_that_does_not_answer_is_named(terminal: Terminal) -> None:
    async def connect(_: EtcdSettings) -> Etcd:
        raise EtcdUnavailable("connection refused")

    operator = Operator(connect=connect, clock=StoppedClock(), actor="a", stdin=io.BytesIO())
    result = CliRunner().invoke(app, ["get", "pipelines", "--etcd", "nowhere:1"], obj=operator)
    assert result.exit_code == 1
    assert "can't reach etcd at nowhere:1 (from --etcd): connection refused" in result.stderr


def test_the_fleet_flag_may_stand_anywhere(busy: Terminal) -> None:
    assert busy.json("get", "topics", "--fleet", "other")["items"] == []
    assert busy.json("--fleet=default", "get", "topics")["items"] != []


@pytest.mark.parametrize(
    "args", [["get", "nothing"], ["delete"], ["drain", "w1", "--deadline", "soon"], ["delete", "topik", "x"], ["nope"]]
)
def test_wrong_usage_exits_with_2(terminal: Terminal, args: list[str]) -> None:
    assert terminal.run(*args).exit_code == 2


def test_the_schema_is_printed_by_kind(terminal: Terminal) -> None:
    assert orjson.loads(terminal.ok("schema", "pipeline"))["title"] == "Sluiceway Pipeline (sluiceway/v1)"
    assert set(orjson.loads(terminal.ok("schema"))["$defs"]) >= {"Cluster", "Topic", "Pipeline"}


def test_every_command_has_examples_in_its_help(terminal: Terminal) -> None:
    for command in app.registered_commands:
        name = str(command.name or getattr(command.callback, "__name__", ""))
        if name != "version":
            assert f"sluiceway {name}" in terminal.ok(name, "--help"), name
