"""`sluiceway demo`: the command around `run`."""

from __future__ import annotations

import tempfile
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import orjson
import typer
from rich.console import Console

from sluiceway.cli.stack.kafka_jars import kafka_available
from sluiceway.common import logs
from sluiceway.common.clock import SystemClock
from sluiceway.common.errors import Refused


class Broker(StrEnum):
    EMBEDDED = "embedded"
    KAFKA = "kafka"


class Store(StrEnum):
    S3 = "s3"
    LOCAL = "local"


class Output(StrEnum):
    TABLE = "table"
    JSON = "json"


def demo(
    inputs: Annotated[
        list[Path] | None,
        typer.Option(
            "--input",
            metavar="FILE",
            exists=True,
            dir_okay=False,
            help="Newline-delimited JSON (also .gz), one topic a file; may be repeated. By default events are made up.",
        ),
    ] = None,
    records: Annotated[int, typer.Option(min=1, help="How many events to make up.")] = 200_000,
    seconds: Annotated[float | None, typer.Option(min=0.1, help="Spread the pouring over this time.")] = None,
    workers: Annotated[int, typer.Option(min=1, max=50, help="Worker processes.")] = 3,
    kill: Annotated[bool, typer.Option("--kill", help="Kill -9 a worker while records flow.")] = False,
    directory: Annotated[
        Path | None, typer.Option("--dir", file_okay=False, help="Where everything goes; a new temporary folder.")
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep the servers' data too, not only the files and logs.")
    ] = False,
    output: Annotated[Output, typer.Option("--output", "-o", help="The last line as JSON, or a table.")] = Output.TABLE,
    broker: Annotated[Broker, typer.Option(help="embedded needs no Java; kafka is Apache Kafka.")] = Broker.EMBEDDED,
    store: Annotated[Store, typer.Option(help="Deliver to an S3 store, or straight into a folder.")] = Store.S3,
    partitions: Annotated[int, typer.Option(min=1, max=1000, help="Partitions a topic.")] = 12,
    memory: Annotated[int, typer.Option(min=320, metavar="MIB", help="What each worker may use.")] = 1024,
    ttl: Annotated[int, typer.Option(min=2, help="Seconds after which a silent worker's leases are given away.")] = 5,
    compare: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Compare the values of every so-manieth record, 0: of none; by default of all, or of 200,000 of many. "
            "Offsets and dead letters are always compared in full.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed makes up the same events.")] = 0,
) -> None:
    """Run the main job on this machine and prove that it is exactly once.

    Starts etcd, a Kafka broker, an object store, a scheduler and workers; pours security events of many tenants, with a
    tenfold spike, into topics; delivers them as Parquet; then reads source and sink again and compares every record.
    Exits with 1 unless every record arrived exactly once.

    [bold]Examples[/bold]

      sluiceway demo --kill

      sluiceway demo --input events.ndjson.gz --kill -o json
    """
    # Imported here because every other command would wait for these libraries too.
    from sluiceway.cli.demo.fleet import FleetOptions
    from sluiceway.cli.demo.report import print_summary
    from sluiceway.cli.demo.run import DemoOptions, run_demo

    if broker is Broker.KAFKA and (reason := kafka_available()):
        raise Refused(f"Apache Kafka can't be had: {reason}; try --broker embedded")
    fleet = FleetOptions(
        directory=_folder(directory),
        broker=broker.value,
        store=store.value,
        workers=workers,
        worker_memory_bytes=memory * 2**20,
        session_ttl_s=ttl,
    )
    options = DemoOptions(
        fleet=fleet,
        inputs=tuple(inputs or ()),
        records=records,
        seconds=seconds,
        partitions=partitions,
        kill=kill,
        seed=seed,
        compare_every=compare,
        keep=keep,
    )
    logs.configure(component="demo", level="error")
    report = run_demo(options, SystemClock())
    if output is Output.JSON:
        typer.echo(orjson.dumps(report.as_json()))
    else:
        print_summary(report, Console())
    if not report.exact:
        raise typer.Exit(1)


def _folder(wanted: Path | None) -> Path:
    if wanted is None:
        return Path(tempfile.mkdtemp(prefix="sluiceway-demo-"))
    if (wanted / "sink").exists() or (wanted / "servers").exists():
        raise Refused(f"{wanted} holds an earlier run: name another folder, or remove it")
    wanted.mkdir(parents=True, exist_ok=True)
    return wanted.absolute()
