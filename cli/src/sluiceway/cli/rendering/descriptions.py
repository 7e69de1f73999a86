"""Everything about one pipeline, topic, cluster, worker or partition. Pure."""

from __future__ import annotations

from typing import Final

import msgspec

from sluiceway.cli.rendering import events, partitions, specs, workers
from sluiceway.cli.tables import Description, Section
from sluiceway.cli.view import View
from sluiceway.common.records import SpecRecord
from sluiceway.common.specs.wording import suggestion

_EVENTS: Final = 20


class Unknown(Exception):
    """There is no such thing. The message names the nearest."""


def pipeline(name: str, view: View) -> Description:
    record = _spec("pipelines", name, view)
    row = dict(specs.pipeline(name, record, view))
    del row["leased_of_all"], row["unplaced"]
    facts = {**row, **_applied(record)}
    sections = [
        _spec_section(record),
        Section(title="Partitions", key="partition_states", table=partitions.partitions(view, view.partitions(name))),
        _events(f"pipeline/{name}", view),
    ]
    return Description(facts=facts, sections=sections)


def topic(name: str, view: View) -> Description:
    record = _spec("topics", name, view)
    facts = {"name": name, "pipelines": specs.pipelines_of(name, view), **_applied(record)}
    return Description(facts=facts, sections=[_spec_section(record), _events(f"topic/{name}", view)])


def cluster(name: str, view: View) -> Description:
    record = _spec("clusters", name, view)
    facts = {"name": name, "topics": specs.topics_of(name, view), **_applied(record)}
    return Description(facts=facts, sections=[_spec_section(record), _events(f"cluster/{name}", view)])


def worker(name: str, view: View) -> Description:
    if name not in view.workers and name not in view.cordons:
        raise Unknown(f"no worker {name!r} is registered{suggestion(name, view.workers)}")
    mine = [each for each, held in view.leases.items() if held.record.holder == name]
    row = dict(workers.worker(name, len(mine), view))
    capacity = row.pop("capacity")
    refuses = row.pop("refuses")
    cordon = view.cordons.get(name)
    return Description(
        facts={**row, "cordon": f"by {cordon.by}: {cordon.reason or 'no reason given'}" if cordon else None},
        sections=[
            Section(title="Capacity", key="capacity", facts=msgspec.to_builtins(capacity)),
            Section(title="Refuses", key="refuses", facts=refuses if isinstance(refuses, dict) else {}),
            Section(title="Leases", key="leases", table=partitions.leases(view, mine)),
            _events(name, view),
        ],
    )


def partition(name: str, view: View) -> Description:
    known = {*view.leases, *view.progress, *view.failures, *(p for s in view.states.values() for p in s.unplaced)}
    if name not in known:
        near = suggestion(name, known) or "; `sluiceway describe pipeline NAME` lists a pipeline's partitions"
        raise Unknown(f"no partition {name!r} is known{near}")
    held, failure, done, usage = (
        view.leases.get(name),
        view.failures.get(name),
        view.progress.get(name),
        view.usage(name),
    )
    sections = [
        Section(title=title, key=title.lower(), facts=msgspec.to_builtins(record))
        for title, record in (
            ("Lease", held.record if held else None),
            ("Progress", done),
            ("Failure", failure),
            ("Usage", usage),
        )
        if record is not None
    ]
    facts = {**partitions.partition(name, view), "token": held.token if held else None}
    return Description(facts=facts, sections=[*sections, _events(name, view)])


def _spec(plural: str, name: str, view: View) -> SpecRecord:
    known = view.named(plural)
    if name not in known:
        raise Unknown(f"no {plural.removesuffix('s')} {name!r} is applied{suggestion(name, known)}")
    return known[name]


def _applied(record: SpecRecord) -> dict[str, object]:
    return {"spec_hash": record.hash, "applied_by": record.applied_by, "applied_at": record.applied_at}


def _spec_section(record: SpecRecord) -> Section:
    return Section(title="Spec", key="spec", facts=dict(specs.spec_of(record)))


def _events(name: str, view: View) -> Section:
    return Section(title="Events", key="events", table=events.events(events.about(name, view.events, _EVENTS)))
