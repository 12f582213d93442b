"""What must follow when a feature map is given other positions or channels: a walk of the graph on both at once.

Whatever takes a map of any size (convolutions, pools, norms, activations, a global mean) stays as it is. What does
not is found by running every node downstream on the changed value:

* a dense layer that sees positions gets a weight for the new ones (`spatial_maps`), and so does a convolution whose
  kernel is the whole map. Which column is which position is not guessed: numbers of positions flow through the very
  views, permutations and concatenations that the program has, before and after;
* a size that is written out in a view becomes the new one; a pool over the whole map, told as a constant, likewise;
* anything else that does not run, or that would silently broadcast a map of one position, is the obstacle told.

A change ends where a value has its old shape again. Where branches of unlike geometry meet, the first one's counts.
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
from fxsurgery.rewriting.changes import CallChange, Change, Changed, Consequences, ObstacleError, holds_tensors
from fxsurgery.rewriting.fitting import fitted, is_dense, refit_dense
from fxsurgery.rewriting.layout_flow import arising, moved
from fxsurgery.seeding import seeded


def follow(program: Program, change: Change, take: Take | None = None) -> Match[Consequences]:
    """What must follow `change` for the program to run, or what stands in the way."""
    return _walked(program, _Walk(program, change, take or Take()))


def can_follow(program: Program, node: fx.Node, change: Callable[[Tensor], Change]) -> bool:
    """Whether a change of what `node` gives can be followed, given what makes the change of its value.

    Found out on shapes alone, in a fraction of the time of a run, where the program runs on those.
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
    """Whether `node` may take on meta tensors what it does not take really: entries that are not there, channels."""
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
        """Where only shapes are asked for: those before the change."""
        self.extra_traceback = False
        found = Consequences(is_exact=change.is_linear)
        self.state = Changed(program, change, Taker(take), self._run, self.module, found)

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
            # A module that was kept whole, or an assertion, raises whatever it likes.
            raise ObstacleError(node, f"it cannot take the changed map: {first_line(error)}") from error


def _pass_on(state: Changed, node: fx.Node, old: Any) -> None:
    """Find what `node` gives after the change, and what it takes."""
    if node.op == "output":
        changed = next(i for i in node.all_input_nodes if i in state.values)
        raise ObstacleError(changed, "the program gives it out, and its shape would change")
    if is_dense(state, node):
        refit_dense(state, node)
        return
    if state.found.is_exact:
        _note_exactness(state, node, old)
    call = fitted(state, node, old)
    new = state.run(node, call, state.now)
    _check_broadcast(node, old, new, [(state.env[i], state.now(i)) for i in node.all_input_nodes])
    layout = moved(state, node, call) if state.is_moving(node) else arising(state, node, old, new)
    if layout is not None and _shapes(layout.new) == _shapes(new):
        state.layouts[node] = layout
    _settle(state, node, old, new)


def _settle(state: Changed, node: fx.Node, old: Any, new: Any) -> None:
    """Remember a changed value; the change ends at one of the old shape."""
    if _shapes(old) == _shapes(new):
        state.found.is_exact &= not holds_tensors(old)
        return
    if isinstance(old, Tensor) and old.dim() != new.dim():
        raise ObstacleError(node, f"it would give {new.dim()} dims instead of {old.dim()}")
    state.values[node] = new


def _note_exactness(state: Changed, node: fx.Node, old: Any) -> None:
    """`old = A new` holds of what `node` gives if it only moves entries, or is affine and the same everywhere."""
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
    """A map that is left with one position would be repeated where it meets one that has more."""
    if not isinstance(old, Tensor) or not isinstance(new, Tensor) or len(inputs) < 2:
        return
    for before, now in inputs:
        if isinstance(before, Tensor) and before.dim() <= old.dim() and new.dim() == old.dim():
            for dim in range(-before.dim(), 0):
                if before.shape[dim] == old.shape[dim] > 1 == now.shape[dim] < new.shape[dim]:
                    raise ObstacleError(node, "a map of one position would be repeated to meet another")
