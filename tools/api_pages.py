"""The pages of the API reference: which names each has. Their text comes from the docstrings, by mkdocstrings."""

from importlib import import_module
from inspect import isfunction, ismodule

import fxsurgery

PACKAGES = ("training", "deploy", "passes")
"""Packages whose `__all__` is public."""
MODULES = {
    "start_nets": ("searchers.ectonas.start_nets",),
    "program": ("program", "edit", "surgery", "lineage", "taps"),
    "analysis": ("analysis.structure", "analysis.cost", "analysis.pointwise"),
    "operators": ("ops.operator", "ops.registry"),
    "elastic": ("nn.elastic", "nn.gates"),
    "errors": ("errors",),
}
"""Page -> modules that those who extend the package use."""


def pages() -> dict[str, str]:
    """By path from docs/: the Markdown of each page."""
    made = {"api/fxsurgery.md": _top()}
    for package in PACKAGES:
        made[f"api/{package}.md"] = _package(f"fxsurgery.{package}")
    for page, modules in MODULES.items():
        title = f"fxsurgery.{modules[0]}" if len(modules) == 1 else page.capitalize()
        parts = [f"## fxsurgery.{name}\n\n{_entry(f'fxsurgery.{name}', root=False)}" for name in modules]
        made[f"api/{page}.md"] = "\n\n".join([f"# {title}", *parts]) + "\n"
    return made


def _top() -> str:
    """Functions and classes of the package itself, but those that a page of their module has."""
    elsewhere = {name for modules in MODULES.values() for name in modules}
    homes = {name: home for home, names in fxsurgery._HOMES.items() for name in names if home not in elsewhere}  # noqa: SLF001
    functions = {name for name in homes if isfunction(getattr(fxsurgery, name))}
    sections = [
        "\n\n".join([f"## {kind}", *(_entry(f"fxsurgery.{homes[n]}.{n}", f"fxsurgery.{n}") for n in sorted(names))])
        for kind, names in (("Functions", functions), ("Classes", homes.keys() - functions))
    ]
    text = "`from fxsurgery import ...` offers these, [`Program`](program.md) and the [errors](errors.md)."
    return "\n\n".join(["# fxsurgery", text, *sections]) + "\n"


def _package(path: str) -> str:
    """Every name of the `__all__` of a package."""
    package = import_module(path)
    names = [n for n in package.__all__ if n not in fxsurgery.__all__ and not ismodule(getattr(package, n))]
    return "\n\n".join([f"# {path}", str(package.__doc__), *(_entry(f"{path}.{name}") for name in names)]) + "\n"


def _entry(path: str, heading: str = "", *, root: bool = True) -> str:
    options = {"heading": heading or path, "heading_level": 3} if root else {"show_root_heading": "false"}
    return "\n".join([f"::: {path}", "    options:", *(f"      {key}: {value}" for key, value in options.items())])
