"""Conversion of a graph to JSON and back. Text that ends up in generated code is checked to be plain names."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import fx
from torch.fx.graph import _PyTreeCodeGen, _PyTreeInfo
from torch.utils import _pytree as pytree

from fxsurgery.errors import RunError, SavingError, reason_of
from fxsurgery.inputs import Inputs
from fxsurgery.saving.function_refs import check_call, check_method, function_named, name_of
from fxsurgery.saving.original_calls import OriginalCalls, runs_user_code
from fxsurgery.saving.output_structure import read_structure, structure_of
from fxsurgery.saving.schema import NodeEntry, OpaqueTarget, SavedGraph, identifier, module_path
from fxsurgery.saving.values import decoded, encoded

Plain = dict[str, Any]
_RESERVED = {"self", "torch", "pytree", "fx_pytree"}
"""Names with another meaning in the code that torch.fx generates."""


def graph_as_json(graph: fx.Graph) -> Plain:
    """Return the nodes and the input and output structure as JSON.

    Raises:
        SavingError: a node cannot be saved; the message names it.
    """
    plain: Plain = {"nodes": [_node(node) for node in graph.nodes]}
    codegen = graph._codegen  # noqa: SLF001 -- it defines how the inputs are flattened
    if isinstance(codegen, _PyTreeCodeGen):
        info = codegen.pytree_info
        plain["inputs"] = list(info.orig_args)
        plain["outputs"] = None if info.out_spec is None else structure_of(info.out_spec)
    elif type(codegen) is not fx.graph.CodeGen:
        raise SavingError(
            f"the graph has the custom code generator {type(codegen).__name__}, which cannot be saved; capture the "
            "model again"
        )
    return plain


def _node(node: fx.Node) -> Plain:
    def special(value: object) -> Plain | None:
        return {"node": value.name} if isinstance(value, fx.Node) else None

    inside = node.meta.get("inside")
    try:
        return {
            **({"inside": str(inside)} if inside else {}),
            "name": node.name,
            "op": node.op,
            "target": _target(node),
            "args": [encoded(a, special) for a in node.args],
            "kwargs": {k: encoded(v, special) for k, v in node.kwargs.items()},
        }
    except SavingError as error:
        raise SavingError(f"the node `{node.name}` cannot be saved: {error}") from error


def _target(node: fx.Node) -> str | Plain:
    if node.op == "call_method":
        check_method(str(node.target))
    if node.op != "call_function":
        return str(node.target)
    function: Any = node.target
    check_call(function, node.args, dict(node.kwargs))
    try:
        return name_of(function)
    except SavingError:
        if getattr(function, "__module__", "").partition(".")[0] in {"torch", "builtins", "operator", "math"}:
            raise
        return {"opaque": [function.__module__, function.__qualname__]}


def graph_from_json(
    saved: SavedGraph, inputs: Inputs, original_calls: OriginalCalls, is_own: Callable[[str], bool]
) -> fx.Graph:
    """Build the graph.

    Args:
        saved: the graph that `graph_as_json` wrote, with the module entries.
        inputs: the example inputs, whose structure the graph takes.
        original_calls: the calls that the user's model makes.
        is_own: returns True for the path of a module that comes from the user's model.

    Raises:
        RunError: the file is damaged.
        SavingError: the graph calls a function that a saved graph may not call.
    """
    graph, nodes = fx.Graph(), dict[str, fx.Node]()
    for entry in saved.nodes:
        node = _create_node(entry, graph, nodes, original_calls)
        if node.name != entry.name:
            raise RunError(f"damaged: the node name {entry.name!r} is a duplicate or not allowed")
        if runs_user_code(node, is_own):
            original_calls.require(node)
        nodes[entry.name] = node
    _check_inputs_and_output(graph, inputs)
    if saved.inputs is not None:
        _set_structure(graph, saved, inputs)
    elif inputs.kwargs or len(inputs.args) != len(inputs.leaves):
        raise RunError("damaged: nested or keyword inputs have no names")
    return graph


def _check_inputs_and_output(graph: fx.Graph, inputs: Inputs) -> None:
    """Check that a graph takes the example inputs and ends with its output."""
    ops = [node.op for node in graph.nodes]
    names = [str(node.target) for node in graph.nodes if node.op == "placeholder"]
    if len(names) != len(inputs.leaves) or ops[: len(names)].count("placeholder") < len(names):
        raise RunError(
            f"damaged: the graph takes {len(names)} inputs, but there are {len(inputs.leaves)} example inputs"
        )
    _require_distinct(names)
    if not ops or ops[-1] != "output" or ops.count("output") > 1:
        raise RunError("damaged: the graph does not end with its only output node")


def _require_distinct(names: list[str]) -> None:
    if len(set(names)) < len(names) or not _RESERVED.isdisjoint(names):
        raise RunError(f"damaged: the input names {', '.join(names)[:60]} are duplicate or reserved")


def _set_structure(graph: fx.Graph, saved: SavedGraph, inputs: Inputs) -> None:
    names = list(saved.inputs or ())
    _require_distinct(names)
    if len(names) != len(inputs.args) + len(inputs.kwargs):
        raise RunError(f"damaged: the input names {', '.join(names)[:60]} do not match the example inputs")
    structure = pytree.tree_flatten((inputs.args, dict(inputs.kwargs)))[1]
    outputs = None if saved.outputs is None else read_structure(saved.outputs)
    returned = next(reversed(graph.nodes)).args[0]
    count = len(returned) if isinstance(returned, (list, tuple)) else 1
    if outputs is not None and outputs.num_leaves != count:
        raise RunError(f"damaged: the graph returns {count} values, but the output structure has {outputs.num_leaves}")
    graph.set_codegen(_PyTreeCodeGen(_PyTreeInfo(names, structure, outputs)))


def _create_node(
    entry: NodeEntry, graph: fx.Graph, nodes: Mapping[str, fx.Node], original_calls: OriginalCalls
) -> fx.Node:
    def node_of(other: str) -> fx.Node:
        if other not in nodes:
            raise RunError(f"damaged: the node `{entry.name}` reads {other[:60]!r}, which is not defined before it")
        return nodes[other]

    args = tuple(decoded(a, {"node": node_of}) for a in entry.args)
    kwargs = {k: decoded(v, {"node": node_of}) for k, v in entry.kwargs.items()}
    _check_arguments(entry, args, kwargs)
    target = _checked_target(entry, args, kwargs, original_calls)
    node = graph.create_node(entry.op, target, args, kwargs, entry.name)
    node.meta["inside"] = entry.inside
    return node


def _check_arguments(entry: NodeEntry, args: tuple[Any, ...], kwargs: Plain) -> None:
    """Check that a node has as many arguments as its op allows, and that a method is called on a node."""
    most = {"placeholder": 1, "get_attr": 0, "output": 1}.get(entry.op)
    least = entry.op in {"output", "call_method"}
    if (most is not None and (len(args) > most or kwargs)) or len(args) < least:
        raise RunError(f"damaged: the node `{entry.name}`, a {entry.op}, has {len(args) + len(kwargs)} arguments")
    if entry.op == "call_method" and not isinstance(args[0], fx.Node):
        raise RunError(f"damaged: the node `{entry.name}` calls a method of a constant")


def _checked_target(entry: NodeEntry, args: tuple[Any, ...], kwargs: Plain, original_calls: OriginalCalls) -> Any:  # noqa: ANN401
    target = entry.target
    if isinstance(target, OpaqueTarget):
        if entry.op != "call_function":
            raise RunError(f"damaged: the node `{entry.name}` is not a function call")
        return original_calls.function(entry.name, *target.opaque)
    try:
        match entry.op:
            case "placeholder":
                return identifier(target)
            case "call_method":
                check_method(target)
                return target
            case "call_module" | "get_attr":
                return module_path(target)
            case "call_function":
                function = function_named(target)
                check_call(function, args, kwargs)
                return function
            case _:
                return "output"
    except ValueError as error:
        raise RunError(f"damaged: the node `{entry.name}`: {reason_of(error)}") from error
