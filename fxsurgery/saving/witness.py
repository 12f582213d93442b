"""What of a saved graph is the user's own code, and the proof that it is what the user's model does there.

A function or module that was kept whole is not in the folder: loading takes it from the user's model. The folder says
where, and may have been changed. So a call of one counts only where capturing the model anew gives the same call: the
very same function object at a node of the same name, or the same module, with the same constants among the arguments.
Until then nothing of the graph has run.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from itertools import chain

from torch import fx, nn

from fxsurgery.batch_layout import statement_of
from fxsurgery.capture import capture
from fxsurgery.capture.tracer import COMPOSED
from fxsurgery.errors import RunError, SavingError, SurgeryError
from fxsurgery.inputs import Inputs
from fxsurgery.program import Program
from fxsurgery.saving.function_refs import Function, name_of, reads_beyond
from fxsurgery.saving.module_refs import submodule
from fxsurgery.saving.values import encoded


class Witness:
    """The user's model as captures of it show it, each of which is made once those before do not have what is asked."""

    def __init__(self) -> None:
        self._captures: Iterator[Program] = iter(())
        self._nodes = list[fx.Node]()

    def hear(self, captures: Iterable[Program]) -> None:
        """Take these captures into account as well."""
        self._captures = chain(self._captures, captures)

    def function(self, name: str, home: str, own_name: str) -> Function:
        """The function that the node `name` calls, by the module and the name it was saved under.

        Raises:
            RunError: the user's model calls no such function there.
        """

        def calls_it(node: fx.Node) -> bool:
            found = getattr(node.target, "__module__", None), getattr(node.target, "__qualname__", None)
            is_there = node.op == "call_function" and node.name == name and found == (home, own_name)
            return is_there and is_kept(node, _none)

        node = self._find(calls_it)
        if node is None:
            raise RunError(
                f"the graph calls the function {home[:60]}.{own_name[:60]} at `{name}`, and the model given does not: "
                "pass the model that was optimized"
            )
        return node.target  # type: ignore[return-value]

    def require(self, node: fx.Node) -> None:
        """Refuse a call of something kept whole that the user's model does not make so.

        Raises:
            RunError: it does not.
        """
        wanted = _constants(node)

        def is_same(other: fx.Node) -> bool:
            named = other.op == "call_module" or other.name == node.name
            alike = named and other.op == node.op and other.target == node.target
            return alike and wanted is not None and _constants(other) == wanted

        if self._find(is_same) is None:
            raise RunError(
                f"the node `{node.name}` calls code of your model that was kept whole, and the model given does not "
                "call it so: pass the model that was optimized"
            )

    def _find(self, matches: Callable[[fx.Node], bool]) -> fx.Node | None:
        found = next(filter(matches, self._nodes), None)
        while found is None and (program := next(self._captures, None)) is not None:
            new = list(program.nodes)
            self._nodes += new
            found = next(filter(matches, new), None)
        return found


def is_kept(node: fx.Node, is_own: Callable[[str], bool]) -> bool:
    """Whether a node runs code that is not torch's own.

    Args:
        node: the node.
        is_own: whether the module at a path is the user's.
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
    """The arguments of a call as JSON, each node among them as any other; `None` where they cannot be written."""
    try:
        found = encoded((node.args, dict(node.kwargs)), lambda v: {"node": ""} if isinstance(v, fx.Node) else None)
    except SavingError:
        return None
    return json.dumps(found)


def captures(original: nn.Module | None, inputs: Inputs, kept: Iterable[str]) -> Iterator[Program]:
    """Capture the user's model anew: as it is, then with the types of the modules at `kept` kept whole.

    Raises:
        RunError: it cannot be captured either way.
    """
    if original is None:
        return
    problems = list[SurgeryError]()
    for leaf_modules in ((), _leaf_types(original, kept)):
        try:
            yield capture(original, inputs, leaf_modules=leaf_modules, batch_dims=statement_of(inputs))
        except SurgeryError as error:
            problems.append(error)
    if len(problems) == 2:
        raise RunError(
            f"the model given cannot be captured as it was: {problems[0]}; pass the model that was optimized, unchanged"
        ) from problems[0]


def _leaf_types(original: nn.Module, kept: Iterable[str]) -> tuple[type[nn.Module], ...]:
    """The types at `kept` that capture would look into, unless it is asked not to."""
    found = [module for path in kept if (module := submodule(original, path)) is not None]
    asked = (*COMPOSED, nn.MultiheadAttention)
    own = [m for m in found if not type(m).__module__.startswith("torch.") or isinstance(m, asked)]
    return tuple({type(module): None for module in own})
