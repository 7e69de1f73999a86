"""What decoding costs beside the floor: the same bytes through Arrow's JSON reader alone.

`python -m benchmarks.decode` prints one line of JSON. Times are CPU seconds of the whole process, the best of
several rounds. `fast` and `general` are the decoder's two paths with everything around them (guards, origin columns,
dead letters).
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable

import pyarrow as pa
import pyarrow.json as pj

from sluiceway.common.ids import PartitionId
from sluiceway.common.records import SchemaRecord
from sluiceway.common.specs.models import JsonFormat, Origin
from sluiceway.worker.batches import RecordBlock
from sluiceway.worker.decode.json_records import JsonDecoder, Widening
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


def block_of(values: list[bytes]) -> RecordBlock:
    """The values as one fetched block."""
    return RecordBlock(
        offsets=list(range(len(values))),
        timestamps_ms=[1_770_000_000_000 + index for index in range(len(values))],
        keys=[b"tenant-%d" % (index % 500) for index in range(len(values))],
        values=list(values),
        start_offset=0,
        next_offset=len(values),
        size_bytes=sum(map(len, values)),
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


def measure(values: list[bytes]) -> dict[str, float]:
    """Rates and ratios of the paths for these records."""
    block, text = block_of(values), b"\n".join(values)
    schema = schema_for(block)
    options = pj.ReadOptions(use_threads=False, block_size=len(text) + 1)

    def decode_fast() -> object:
        return decoder().decode(block, schema)

    # One record with a field that can have no column makes the whole block take the general path.
    odd = block_of([values[0][:-1] + b',"_offset":1}', *values[1:]])
    slow = decoder()
    slow.decode(odd, schema)
    slow._pause = 10**9  # measures the general path alone, without the failed fast try before it

    def decode_general() -> object:
        return slow.decode(odd, schema)

    def arrow() -> pa.Table:
        return pj.read_json(pa.BufferReader(text), read_options=options)

    floor, fast, general = best_cpu_s(arrow), best_cpu_s(decode_fast), best_cpu_s(decode_general)
    megabytes = len(text) / 1e6
    return {
        "record_bytes": len(text) // len(values),
        "columns": len(schema.fields),
        **{
            f"{name}_{unit}": round(amount / seconds)
            for name, seconds in (("floor", floor), ("fast", fast), ("general", general))
            for unit, amount in (("records_per_second", len(values)), ("mb_per_second", megabytes))
        },
        "fast_to_floor": round(fast / floor, 2),
        "general_to_floor": round(general / floor, 2),
    }


def main() -> None:
    """Prints the measurements."""
    random_ = random.Random(7)
    narrow = [json.dumps(narrow_event(random_, index), separators=(",", ":")).encode() for index in range(20_000)]
    wide = [json.dumps(wide_event(random_, index), separators=(",", ":")).encode() for index in range(4_000)]
    print(json.dumps({"narrow": measure(narrow), "wide": measure(wide)}))


if __name__ == "__main__":
    main()
