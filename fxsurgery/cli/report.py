"""`fxsurgery report`."""

from pathlib import Path
from typing import Annotated

import typer

from fxsurgery.cli.errors import ending, give
from fxsurgery.cli.options import Member, Original
from fxsurgery.cli.sources import member_of, saved_result


def report(
    saved: Annotated[Path, typer.Argument(metavar="SAVED", help="The directory of a saved result or of a run.")],
    html: Annotated[Path, typer.Argument(metavar="FILE.html", help="The file to write.")],
    original: Original = None,
    member: Member = None,
    *,
    bench: Annotated[
        bool, typer.Option("--bench", metavar="", help="Also measure the latencies, in about 20 s.")
    ] = False,
) -> None:
    """Write an HTML report of a result: before and after, widths by layer, training curves.

    The report is one self-contained file that opens in any browser, offline.

    [bold]Examples[/bold]
      fxsurgery report small small.html
      fxsurgery report runs/a a.html --bench
      fxsurgery report evolved second.html --member 2
    """
    with ending():
        result = member_of(saved_result(saved, original), member)
        result.report(html, latency=result.benchmark() if bench else None)
    give(f"{html}: {html.stat().st_size:,} bytes", as_json=False)
