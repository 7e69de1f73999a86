"""No text, however hostile, does more to the reader of specs than be refused."""

import json

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from sluiceway.common.errors import SpecInvalid
from sluiceway.common.specs.documents import Source, canonical, from_record, parse, to_record
from sluiceway.common.specs.models import Cluster, Document, Pipeline, Topic

FRAGMENTS = st.sampled_from(
    ["kind: ", "Pipeline", "metadata:", "\n", "  ", "- ", "spec:", "{", "}", "[", "]", "&a ", "*a", "!!str ", "? ",
     ": ", "---\n", "...\n", "'", '"', "|\n", ">", "%YAML 1.2\n", "<<: ", "name: x", "topics", "\t", "\0", "\ufeff",
     "ü", "1e9", "#", ",", "url: s3://b", "\x85", "\u2028", "\r", "0x", "-"]
)  # fmt: skip
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20)
FIELDS = st.sampled_from(
    ["kind", "metadata", "spec", "name", "topics", "sink", "url", "cut", "bootstrap", "cluster", "sasl", "x", "labels"]
)
VALUES = st.recursive(
    SCALARS | st.sampled_from(["Pipeline", "Topic", "Cluster", "sluiceway/v1", "s3://bucket/x", "h:1"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(FIELDS, inner, max_size=6),
    max_leaves=20,
)
PRINTABLE = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Zl", "Zp")), max_size=8)
NAMES = st.from_regex(r"[a-zA-Z0-9]([a-zA-Z0-9._-]{0,20}[a-zA-Z0-9])?", fullmatch=True)


def refused_or_read(text: bytes) -> list[Document]:
    problems: list[str] = []
    try:
        return parse([Source("f", text)], {})
    except SpecInvalid as error:
        problems = error.problems
    assert problems
    assert all(problem.startswith("f:") for problem in problems)
    return []


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(text: bytes) -> None:
    refused_or_read(text)


@given(st.lists(FRAGMENTS, max_size=60).map("".join))
@settings(max_examples=400)
def test_any_mixture_of_yaml_is_read_or_refused(text: str) -> None:
    refused_or_read(text.encode())


@given(VALUES)
@settings(max_examples=300)
def test_any_tree_is_read_or_refused(tree: object) -> None:
    refused_or_read(yaml.safe_dump(tree, allow_unicode=True).encode())


DOCUMENTS = st.one_of(
    st.builds(
        lambda name, port: Cluster.model_validate(
            {"metadata": {"name": name}, "spec": {"bootstrap": [f"host:{port}"], "tls": {}}}
        ),
        NAMES,
        st.integers(1, 65535),
    ),
    st.builds(
        lambda name, cluster: Topic.model_validate({"metadata": {"name": name}, "spec": {"cluster": cluster}}),
        NAMES,
        NAMES,
    ),
    st.builds(
        lambda name, topics, age, labels: Pipeline.model_validate(
            {
                "metadata": {"name": name, "labels": labels},
                "spec": {"topics": topics, "sink": {"url": "s3://lake/x"}, "cut": {"max_age_s": age}},
            }
        ),
        NAMES,
        st.lists(NAMES, min_size=1, max_size=3, unique=True),
        st.floats(0.001, 1e6),
        st.dictionaries(PRINTABLE, PRINTABLE, max_size=3),
    ),
)


@given(DOCUMENTS)
def test_a_document_written_out_and_read_again_is_the_same(document: Document) -> None:
    assert from_record(to_record(document)) == document
    written = json.dumps(canonical(document), ensure_ascii=False).encode()
    others: list[Document] = [
        *(Topic.model_validate({"metadata": {"name": n}, "spec": {"cluster": "c"}}) for n in _topics(document)),
        Cluster.model_validate({"metadata": {"name": _cluster(document)}, "spec": {"bootstrap": ["h:1"]}}),
    ]
    if isinstance(document, Pipeline):
        others.append(Cluster.model_validate({"metadata": {"name": "c"}, "spec": {"bootstrap": ["h:1"]}}))
    needed = [Source(f"n{i}", json.dumps(canonical(each)).encode()) for i, each in enumerate(others)]
    read = parse([Source("f", written), *needed], {})
    assert read[0] == document
    assert to_record(read[0]).hash == to_record(document).hash


def _topics(document: Document) -> list[str]:
    return document.spec.topics if isinstance(document, Pipeline) else []


def _cluster(document: Document) -> str:
    if isinstance(document, Topic):
        return document.spec.cluster
    return f"{document.metadata.name}2"
