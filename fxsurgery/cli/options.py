"""Arguments and options of the commands, derived from the declared arguments of a run."""

import inspect
import types
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, Union, get_args, get_origin

import typer

from fxsurgery.config import RunConfig, flag, text_of
from fxsurgery.config.mistakes import dataclass_of
from fxsurgery.option_types import hints_of
from fxsurgery.request import Panel, arguments_of
from fxsurgery.searchers.methods import METHODS

_DECLARED = arguments_of(RunConfig)
_AS_THEY_ARE = (int, Path, str)


def option(panel: str | None, metavar: str | None, text: str, *names: str, completions: Sequence[str] = ()) -> Any:  # noqa: ANN401
    """Return an option.

    Args:
        panel: the panel of the help that shows it.
        metavar: stands for the value in the help; empty for a flag without a value.
        text: the help.
        names: the flag, and shorter forms of it.
        completions: values that the shell offers.
    """
    complete = (lambda: list(completions)) if completions else None
    return typer.Option(*names, metavar=metavar, help=text, rich_help_panel=panel, autocompletion=complete)


def key(name: str) -> Any:  # noqa: ANN401 -- typer's
    """Return the option for a key of the config file, with the text and the default that are declared for it."""
    declared, default = _DECLARED[name], getattr(RunConfig, name, None)
    text = (declared.help or text_of(name)).replace("`", "").removesuffix(".")
    text += f"; {default} by default" if type(default) is int else ""
    choices = _choices(hints_of(RunConfig)[name])
    metavar, completions = "|".join(choices) or declared.metavar, choices or _entries(name)
    return option(declared.panel, metavar, f"{text}.", *(declared.flags or (flag(name),)), completions=completions)


def _entries(name: str) -> tuple[str, ...]:
    """Return the entries of a table as a flag takes them, `macs=`; empty if the names are the user's."""
    table = dataclass_of(hints_of(RunConfig)[name])
    owners = [method.settings for method in METHODS.values()] if name == "settings" else [table] if table else []
    return tuple(dict.fromkeys(f"{field.name}=" for owner in owners for field in fields(owner)))


def parameters() -> Iterator[inspect.Parameter]:
    """Yield a parameter of a command for each key of the config file but the model, panel by panel."""
    names = [name for name in _DECLARED if name != "model"]
    for panel in get_args(Panel):
        for name in (name for name in names if _DECLARED[name].panel == panel):
            taken = _taken(hints_of(RunConfig)[name])
            yield inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=False if taken is bool else None,
                annotation=Annotated[taken, key(name)],
            )


def _taken(hint: Any) -> Any:  # noqa: ANN401 -- any annotation
    """Return the type that the command-line parser uses for an annotation."""
    kinds = list(_kinds(hint))
    if bool in kinds:
        return bool
    whole = next((kind for kind in _AS_THEY_ARE if kind in kinds), None)
    return list[str] | None if whole is None else whole | None


def _kinds(hint: Any) -> Iterator[Any]:  # noqa: ANN401 -- any annotation
    """Yield the plain types that an annotation admits; for a Literal, the types of its values."""
    kind, inner = get_origin(hint), get_args(hint)
    if kind is Annotated:
        yield from _kinds(inner[0])
    elif kind in {Union, types.UnionType}:
        for one in inner:
            yield from _kinds(one)
    elif kind is Literal:
        yield from map(type, inner)
    else:
        yield kind or hint


def _choices(hint: Any) -> tuple[str, ...]:  # noqa: ANN401 -- any annotation
    """Return the texts that the literals of an annotation admit; empty if it has none."""
    kind, inner = get_origin(hint), get_args(hint)
    if kind is Literal:
        return inner
    return () if kind is tuple else tuple(choice for one in inner for choice in _choices(one))


Model: TypeAlias = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="[cyan]module:factory[/cyan] or [cyan]file.py:factory[/cyan] (a class or function, which is called, or a "
        "module as it is), or the directory of a saved result or of a run.",
    ),
]
ModelArgs: TypeAlias = Annotated[list[str] | None, key("model_args")]
Weights: TypeAlias = Annotated[Path | None, key("weights")]
ExampleShape: TypeAlias = Annotated[list[str] | None, key("example_shape")]
ExampleInputs: TypeAlias = Annotated[str | None, key("example_inputs")]
LeafModules: TypeAlias = Annotated[list[str] | None, key("leaf_modules")]
Original: TypeAlias = Annotated[str | None, key("original")]
Member: TypeAlias = Annotated[
    int | None,
    option(
        "Model and inputs",
        "N",
        "For an evolved result: network N of its Pareto front instead of the best one.",
        "--member",
    ),
]
Seed: TypeAlias = Annotated[
    int, typer.Option("--seed", metavar="N", min=0, max=2**63 - 1, help="Seed of everything random.")
]
AsJson: TypeAlias = Annotated[
    bool, option(None, "", "Print JSON on standard output, and everything else on standard error.", "--json")
]
