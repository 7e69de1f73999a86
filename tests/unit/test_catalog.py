"""From a partition to the specs that its runner is built from."""

import pytest

from sluiceway.common.errors import SpecInvalid
from sluiceway.common.etcd.api import KeyValue
from sluiceway.common.ids import PartitionId
from sluiceway.common.keys import Keys
from sluiceway.common.records import SpecRecord, encode
from sluiceway.worker.catalog import pipelines, resolve

KEYS = Keys("test")
PARTITION = PartitionId("sales", "orders", 0, 3)
DOCUMENTS = {
    ("clusters", "Cluster", "main"): {"bootstrap": ["kafka:9092"]},
    ("topics", "Topic", "orders"): {"cluster": "main", "physical": "orders.v7"},
    ("pipelines", "Pipeline", "sales"): {"topics": ["orders"], "sink": {"url": "file:///tmp/sales"}},
}


def applied(**hashes: str) -> dict[str, KeyValue]:
    items = {}
    for (plural, kind, name), spec in DOCUMENTS.items():
        document: dict[str, object] = {"kind": kind, "metadata": {"name": name}, "spec": spec}
        record = SpecRecord(kind=kind, name=name, hash=hashes.get(plural, "1"), document=document)
        key = KEYS.spec(plural, name)
        items[key] = KeyValue(key, encode(record), 1, 1, 1, 0)
    return items


def test_a_partition_leads_to_its_pipeline_topic_and_cluster() -> None:
    resolved = resolve(applied(), KEYS, PARTITION)
    assert (resolved.topic, resolved.cluster_name) == ("orders.v7", "main")
    assert resolved.cluster.bootstrap == ["kafka:9092"]
    assert resolved.pipeline.topics == ["orders"]


@pytest.mark.parametrize("changed", ["clusters", "topics", "pipelines"])
def test_the_hash_changes_with_any_of_the_specs_behind_it(changed: str) -> None:
    before = resolve(applied(), KEYS, PARTITION).hash
    assert resolve(applied(), KEYS, PARTITION).hash == before
    assert resolve(applied(**{changed: "2"}), KEYS, PARTITION).hash != before


def test_a_missing_spec_is_named() -> None:
    items = applied()
    del items[KEYS.spec("topics", "orders")]
    with pytest.raises(SpecInvalid, match="Topic 'orders' is not applied"):
        resolve(items, KEYS, PARTITION)


def test_a_spec_of_a_newer_version_is_refused_with_its_place() -> None:
    items = applied()
    key = KEYS.spec("topics", "orders")
    record = SpecRecord(
        kind="Topic",
        name="orders",
        hash="1",
        document={"kind": "Topic", "metadata": {"name": "orders"}, "spec": {"clusters": ["a", "b"]}},
    )
    items[key] = KeyValue(key, encode(record), 1, 1, 1, 0)
    with pytest.raises(SpecInvalid, match="spec/topics/orders: this worker can't read"):
        resolve(items, KEYS, PARTITION)


def test_pipelines_that_cannot_be_read_are_left_out() -> None:
    items = applied()
    unreadable = KEYS.spec("pipelines", "newer")
    items[unreadable] = KeyValue(unreadable, b"{}", 1, 1, 1, 0)
    assert [spec.topics for spec in pipelines(items, KEYS)] == [["orders"]]
