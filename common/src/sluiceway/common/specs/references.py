"""What specs say of each other: names that must exist, places that only one may write.

Works on documents that are right by themselves (`documents`) and on what is applied already. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import NamedTuple

from sluiceway.common.records import SpecRecord
from sluiceway.common.specs.models import Document, Pipeline, Topic
from sluiceway.common.specs.places import Node, Place, Problem
from sluiceway.common.specs.wording import suggestion


class SpecKey(NamedTuple):
    """Kind and name: what identifies a spec."""

    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


@dataclass(frozen=True, slots=True)
class Parsed:
    """A document and where it stands."""

    document: Document
    node: Node

    @property
    def key(self) -> SpecKey:
        return SpecKey(self.document.kind, self.document.metadata.name)

    def place(self, *steps: str | int) -> Place:
        """The place of a field, or of the nearest thing around it."""
        node = self.node
        for step in steps:
            child = node.child(step)
            if child is None:
                break
            node = child
        return node.place


class SinkPlace(NamedTuple):
    """Where a pipeline writes, so that two places can be compared."""

    store: str
    path: str

    def around(self) -> Iterator[SinkPlace]:
        """This place and every one that it lies in, down to the bucket or root."""
        path = self.path
        while not path.endswith(":/") and path:
            yield SinkPlace(self.store, path)
            path = path.rpartition("/")[0]


def sink_place(spec: Mapping[str, object]) -> SinkPlace:
    """The place that a pipeline's `spec` part (as plain values) writes to."""
    sink = spec.get("sink")
    assert isinstance(sink, Mapping)
    s3 = sink.get("s3")
    endpoint = str(s3.get("endpoint") or "") if isinstance(s3, Mapping) else ""
    url = str(sink.get("url"))
    return SinkPlace(endpoint.rstrip("/").lower() if url.startswith("s3:") else "", url.rstrip("/"))


def references_of(kind: str, spec: Mapping[str, object]) -> list[SpecKey]:
    """The specs that a `spec` part (as plain values) needs."""
    if kind == "Topic":
        return [SpecKey("Cluster", str(spec["cluster"]))]
    topics = spec.get("topics")
    return [SpecKey("Topic", str(name)) for name in topics] if isinstance(topics, list) else []


def check(
    parsed: Sequence[Parsed], applied: Mapping[SpecKey, SpecRecord], broken: Set[SpecKey] = frozenset()
) -> list[Problem]:
    """Duplicates, references to nothing, and pipelines that write to one place.

    Args:
        applied: what exists already.
        broken: documents whose own problems are reported elsewhere; referring to them is no further problem.
    """
    known = {*applied, *broken, *(each.key for each in parsed)}
    return [*_duplicates(parsed), *_dangling(parsed, known), *_shared_sinks(parsed, applied)]


def _duplicates(parsed: Sequence[Parsed]) -> Iterator[Problem]:
    first: dict[SpecKey, Parsed] = {}
    for each in parsed:
        earlier = first.setdefault(each.key, each)
        if earlier is not each:
            said = f"expected each document once, found {each.key} again (first at {earlier.node.place})"
            yield Problem(each.place("metadata", "name"), "metadata.name", said)


def _dangling(parsed: Sequence[Parsed], known: set[SpecKey]) -> Iterator[Problem]:
    for each in parsed:
        match each.document:
            case Topic(spec=topic):
                if (wanted := SpecKey("Cluster", topic.cluster)) not in known:
                    yield Problem(each.place("spec", "cluster"), "spec.cluster", _unknown(wanted, known))
            case Pipeline(spec=pipeline):
                for number, name in enumerate(pipeline.topics):
                    if (wanted := SpecKey("Topic", name)) not in known:
                        place = each.place("spec", "topics", number)
                        yield Problem(place, f"spec.topics[{number}]", _unknown(wanted, known))


def _unknown(wanted: SpecKey, known: set[SpecKey]) -> str:
    near = suggestion(wanted.name, [key.name for key in known if key.kind == wanted.kind])
    return f"expected a {wanted.kind} that is applied already or with this, found none named {wanted.name!r}{near}"


def _shared_sinks(parsed: Sequence[Parsed], applied: Mapping[SpecKey, SpecRecord]) -> Iterator[Problem]:
    """Each pipeline against those before it and against those applied that this does not replace."""
    replaced = {each.key for each in parsed}
    taken = _Taken()
    for key, record in sorted(applied.items()):
        spec = record.document.get("spec")
        if key.kind == "Pipeline" and key not in replaced and isinstance(spec, Mapping):
            taken.add(sink_place(spec), f"the applied pipeline {key.name}")
    for each in parsed:
        if not isinstance(each.document, Pipeline):
            continue
        here = sink_place(each.document.spec.model_dump(mode="json"))
        if conflict := taken.conflict(here):
            owner, there = conflict
            said = f"expected a place of its own, found one that {owner} writes to as well ({there.path})"
            yield Problem(each.place("spec", "sink", "url"), "spec.sink.url", said)
        taken.add(here, f"the pipeline {each.key.name} ({each.node.place})")


class _Taken:
    """Places with their owners; finds whether one is, holds or lies in another without comparing all pairs."""

    def __init__(self) -> None:
        self._owners: dict[SinkPlace, tuple[str, SinkPlace]] = {}
        self._inside: dict[SinkPlace, tuple[str, SinkPlace]] = {}

    def add(self, place: SinkPlace, owner: str) -> None:
        self._owners.setdefault(place, (owner, place))
        for outer in place.around():
            self._inside.setdefault(outer, (owner, place))

    def conflict(self, place: SinkPlace) -> tuple[str, SinkPlace] | None:
        found = (self._owners.get(outer) for outer in place.around())
        return next((each for each in found if each), self._inside.get(place))
