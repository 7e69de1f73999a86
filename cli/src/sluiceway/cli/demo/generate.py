"""Security telemetry that looks real, as fast as a broker takes it.

Role: source of the demo's and the benchmark's records. Many tenants with heavy-tailed sizes, many kinds of events
interleaved, a tenfold spike of one tenant, a small share of malformed records. Pure and seeded: the same `Traffic`
gives the same records. Events are rendered once as templates per host; a record is then one `%` operation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import accumulate
from random import Random
from typing import Final, NamedTuple

import orjson

from sluiceway.cli.demo.kinds import CHANGING, COUNTER, EVENT_KINDS

Generated = tuple[bytes, bytes | None, int]
"""Key, value, timestamp in milliseconds."""

CHUNK: Final = 1000
"""Records in a chunk of `events`."""

_GOLDEN: Final = 0x9E3779B97F4A7C15  # an odd number: multiples modulo 2**64 never repeat, so every id is unique
_MASK: Final = 2**64 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """What to generate. Shares are of all records; times are in milliseconds since the epoch."""

    records: int
    seed: int = 0
    tenants: int = 50
    zipf_exponent: float = 1.1
    start_ms: int = 1_750_000_000_000
    records_per_second: int = 20_000  # of event time, not of the wall clock
    spike: tuple[float, float] = (0.4, 0.6)  # from and to, as shares of the records
    spike_factor: int = 10
    malformed_share: float = 0.001
    steady_types: bool = False  # give every field one type, as readers with one schema a file need it


class _Template(NamedTuple):
    key: bytes
    layout: bytes  # four slots: second, millisecond, id, counter
    epoch: bool  # whether times are numbers of seconds rather than text


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fleet:
    templates: list[_Template]
    quiet: list[float]  # cumulative weights of the templates
    spiking: list[float]  # the same with one tenant's weight raised


def events(traffic: Traffic) -> Iterator[list[Generated]]:
    """All records in chunks, in order of time."""
    random = Random(traffic.seed)  # noqa: S311 (no secrets here)
    oddities = Random(traffic.seed + 1)  # noqa: S311 (so that well-formed records don't depend on the malformed ones)
    fleet = _render_fleet(traffic, random)
    first, last = (round(share * traffic.records) for share in traffic.spike)
    for start in range(0, traffic.records, CHUNK):
        count = min(CHUNK, traffic.records - start)
        weights = fleet.spiking if first <= start < last else fleet.quiet
        chosen = random.choices(fleet.templates, cum_weights=weights, k=count)
        chunk = _fill(chosen, start, traffic)
        for index in _rare(oddities, count, traffic.malformed_share):
            key, value, at_ms = chunk[index]
            chunk[index] = (key, _deform(oddities, value or b""), at_ms)
        yield chunk


def _fill(chosen: list[_Template], start: int, traffic: Traffic) -> list[Generated]:
    chunk: list[Generated] = []
    second, prefixes = -1, (b"", b"")
    for number, (key, layout, epoch) in enumerate(chosen, start):
        at_ms = traffic.start_ms + number * 1000 // traffic.records_per_second
        whole, millisecond = divmod(at_ms, 1000)
        if whole != second:
            second, prefixes = whole, _prefixes(whole)
        identity = (traffic.seed + number * _GOLDEN) & _MASK
        chunk.append((key, layout % (prefixes[epoch], millisecond, identity, identity >> 44), at_ms))
    return chunk


def _prefixes(second: int) -> tuple[bytes, bytes]:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S").encode(), b"%d" % second


def _render_fleet(traffic: Traffic, random: Random) -> _Fleet:
    sizes = [1 / rank**traffic.zipf_exponent for rank in range(1, traffic.tenants + 1)]
    spiking_tenant = min(3, traffic.tenants - 1)  # not the largest: a spike of a middling tenant is the harder case
    templates: list[_Template] = []
    quiet: list[float] = []
    spiking: list[float] = []
    for number, size in enumerate(sizes):
        own = _render_tenant(f"tenant-{number:03d}", max(2, round(100 * size)), random, traffic.steady_types)
        templates += own
        quiet += [size / len(own)] * len(own)
        spiking += [size * (traffic.spike_factor if number == spiking_tenant else 1) / len(own)] * len(own)
    return _Fleet(templates=templates, quiet=list(accumulate(quiet)), spiking=list(accumulate(spiking)))


def _render_tenant(tenant: str, hosts: int, random: Random, steady: bool) -> list[_Template]:
    kinds = list(EVENT_KINDS)
    shares = [share for share, _ in EVENT_KINDS.values()]
    return [
        _render(tenant, f"host-{host:03d}.{tenant}.example", kind, random, steady)
        for host in range(hosts)
        for kind in random.choices(kinds, shares, k=16)
    ]


def _render(tenant: str, host: str, kind: str, random: Random, steady: bool) -> _Template:
    epoch = kind in ("network_flow", "dns") and not steady
    fields = EVENT_KINDS[kind][1](random)
    if steady:
        fields = {f"{kind}_{name}": _steady(name, value) for name, value in fields.items()}
    document = {"ts": "@TS@", "id": "@ID@", "tenant": tenant, "host": host, "kind": kind, **fields}
    text = orjson.dumps(document).replace(b"%", b"%%").replace(b"@ID@", b"%016x")
    text = text.replace(b'"@TS@"', b"%b.%03d" if epoch else b'"%b.%03dZ"')
    # In one of eight hosts' templates the counter arrives as text, as from another version of an agent.
    counter = b'"%d"' if random.random() < 0.125 and not steady else b"%d"
    text = text.replace(b'"' + COUNTER.encode() + b'"', counter)
    return _Template(host.encode(), text, epoch)


def _steady(name: str, value: object) -> object:
    if name == "process" and isinstance(value, str):
        return {"image": value}
    return orjson.dumps(value).decode() if name in CHANGING and not isinstance(value, str) else value


def _rare(random: Random, count: int, share: float) -> list[int]:
    return [index for index in range(count) if random.random() < share]


def _deform(random: Random, value: bytes) -> bytes | None:
    """A record that is malformed, or odd enough that careless readers stumble over it."""
    body = value[:-1]
    forms: tuple[bytes | None, ...] = (
        value[: len(value) // 2],
        b"<134>1 host-000 app - - - not JSON at all",
        b"",
        None,  # a tombstone
        body.replace(b"tenant", b"ten\xff\xfeant", 1) + b"}",  # not UTF-8
        value.decode().encode("utf-16"),
        b"[" + value + b"]",
        b"42",
        b'"only a text"',
        b"null",
        body + b',"score":NaN}',
        body + b',"score":1e999}',
        body + b',"ratio":123456789012345678901234567890}',  # beyond 64 bits
        body + b',"tenant":"given-twice"}',
        body + b',"":"a field without a name"}',
        body + b',"deep":' + b'{"d":' * 600 + b"1" + b"}" * 601,
        body + b',"note":"a raw \n line break"}',
        body + b',"lone":"\\ud800"}',  # half of a surrogate pair
        value + b"}",
        value + b" " + value,
        body + b',"blob":"' + b"x" * 60_000 + b'"}',
        b"\xef\xbb\xbf" + value,  # byte order mark
        b"  \n",
    )
    return random.choice(forms)
