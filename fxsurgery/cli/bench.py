"""`fxsurgery bench`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from fxsurgery.cli.errors import ending, give
from fxsurgery.cli.options import AsJson, Member, Original, Seed
from fxsurgery.cli.sources import member_of, saved_result
from fxsurgery.deploy import LatencyReport, resolve_target
from fxsurgery.deploy.file_inputs import declared_inputs
from fxsurgery.deploy.targets import compare_on
from fxsurgery.errors import ConfigError
from fxsurgery.result import Result


def bench(  # noqa: PLR0913 -- one for each flag  # noqa: PLR0917 -- one for each flag
    what: Annotated[
        list[Path],
        typer.Argument(
            metavar="SAVED|FILE.onnx",
            help="A saved result or a run: original against result. Or ONNX files: each is compared to the first.",
        ),
    ],
    *,
    original: Original = None,
    member: Member = None,
    device: Annotated[str, typer.Option(metavar="TARGET", help="local (this machine's CPU) or cuda.")] = "local",
    rounds: Annotated[int, typer.Option(min=1, metavar="N", help="Most timed runs of each model.")] = 200,
    seconds: Annotated[float, typer.Option(min=0.1, metavar="N", help="Most seconds to measure, roughly.")] = 20.0,
    threads: Annotated[int, typer.Option(min=1, metavar="N", help="Threads of ONNX Runtime.")] = 1,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Measure the latency of one sample, model against model, through ONNX Runtime.

    The models run in turns, in random order, in one process, so that a
    disturbance affects all of them. The ratio comes with its 95 % interval: a
    difference is significant if the interval excludes 1.

    [bold]Examples[/bold]
      fxsurgery bench small
      fxsurgery bench runs/a --rounds 1000 --seconds 60 --json
      fxsurgery bench evolved --member 2
      fxsurgery bench original.onnx small.onnx --threads 4
    """
    options = {"rounds": rounds, "seconds": seconds, "threads": threads, "seed": seed}
    with ending(as_json=as_json):
        resolve_target(device).plan(**options)
        if _are_files(what):
            report = _of_files(what, device, options, member)
        else:
            report = member_of(_saved(what, original), member).benchmark(
                device, rounds=rounds, seconds=seconds, threads=threads, seed=seed
            )
    give(report.to_dict() if as_json else report, as_json=as_json)


def _are_files(what: list[Path]) -> bool:
    return any(path.suffix == ".onnx" for path in what)


def _saved(what: list[Path], original: str | None) -> Result:
    if len(what) > 1:
        raise ConfigError(
            f"bench takes one saved result, which has its original with it, or ONNX files, not {what[1]} as well; run "
            "it for each"
        )
    return saved_result(what[0], original)


def _of_files(what: list[Path], device: str, options: Mapping[str, Any], member: int | None) -> LatencyReport:
    if member is not None:
        raise ConfigError("--member is for a saved result, not for ONNX files; leave it out, or name a saved result")
    if wrong := [path for path in what if path.suffix != ".onnx"]:
        raise ConfigError(
            f"bench takes one saved result or ONNX files, not both: {wrong[0]}; name the ONNX files alone, or the "
            "result alone"
        )
    stems = [path.stem for path in what]
    names = stems if len(set(stems)) == len(stems) else list(map(str, what))
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"bench: {twice[0]} is named twice; name each file once")
    inputs = declared_inputs(what[0], options["seed"])
    return compare_on(resolve_target(device), dict(zip(names, what, strict=True)), inputs, **options)
