"""How messages name arguments on the command line: by flag, or by the place in the config file that said it."""

from typing_extensions import override

from fxsurgery.argument_names import ArgumentNames
from fxsurgery.config import Origins, RunConfig, flag
from fxsurgery.request import arguments_of

_OTHERS = {
    "check": "--no-check", "rounds": "--rounds", "seconds": "--seconds", "threads": "--threads",
}  # fmt: skip
"""Flags of the other commands, by the argument that they stand for."""
_SHAPES = "--example-shape or --example-inputs"


class FlagNames(ArgumentNames):
    """The terms of the command line; what has no flag is named as in Python."""

    def __init__(self, origins: Origins | None = None) -> None:
        self._origins = origins or Origins()
        self._declared = arguments_of(RunConfig)

    @override
    def named(self, *path: str | int) -> str:
        name = str(path[0])
        if self._origins.in_file(name):
            return self._origins.tell(path)
        return self._written(name, path[1:]) or super().named(*path)

    @override
    def keyword(self, *path: str | int) -> str:
        if path == ("example_inputs",):
            return _SHAPES
        return self._written(str(path[0]), path[1:]) or super().keyword(*path)

    @override
    def assigned(self, name: str, value: object, form: str = "") -> str:
        found = self._written(name, ())
        if found is None:
            return super().assigned(name, value, form)
        return found if isinstance(value, bool) else f"{found} {format(value, form)}"

    @override
    def usage(self, line: str, *names: str, call: bool = False) -> str:
        if names == ("example_inputs",):  # what a shape cannot say, the line of Python can
            return f"{line}. Here: --example-shape N,N,N, once for each input, or --example-inputs DATA"
        flags = " ".join(f"{self._written(name, ())} {self._declared[name].metavar}" for name in names)
        return f"pass {flags}" if call else flags

    def _written(self, name: str, inner: tuple[str | int, ...]) -> str | None:
        """The flag, and what in its value is meant; `None` if there is none."""
        found = flag(name) if name in self._declared else _OTHERS.get(name)
        return None if found is None else " ".join([found, *map(str, inner)])
