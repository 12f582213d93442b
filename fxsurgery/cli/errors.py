"""How a command ends: with 0; with 2 for what it was told; with 1 for what went wrong; with 130 when stopped."""

import contextlib
import json
import math
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import typer

from fxsurgery.argument_names import naming_by
from fxsurgery.config import FlagNames
from fxsurgery.errors import ConfigError, SurgeryError
from fxsurgery.printable import printable
from fxsurgery.training.device import leads


@contextlib.contextmanager
def ending(*, as_json: bool = False) -> Iterator[None]:
    """Turn an error of ours into one line and an exit code.

    Args:
        as_json: keep standard output free for JSON: what the user's own code prints goes to standard error.
    """
    try:
        output = contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext()
        with naming_by(FlagNames()), output:
            yield
    except SurgeryError as error:
        say(f"error: {error}", "red", by_all=True)
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


def say(text: str, color: str | None = None, *, by_all: bool = False) -> None:
    """A line on standard error; its first word in color on a terminal.

    Args:
        text: the line.
        color: of its first word.
        by_all: whether each process of a distributed run says it, not the first alone.
    """
    if not (by_all or leads()):
        return
    first, space, rest = printable(text, "\n").partition(" ")
    typer.echo(f"{typer.style(first, fg=color, bold=True) if color else first}{space}{rest}", err=True)


def give(value: object, *, as_json: bool) -> None:
    """What the command is for, on standard output."""
    if leads():
        with naming_by(FlagNames()):
            typer.echo(_json(value) if as_json else printable(str(value), "\n"))


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
