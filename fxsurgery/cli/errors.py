"""Exit codes of a command: 0 for success, 2 for a wrong command line or config, 1 for a failure, 130 if interrupted."""

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
    """Turn an error of fxsurgery into one line and an exit code.

    Args:
        as_json: keep standard output free for JSON: output of the user's own code goes to standard error.
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
    """If the block is interrupted, say how to resume the run in `run_dir`."""
    try:
        yield
    except KeyboardInterrupt as error:
        if run_dir is None or not run_dir.is_dir():
            raise
        remedy = f"; the run is kept in {run_dir}: repeat the command with --resume to continue it"
        raise KeyboardInterrupt(remedy) from error


def say(text: str, color: str | None = None, *, by_all: bool = False) -> None:
    """Print a line on standard error, its first word in color on a terminal.

    Args:
        text: the line.
        color: color of its first word.
        by_all: whether each process of a distributed run prints it, not only the first.
    """
    if not (by_all or leads()):
        return
    first, space, rest = printable(text, "\n").partition(" ")
    typer.echo(f"{typer.style(first, fg=color, bold=True) if color else first}{space}{rest}", err=True)


def give(value: object, *, as_json: bool) -> None:
    """Print the result of a command on standard output."""
    if leads():
        with naming_by(FlagNames()):
            typer.echo(_json(value) if as_json else printable(str(value), "\n"))


def _json(value: object) -> str:
    # DEL is the one control character that JSON does not escape.
    return json.dumps(_finite(value), indent=2).replace("\x7f", "\\u007f")


def _finite(value: Any) -> Any:  # noqa: ANN401
    """Replace infinity and NaN, which JSON does not have, by `None`."""
    if isinstance(value, Mapping):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value
