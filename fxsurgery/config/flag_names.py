"""How messages name arguments on the command line: by flag, or by the line of the config file that gave them."""

from typing import ClassVar

from typing_extensions import override

from fxsurgery.argument_names import ArgumentNames
from fxsurgery.config.run_config import RunConfig, flag
from fxsurgery.config.source_locations import Origins
from fxsurgery.request import arguments_of

OTHERS = {
    "check": "--no-check", "dynamic_batch": "--fixed-batch", "exporter": "--exporter", "member": "--member",
    "opset": "--opset", "rounds": "--rounds", "seconds": "--seconds", "threads": "--threads",
}  # fmt: skip
"""Flags of the other commands, by the Python argument that each stands for."""
_SHAPES = "--example-shape or --example-inputs"


class FlagNames(ArgumentNames):
    """The terms of the command line; an argument without a flag is named as in Python."""

    speaks_python: ClassVar[bool] = False

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
    def entry(self, owner: str, name: str, value: object) -> str:
        return f"{flag(owner)} {name}={value}"

    @override
    def command(self, name: str) -> str:
        return f"fxsurgery {name}"

    @override
    def usage(self, line: str, *names: str, call: bool = False) -> str:
        if names == ("example_inputs",):
            return "--example-shape 3,224,224, once for each input"
        flags = " ".join(f"{self._written(name, ())} {self._declared[name].metavar}" for name in names)
        return f"pass {flags}" if call else flags

    def _written(self, name: str, inner: tuple[str | int, ...]) -> str | None:
        """The flag, followed by the entry of its value that is meant; `None` if the argument has no flag."""
        found = flag(name) if name in self._declared else OTHERS.get(name)
        return None if found is None else " ".join([found, *map(str, inner)])
