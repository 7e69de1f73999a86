"""`sluiceway dev`: the stack of servers, one scheduler and workers, kept running for development."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sluiceway.cli.output import Form, FormOption, print_raw, print_table
from sluiceway.cli.stack.embedded import BrokerKind
from sluiceway.cli.stack.kept import KeptStack, ProcessStatus
from sluiceway.cli.tables import Column, Table

app = typer.Typer(
    name="dev",
    help="A complete Sluiceway on this machine, kept running for development.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)

DirectoryOption = Annotated[Path, typer.Option("--dir", help="Folder of the stack: data, logs, addresses.")]
DIRECTORY = Path(".sluiceway/dev")
_COLUMNS = (
    Column(key="name", title="NAME"),
    Column(key="state", title="STATE"),
    Column(key="pid", title="PID", right=True),
    Column(key="address", title="ADDRESS"),
    Column(key="log", title="LOG", wide=True),
)


@app.command()
def up(
    broker: Annotated[BrokerKind, typer.Option(help="The embedded broker, or Apache Kafka (needs Java).")] = "embedded",
    workers: Annotated[int, typer.Option(min=1, max=32, help="How many workers.")] = 2,
    directory: DirectoryOption = DIRECTORY,
    output: FormOption = Form.TABLE,
) -> None:
    """Start what does not run yet, and wait until it is ready. Doing it again changes nothing.

    [bold]Examples[/bold]

      sluiceway dev up

      sluiceway dev up --broker kafka --workers 4
    """
    stack = KeptStack(directory)
    stack.up(broker=broker, workers=workers, note=_note)
    _show(stack.status(), output)
    if output in (Form.TABLE, Form.WIDE):
        typer.echo(_next_steps(stack))


@app.command()
def down(
    wipe: Annotated[bool, typer.Option("--wipe", help="Remove the data, logs and addresses too.")] = False,
    directory: DirectoryOption = DIRECTORY,
    output: FormOption = Form.TABLE,
) -> None:
    """Drain the workers and stop everything; data stays for the next `up` unless --wipe is given."""
    stopped = KeptStack(directory).down(wipe=wipe, note=_note)
    if output in (Form.TABLE, Form.WIDE):
        typer.echo(f"stopped {', '.join(stopped)}" if stopped else "nothing was running")
    else:
        print_raw({"stopped": stopped, "wiped": wipe}, output)


@app.command()
def status(directory: DirectoryOption = DIRECTORY, output: FormOption = Form.TABLE) -> None:
    """Show what runs, and where."""
    _show(KeptStack(directory).status(), output)


def _show(processes: list[ProcessStatus], output: Form) -> None:
    rows = [
        {"name": each.name, "state": each.state, "pid": each.pid, "address": each.address, "log": each.log}
        for each in processes
    ]
    print_table(Table(columns=_COLUMNS, rows=rows, empty="nothing runs; start it: sluiceway dev up"), output)


def _next_steps(stack: KeptStack) -> str:
    example = stack.example_path
    shown = example.relative_to(Path.cwd()) if example.is_relative_to(Path.cwd()) else example
    broker = next(each.address for each in stack.status() if each.name == "broker")
    return "\n".join(
        (
            "",
            "Next steps (commands find this stack by themselves when run from here):",
            f"  sluiceway apply -f {shown}    pipelines from the topic `events` into Parquet",
            f"  create the topic `events` on the broker at {broker} and produce JSON into it (examples/produce.py)",
            "  sluiceway get pipelines",
            f"  read {stack.lake_path}/data/**/*.parquet",
            "  sluiceway dev down",
        )
    )


def _note(line: str) -> None:
    """Progress goes to standard error: standard output is the answer."""
    typer.echo(line, err=True)
