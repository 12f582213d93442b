"""Taps: inner feature maps of a graph, returned in addition to its outputs.

A view of a graph module returns (outputs, {name: value}) and shares every module and tensor with it, so what trains the
one trains the other. The value is the one at the node: it is copied there, before an operation that follows, such as
`nn.ReLU(inplace=True)`, can write into it. Gradients flow through the copy.
"""

import copy
import difflib
from collections.abc import Sequence
from typing import Any

from torch import Tensor, fx, nn
from torch.fx.graph import _PyTreeCodeGen
from torch.utils import _pytree as pytree

from fxsurgery.errors import SpecError
from fxsurgery.option_types import checked

_CONSTANTS = (Tensor, int, float, complex, str, type(None))
"""Types that a tapped value may consist of, besides those that PyTorch's pytree flattens."""


@checked(SpecError)
def tapped(model: fx.GraphModule, nodes: Sequence[str]) -> fx.GraphModule:
    """Return a view of `model` that returns its outputs and the values at some nodes.

    `model` itself is not touched. Both run the same modules: train flags, moves to a device and new weights of one are
    seen by the other.

    Args:
        model: what runs, such as `Program.trainable_copy()`.
        nodes: names of nodes, as `Program.text()` shows them. A node that gives a tuple is tapped as a tuple.

    Returns:
        A module that is called as `model` is, and gives (outputs of `model`, {name: value at that node}).

    Raises:
        SpecError: there is no such node, or it is inside a leaf module.

    Example:
        >>> import torch
        >>> from fxsurgery import capture
        >>> program = capture(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU()).eval(), torch.ones(2, 4))
        >>> model = program.trainable_copy()
        >>> output, features = tapped(model, ["_0"])(torch.ones(5, 4))
        >>> features["_0"].shape, bool((output == features["_0"].relu()).all())
        (torch.Size([5, 8]), True)
    """
    names = tuple(dict.fromkeys(nodes))
    for name in names:
        _require_node(model, name)
    graph = copy.deepcopy(model.graph)
    _return_taps(graph, {name: _kept_at(graph, name) for name in names})
    view = fx.GraphModule.__new__(fx.GraphModule)
    vars(view).update(vars(model))  # the very dicts, so that whatever is put into one is in the other
    view.graph = graph
    return view


def _kept_at(graph: fx.Graph, name: str) -> fx.Node:
    """Copy the value of a node where it is computed."""
    node = next(n for n in graph.nodes if n.name == name)
    first = node.next
    while first.op == "placeholder":
        first = first.next
    with graph.inserting_before(first):
        return graph.call_function(_copied, (node, name))


def _copied(value: Any, name: str) -> Any:  # noqa: ANN401 -- whatever a node gives
    """Copy the tensors of a value.

    Raises:
        SpecError: it is an object in which tensors cannot be found.
    """
    leaves, structure = pytree.tree_flatten(value)
    if strange := [leaf for leaf in leaves if not isinstance(leaf, _CONSTANTS)]:
        raise SpecError(
            f"node {name!r} gives a {type(strange[0]).__name__}, which cannot be copied; name the nodes that read it"
        )
    return pytree.tree_unflatten([leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves], structure)


def _return_taps(graph: fx.Graph, taps: dict[str, fx.Node]) -> None:
    """Make the graph return (its outputs, taps)."""
    [output] = [n for n in graph.nodes if n.op == "output"]
    given, codegen = output.args[0], graph._codegen  # noqa: SLF001 -- how the outputs are put together
    if not isinstance(codegen, _PyTreeCodeGen) or (structure := codegen.pytree_info.out_spec) is None:
        output.args = ((given, taps),)
        return
    leaves = tuple(given) if isinstance(given, (tuple, list)) else (given,)
    both = pytree.TreeSpec(tuple, None, [structure, pytree.tree_structure(dict.fromkeys(taps, 0))])
    output.args = ((*leaves, *taps.values()),)
    graph.set_codegen(_PyTreeCodeGen(codegen.pytree_info._replace(out_spec=both)))


def _require_node(model: fx.GraphModule, name: str) -> None:
    """Refuse a name that no readable node has.

    Raises:
        SpecError: it says which node comes nearest.
    """
    found = next((n for n in model.graph.nodes if n.name == name), None)
    if found is not None and found.op != "output":
        return
    if found is not None:
        inputs = ", ".join(n.name for n in found.all_input_nodes)
        raise SpecError(
            f"node {name!r} is the output of the model, which is returned anyway; name what it reads: {inputs}"
        )
    called = {str(n.target): n.name for n in model.graph.nodes if n.op == "call_module"}
    if caller := next((node for path, node in called.items() if _spelled(path) == _spelled(name)), None):
        raise SpecError(f"no node is named {name!r}, which is a module; name the node that calls it: {caller!r}")
    if outer := next((path for path in called if _is_inside(model.get_submodule(path), path, name)), None):
        raise SpecError(
            f"{name!r} is inside {outer!r}, a leaf module, whose inner values are not in the graph; name "
            f"{called[outer]!r}, or capture the model without this leaf"
        )
    known = [n.name for n in model.graph.nodes if n.op != "output"]
    near = difflib.get_close_matches(name, known, n=3) or known[:3]
    raise SpecError(f"no node is named {name!r}; there are: {', '.join(near)}, ... as Program.text() shows")


def _is_inside(module: nn.Module, path: str, name: str) -> bool:
    return any(_spelled(f"{path}.{inner}") == _spelled(name) for inner, _ in module.named_modules() if inner)


def _spelled(path: str) -> str:
    """Return the name of a node that torch.fx derives from the path of a module."""
    return path.replace(".", "_").lstrip("_")
