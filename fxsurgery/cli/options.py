"""Arguments and options that several commands share, and how options are made."""

from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

from fxsurgery.config import RunConfig

INPUTS = "Model and inputs"


def option(panel: str | None, metavar: str | None, text: str, *names: str) -> Any:  # noqa: ANN401 -- typer's
    """An option in a panel of the help; a flag where there is nothing to say, `metavar=""`."""
    return typer.Option(*names, metavar=metavar, help=text, rich_help_panel=panel)


def key(name: str, panel: str, metavar: str | None = None, *names: str) -> Any:  # noqa: ANN401 -- typer's
    """The option for a key of the config file, with the help that the file's schema has."""
    field = RunConfig.model_fields[name]
    text, default = field.description or "", field.get_default(call_default_factory=True)
    first = text if "(" in text.split(" ", 1)[0] else f"{text[:1].upper()}{text[1:]}"
    shown = f"; {default} unless said" if type(default) is int else ""
    return option(panel, metavar, f"{first}{shown}.", *names)


Model: TypeAlias = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="[cyan]module:factory[/cyan] or [cyan]file.py:factory[/cyan] (a class or function, which is called, or a "
        "module as it is), or the directory of a saved result or of a run.",
    ),
]
ModelArgs: TypeAlias = Annotated[
    list[str] | None,
    option(
        INPUTS, "NAME=VALUE", """What the factory is called with; or all as JSON: '{"width": 32}'.""", "--model-args"
    ),
]
Weights: TypeAlias = Annotated[Path | None, key("weights", INPUTS, "FILE")]
ExampleShape: TypeAlias = Annotated[
    list[str] | None,
    option(
        INPUTS, "N,N,N", "Shape of an input without its batch, e.g. 3,224,224; once for each input. Taken from the "
        "data, or guessed, unless said.", "--example-shape",
    ),
]  # fmt: skip
ExampleInputs: TypeAlias = Annotated[str | None, key("example_inputs", INPUTS, "DATA")]
LeafModules: TypeAlias = Annotated[list[str] | None, key("leaf_modules", INPUTS, "MODULE:CLASS", "--leaf-module")]
Original: TypeAlias = Annotated[str | None, key("original", INPUTS, "MODULE:NAME")]
Member: TypeAlias = Annotated[
    int | None,
    option(INPUTS, "N", "Of an evolved result: network N of its Pareto front in place of the winner.", "--member"),
]
Seed: TypeAlias = Annotated[
    int, typer.Option("--seed", metavar="N", min=0, max=2**63 - 1, help="Of everything random.")
]
AsJson: TypeAlias = Annotated[
    bool, option(None, "", "JSON on standard output; all else goes to standard error.", "--json")
]
