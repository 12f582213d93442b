"""Fit a node to a changed input: its module, its weight, and its size arguments."""

# ruff: noqa: ANN401 -- values of the user's graph

import copy
from operator import attrgetter
from typing import Any

from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.pooling import _AvgPoolNd, _MaxPoolNd

from fxsurgery.analysis.pool_windows import LOCAL, read_pool
from fxsurgery.analysis.refit import refit
from fxsurgery.analysis.shared_modules import fixed, names_of
from fxsurgery.analysis.spatial_maps import Layout
from fxsurgery.lineage import Origin
from fxsurgery.ops.contractions import LINEAR
from fxsurgery.ops.facets import SizeRule
from fxsurgery.ops.module_sizes import Sizes
from fxsurgery.program import Program
from fxsurgery.rewriting.changes import CallChange, ChangeState, ObstacleError
from fxsurgery.rewriting.view_inference import infer_view_sizes


def is_dense(state: ChangeState, node: fx.Node) -> bool:
    """Return True if a node is a dense layer whose number of inputs changes."""
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node) or not isinstance(state.values.get(source), Tensor):
        return False
    if state.program.operator(node) is not LINEAR:
        return False
    return bool(state.values[source].shape[-1] != state.env[source].shape[-1])


def refit_dense(state: ChangeState, node: fx.Node) -> None:
    """Give a dense layer the weight for the changed inputs.

    Raises:
        ObstacleError: the inputs cannot be matched to positions, or the weight is shared or computed.
    """
    source: Any = node.args[0]
    old, new, layout = state.env[source], state.values[source], state.layouts.get(source)
    columns = None if layout is None or old.shape[:-1] != new.shape[:-1] else layout.columns()
    if layout is None or columns is None:
        raise ObstacleError(node, "its inputs cannot be matched to positions")
    if node.op == "call_module":
        module = _own(state, node)
        weight = _dense_weight(state, f"{node.target}.weight", module.get_parameter("weight"), layout, columns)
        state.found.modules[str(node.target)] = refit(module, {"weight": weight})
        return
    holder: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("weight")
    name = str(holder.target)
    own = attrgetter(name)(state.program.graph_module) if holder.op == "get_attr" else None
    if own is None or len(holder.users) > 1 or len(names_of(state.program, own)) > 1:
        raise ObstacleError(node, "its weight is shared or computed")
    state.found.tensors[name] = _dense_weight(state, name, state.env[holder], layout, columns)


def _dense_weight(
    state: ChangeState, name: str, weight: Tensor, layout: Layout, columns: tuple[Tensor, Tensor]
) -> Tensor:
    """Return the dense weight `name`, (out, in), for the new columns."""
    new, index = state.taker.columns(weight.detach(), layout.maps, columns)
    if index is not None:
        state.found.origins[name] = Origin(name, {1: index})
    return new


def _own(state: ChangeState, node: fx.Node) -> nn.Module:
    """Return the module that a node calls, for replacement; raise if other nodes call it too."""
    if refusal := fixed(state.program, str(node.target)):
        raise ObstacleError(node, refusal.reason)
    module: nn.Module = state.graph_module.get_submodule(str(node.target))
    return module


def fit_call(state: ChangeState, node: fx.Node, old: Any) -> CallChange:
    """Return the arguments that the node needs after the change, recording changed arguments and modules."""
    call = CallChange(node.args, dict(node.kwargs))
    if node.op == "call_module":
        _fit_module(state, node, old)
    elif _is_view(state.program, node) and isinstance(old, Tensor):
        return _fitted_view(state, node, old)
    elif _is_whole_pool(state, node, old) and len(node.args) > 1:
        kernel = list(state.values[node.all_input_nodes[0]].shape[2:])
        state.found.arguments.append((node, 1, kernel))
        return CallChange((node.args[0], kernel, *node.args[2:]), call.kwargs)
    return call


def _is_view(program: Program, node: fx.Node) -> bool:
    operator = program.operator(node)
    return (
        operator is not None
        and operator.regroups
        and operator.sizes is not None
        and operator.sizes.rule is SizeRule.SHAPE
    )


def _fitted_view(state: ChangeState, node: fx.Node, old: Tensor) -> CallChange:
    """Fit a view: replace its constant sizes by those of the new map."""
    source = node.args[0]
    wanted = None
    if isinstance(source, fx.Node) and source in state.values:
        wanted = infer_view_sizes(state.env[source].shape, state.values[source].shape, old.shape)
    if wanted is None:
        raise ObstacleError(node, "its target sizes for the changed map are ambiguous")
    listed = len(node.args) == 2 and isinstance(node.args[1], (list, tuple))
    sizes: Any = node.args[1] if listed else node.args[1:]
    if len(sizes) != len(wanted):
        raise ObstacleError(node, "its sizes are not given individually")
    new = list[Any]()
    for size, want in zip(sizes, wanted, strict=True):
        now = state.now(size) if isinstance(size, fx.Node) else size
        if now not in {want, -1} and isinstance(size, fx.Node):
            raise ObstacleError(node, f"its computed size %{size} is {now}; {want} is required")
        new.append(size if now in {want, -1} else want)
    if new != list(sizes) and listed:
        state.found.arguments.append((node, 1, new))
    elif new != list(sizes):
        state.found.arguments += [(node, n, size) for n, size in enumerate(new, 1) if size != sizes[n - 1]]
    return CallChange((source, new) if listed else (source, *new), dict(node.kwargs))


def _fit_module(state: ChangeState, node: fx.Node, old: Any) -> None:
    """Fit a convolution to new channels or a new map, or a pool over the whole map."""
    module, source = state.program.module(node), node.all_input_nodes[0]
    if source in state.values and isinstance(module, _NormBase):
        _fit_norm(state, node, module, source)
        return
    if source not in state.values or not isinstance(module, (_ConvNd, _AvgPoolNd, _MaxPoolNd)):
        return
    if _is_whole_pool(state, node, old):
        _own(state, node)
        pool: Any = copy.copy(module)
        pool.kernel_size = pool.stride = tuple(state.values[source].shape[2:])
        state.found.modules[str(node.target)] = pool
    elif isinstance(module, _ConvNd) and (factors := _conv_factors(state, node, module, source, old)) is not None:
        own, shape = _own(state, node), tuple(state.values[source].shape[2:])
        weight, _ = state.taker.entries(own.get_parameter("weight").detach(), factors)
        inner = [len(f) if f is not None else n for f, n in zip(factors, module.weight.shape[1:], strict=True)]
        new: Any = refit(own, {"weight": weight.reshape(len(weight), *inner)})
        new.kernel_size = module.kernel_size if factors[1:] == [None] * len(shape) else shape
        state.found.modules[str(node.target)] = new


def _fit_norm(state: ChangeState, node: fx.Node, module: _NormBase, source: fx.Node) -> None:
    """Fit a norm to new channels: one without parameters, or for duplicated channels."""
    channels = int(state.values[source].shape[1])
    if channels == module.num_features or (module.state_dict() and not state.change.are_copies):
        return
    own, tensors = _own(state, node), dict[str, Tensor]()
    if module.state_dict():
        layout = state.layouts.get(source)
        if layout is None or (factor := layout.channels()) is None:
            raise ObstacleError(node, "its inputs cannot be matched to channels")
        copied, entries = factor.argmax(1), (*own.named_parameters(), *own.named_buffers())
        tensors = {name: t.detach()[copied.to(t.device)] for name, t in entries if t.dim()}
    state.found.modules[str(node.target)] = refit(own, tensors, Sizes(channels=channels))


def _conv_factors(
    state: ChangeState, node: fx.Node, module: _ConvNd, source: fx.Node, old: Tensor
) -> list[Tensor | None] | None:
    """Return the factors for a convolution's weight along its inputs and kernel dims; `None` if it is unchanged."""
    before, now, layout = state.env[source], state.values[source], state.layouts.get(source)
    factors: list[Tensor | None] = [None] * (before.dim() - 1)
    if layout is None or module.transposed:
        return None
    if before.shape[1] != now.shape[1]:
        if module.groups > 1:
            raise ObstacleError(node, "a grouped convolution cannot process other channels")
        if (channels := layout.channels()) is None:
            raise ObstacleError(node, "its inputs cannot be matched to channels")
        factors[0] = channels
    if before.shape[2:] != now.shape[2:] and _covers(node, state.program, before, old):
        for dim in range(2, before.dim()):
            if (found := layout.axis(dim)) is None:
                raise ObstacleError(node, "its inputs cannot be matched to positions")
            factors[dim - 1] = found[0].factors[found[1]]
    return None if all(f is None for f in factors) else factors


def _is_whole_pool(state: ChangeState, node: fx.Node, old: Any) -> bool:
    """Return True if a node is a pool whose single window is the whole map, by choice of its kernel size."""
    pool = read_pool(state.program, node)
    if pool is None or not isinstance(old, Tensor):
        return False
    before = state.env[node.all_input_nodes[0]]
    return pool.kernel == tuple(before.shape[2:]) and not any(pool.padding) and max(pool.kernel) > LOCAL


def _covers(node: fx.Node, program: Program, before: Tensor, old: Tensor) -> bool:
    """Return True if a convolution acts as a dense layer: its kernel covers the whole map."""
    module: Any = program.module(node)
    whole = tuple(module.kernel_size) == tuple(before.shape[2:]) and set(old.shape[2:]) == {1}
    padded = any(n != "valid" and n for n in _flat(module.padding))
    return whole and max(module.kernel_size) > LOCAL and not padded and set(module.dilation) == {1}


def _flat(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)
