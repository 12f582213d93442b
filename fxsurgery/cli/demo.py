"""`fxsurgery demo`."""

from pathlib import Path
from typing import Annotated

import typer

from fxsurgery import demo as demonstration
from fxsurgery.cli.errors import ending
from fxsurgery.cli.options import Seed


def demo(
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Write the two ONNX files here.")] = None,
    macs: Annotated[float, typer.Option(metavar="SHARE", help="The budget, as a fraction of the MACs.")] = 0.5,
    seed: Seed = 0,
) -> None:
    """Train a small network on digits, halve its MACs, fine-tune, export to ONNX and measure both.

    The demo takes about a minute and downloads nothing. It ends with a table of
    costs, accuracy and latency before and after.

    [bold]Examples[/bold]
      fxsurgery demo
      fxsurgery demo --macs 0.3 --out demo
    """
    with ending():
        demonstration.run(out, seed=seed, macs=macs)
