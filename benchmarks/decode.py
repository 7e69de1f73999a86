"""What decoding costs beside the floor: the same bytes through Arrow's JSON reader alone.

`python -m benchmarks.decode [FILE.ndjson.gz …]` prints a line of JSON for each kind of records. Times are
microseconds of the process's CPU a record, the best of several rounds: `decoded` is the decoder with everything around
it (guards, origin columns, dead letters), `general` its general path alone.
"""

from __future__ import annotations

import gc
import gzip
import json
import random
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.json as pj

from sluiceway.cli.demo.generate import Traffic, events
from sluiceway.common.ids import PartitionId
from sluiceway.common.records import SchemaRecord
from sluiceway.common.specs.models import JsonFormat, Origin
from sluiceway.worker.batches import RecordBlock
from sluiceway.worker.decode import general
from sluiceway.worker.decode.json_records import JsonDecoder, Widening
from sluiceway.worker.decode.layout import layout_of
from sluiceway.worker.decode.parts import join
from sluiceway.worker.decode.schema import to_text

ROUNDS = 7


def narrow_event(random_: random.Random, index: int) -> dict[str, object]:
    """A flow record: about 300 bytes, always the same fields."""
    return {
        "tenant": f"tenant-{int(random_.paretovariate(1.2)) % 500}",
        "time": f"2026-03-01T{index // 3600 % 24:02}:{index // 60 % 60:02}:{index % 60:02}.{index % 1000:03}Z",
        "kind": random_.choice(("dns", "flow", "login", "process")),
        "source": {"ip": f"10.{index % 250}.{index % 199}.7", "port": 1024 + index % 60000},
        "target": {"ip": f"192.168.{index % 250}.{index % 241}", "port": random_.choice((53, 80, 443))},
        "bytes": int(random_.paretovariate(0.9)) % 10**9,
        "duration": round(random_.expovariate(2), 6),
        "user": f"user{random_.randrange(5000)}@example.org",
        "allowed": random_.random() < 0.95,
        "tags": ["edge", random_.choice(("a", "b", "c"))],
    }


def wide_event(random_: random.Random, index: int) -> dict[str, object]:
    """A host event: about 2 kB, forty of 160 fields, by kind."""
    kind = random_.randrange(8)
    event: dict[str, object] = {"EventID": 4600 + kind, "RecordNumber": index, "Hostname": f"host{index % 97}.corp"}
    for number in range(18):
        event[f"Field{kind}_{number}"] = f"{random_.randrange(10**12):x} \\Device\\HarddiskVolume{number}"
    for number in range(12):
        event[f"Common{number}"] = random_.randrange(10**6) if number % 2 else f"S-1-5-21-{random_.randrange(10**9)}"
    event["Message"] = f"A handle to an object was requested.\r\n\r\nSubject:\r\n\tAccount: {index}\r\n" * 9
    return event


def block_of(values: Sequence[bytes | None]) -> RecordBlock:
    """The values as one fetched block."""
    return RecordBlock(
        offsets=list(range(len(values))),
        timestamps_ms=[1_770_000_000_000 + index for index in range(len(values))],
        keys=[b"tenant-%d" % (index % 500) for index in range(len(values))],
        values=list(values),
        start_offset=0,
        next_offset=len(values),
        size_bytes=sum(len(value or b"") for value in values),
    )


def schema_for(block: RecordBlock) -> SchemaRecord:
    """The schema that the block widens to from nothing."""
    schema = SchemaRecord(version=0, fields={})
    while isinstance(outcome := decoder().decode(block, schema), Widening):
        fields = {name: to_text(kind) for name, kind in outcome.fields.items()}
        schema = SchemaRecord(version=schema.version + 1, fields=fields)
    return schema


def decoder() -> JsonDecoder:
    """A decoder with default settings."""
    return JsonDecoder(PartitionId("bench", "events", 0, 0), JsonFormat(), Origin())


def best_cpu_s(work: Callable[[], object]) -> float:
    """The least CPU time of the process over some rounds."""
    times = []
    for _ in range(ROUNDS):
        started = time.process_time()
        work()
        times.append(time.process_time() - started)
    return min(times)


def measure(values: Sequence[bytes | None], plain: Sequence[bytes]) -> dict[str, float]:
    """Rates of the decoder and of its general path for these records, beside Arrow's reader for the plain ones."""
    block, text = block_of(values), b"\n".join(plain)
    schema = schema_for(block)
    layout = layout_of(tuple(schema.fields.items()), decoder().limits)
    options = pj.ReadOptions(use_threads=False, block_size=len(text) + 1)

    def read_generally() -> object:
        return join(general.read(values, range(len(values)), layout, 2**24), layout)

    one = decoder()  # it goes by what the last blocks were like
    decoded_s = best_cpu_s(lambda: one.decode(block, schema)) / len(values)
    general_s = best_cpu_s(read_generally) / len(values)
    floor_s = best_cpu_s(lambda: pj.read_json(pa.BufferReader(text), read_options=options)) / len(plain)
    return {
        "record_bytes": block.size_bytes // len(values),
        "columns": len(schema.fields),
        "floor_us": round(1e6 * floor_s, 2),
        "decoded_us": round(1e6 * decoded_s, 2),
        "general_us": round(1e6 * general_s, 2),
        "decoded_to_floor": round(decoded_s / floor_s, 2),
        "general_to_floor": round(general_s / floor_s, 2),
        "records_per_second": round(1 / decoded_s),
    }


def malformed(random_: random.Random, value: bytes) -> bytes:
    """A record that is none, in one of the ways that occur."""
    forms = (value[: len(value) // 2], value[:-1] + b',"x":NaN}', value.replace(b"tenant", b"ten\xff", 1), b"")
    return random_.choice(forms)


def conflicting(value: bytes) -> bytes:
    """The record with a number where the others have a text."""
    return re.sub(rb'"user":"[^"]*"', b'"user":17.5', value)


def of_demo(count: int, **traffic: Any) -> list[bytes | None]:
    """The demo's records."""
    return [value for chunk in events(Traffic(records=count, **traffic)) for _, value, _ in chunk]


def cases() -> Iterator[tuple[str, Sequence[bytes | None], Sequence[bytes]]]:
    """What to measure: a name, the records, and records as near to them as Arrow's reader can read at all."""
    random_ = random.Random(7)
    narrow = [json.dumps(narrow_event(random_, index), separators=(",", ":")).encode() for index in range(20_000)]
    wide = [json.dumps(wide_event(random_, index), separators=(",", ":")).encode() for index in range(4_000)]
    yield "narrow", narrow, narrow
    yield "wide", wide, wide
    yield "malformed_0.1%", [malformed(random_, v) if random_.random() < 0.001 else v for v in narrow], narrow
    yield "conflicting_5%", [conflicting(v) if random_.random() < 0.05 else v for v in narrow], narrow
    steady = [value or b"" for value in of_demo(28_000, steady_types=True, malformed_share=0)]
    yield "demo", of_demo(28_000), steady
    for path in sys.argv[1:]:
        lines = gzip.decompress(Path(path).read_bytes()).splitlines()
        some = random_.sample(lines, min(4_000, len(lines)))
        yield Path(path).name, some, some


def main() -> None:
    """Prints the measurements."""
    gc.set_threshold(20_000, 20, 50)  # as the worker does
    for name, values, plain in cases():
        print(json.dumps({name: measure(values, plain)}), flush=True)


if __name__ == "__main__":
    main()
