"""Adapt the nodes downstream of a feature map whose positions or channels change.

The graph runs on the old and the new value at once. Nodes that accept maps of any size (convolutions, pools, norms,
activations, a global mean) stay unchanged. The others are found by running every downstream node on the new value:

* a dense layer that reads positions gets a weight for the new ones (`spatial_maps`), and so does a convolution whose
  kernel covers the whole map. The position of each column is computed, not guessed: index tensors flow through the
  program's own views, permutations, and concatenations, before and after the change;
* constant sizes in views, and constant kernel sizes of pools over the whole map, are updated;
* any other node that fails, or that would silently broadcast a map with a single position, is reported as the obstacle.

The propagation ends where a value has its old shape again. Where branches with different geometry meet, the geometry
of the first one is used.
"""

# ruff: noqa: ANN401 -- values of the user's graph

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.utils import _pytree as pytree
from typing_extensions import override

from fxsurgery.analysis.activations import read_values
from fxsurgery.analysis.node_values import NodeValues, node_values
from fxsurgery.analysis.pointwise import pointwise
from fxsurgery.analysis.pool_windows import read_stencil
from fxsurgery.analysis.spatial_maps import Layout, Take, Taker
from fxsurgery.errors import first_line
from fxsurgery.match import Match, Refusal
from fxsurgery.ops.movement import GETITEM
from fxsurgery.ops.operator import Kind
from fxsurgery.program import Program
from fxsurgery.rewriting.changes import CallChange, Change, ChangeState, Consequences, ObstacleError, holds_tensors
from fxsurgery.rewriting.fitting import fit_call, is_dense, refit_dense
from fxsurgery.rewriting.layout_flow import derived_layout, rearranged_layout
from fxsurgery.seeding import seeded


def follow(program: Program, change: Change, take: Take | None = None) -> Match[Consequences]:
    """Return the edits that `change` requires downstream, or a refusal that names the obstacle."""
    return _walked(program, _Walk(program, change, take or Take()))


def can_follow(program: Program, node: fx.Node, change: Callable[[Tensor], Change]) -> bool:
    """Return True if the nodes downstream of `node` can be adapted to a change of its value.

    Decided on meta tensors where the program runs on them, which takes a fraction of the time of a real run.

    Args:
        program: the program; it is not edited.
        node: the node whose value changes.
        change: makes the change from the node's value.
    """
    if (known := node_values(program)).meta_module is not None:
        with torch.no_grad():
            walk = _Walk(program, change(known.by_name[node.name]), Take(), known)
        if isinstance(_walked(program, walk), Refusal):
            return False
        if not any(_is_unchecked(program, reached) for n in walk.state.values for reached in n.users):
            return True
    value = read_values(program, {node.name})[node.name]
    return isinstance(follow(program, change(value)), Consequences)


def _is_unchecked(program: Program, node: fx.Node) -> bool:
    """Return True if `node` may accept inputs on meta tensors that it rejects at run time (indices, channel counts)."""
    if node.op == "call_module":
        module = program.module(node)
        return getattr(module, "transposed", False) or not type(module).__module__.startswith("torch.nn")
    operator = program.operator(node)
    if operator is None:
        return False
    is_transposed = operator.window is not None and operator.window.transposed
    return operator.kind is Kind.LOOKUP or operator is GETITEM or is_transposed


def _walked(program: Program, walk: "_Walk") -> Match[Consequences]:
    device = next((x.device for x in program.examples.tensors), torch.device("cpu"))
    try:
        with torch.no_grad(), seeded(0, device):
            walk.run(*program.examples.clone().leaves, initial_env=walk.state.env, enable_io_processing=False)
    except ObstacleError as obstacle:
        return obstacle.refusal
    return walk.state.found


class _Walk(fx.Interpreter):
    """Runs the program as it is, and beside it what the change reaches."""

    def __init__(self, program: Program, change: Change, take: Take, known: NodeValues | None = None) -> None:
        bare = None if known is None else known.meta_module
        super().__init__(program.graph_module if bare is None else bare)
        self.known = known
        """Values before the change, on meta tensors, if only shapes are computed."""
        self.extra_traceback = False
        found = Consequences(is_exact=change.is_linear)
        self.state = ChangeState(program, change, Taker(take), self._run, self.module, found)

    @override
    def run_node(self, n: fx.Node) -> Any:
        old, state = super().run_node(n) if self.known is None else self.known.by_name[n.name], self.state
        if n.name == state.change.node.name:
            state.layouts[n] = Layout.of(state.change.own, len(old))
            _settle(state, n, old, state.change.value)
        elif any(i in state.values for i in n.all_input_nodes):
            _pass_on(state, n, old)
        return old

    def _run(self, node: fx.Node, call: CallChange, value: Callable[[fx.Node], Any]) -> Any:
        args, kwargs = call.on(value)
        try:
            if self.known is not None and node.op == "call_function" and not self.state.is_moving(node):
                with torch.device("meta"):
                    return self.call_function(node.target, args, kwargs)
            if node.op == "call_module" and (module := self.state.found.modules.get(str(node.target))) is not None:
                return module(*args, **kwargs)
            return getattr(self, node.op)(node.target, args, kwargs)
        except Exception as error:
            # A leaf module, or an assertion, may raise any exception.
            raise ObstacleError(node, f"it cannot process the changed map: {first_line(error)}") from error


def _pass_on(state: ChangeState, node: fx.Node, old: Any) -> None:
    """Compute the value of `node` after the change, and the edits that it needs."""
    if node.op == "output":
        changed = next(i for i in node.all_input_nodes if i in state.values)
        raise ObstacleError(changed, "it is an output of the program, and its shape would change")
    if is_dense(state, node):
        refit_dense(state, node)
        return
    if state.found.is_exact:
        _note_exactness(state, node, old)
    call = fit_call(state, node, old)
    new = state.run(node, call, state.now)
    _check_broadcast(node, old, new, [(state.env[i], state.now(i)) for i in node.all_input_nodes])
    layout = rearranged_layout(state, node, call) if state.is_moving(node) else derived_layout(state, node, old, new)
    if layout is not None and _shapes(layout.new) == _shapes(new):
        state.layouts[node] = layout
    _settle(state, node, old, new)


def _settle(state: ChangeState, node: fx.Node, old: Any, new: Any) -> None:
    """Record a changed value; the propagation ends at a value with its old shape."""
    if _shapes(old) == _shapes(new):
        state.found.is_exact &= not holds_tensors(old)
        return
    if isinstance(old, Tensor) and old.dim() != new.dim():
        raise ObstacleError(node, f"it would have {new.dim()} dims instead of {old.dim()}")
    state.values[node] = new


def _note_exactness(state: ChangeState, node: fx.Node, old: Any) -> None:
    """Update the exactness flags: `old = A new` survives nodes that rearrange entries or are affine and pointwise."""
    fact = pointwise(state.program, node)
    operator = state.program.operator(node)
    moving = operator is not None and operator.rearranges and not operator.picks
    if not holds_tensors(old) or moving or (fact is not None and fact.is_identity):
        return
    module = state.program.module(node) if node.op == "call_module" else None
    stencil = read_stencil(state.program, node, lambda n: state.env[n].shape)
    if isinstance(module, _BatchNorm) and module.track_running_stats and state.change.keeps_constants:
        state.found.uses_statistics = True
    elif not (
        isinstance(module, _ConvNd)
        and stencil is not None
        and stencil.is_point
        and (module.bias is None or state.change.keeps_constants)
    ):
        state.found.is_exact = False


def _shapes(value: Any) -> Any:
    return pytree.tree_map(lambda leaf: tuple(leaf.shape) if isinstance(leaf, Tensor) else leaf, value)


def _check_broadcast(node: fx.Node, old: Any, new: Any, inputs: Sequence[tuple[Any, Any]]) -> None:
    """Raise if a map reduced to a single position would be broadcast against a larger one."""
    if not isinstance(old, Tensor) or not isinstance(new, Tensor) or len(inputs) < 2:
        return
    for before, now in inputs:
        if isinstance(before, Tensor) and before.dim() <= old.dim() and new.dim() == old.dim():
            for dim in range(-before.dim(), 0):
                if before.shape[dim] == old.shape[dim] > 1 == now.shape[dim] < new.shape[dim]:
                    raise ObstacleError(node, "a map with a single position would be broadcast")
