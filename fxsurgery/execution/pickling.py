"""Pickle programs, tasks and other parts of a job for another process of the same run.

A graph module pickles itself as code, which is traced again when it is read: what tracing does not go through, it
loses. Here the graph goes as it is, node by node, so what arrives has the same parameters in the same order and
computes the same. Users' functions and classes go along where the other process cannot import them.

What these bytes hold runs code when it is read: they come from the process that began the run and from nowhere else.
"""

import io
import pickle
from types import SimpleNamespace
from typing import Any

import torch
from ray import cloudpickle
from torch import fx, nn
from torch.fx.node import map_aggregate, map_arg
from torch.nn.utils import parametrize
from torch.utils.data import DataLoader
from typing_extensions import override

from fxsurgery.argument_names import assigned
from fxsurgery.errors import SurgeryError, reason_of
from fxsurgery.training.random_state import own_workers

_MADE_ANEW = {"_graph", "_code", "_lineno_map", "_prologue_start", "_tracer_cls", "_tracer_extras", "meta", "shape_env"}
"""Attributes of a graph module that serve its compiler and its tracer."""


class _Ref(str):
    """A reference to a node, by name."""

    __slots__ = ()


class _Pickler(cloudpickle.Pickler):
    @override
    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, fx.GraphModule):
            state = {name: value for name, value in vars(obj).items() if name not in _MADE_ANEW}
            return _graph_module, (state, _nodes(obj.graph), obj.graph._codegen)  # noqa: SLF001
        if isinstance(obj, nn.Module) and parametrize.is_parametrized(obj):
            return _parametrized, (type(obj).__base__, vars(obj))
        if isinstance(obj, DataLoader) and getattr(obj, "_iterator", None) is not None:
            return own_workers(obj).__reduce_ex__(pickle.HIGHEST_PROTOCOL)  # its workers stay in this process
        return super().reducer_override(obj)  # type: ignore[no-untyped-call]


def packed(what: object, name: str) -> bytes:
    """Pickle an object; `name` describes it in messages.

    Raises:
        SurgeryError: it holds something that cannot be pickled, such as an open file.
    """
    buffer = io.BytesIO()
    try:
        torch.save(what, buffer, pickle_module=SimpleNamespace(Pickler=_Pickler, __name__="parcels"))
    except (pickle.PicklingError, TypeError, AttributeError, NotImplementedError, RuntimeError, ValueError) as error:
        raise SurgeryError(
            f"{name} cannot be sent to Ray's workers: {reason_of(error)}; take "
            f"{assigned('executor', 'processes')} or 'in-process'"
        ) from error
    return buffer.getvalue()


def unpacked(parcel: bytes) -> Any:  # noqa: ANN401
    """Return the object that `packed` pickled."""
    return torch.load(io.BytesIO(parcel), map_location="cpu", weights_only=False)


def _nodes(graph: fx.Graph) -> list[tuple[Any, ...]]:
    def named(arguments: Any) -> Any:  # noqa: ANN401
        return map_arg(arguments, lambda node: _Ref(node.name))

    return [(node.op, node.target, named(node.args), named(node.kwargs), node.name) for node in graph.nodes]


def _graph_module(state: dict[str, Any], nodes: list[tuple[Any, ...]], codegen: Any) -> fx.GraphModule:  # noqa: ANN401
    graph, made = fx.Graph(), dict[str, fx.Node]()
    graph._codegen = codegen  # noqa: SLF001

    def found(value: Any) -> Any:  # noqa: ANN401
        return made[value] if isinstance(value, _Ref) else value

    for op, target, args, kwargs, name in nodes:
        made[name] = graph.create_node(op, target, map_aggregate(args, found), map_aggregate(kwargs, found), name)
    # The constructor would add the modules in the order of their calls, which changes the order of the parameters.
    twin = fx.GraphModule.__new__(fx.GraphModule)
    vars(twin).update(state, _tracer_cls=None, _tracer_extras={}, meta={}, shape_env=None)
    twin.graph = graph
    return twin


def _parametrized(kind: type[nn.Module], state: dict[str, Any]) -> nn.Module:
    """Return a module with computed parameters, as of weight norm: its class is created for it."""
    module = kind.__new__(kind)
    vars(module).update(state)
    parametrize._inject_new_class(module)  # noqa: SLF001
    for name in state["_modules"]["parametrizations"]:
        parametrize._inject_property(module, name)  # noqa: SLF001
    return module
