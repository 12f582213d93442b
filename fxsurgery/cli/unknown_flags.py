"""The message on a flag that does not exist: the flag, or the entry of a flag, that was meant."""

from collections.abc import Collection, Iterator
from dataclasses import fields
from difflib import get_close_matches

from fxsurgery.config import flag
from fxsurgery.searchers.methods import METHODS
from fxsurgery.suggestions import SYNONYMS


def unknown_flag(given: str, flags: Collection[str]) -> str:
    """Return the message on a flag that a command does not have.

    Args:
        given: the flag, with its dashes.
        flags: the flags of the command.

    Example:
        >>> unknown_flag("--lr", ["--set", "--seed"])
        'there is no flag --lr; settings go through --set: did you mean --set learning_rate=...?'
        >>> unknown_flag("--sed", ["--set", "--seed"])
        'there is no flag --sed; did you mean --seed?'
    """
    name = given.lstrip("-").replace("-", "_").lower()
    has_settings = flag("settings") in flags
    settings = {field.name for method in METHODS.values() for field in fields(method.settings)} if has_settings else {}
    meant = next(_meanings(name, flags, settings), None)
    if meant is None:
        near = get_close_matches(given, [one for one in flags if one.startswith("--")], 1, 0.7)
        near += [f"{flag('settings')} {one}=..." for one in get_close_matches(name, settings, 1, 0.7)]
        meant = next(iter(near), None)
    if meant is None:
        return f"there is no flag {given}; --help lists the flags"
    how = f"settings go through {flag('settings')}: " if meant.startswith(f"{flag('settings')} ") else ""
    return f"there is no flag {given}; {how}did you mean {meant}?"


def _meanings(name: str, flags: Collection[str], settings: Collection[str]) -> Iterator[str]:
    """Yield what a name stands for on the command line, likeliest first."""
    if name in settings:
        yield f"{flag('settings')} {name}=..."
    for meaning in SYNONYMS.get(name, ()):
        argument, _, value = meaning.partition("=")
        if argument in settings:
            yield f"{flag('settings')} {argument}=..."
        elif flag(argument) in flags:
            _, _, limit = value.rstrip(")").partition("(")
            yield f"{flag(argument)} {limit}".rstrip()
