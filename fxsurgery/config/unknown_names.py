"""Suggestions for an unknown name in a config: another key, an entry of a table, a setting of another method."""

from collections.abc import Iterable, Mapping
from dataclasses import fields

from fxsurgery.argument_names import assigned
from fxsurgery.budget import Budget, Spend
from fxsurgery.searchers.methods import METHODS
from fxsurgery.suggestions import meant_by


def _tables() -> Mapping[str, list[str]]:
    """Return the entries of each table of a config file; for `settings`, those of every method."""
    settings = dict.fromkeys(field.name for method in METHODS.values() for field in fields(method.settings))
    budget, spend = ([field.name for field in fields(kind)] for kind in (Budget, Spend))
    return {"budget": budget, "spend": spend, "settings": [*settings]}


def unknown(name: str, known: Iterable[str], what: str) -> str:
    """Return a message on a name that does not exist, with the name that was meant, else with all names.

    Example:
        >>> unknown("mac", ["params", "macs"], "limit")
        "'mac' is not a limit; did you mean 'macs'?"
    """
    names = list(known)
    meant = meant_by(name, names)
    remedy = f"there are: {', '.join(names)}" if meant is None else f"did you mean {meant.partition('=')[0]!r}?"
    return f"{name!r} is not a {what}; {remedy}"


def unknown_key(name: str, known: Iterable[str]) -> str:
    """Return a message on a key that does not exist, with the key or the entry of a table that was meant.

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
                return f"{name!r} is not a key; did you mean {meant.partition('=')[0]!r} of the table [{table}]?"
    return unknown(name, names, "key")


def unknown_setting(name: str, known: Iterable[str], method: str) -> str:
    """Return a message on an unknown setting of a method, with a method that has it or the setting that was meant."""
    others = [m.name for m in METHODS.values() if name in {field.name for field in fields(m.settings)}]
    if others:
        return f"{name!r} is not a setting of {method}; pass {assigned('method', others[0])}, or leave it out"
    return unknown(name, known, f"setting of {method}")
