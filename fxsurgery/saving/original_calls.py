"""Check that a saved graph calls user code only where the user's own model does.

The code of a leaf module or function is not in the folder: loading takes it from the user's model. The folder says
where it is called, and may have been modified. Therefore such a call is accepted only if capturing the model again
yields the same call: the same function object at a node of the same name, or the same module, with the same constants
among the arguments. Nothing of the graph runs before that.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from itertools import chain

from torch import fx, nn

from fxsurgery.argument_names import named
from fxsurgery.batch_layout import statement_of
from fxsurgery.capture import capture
from fxsurgery.capture.tracer import COMPOSED
from fxsurgery.errors import RunError, SavingError, SurgeryError
from fxsurgery.inputs import Inputs
from fxsurgery.program import Program
from fxsurgery.saving.function_refs import Function, name_of, reads_beyond
from fxsurgery.saving.module_refs import submodule
from fxsurgery.saving.values import encoded


class OriginalCalls:
    """The calls that the user's model makes, according to captures that are made on demand."""

    def __init__(self) -> None:
        self._captures: Iterator[Program] = iter(())
        self._nodes = list[fx.Node]()

    def add_captures(self, captures: Iterable[Program]) -> None:
        """Add further captures to search."""
        self._captures = chain(self._captures, captures)

    def function(self, name: str, home: str, qualified_name: str) -> Function:
        """Return the user function that the node `name` calls, identified by module and qualified name.

        Raises:
            RunError: the user's model does not call such a function there.
        """

        def calls_it(node: fx.Node) -> bool:
            found = getattr(node.target, "__module__", None), getattr(node.target, "__qualname__", None)
            is_there = node.op == "call_function" and node.name == name and found == (home, qualified_name)
            return is_there and runs_user_code(node, _none)

        node = self._find(calls_it)
        if node is None:
            raise RunError(
                f"the graph calls the function {home[:60]}.{qualified_name[:60]} at `{name}`, but "
                f"{named('original')} does not; pass the model that was optimized"
            )
        return node.target  # type: ignore[return-value]

    def require(self, node: fx.Node) -> None:
        """Check that the user's model makes the same call of a leaf.

        Raises:
            RunError: it does not.
        """
        expected = _constants(node)

        def is_same(other: fx.Node) -> bool:
            named = other.op == "call_module" or other.name == node.name
            alike = named and other.op == node.op and other.target == node.target
            return alike and expected is not None and _constants(other) == expected

        if self._find(is_same) is None:
            raise RunError(
                f"the node `{node.name}` calls code of your model in a way that {named('original')} does not; "
                "pass the model that was optimized"
            )

    def _find(self, matches: Callable[[fx.Node], bool]) -> fx.Node | None:
        found = next(filter(matches, self._nodes), None)
        while found is None and (program := next(self._captures, None)) is not None:
            new = list(program.nodes)
            self._nodes += new
            found = next(filter(matches, new), None)
        return found


def runs_user_code(node: fx.Node, is_own: Callable[[str], bool]) -> bool:
    """Return True if a node runs code from outside torch.

    Args:
        node: the node.
        is_own: returns True for the path of a module that comes from the user's model.
    """
    if node.op == "call_module":
        return is_own(str(node.target))
    if node.op != "call_function" or not callable(node.target):
        return False
    try:
        name_of(node.target)
    except SavingError:
        return True
    return reads_beyond(node.target, node.args)


def _none(_: str) -> bool:
    return False


def _constants(node: fx.Node) -> str | None:
    """Return the arguments of a call as JSON, with all nodes alike; None if they cannot be saved."""
    try:
        found = encoded((node.args, dict(node.kwargs)), lambda v: {"node": ""} if isinstance(v, fx.Node) else None)
    except SavingError:
        return None
    return json.dumps(found)


def captures_of(original: nn.Module | None, inputs: Inputs, leaf_paths: Iterable[str]) -> Iterator[Program]:
    """Capture the user's model again: unchanged, then with the types of the modules at `leaf_paths` as leaves.

    Raises:
        RunError: it can be captured in neither way.
    """
    if original is None:
        return
    problems = list[SurgeryError]()
    for leaf_modules in ((), _leaf_types(original, leaf_paths)):
        try:
            yield capture(original, inputs, leaf_modules=leaf_modules, batch_dims=statement_of(inputs))
        except SurgeryError as error:
            problems.append(error)
    if len(problems) == 2:
        raise RunError(
            f"{named('original')} cannot be captured as before: {problems[0]}; pass the model that was "
            "optimized, unchanged"
        ) from problems[0]


def _leaf_types(original: nn.Module, leaf_paths: Iterable[str]) -> tuple[type[nn.Module], ...]:
    """Return the types at `leaf_paths` that capture would trace unless they are passed as leaf modules."""
    found = [module for path in leaf_paths if (module := submodule(original, path)) is not None]
    traced_by_default = (*COMPOSED, nn.MultiheadAttention)
    candidates = [m for m in found if not type(m).__module__.startswith("torch.") or isinstance(m, traced_by_default)]
    return tuple({type(module): None for module in candidates})
