"""Names of arguments in messages, in the terms of the active front end.

A message names an argument by its path, `("spend", "epochs")`, and the active front end writes it: `spend=` in Python,
`--spend epochs` on the command line, `run.toml, line 4: spend.epochs` if a config file set it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import ClassVar


class ArgumentNames:
    """Names of arguments in Python; other front ends override them."""

    speaks_python: ClassVar[bool] = True
    """Whether messages may write values and types as Python does: `None`, `True`, a tuple."""

    def named(self, *path: str | int) -> str:
        """Return the argument as the subject of a sentence: `train_data`."""
        return ".".join(map(str, path))

    def keyword(self, *path: str | int) -> str:
        """Return the prefix of a value: `run_dir=`."""
        return f"{path[-1]}="

    def assigned(self, name: str, value: object, form: str = "") -> str:
        """Return the argument with a value: `resume=True`."""
        return f"{name}={format(value, form) if form else repr(value)}"

    def entry(self, owner: str, name: str, value: object) -> str:
        """Return one entry of an argument that has several: `align=4`, `Budget(macs=0.5)`."""
        return f"{name}={value!r}" if owner == "settings" else f"{owner.capitalize()}({name}={value!r})"

    def command(self, name: str) -> str:
        """Return the name of a public function: `fxsurgery.inspect`."""
        return f"fxsurgery.{name}"

    def usage(self, line: str, *names: str, call: bool = False) -> str:
        """Return how to give some arguments.

        Args:
            line: the line of Python.
            names: of the arguments.
            call: whether to say "call" before it.
        """
        del names
        return f"call {line}" if call else line


_PYTHON = ArgumentNames()
_ACTIVE: ContextVar[ArgumentNames] = ContextVar("_ACTIVE", default=_PYTHON)


@contextmanager
def naming_by(names: ArgumentNames) -> Iterator[None]:
    """Use these names of arguments in messages that are composed in the block."""
    token = _ACTIVE.set(names)
    try:
        yield
    finally:
        _ACTIVE.reset(token)


def named(*path: str | int) -> str:
    """Return an argument as the subject of a sentence.

    Example:
        >>> named("train_data"), named("budget", "macs")
        ('train_data', 'budget.macs')
    """
    return _ACTIVE.get().named(*path)


def keyword(*path: str | int) -> str:
    """Return the prefix of the value of an argument.

    Example:
        >>> keyword("run_dir"), keyword("settings", "align")
        ('run_dir=', 'align=')
    """
    return _ACTIVE.get().keyword(*path)


def assigned(name: str, value: object, form: str = "") -> str:
    """Return an argument with a value.

    Args:
        name: of the argument.
        value: its value.
        form: the format of the value, such as `,`; as Python writes it by default.

    Example:
        >>> assigned("method", "prune"), assigned("resume", value=True)
        ("method='prune'", 'resume=True')
    """
    return _ACTIVE.get().assigned(name, value, form)


def entry(owner: str, name: str, value: object) -> str:
    """Return one entry of an argument that has several, with its value.

    Args:
        owner: the argument: `settings`, `budget` or `spend`.
        name: of the entry.
        value: its value.

    Example:
        >>> entry("settings", "align", 4), entry("budget", "macs", 0.5)
        ('align=4', 'Budget(macs=0.5)')
    """
    return _ACTIVE.get().entry(owner, name, value)


def command(name: str) -> str:
    """Return the name of a public function, or of the command with that name.

    Example:
        >>> command("inspect")
        'fxsurgery.inspect'
    """
    return _ACTIVE.get().command(name)


def speaks_python() -> bool:
    """Return whether messages may write values and types as Python does."""
    return _ACTIVE.get().speaks_python


def usage(line: str, *names: str, call: bool = False) -> str:
    """Return how to give some arguments: a line of Python, unless another front end is active.

    Args:
        line: the line of Python.
        names: of the arguments.
        call: whether it is the whole remedy, "call fxsurgery.optimize(...)", and not the rest of a clause.

    Example:
        >>> usage("load(folder, original=your_model)", "original")
        'load(folder, original=your_model)'
    """
    return _ACTIVE.get().usage(line, *names, call=call)
