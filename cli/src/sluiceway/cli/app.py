"""The command line's frame: global flags, exit codes, and the commands that belong to it.

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 refused (with the reason and what to do), 4 timed out waiting.
"""

from __future__ import annotations

from importlib import metadata
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from sluiceway.cli import dev
from sluiceway.cli.commands import events, look, partitions, specs, workers
from sluiceway.cli.connection import at_fleet
from sluiceway.cli.demo.command import demo
from sluiceway.common.errors import Refused, SluicewayError, SpecInvalid

_GLOBAL = ("--etcd", "--fleet")


class Sluiceway(TyperGroup):
    """Takes the global flags anywhere on the line, and turns errors into messages and exit codes."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, _flags_first(args))

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except TimeoutError as error:
            _say("timed out", str(error))
            raise typer.Exit(4) from error
        except Refused as error:
            _say("refused", str(error))
            raise typer.Exit(3) from error
        except SpecInvalid as error:
            _say("invalid", f"{len(error.problems)} problem(s), nothing was changed", *error.problems)
            raise typer.Exit(1) from error
        except SluicewayError as error:
            _say("failed", str(error))
            raise typer.Exit(1) from error


def _flags_first(args: list[str]) -> list[str]:
    """`get pipelines --fleet a` as `--fleet a get pipelines`."""
    first: list[str] = []
    rest: list[str] = []
    remaining = iter(args)
    for arg in remaining:
        if arg == "--":
            rest += [arg, *remaining]
        elif arg in _GLOBAL:
            first += [arg, *([value] if (value := next(remaining, None)) is not None else [])]
        elif arg.startswith(tuple(f"{flag}=" for flag in _GLOBAL)):
            first.append(arg)
        else:
            rest.append(arg)
    return first + rest


def _say(what: str, *lines: str) -> None:
    typer.secho(f"{what}: ", fg=typer.colors.RED, bold=True, nl=False, err=True)
    for line in lines:
        typer.echo(line, err=True)


app = typer.Typer(
    name="sluiceway",
    cls=Sluiceway,
    help="Moves Kafka topics into Parquet on object stores, continuously and exactly once.",
    epilog="Exit codes: 0 done, 1 failed, 2 wrong usage, 3 refused, 4 timed out. --etcd and --fleet may come last.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def sluiceway(
    context: typer.Context,
    etcd: Annotated[
        str | None, typer.Option(metavar="HOST:PORT[,…]", help="etcd to talk to [SLUICEWAY_ETCD__ENDPOINTS]")
    ] = None,
    fleet: Annotated[str | None, typer.Option(metavar="NAME", help="fleet to talk about [SLUICEWAY_FLEET]")] = None,
) -> None:
    at_fleet(context, etcd, fleet)


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(f"sluiceway {metadata.version('sluiceway')}")


for module in (specs, look, workers, partitions, events):
    module.register(app)
app.add_typer(dev.app)
app.command()(demo)
