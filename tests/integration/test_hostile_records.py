"""Records that nobody would want, through real brokers and a real worker: each arrives once, as a row or a dead letter.

Afterwards a plain consumer reads the topics again and every record is compared with what lies in the sink.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from fleets import MIB, Fleet, Flow, create_topic, ends_of, producing
from sluiceway.cli.demo.fleet import FleetOptions, LocalFleet, StoreKind
from sluiceway.cli.demo.sink import SinkIndex, Source, index_sink
from sluiceway.cli.demo.verify import Verification, verify
from sluiceway.cli.stack import BrokerKind
from sluiceway.cli.stack.kafka_jars import kafka_available

CODECS = ("gzip", "snappy", "lz4", "zstd")
LARGEST = 64 * MIB

pytestmark = [pytest.mark.slow, pytest.mark.servers, pytest.mark.timeout(240)]

Headers = Sequence[tuple[str, bytes]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hostile:
    """A record, and the dead letter's error that it becomes; no error: it is delivered as a row."""

    value: bytes | None
    error: str = ""
    key: bytes | None = None
    headers: Headers = field(default_factory=list)
    rescued: bool = False


def padded(size: int) -> bytes:
    """A JSON object of exactly so many bytes."""
    return b'{"blob": "%s"}' % (b"x" * (size - 12))


SMALL = [
    Hostile(value=b'{"fine": 1}'),
    Hostile(value=b"not json", error="malformed"),
    Hostile(value=b'{"cut off": ', error="malformed"),
    Hostile(value=b"", error="empty"),
    Hostile(value=b" \n\t ", error="empty"),
    Hostile(value=b'{"text": "\xff\xfe\x80"}', error="not_utf8", key=b"\xff\x00key"),
    Hostile(value=b"\x00" * 100, error="malformed"),
    Hostile(value=b"[1, 2, 3]", error="not_an_object"),
    Hostile(value=b"null", error="not_an_object"),
    Hostile(value=b'{"n": NaN}', error="not_a_number"),
    Hostile(value=b'{"n": -Infinity}', error="not_a_number"),
    Hostile(value=b'{"n": 1e999}', error="number_out_of_range"),
    Hostile(value=b'{"lone": "\\ud800"}', error="lone_surrogate"),
    Hostile(value=b"[" * 5_000 + b"]" * 5_000, error="too_deep"),
    Hostile(value=b'{"a":' * 5_000 + b"1" + b"}" * 5_000, error="too_deep"),
    Hostile(value=b"[" * 2_000_000 + b"]" * 2_000_000, error="too_complex"),
    Hostile(value=b'{"a":' * 2_000_000 + b"1" + b"}" * 2_000_000, error="too_complex"),
    Hostile(value=b"[" * 2_000_000, error="too_complex"),
    Hostile(value=b'{"twice": 1, "twice": 2}', rescued=True),
    Hostile(value=b'{"big": 123456789012345678901234567890}'),
    Hostile(value=b'{"changing": 1}'),
    Hostile(value=b'{"changing": 1.5}'),
    Hostile(value=b'{"changing": "text"}'),
    Hostile(value=b'{"changing": {"now": ["an", "object"]}}'),
    Hostile(value=b'{"changing": [1, "two", null]}'),
    Hostile(value=b'{"changing": null}'),
    Hostile(value=b'{"_offset": 7, "_rescued": "mine", "": 0}'),
    Hostile(value=None, key=b"deleted"),
    Hostile(value=None),
    Hostile(value=b'{"key": "binary"}', key=bytes(range(256))),
    Hostile(value=b'{"key": "empty"}', key=b""),
    Hostile(value=b'{"headers": true}', headers=[("trace", b"\x00\xff"), ("trace", b"again"), ("", b"")]),
    Hostile(value=b"headers too", error="malformed", headers=[("trace", b"\x00\xff"), ("trace", b"again")]),
]
LARGE = [
    Hostile(value=padded(50 * MIB), error="too_large"),
    Hostile(value=padded(15 * MIB)),
    Hostile(value=b"x" * (50 * MIB), error="too_large", key=b"k"),
    Hostile(value=b'{"after": "large ones"}'),
]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[BrokerKind, StoreKind, int], LocalFleet]]:
    """Starts a fleet with one worker that declares so many bytes of memory."""
    started: list[LocalFleet] = []

    def fleet(broker: BrokerKind, store: StoreKind, memory_bytes: int) -> LocalFleet:
        if broker == "kafka" and (reason := kafka_available()):
            pytest.skip(f"Apache Kafka can't be had: {reason}")
        options = FleetOptions(
            directory=tmp_path, broker=broker, store=store, workers=1, worker_memory_bytes=memory_bytes
        )
        started.append(LocalFleet(options).__enter__())
        return started[-1]

    yield fleet
    for one in started:
        one.__exit__(None, None, None)


def a_flow(local: LocalFleet, name: str, *, partitions: int = 1) -> Flow:
    (*_, pipeline) = local.documents([name], max_age_s=0.5)
    return Flow(
        name=name,
        sink={**pipeline["spec"]["sink"], "url": f"{pipeline['spec']['sink']['url']}/{name}"},
        bootstrap=local.stack.bootstrap,
        partitions=partitions,
        pipeline={"cut": {"max_age_s": 0.5}},
    )


async def prove(fleet: Fleet, flow: Flow) -> tuple[Verification, SinkIndex]:
    """Compares source and sink once all is delivered; progress must count the same."""
    ends = await ends_of(flow.bootstrap, flow.name, flow.partitions)
    await fleet.delivers(flow, ends)
    view = fleet.seen.look()
    folder = await asyncio.to_thread(fleet.local.export) / flow.name
    sink = index_sink((folder / "data").rglob("*.parquet"), (folder / "_dead_letters").rglob("*.parquet"))
    found = await verify(flow.bootstrap, {flow.name: flow.partitions}, sink)
    assert found.exact, found.different
    assert found.values_compared == found.total("produced")
    progress = [view.progress[flow.partition(number)] for number in range(flow.partitions)]
    assert sum(one.delivered for one in progress) == found.total("delivered")
    assert sum(one.dead_letters for one in progress) == found.total("dead_letters")
    assert all(one.lost == 0 and one.cut is None and not one.pending for one in progress)
    return found, sink


async def send(flow: Flow, records: Sequence[Hostile], **options: Any) -> None:
    async with producing(flow.bootstrap, **options) as producer:
        for record in records:
            if record.key is None and record.value is None:  # brokers take it, though `send` does not
                batch = producer.create_batch()
                batch.append(key=None, value=None, timestamp=None)
                await producer.flush()
                await (await producer.send_batch(batch, flow.name, partition=0))
            else:
                headers = list(record.headers) or None
                await producer.send(flow.name, record.value, key=record.key, partition=0, headers=headers)
        await producer.flush()


def letters(folder: Path) -> list[dict[str, Any]]:
    return [
        row for path in sorted(folder.rglob("_dead_letters/**/*.parquet")) for row in pq.read_table(path).to_pylist()
    ]


@pytest.mark.parametrize(
    ("broker", "store"), [("embedded", "local"), pytest.param("kafka", "s3", marks=pytest.mark.kafka)]
)
async def test_every_hostile_record_is_a_row_or_a_dead_letter_with_its_bytes(
    start: Callable[..., LocalFleet], broker: BrokerKind, store: StoreKind
) -> None:
    local = start(broker, store, 512 * MIB)
    async with Fleet.of(local) as fleet:
        flow = a_flow(local, "hostile")
        await create_topic(flow.bootstrap, flow.name, settings={"max.message.bytes": str(LARGEST)})
        await fleet.apply(flow)
        await send(flow, SMALL)
        found, sink = await prove(fleet, flow)
        source = Source(flow.name, 0)
        errors = [sink.dead[source, n].error if (source, n) in sink.dead else "" for n in range(len(SMALL))]
        assert errors == [record.error for record in SMALL]
        assert sink.rescued >= sum(record.rescued for record in SMALL)
        assert found.total("produced") == len(SMALL)
        (letter,) = [row for row in letters(local.sink_folder) if row["headers"]]
        kept = [(header["name"], header["value"]) for header in letter["headers"]]
        assert kept == [("trace", b"\x00\xff"), ("trace", b"again")]
        await never_restarted(fleet)


@pytest.mark.kafka
@pytest.mark.parametrize("memory_mib", [512, 1024])
async def test_large_records_stay_within_the_memory_that_the_worker_declares(
    start: Callable[..., LocalFleet], memory_mib: int
) -> None:
    local = start("kafka", "s3", memory_mib * MIB)
    async with Fleet.of(local) as fleet:
        flow = a_flow(local, "large")
        await create_topic(flow.bootstrap, flow.name, settings={"max.message.bytes": str(LARGEST)})
        await fleet.apply(flow)
        await send(flow, LARGE)
        await send(flow, LARGE, compression_type="zstd")
        found, _ = await prove(fleet, flow)
        assert (found.total("dead_letters"), found.total("delivered")) == (4, 4)
        await never_restarted(fleet)
        (peak,) = fleet.seen.memory.peaks.values()
        assert peak <= memory_mib * MIB, f"{peak / MIB:.0f} MiB"


@pytest.mark.parametrize("broker", ["embedded", pytest.param("kafka", marks=pytest.mark.kafka)])
async def test_batches_of_every_codec_arrive(start: Callable[..., LocalFleet], broker: BrokerKind) -> None:
    local = start(broker, "local", 512 * MIB)
    async with Fleet.of(local) as fleet:
        flow = a_flow(local, "codecs")
        await create_topic(flow.bootstrap, flow.name)
        await fleet.apply(flow)
        for codec in (None, *CODECS):
            values = [b'{"codec": "%s", "n": %d}' % (str(codec).encode(), n) for n in range(500)] + [b"bad"]
            await send(flow, [Hostile(value=value) for value in values], compression_type=codec, linger_ms=20)
        found, _ = await prove(fleet, flow)
        assert (found.total("delivered"), found.total("dead_letters")) == (2500, 5)
        await never_restarted(fleet)


@pytest.mark.kafka  # the embedded broker tells wrongly which transactions were aborted, see its docstring
async def test_only_committed_transactions_arrive(start: Callable[..., LocalFleet]) -> None:
    local = start("kafka", "local", 512 * MIB)
    async with Fleet.of(local) as fleet:
        flow = a_flow(local, "transactions", partitions=2)
        await create_topic(flow.bootstrap, flow.name, flow.partitions)
        await fleet.apply(flow)
        committed = await interleave(flow)
        found, _ = await prove(fleet, flow)
        assert found.total("produced") == committed
        folder = local.sink_folder / flow.name / "data"
        outcomes = {row["outcome"] for path in folder.rglob("*.parquet") for row in pq.read_table(path).to_pylist()}
        assert outcomes == {"committed", "plain"}
        await never_restarted(fleet)


async def interleave(flow: Flow) -> int:
    """Two transactional producers and a plain one write by turns; returns how many records count."""
    counting = 0
    async with (
        producing(flow.bootstrap, transactional_id="first") as first,
        producing(flow.bootstrap, transactional_id="second") as second,
        producing(flow.bootstrap) as plain,
    ):
        for number in range(12):
            outcomes = {first: number % 3 == 0, second: number % 2 == 0}  # whether it is aborted
            for producer in outcomes:
                await producer.begin_transaction()
            for turn in range(10):
                partition = (number + turn) % 2
                for producer, aborted in outcomes.items():
                    outcome = "aborted" if aborted else "committed"
                    value = json.dumps({"outcome": outcome, "n": number, "turn": turn}).encode()
                    await (await producer.send(flow.name, value, partition=partition))
                await plain.send_and_wait(flow.name, b'{"outcome": "plain"}', partition=partition)
            for producer, aborted in outcomes.items():
                await (producer.abort_transaction() if aborted else producer.commit_transaction())
            counting += 10 + 10 * list(outcomes.values()).count(False)
    return counting


async def never_restarted(fleet: Fleet) -> None:
    """The worker's session is its first one, its process lives, and nothing failed."""
    failures = await fleet.etcd.list(fleet.local.keys.failures)
    assert [item.value for item in failures.items] == []
    assert all(service.alive for service in fleet.local.workers.values())
