"""The commands, in the order in which one comes to need them."""

from importlib.metadata import version
from typing import Annotated

import typer

from fxsurgery.cli.bench import bench
from fxsurgery.cli.demo import demo
from fxsurgery.cli.export import export
from fxsurgery.cli.inspect import inspect
from fxsurgery.cli.optimize import optimize
from fxsurgery.cli.report import report

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)


def _version(wanted: bool) -> None:  # noqa: FBT001 -- as typer calls it
    if wanted:
        typer.echo(f"fxsurgery {version('fxsurgery')}")
        raise typer.Exit


@app.callback(context_settings={"help_option_names": ["-h", "--help"]})
def main(
    *,
    version: Annotated[
        bool,
        typer.Option("--version", metavar="", callback=_version, is_eager=True, help="Show the version and leave."),
    ] = False,
) -> None:
    r"""Make your own PyTorch model smaller and faster, or better.

    [bold]The way through[/bold]
      1. [cyan]demo[/cyan]      see all of it happen on a small network, in about a minute
      2. [cyan]inspect[/cyan]   what of your model can shrink, and what holds the rest
      3. [cyan]optimize[/cyan]  make it smaller; --dry-run first says how far and how long
      4. [cyan]report[/cyan]    a page about what came out
      5. [cyan]bench[/cyan]     original and result side by side, on this machine
      6. [cyan]export[/cyan]    the ONNX file, checked against PyTorch

    [bold]Examples[/bold]
      fxsurgery inspect mypkg.nets:resnet --example-shape 3,224,224
      fxsurgery optimize mypkg.nets:resnet --out small --dry-run
      fxsurgery optimize mypkg.nets:resnet --train-data mypkg.data:train \
          --val-data mypkg.data:val --budget macs=0.5 --out small
      fxsurgery bench small

    A model is named as [cyan]module:factory[/cyan] or [cyan]path/to/file.py:factory[/cyan]; the current
    directory is importable. Each command tells more: fxsurgery optimize --help.
    """
    del version


for command in (demo, inspect, optimize, report, bench, export):
    app.command()(command)
