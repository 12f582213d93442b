"""The command line: `fxsurgery demo`."""

from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from fxsurgery import demo as demonstration
from fxsurgery.errors import SurgeryError

app = typer.Typer(help="Make your own PyTorch model smaller and faster.", no_args_is_help=True, add_completion=False)


def _version(wanted: bool) -> None:  # noqa: FBT001 -- as typer calls it
    if wanted:
        typer.echo(f"fxsurgery {version('fxsurgery')}")
        raise typer.Exit


@app.callback()
def main(
    *, version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False
) -> None:
    """Make your own PyTorch model smaller and faster."""
    del version


@app.command()
def demo(
    out: Annotated[Path | None, typer.Option(help="Keep the two ONNX files here.")] = None,
    macs: Annotated[float, typer.Option(help="The budget, as a fraction of the MACs.")] = 0.5,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
) -> None:
    """Train a small network on digits, halve its MACs, fine-tune, export to ONNX and measure both."""
    try:
        demonstration.run(out, seed=seed, macs=macs)
    except SurgeryError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error


if __name__ == "__main__":
    app()
