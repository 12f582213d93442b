"""A graph as JSON, and back. What generated code would be made of is checked to be names and nothing else."""

import keyword
import re
import sys
import types
from collections.abc import Mapping
from typing import Any

from torch import fx, nn
from torch.fx.graph import _PyTreeCodeGen, _PyTreeInfo
from torch.utils import _pytree as pytree

from fxsurgery.errors import RunError, SavingError
from fxsurgery.inputs import Inputs
from fxsurgery.saving.functions import Function, check_call, check_method, name_of, named
from fxsurgery.saving.outputs import read_structure, structure_of
from fxsurgery.saving.values import decoded, encoded

Plain = dict[str, Any]
Functions = Mapping[tuple[str, str], Function]
"""The user's own that a graph may call, by module and name."""


def graph_as_json(graph: fx.Graph) -> Plain:
    """The nodes, and how they are called.

    Raises:
        SavingError: a node cannot be written; it says which.
    """
    plain: Plain = {"nodes": [_node(node) for node in graph.nodes]}
    codegen = graph._codegen  # noqa: SLF001 -- how the inputs are taken apart
    if isinstance(codegen, _PyTreeCodeGen):
        info = codegen.pytree_info
        plain["inputs"] = list(info.orig_args)
        plain["outputs"] = None if info.out_spec is None else structure_of(info.out_spec)
    elif type(codegen) is not fx.graph.CodeGen:
        raise SavingError(f"a graph that is called in a way of its own ({type(codegen).__name__}) cannot be saved")
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


def graph_from_json(plain: Plain, inputs: Inputs, functions: Functions) -> fx.Graph:
    """The graph.

    Args:
        plain: what `graph_as_json` wrote.
        inputs: the example inputs, whose structure the graph takes.
        functions: the user's own that it may call, by module and name.

    Raises:
        RunError: it is damaged.
        SavingError: it calls what a saved graph may not call.
    """
    graph, made = fx.Graph(), dict[str, fx.Node]()
    for entry in plain["nodes"]:
        made[str(entry["name"])] = _made(entry, graph, made, functions)
    if "inputs" in plain:
        names = [_identifier(name) for name in plain["inputs"]]
        structure = pytree.tree_flatten((inputs.args, dict(inputs.kwargs)))[1]
        for name in inputs.kwargs:
            _identifier(name)
        outputs = None if plain["outputs"] is None else read_structure(plain["outputs"])
        graph.set_codegen(_PyTreeCodeGen(_PyTreeInfo(names, structure, outputs)))
    return graph


def _made(entry: Plain, graph: fx.Graph, made: Mapping[str, fx.Node], functions: Functions) -> fx.Node:
    name = _identifier(entry["name"])

    def node_of(other: str) -> fx.Node:
        if other not in made:
            raise RunError(f"damaged: the node `{name}` reads {other!r}, which is not there yet")
        return made[other]

    args = tuple(decoded(a, {"node": node_of}) for a in entry["args"])
    kwargs = {_identifier(k): decoded(v, {"node": node_of}) for k, v in entry["kwargs"].items()}
    target = _checked_target(entry["op"], entry["target"], args, kwargs, functions)
    node = graph.create_node(entry["op"], target, args, kwargs, name)
    node.meta["inside"] = str(entry.get("inside", ""))
    return node


def _checked_target(
    op: str,
    target: Any,  # noqa: ANN401 -- whatever stands in the file
    args: tuple[Any, ...],
    kwargs: Plain,
    functions: Functions,
) -> Any:  # noqa: ANN401
    match op:
        case "placeholder":
            return _identifier(target)
        case "call_method":
            check_method(target)
            return target
        case "call_module" | "get_attr":
            return path_checked(target)
        case "output":
            return "output"
        case "call_function":
            function = named(target) if isinstance(target, str) else _opaque(target, functions)
            check_call(function, args, kwargs)
            return function
        case _:
            raise RunError(f"damaged: no node is a {op!r}")


def _opaque(target: Plain, functions: Functions) -> Function:
    module, name = target["opaque"]
    if (module, name) not in functions:
        raise RunError(
            f"the graph calls the function {module}.{name}, which was kept whole: pass the model it comes from, "
            "load(folder, original=your_model)"
        )
    return functions[module, name]


def path_checked(path: Any) -> str:  # noqa: ANN401 -- whatever stands in the file
    """`path`, which names a module or tensor.

    Raises:
        RunError: it does not look like one.
    """
    if not isinstance(path, str) or not re.fullmatch(r"[\w -]+(\.[\w -]+)*", path):
        _refuse(path)
    return str(path)


def _identifier(name: Any) -> str:  # noqa: ANN401 -- whatever stands in the file
    if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name):
        _refuse(name)
    return str(name)


def _refuse(name: object) -> None:
    raise RunError(f"damaged: {str(name)[:60]!r} is no name")


def functions_of(original: nn.Module | None) -> dict[tuple[str, str], Function]:
    """The functions in the files of the user's model, and in those of the same package that these import."""
    found = dict[tuple[str, str], Function]()
    kinds = {type(m) for m in original.modules()} if original is not None else set()
    homes = {kind.__module__ for kind in kinds if kind.__module__.partition(".")[0] not in {"torch", "builtins"}}
    for home in list(homes):
        package = home.partition(".")[0]
        beside = [v.__name__ for v in vars(sys.modules[home]).values() if isinstance(v, types.ModuleType)]
        homes |= {name for name in beside if name.partition(".")[0] == package and name in sys.modules}
    for home in homes:
        for name, value in vars(sys.modules[home]).items():
            if isinstance(value, types.FunctionType) and not name.startswith("__"):
                found[value.__module__, value.__qualname__] = value
    return found
