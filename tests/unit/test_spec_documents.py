"""What specs say is read right; what is wrong is told all at once, each with its place."""

import json
from pathlib import Path

import pytest

from sluiceway.common.errors import SpecInvalid
from sluiceway.common.records import SpecRecord
from sluiceway.common.specs.documents import Source, from_record, parse, to_record
from sluiceway.common.specs.models import Cluster, Pipeline, Topic
from sluiceway.common.specs.references import SpecKey

PIPELINE = "kind: Pipeline\nmetadata: {name: other}\nspec: {topics: [orders], sink: {url: URL}}\n"
GOLDEN = Path(__file__).parent / "golden"
GOOD = b"""\
kind: Cluster
metadata: {name: main}
spec: {bootstrap: ["kafka:9092"]}
---
kind: Topic
metadata: {name: orders}
spec: {cluster: main}
---
kind: Pipeline
metadata: {name: sales}
spec:
  topics: [orders]
  sink: {url: "s3://lake/sales/"}
"""


def problems(text: str | bytes, applied: dict[SpecKey, SpecRecord] | None = None) -> list[str]:
    data = text if isinstance(text, bytes) else text.encode()
    with pytest.raises(SpecInvalid) as caught:
        parse([Source("a.yaml", data)], applied or {})
    return caught.value.problems


def applied_from(text: bytes) -> dict[SpecKey, SpecRecord]:
    records = [to_record(document) for document in parse([Source("a.yaml", text)], {})]
    return {SpecKey(record.kind, record.name): record for record in records}


def test_every_kind_is_read_in_order() -> None:
    documents = parse([Source("a.yaml", GOOD)], {})
    assert [type(document) for document in documents] == [Cluster, Topic, Pipeline]
    assert isinstance(documents[2], Pipeline)
    assert documents[2].spec.sink.url == "s3://lake/sales"


def test_every_error_of_every_document_is_told_with_its_place() -> None:
    text, told = GOLDEN / "broken-specs.yaml", GOLDEN / "broken-specs.txt"
    with pytest.raises(SpecInvalid) as caught:
        parse([Source("broken-specs.yaml", text.read_bytes())], {})
    assert caught.value.problems == told.read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize(
    "field",
    [
        "sasl: {mechanism: PLAIN, username: u, password: 's3cr3t-value'}",
        "sasl: {mechanism: PLAIN, username: u, password: 5318008}",
        "sasl: {mechanism: PLAIN, username: u, pasword: 's3cr3t-value'}",
        "sasl: {mechanism: PLAIN, username: u, password: [s3cr3t-value]}",
    ],
)
def test_a_secret_written_by_mistake_is_not_repeated(field: str) -> None:
    told = "\n".join(problems(f"kind: Cluster\nmetadata: {{name: c}}\nspec:\n  bootstrap: ['h:1']\n  {field}\n"))
    assert "spec.sasl.pas" in told
    assert "s3cr3t" not in told
    assert "5318008" not in told


def test_names_in_the_same_files_and_applied_ones_may_be_referred_to() -> None:
    applied = applied_from(GOOD)
    text = b"kind: Pipeline\nmetadata: {name: more}\nspec: {topics: [orders], sink: {url: file:///more}}\n"
    assert [document.metadata.name for document in parse([Source("b.yaml", text)], applied)] == ["more"]


def test_a_document_given_twice_is_told_with_both_places() -> None:
    assert problems(GOOD + b"---\nkind: Topic\nmetadata: {name: orders}\nspec: {cluster: main}\n") == [
        "a.yaml:16:18: metadata.name: expected each document once, found Topic orders again (first at a.yaml:5:1)"
    ]


@pytest.mark.parametrize("url", ["s3://lake/sales", "s3://lake", "s3://lake/sales/deeper"])
def test_two_pipelines_can_not_write_to_one_place(url: str) -> None:
    text = f"kind: Pipeline\nmetadata: {{name: other}}\nspec: {{topics: [orders], sink: {{url: '{url}'}}}}\n"
    assert problems(GOOD.decode() + "---\n" + text) == [
        (
            "a.yaml:17:38: spec.sink.url: expected a place of its own, found one that the pipeline sales (a.yaml:9:1) "
            "writes to as well (s3://lake/sales)"
        )
    ]
    assert problems(text, applied_from(GOOD)) == [
        (
            "a.yaml:3:38: spec.sink.url: expected a place of its own, found one that the applied pipeline sales "
            "writes to as well (s3://lake/sales)"
        )
    ]


@pytest.mark.parametrize(
    "sink", ["{url: 's3://lake/sales2'}", "{url: 's3://lake/sales', s3: {endpoint: 'http://other:9000'}}"]
)
def test_neighbouring_places_and_other_stores_are_no_conflict(sink: str) -> None:
    text = f"kind: Pipeline\nmetadata: {{name: other}}\nspec: {{topics: [orders], sink: {sink}}}\n"
    assert len(parse([Source("a.yaml", GOOD), Source("b.yaml", text.encode())], {})) == 4


def test_problems_of_several_files_come_in_the_files_order() -> None:
    with pytest.raises(SpecInvalid) as caught:
        parse([Source("b.yaml", b"- 1"), Source("a.yaml", b"kind: X")], {})
    assert [problem.split(":")[0] for problem in caught.value.problems] == ["b.yaml", "a.yaml"]


@pytest.mark.parametrize("text", [b"", b"# nothing\n", b"---\n---\n"])
def test_no_document_at_all_is_an_error(text: bytes) -> None:
    assert problems(text) == ["a.yaml: expected at least one document, found none"]


def test_the_hash_depends_on_the_meaning_only() -> None:
    short = parse([Source("a.yaml", GOOD)], {})
    long = parse(
        [Source("b.yaml", GOOD.replace(b"sales/", b"sales").replace(b"spec:\n", b"spec:\n  paused: false\n"))], {}
    )
    assert [to_record(each).hash for each in short] == [to_record(each, at=5.0, by="x").hash for each in long]


def test_a_record_gives_its_document_back() -> None:
    for document in parse([Source("a.yaml", GOOD)], {}):
        assert from_record(to_record(document)) == document


def test_a_record_that_this_version_can_not_read_is_named() -> None:
    record = SpecRecord(kind="Topic", name="t", hash="", document={"kind": "Topic", "spec": {"later": 1}})
    with pytest.raises(SpecInvalid, match="the applied Topic t can't be read by this version"):
        from_record(record)


@pytest.mark.parametrize(
    "url",
    ["s3://lake/a//b", "s3://lake/../b", "file:///./a", "file:////", "s3://lake/a*b", "file:///a{b}", "file:///a\tb"],
)
def test_a_place_with_two_names_or_a_pattern_is_refused(url: str) -> None:
    (told,) = problems(PIPELINE.replace("URL", json.dumps(url)), applied_from(GOOD))
    assert "spec.sink.url: the " in told


@pytest.mark.parametrize(
    ("url", "stored"),
    [("s3://lake", "s3://lake"), ("s3://lake/", "s3://lake"), ("file:///a b/ü=1/", "file:///a b/ü=1")],
)
def test_a_place_is_stored_under_one_name(url: str, stored: str) -> None:
    orders = SpecKey("Topic", "orders")
    text = PIPELINE.replace("URL", json.dumps(url)).encode()
    (document,) = parse([Source("a", text)], {orders: applied_from(GOOD)[orders]})
    assert isinstance(document, Pipeline)
    assert document.spec.sink.url == stored
