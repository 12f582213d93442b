"""Sharing of a module's tensors, which prevents replacing the module for one reader."""

from torch import Tensor

from fxsurgery.analysis.pointwise import calls_of
from fxsurgery.analysis.refit import is_computed
from fxsurgery.match import Refusal
from fxsurgery.program import Program


def fixed(program: Program, path: str) -> Refusal | None:
    """Return why the tensors of the module at `path` cannot be replaced for its one caller; `None` if they can."""
    if refusal := called_again(program, path):
        return refusal
    if is_computed(program.graph_module.get_submodule(path)):
        return Refusal(path, f"the weight of {path} is computed from other tensors")
    return shared(program, path)


def called_again(program: Program, path: str) -> Refusal | None:
    """Return the reason if the module at `path` is not called exactly once."""
    calls = calls_of(program)[path]
    return None if calls == 1 else Refusal(path, f"{path} is called {calls} times")


def shared(program: Program, path: str) -> Refusal | None:
    """Return the reason if another module shares the parameters of the module at `path`."""
    if refusal := read_elsewhere(program, path):
        return refusal
    for name, parameter in program.graph_module.get_submodule(path).named_parameters():
        if others := [other for other in names_of(program, parameter) if other != f"{path}.{name}"]:
            return Refusal(path, f"{path}.{name} is {others[0]} as well")
    return None


def read_elsewhere(program: Program, path: str) -> Refusal | None:
    """Return the reason if a node reads the tensors of the module at `path` without calling it."""
    own = f"{path}."
    reader = next((n for n in program.nodes if n.op == "get_attr" and str(n.target).startswith(own)), None)
    return Refusal(str(reader), f"the tensors of {path} are read by %{reader} as well") if reader else None


def names_of(program: Program, tensor: Tensor) -> list[str]:
    """Return all names of a parameter; a tied parameter has several."""
    everywhere = program.graph_module.named_parameters(remove_duplicate=False)
    return [name for name, other in everywhere if other is tensor]
