"""What a name that does not exist in a config was meant to be: another key, an entry of a table, another method's."""

from collections.abc import Iterable, Mapping
from dataclasses import fields

from fxsurgery.argument_names import assigned
from fxsurgery.budget import Budget, Spend
from fxsurgery.searchers.methods import METHODS
from fxsurgery.suggestions import meant_by


def _tables() -> Mapping[str, list[str]]:
    """The entries of each table of a config file; of `settings` those of every method."""
    settings = dict.fromkeys(field.name for method in METHODS.values() for field in fields(method.settings))
    budget, spend = ([field.name for field in fields(kind)] for kind in (Budget, Spend))
    return {"budget": budget, "spend": spend, "settings": [*settings]}


def unknown(name: str, known: Iterable[str], what: str) -> str:
    """Return that a name does not exist, and the name that was meant, else all names.

    Example:
        >>> unknown("mac", ["params", "macs"], "limit")
        "'mac' is no limit; did you mean 'macs'?"
    """
    names = list(known)
    meant = meant_by(name, names)
    remedy = f"there are: {', '.join(names)}" if meant is None else f"did you mean {meant.partition('=')[0]!r}?"
    return f"{name!r} is no {what}; {remedy}"


def unknown_key(name: str, known: Iterable[str]) -> str:
    """Return that a key does not exist, and the key or the entry of a table that was meant.

    Example:
        >>> unknown_key("macs", ["budget", "seed"])
        "'macs' is an entry of the table [budget]; move it there"
    """
    names, tables = list(known), _tables()
    for table, entries in tables.items():
        if name in entries:
            return f"{name!r} is an entry of the table [{table}]; move it there"
    if meant_by(name, names) is None:
        for table, entries in tables.items():
            if (meant := meant_by(name, entries)) is not None:
                return f"{name!r} is no key; did you mean {meant.partition('=')[0]!r} of the table [{table}]?"
    return unknown(name, names, "key")


def unknown_setting(name: str, known: Iterable[str], method: str) -> str:
    """Return that a method has no such setting, and the method that has it, or the setting that was meant."""
    others = [m.name for m in METHODS.values() if name in {field.name for field in fields(m.settings)}]
    if others:
        return f"{name!r} is no setting of {method}; pass {assigned('method', others[0])}, or leave it out"
    return unknown(name, known, f"setting of {method}")
