from __future__ import annotations

import json
from collections import Counter

from sluiceway.cli.demo.generate import Traffic, events

TRAFFIC = Traffic(records=30_000, seed=5)


def records(traffic: Traffic) -> list[tuple[bytes, bytes | None, int]]:
    return [record for chunk in events(traffic) for record in chunk]


def parsed(value: bytes | None) -> dict[str, object] | None:
    try:
        document = json.loads(value or b"")
    except ValueError:
        return None
    return document if isinstance(document, dict) else None


def test_the_same_seed_makes_the_same_records() -> None:
    assert records(TRAFFIC) == records(TRAFFIC)
    assert records(TRAFFIC)[:100] != records(Traffic(records=30_000, seed=6))[:100]


def test_times_rise_and_ids_are_unique() -> None:
    made = records(TRAFFIC)
    times = [at_ms for _, _, at_ms in made]
    ids = [document["id"] for _, value, _ in made if (document := parsed(value)) and "id" in document]

    assert times == sorted(times)
    assert len(ids) == len(set(ids)) > 29_900


def test_tenants_are_heavy_tailed_and_one_spikes_tenfold() -> None:
    made = [
        (document["tenant"], place)
        for place, (_, value, _) in enumerate(records(TRAFFIC))
        if (document := parsed(value))
    ]
    spike = Counter(tenant for tenant, place in made if 12_000 <= place < 18_000)
    quiet = Counter(tenant for tenant, place in made if place < 6_000)

    assert quiet.most_common(1)[0][0] == "tenant-000"
    assert quiet["tenant-000"] > 5 * quiet["tenant-010"]
    assert 4 < spike["tenant-003"] / quiet["tenant-003"] < 12  # its share of a larger sum


def test_many_kinds_with_different_fields_are_interleaved() -> None:
    first = [document for _, value, _ in records(TRAFFIC)[:2_000] if (document := parsed(value))]

    assert len({str(document["kind"]) for document in first}) == 8
    assert {type(document["user"]) for document in first if "user" in document} == {str, dict}


def test_about_one_in_a_thousand_is_malformed_and_the_rest_is_not() -> None:
    whole = [value for _, value, _ in records(Traffic(records=30_000, seed=5, malformed_share=0))]
    odd = sum(value != other for value, (_, other, _) in zip(whole, records(TRAFFIC), strict=True))

    assert all(parsed(value) for value in whole)
    assert 10 < odd < 60


def test_records_are_about_three_hundred_bytes() -> None:
    sizes = [len(value or b"") for _, value, _ in records(TRAFFIC)]

    assert 250 < sum(sizes) / len(sizes) < 350
