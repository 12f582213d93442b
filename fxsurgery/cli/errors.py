"""How a command ends: with 0; with 2 for what it was told; with 1 for what went wrong; with 130 when stopped."""

import contextlib
import json
import math
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import typer

from fxsurgery.errors import ConfigError, SurgeryError
from fxsurgery.printable import printable
from fxsurgery.training.device import leads

_AS_FLAGS = (
    (r"call fxsurgery\.optimize\(model, .*?val_data=\(images, labels\)\)", "pass --train-data DATA --val-data DATA"),
    (r"load\(folder, original=your_model\)", "--original module:name"),
    (r"\bresume=True", "--resume"),
    (r"\bcheck=False", "--no-check"),
    (r"\b(threads|rounds|seconds|seed)=(?=\d)", r"--\1 "),
    (r"\btrained=False", "--not-trained"),
    (r"\brun_dir=", "--run-dir"),
    (r"\bspend=Spend\((\w+)=([^,)]+)\)", r"--spend \1=\2"),
    (r"\bexecutor=[\"']([\w-]+)[\"']", r"--executor \1"),
    (r"\bworkers=(\d+)", r"--workers \1"),
    (r"\b(spend|executor|workers)=(?=\s)", r"--\1"),
    (r"\bmethod=[\"'](\w+)[\"']", r"--method \1"),
    (r"\bexample_inputs=\(.*", r"\g<0>. Here: --example-shape N,N,N, once for each input, or --example-inputs DATA"),
    (r"\bexample_inputs=(?!\()", "--example-shape or --example-inputs"),
    (r"\b(train|val|test)_data\b", r"--\1-data"),
)
"""What messages say for Python, and for the command line."""


@contextlib.contextmanager
def ending(*, as_json: bool = False) -> Iterator[None]:
    """Turn an error of ours into one line and an exit code.

    Args:
        as_json: keep standard output free for JSON: what the user's own code prints goes to standard error.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
            yield
    except SurgeryError as error:
        told = str(error) if isinstance(error, ConfigError) else in_flags(str(error))
        say(f"error: {told}", "red", by_all=True)
        raise typer.Exit(2 if isinstance(error, ConfigError) else 1) from error
    except KeyboardInterrupt as error:
        say(f"stopped{''.join(error.args)}", "yellow")
        raise typer.Exit(130) from error


@contextlib.contextmanager
def resumable(run_dir: Path | None) -> Iterator[None]:
    """Say, where the block is stopped, how to go on with what `run_dir` keeps of it."""
    try:
        yield
    except KeyboardInterrupt as error:
        if run_dir is None or not run_dir.is_dir():
            raise
        on = f"; the run is kept in {run_dir}: give the same command with --resume to go on"
        raise KeyboardInterrupt(on) from error


def say(text: str, colour: str | None = None, *, by_all: bool = False) -> None:
    """A line on standard error; its first word in colour on a terminal.

    Args:
        text: the line.
        colour: of its first word.
        by_all: whether each process of a distributed run says it, not the first alone.
    """
    if not (by_all or leads()):
        return
    first, space, rest = printable(text, "\n").partition(" ")
    typer.echo(f"{typer.style(first, fg=colour, bold=True) if colour else first}{space}{rest}", err=True)


def give(value: object, *, as_json: bool) -> None:
    """What the command is for, on standard output."""
    if leads():
        typer.echo(_json(value) if as_json else printable(in_flags(str(value)), "\n"))


def in_flags(text: str) -> str:
    """A message for Python, said for the command line."""
    for python, flag in _AS_FLAGS:
        text = re.sub(python, flag, text)
    return text


def _json(value: object) -> str:
    # DEL is the one control character that JSON writes as it is.
    return json.dumps(_finite(value), indent=2).replace("\x7f", "\\u007f")


def _finite(value: Any) -> Any:  # noqa: ANN401
    """JSON has no number for infinity or for what is none."""
    if isinstance(value, Mapping):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value
