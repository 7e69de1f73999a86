"""get and describe: what the fleet is like."""

from __future__ import annotations

from collections.abc import Callable, Set
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Annotated, Final

import typer

from sluiceway.cli.connection import operator
from sluiceway.cli.output import Form, FormOption, print_description, print_table
from sluiceway.cli.reading import read_view
from sluiceway.cli.rendering import descriptions, partitions, specs, workers
from sluiceway.cli.tables import Description, Table
from sluiceway.cli.view import Part, View
from sluiceway.common.errors import SluicewayError
from sluiceway.common.specs.wording import suggestion


class Listed(StrEnum):
    """What `get` lists."""

    PIPELINES = "pipelines"
    TOPICS = "topics"
    CLUSTERS = "clusters"
    WORKERS = "workers"
    LEASES = "leases"
    PROGRESS = "progress"


class Described(StrEnum):
    """What `describe` tells of."""

    PIPELINE = "pipeline"
    TOPIC = "topic"
    CLUSTER = "cluster"
    WORKER = "worker"
    PARTITION = "partition"


@dataclass(frozen=True, slots=True)
class _Listing:
    parts: Set[Part]
    table: Callable[[View], Table]
    name: str = "name"


_LISTINGS: Final = {
    Listed.PIPELINES: _Listing({Part.SPECS, Part.STATES, Part.LEADER}, specs.pipelines),
    Listed.TOPICS: _Listing({Part.SPECS}, specs.topics),
    Listed.CLUSTERS: _Listing({Part.SPECS}, specs.clusters),
    Listed.WORKERS: _Listing({Part.WORKERS, Part.CORDONS, Part.LEASES, Part.LOADS}, workers.workers),
    Listed.LEASES: _Listing({Part.LEASES}, partitions.leases, "partition"),
    Listed.PROGRESS: _Listing({Part.PROGRESS, Part.LEASES, Part.LOADS}, partitions.progress, "partition"),
}
_DESCRIPTIONS: Final[dict[Described, Callable[[str, View], Description]]] = {
    Described.PIPELINE: descriptions.pipeline,
    Described.TOPIC: descriptions.topic,
    Described.CLUSTER: descriptions.cluster,
    Described.WORKER: descriptions.worker,
    Described.PARTITION: descriptions.partition,
}


def register(app: typer.Typer) -> None:
    app.command("get")(get)
    app.command("describe")(describe)


def get(
    context: typer.Context,
    kind: Annotated[Listed, typer.Argument(help="What to list.")],
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Only these.")] = None,
    pipeline: Annotated[str | None, typer.Option(help="Leases and progress: only this pipeline's.")] = None,
    worker: Annotated[str | None, typer.Option(help="Leases: only this worker's.")] = None,
    output: FormOption = Form.TABLE,
) -> None:
    """List pipelines, topics, clusters, workers, leases or progress.

    [bold]Examples[/bold]

      sluiceway get pipelines

      sluiceway get leases --worker worker-1 -o wide

      sluiceway get progress --pipeline sales -o json
    """
    listing = _LISTINGS[kind]
    view = operator(context).run(lambda fleet: read_view(fleet, listing.parts, pipeline))
    table = _chosen(listing.table(view), listing.name, names or [])
    if worker is not None:
        table = _where(table, lambda row: row.get("worker") == worker)
    print_table(table, output)
    if not view.led and output in (Form.TABLE, Form.WIDE):
        typer.echo("no scheduler is leading: conditions may be out of date", err=True)


def describe(
    context: typer.Context,
    kind: Annotated[Described, typer.Argument(help="What NAME is.")],
    name: Annotated[str, typer.Argument(help="A partition is named pipeline/topic@epoch/number.")],
    output: FormOption = Form.TABLE,
) -> None:
    """Tell everything about one thing: where it is, why, what failed, what happened.

    [bold]Examples[/bold]

      sluiceway describe pipeline sales

      sluiceway describe partition sales/orders@0/3 -o yaml

      sluiceway describe worker worker-1
    """
    pipeline = name.partition("/")[0] if kind in (Described.PIPELINE, Described.PARTITION) else None
    view = operator(context).run(lambda fleet: read_view(fleet, frozenset(Part), pipeline))
    try:
        description = _DESCRIPTIONS[kind](name, view)
    except descriptions.Unknown as error:
        raise SluicewayError(str(error)) from error
    print_description(description, output)


def _chosen(table: Table, key: str, names: list[str]) -> Table:
    known = {str(row[key]) for row in table.rows}
    missing = sorted(set(names) - known)
    if missing:
        raise SluicewayError("\n".join(f"not found: {name}{suggestion(name, known)}" for name in missing))
    return _where(table, lambda row: row[key] in names) if names else table


def _where(table: Table, wanted: Callable[..., bool]) -> Table:
    return replace(table, rows=[row for row in table.rows if wanted(row)])
