"""What must follow when a feature map is given other positions or channels: a walk of the graph on both at once.

Whatever takes a map of any size (convolutions, pools, norms, activations, a global mean) stays as it is. What does
not is found by running every node downstream on the changed value:

* a dense layer that sees positions gets a weight for the new ones (`positions`), and so does a convolution whose
  kernel is the whole map. Which column is which position is not guessed: numbers of positions flow through the very
  views, permutations and concatenations that the program has, before and after;
* a size that is written out in a view becomes the new one; a pool over the whole map, told as a constant, likewise;
* anything else that does not run, or that would silently broadcast a map of one position, is the obstacle told.

A change ends where a value has its old shape again. Where branches of unlike geometry meet, the first one's counts.
"""

# ruff: noqa: ANN401 -- values of the user's graph

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.pooling import _AvgPoolNd, _MaxPoolNd
from torch.utils import _pytree as pytree
from typing_extensions import override

from fxsurgery.analysis.activations import read_values
from fxsurgery.analysis.pointwise import pointwise
from fxsurgery.analysis.pooling import LOCAL, read_pool, read_stencil
from fxsurgery.analysis.refit import Sizes, refit
from fxsurgery.analysis.shapes import target_name
from fxsurgery.analysis.shapes_run import ShapesRun, shapes_run
from fxsurgery.analysis.shared_modules import fixed, names_of
from fxsurgery.analysis.spatial_maps import Layout, Map, Take, Taker, nearest
from fxsurgery.edit import Editor
from fxsurgery.errors import first_line
from fxsurgery.lineage import Origin
from fxsurgery.match import Match, Refusal
from fxsurgery.program import Program
from fxsurgery.rewriting.view_inference import regrouped
from fxsurgery.seeding import seeded

MOVING = set(
    "flatten ravel view reshape permute transpose swapaxes swapdims movedim moveaxis squeeze unsqueeze contiguous "
    "clone cat concat concatenate chunk split unsafe_chunk tensor_split getitem unbind flip narrow select "
    "unflatten".split()
)
"""Functions and methods that only move entries: what is true of entries is true of what comes out."""
MOVING_MODULES = (nn.Flatten, nn.Unflatten, nn.ChannelShuffle)
PARTING = set("chunk split unsafe_chunk tensor_split getitem unbind narrow select".split())
"""Those of them that may leave entries out."""
_UNCHECKED = ("index", "gather", "take", "scatter", "embedding", "conv_transpose", "getitem")
"""Parts of the names of functions that PyTorch does not check on meta tensors as it does on others."""
RESAMPLING = ("pool", "interpolate", "upsample", "pad")
"""Parts of the names of what gives another number of positions, which are spread evenly over the same area."""


@dataclass(eq=False)
class Consequences:
    """The edits that a change asks for; nothing is edited yet."""

    modules: dict[str, nn.Module] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    arguments: list[tuple[fx.Node, int | str, Any]] = field(default_factory=list)
    origins: dict[str, Origin] = field(default_factory=dict)
    is_exact: bool = True
    """Whether the outputs stay the same in eval mode, if `Change.is_linear`."""
    uses_statistics: bool = False
    """Whether they do in eval mode alone: a batch norm stands between."""

    def apply(self, edit: Editor) -> None:
        """Make the edits."""
        for path, module in self.modules.items():
            edit.replace_module(path, module)
        for path, tensor in self.tensors.items():
            edit.replace_tensor(path, tensor)
        for node, key, value in self.arguments:
            edit.set_argument(node, key, value)
        for name, origin in self.origins.items():
            edit.carry(name, origin)


@dataclass(frozen=True, eq=False)
class Change:
    """What the readers of `node` will read in its place."""

    node: fx.Node
    value: Tensor
    """On the example inputs."""
    own: Map
    is_linear: bool = False
    """Whether `old = A new` for the A that `own.factors` are made from, so that a dense layer can give the same."""
    keeps_constants: bool = True
    """Whether A's rows sum to 1: an offset added before A is the same as one added after."""
    are_copies: bool = False
    """Whether each channel of the new value is one of the old: a norm repeats its entries."""


def follow(program: Program, change: Change, take: Take | None = None) -> Match[Consequences]:
    """What must follow `change` for the program to run, or what stands in the way."""
    return _walked(program, _Walk(program, change, take or Take()))


def can_follow(program: Program, node: fx.Node, change: Callable[[Tensor], Change]) -> bool:
    """Whether a change of what `node` gives can be followed, given what makes the change of its value.

    Found out on shapes alone, in a fraction of the time of a run, where the program runs on those.
    """
    if (shapes := shapes_run(program)) is not None:
        with torch.no_grad():
            walk = _Walk(program, change(shapes.values[node.name]), Take(), shapes)
        if isinstance(_walked(program, walk), Refusal):
            return False
        if not any(_is_unchecked(program, reached) for n in walk.values for reached in n.users):
            return True
    value = read_values(program, {node.name})[node.name]
    return isinstance(follow(program, change(value)), Consequences)


def _is_unchecked(program: Program, node: fx.Node) -> bool:
    """Whether `node` may take on meta tensors what it does not take really: entries that are not there, channels."""
    if node.op == "call_module":
        module = program.module(node)
        return getattr(module, "transposed", False) or not type(module).__module__.startswith("torch.nn")
    return node.op != "output" and any(part in target_name(node) for part in _UNCHECKED)


def _walked(program: Program, walk: "_Walk") -> Match[Consequences]:
    device = next((x.device for x in program.examples.tensors), torch.device("cpu"))
    try:
        with torch.no_grad(), seeded(0, device):
            walk.run(*program.examples.clone().leaves, enable_io_processing=False)
    except _ObstacleError as obstacle:
        return obstacle.refusal
    return walk.found


class _ObstacleError(Exception):
    def __init__(self, node: fx.Node, reason: str) -> None:
        super().__init__(reason)
        self.refusal = Refusal(str(node), reason)


@dataclass(frozen=True)
class _Call:
    """The arguments of a node, with nodes for values."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def on(self, value: Callable[[fx.Node], Any]) -> tuple[Any, Any]:
        """The arguments with the value of each node."""
        return fx.node.map_arg(self.args, value), fx.node.map_arg(self.kwargs, value)


class _Walk(fx.Interpreter):
    """Runs the program as it is, and beside it what the change reaches."""

    def __init__(self, program: Program, change: Change, take: Take, shapes: ShapesRun | None = None) -> None:
        super().__init__(program.graph_module if shapes is None else shapes.graph_module)
        self.shapes = shapes
        """Where only shapes are asked for: those before the change."""
        self.extra_traceback = False
        self.program, self.change, self.taker = program, change, Taker(take)
        self.found = Consequences(is_exact=change.is_linear)
        self.values: dict[fx.Node, Any] = {}
        """By node that the change reaches: what it gives then."""
        self.layouts: dict[fx.Node, Layout] = {}
        """Of those, where it is known which entry is which."""

    @override
    def run_node(self, n: fx.Node) -> Any:
        old = super().run_node(n) if self.shapes is None else self.shapes.values[n.name]
        if n.name == self.change.node.name:
            self.layouts[n] = Layout.of(self.change.own, len(old))
            self._settle(n, old, self.change.value)
        elif any(i in self.values for i in n.all_input_nodes):
            self._follow(n, old)
        return old

    def _follow(self, node: fx.Node, old: Any) -> None:
        if node.op == "output":
            changed = next(i for i in node.all_input_nodes if i in self.values)
            raise _ObstacleError(changed, "the program gives it out, and its shape would change")
        if self._is_dense(node):
            self._refit_dense(node)
            return
        if self.found.is_exact:
            self._note_exactness(node, old)
        call = self._fitted(node, old)
        new = self._run(node, call, self._now)
        _check_broadcast(node, old, new, [(self.env[i], self._now(i)) for i in node.all_input_nodes])
        layout = self._moved(node, call) if self._is_moving(node) else self._arising(node, old, new)
        if layout is not None and _shapes(layout.new) == _shapes(new):
            self.layouts[node] = layout
        self._settle(node, old, new)

    def _settle(self, node: fx.Node, old: Any, new: Any) -> None:
        """Remember a changed value; the change ends at one of the old shape."""
        if _shapes(old) == _shapes(new):
            self.found.is_exact &= not _holds_tensors(old)
            return
        if isinstance(old, Tensor) and old.dim() != new.dim():
            raise _ObstacleError(node, f"it would give {new.dim()} dims instead of {old.dim()}")
        self.values[node] = new

    def _now(self, node: fx.Node) -> Any:
        return self.values[node] if node in self.values else self.env[node]

    def _run(self, node: fx.Node, call: _Call, value: Callable[[fx.Node], Any]) -> Any:
        args, kwargs = call.on(value)
        try:
            if self.shapes is not None and node.op == "call_function" and not self._is_moving(node):
                with torch.device("meta"):
                    return self.call_function(node.target, args, kwargs)
            if node.op == "call_module" and (module := self.found.modules.get(str(node.target))) is not None:
                return module(*args, **kwargs)
            return getattr(self, node.op)(node.target, args, kwargs)
        except Exception as error:
            # A module that was kept whole, or an assertion, raises whatever it likes.
            told = first_line(error)
            raise _ObstacleError(node, f"it cannot take the changed map: {told}") from error

    def _note_exactness(self, node: fx.Node, old: Any) -> None:
        """`old = A new` holds of what `node` gives if it only moves entries, or is affine and the same everywhere."""
        fact = pointwise(self.program, node)
        moving = self._is_moving(node) and target_name(node) not in PARTING
        if not _holds_tensors(old) or moving or (fact is not None and fact.is_identity):
            return
        module = self.program.module(node) if node.op == "call_module" else None
        stencil = read_stencil(self.program, node, lambda n: self.env[n].shape)
        if isinstance(module, _BatchNorm) and module.track_running_stats and self.change.keeps_constants:
            self.found.uses_statistics = True
        elif not (
            isinstance(module, _ConvNd)
            and stencil is not None
            and stencil.is_point
            and (module.bias is None or self.change.keeps_constants)
        ):
            self.found.is_exact = False

    def _is_moving(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return isinstance(self.program.module(node), MOVING_MODULES)
        return node.op in {"call_function", "call_method"} and target_name(node) in MOVING

    def _moved(self, node: fx.Node, call: _Call) -> Layout | None:
        """The layout of what only moves entries: the numbers of the entries are moved in the same way."""
        operands = [i for i in node.all_input_nodes if _holds_tensors(self.env[i])]
        maps, old, new = tuple[Map, ...](), dict[fx.Node, Any](), dict[fx.Node, Any]()
        for operand in operands:
            if (layout := self._layout(operand)) is None:
                return None
            before = (sum(math.prod(m.old) for m in maps), sum(math.prod(m.new) for m in maps))
            old[operand] = pytree.tree_map(partial(torch.add, other=before[0]), layout.old)
            new[operand] = pytree.tree_map(partial(torch.add, other=before[1]), layout.new)
            maps += layout.maps
        if not operands:
            return None
        first = self._run(node, _Call(node.args, node.kwargs), lambda n: old[n] if n in old else self.env[n])
        return Layout(maps, first, self._run(node, call, lambda n: new[n] if n in new else self._now(n)))

    def _layout(self, node: fx.Node) -> Layout | None:
        if node in self.layouts or node in self.values:
            return self.layouts.get(node)
        value = self.env[node]
        if not isinstance(value, Tensor) or not value.dim():
            return None
        shape = tuple(value.shape[1:])
        return Layout.of(Map(shape, shape, (None,) * len(shape), (None,) * len(shape)), len(value))

    def _arising(self, node: fx.Node, old: Any, new: Any) -> Layout | None:
        """The layout of a new value: that of an input of the same shape, or of a map of its own."""
        reached = [i for i in node.all_input_nodes if i in self.layouts and i in self.values]
        sources = [i for i in reached if isinstance(self.env[i], Tensor)]
        if not sources or not isinstance(old, Tensor):
            return None
        for source in sources:
            if (self.env[source].shape, self.values[source].shape) == (old.shape, new.shape):
                return self.layouts[source]
        if sources[0] is not node.args[0] or self.env[sources[0]].dim() != old.dim():
            return None
        return self._resampled(node, sources[0], old, new)

    def _resampled(self, node: fx.Node, source: fx.Node, old: Tensor, new: Tensor) -> Layout | None:
        """The layout of what has windows, or spreads another number of positions over the same area."""
        name = type(self.program.module(node)).__name__ if node.op == "call_module" else target_name(node)
        stencil = read_stencil(self.program, node, lambda n: self.env[n].shape)
        if stencil is None and not any(part in name.lower() for part in (*RESAMPLING, "convtranspose")):
            return None
        before, now, layout = self.env[source], self.values[source], self.layouts[source]
        channels = None
        if old.shape[1] != new.shape[1]:
            kept = (old.shape[1], new.shape[1]) == (before.shape[1], now.shape[1])
            if not kept or (channels := layout.channels()) is None:
                return None  # not kept: it adds or drops channels, as a pad of them does
        factors, axes = list[Tensor | None]([channels]), list[Any]([None])
        for dim in range(2, old.dim()):
            if (found := layout.axis(dim)) is None or (pair := found[0].axes[found[1]]) is None:
                return None
            if stencil is None:
                to_old, to_new = old.shape[dim], new.shape[dim]
                pair = (pair[0].stretched(before.shape[dim], to_old), pair[1].stretched(now.shape[dim], to_new))
            else:
                pair = (stencil.through(dim - 2, pair[0]), stencil.through(dim - 2, pair[1]))
            is_point = stencil is not None and stencil.is_point
            factors.append(found[0].factors[found[1]] if is_point else nearest(*pair, old.shape[dim], new.shape[dim]))
            axes.append(pair)
        return Layout.of(Map(tuple(old.shape[1:]), tuple(new.shape[1:]), tuple(factors), tuple(axes)), len(old))

    def _is_dense(self, node: fx.Node) -> bool:
        source = node.args[0] if node.args else None
        if not isinstance(source, fx.Node) or not isinstance(self.values.get(source), Tensor):
            return False
        is_module = node.op == "call_module" and isinstance(self.program.module(node), nn.Linear)
        if not is_module and node.target is not nn.functional.linear:
            return False
        return bool(self.values[source].shape[-1] != self.env[source].shape[-1])

    def _refit_dense(self, node: fx.Node) -> None:
        source: Any = node.args[0]
        old, new, layout = self.env[source], self.values[source], self.layouts.get(source)
        columns = None if layout is None or old.shape[:-1] != new.shape[:-1] else layout.columns()
        if layout is None or columns is None:
            raise _ObstacleError(node, "which of its inputs is which position is not known")
        if node.op == "call_module":
            module = self._own(node)
            weight = self._taken_over(f"{node.target}.weight", module.get_parameter("weight"), layout, columns)
            self.found.modules[str(node.target)] = refit(module, {"weight": weight})
            return
        holder: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("weight")
        name = str(holder.target)
        own = attrgetter(name)(self.program.graph_module) if holder.op == "get_attr" else None
        if own is None or len(holder.users) > 1 or len(names_of(self.program, own)) > 1:
            raise _ObstacleError(node, "its weight has other readers, or is computed")
        self.found.tensors[name] = self._taken_over(name, self.env[holder], layout, columns)

    def _taken_over(self, name: str, weight: Tensor, layout: Layout, columns: tuple[Tensor, Tensor]) -> Tensor:
        """The dense weight `name`, (out, in), for the new columns."""
        new, index = self.taker.columns(weight.detach(), layout.maps, columns)
        if index is not None:
            self.found.origins[name] = Origin(name, {1: index})
        return new

    def _own(self, node: fx.Node) -> nn.Module:
        """The module that a node calls, if nothing else does; to be replaced."""
        if refusal := fixed(self.program, str(node.target)):
            raise _ObstacleError(node, refusal.reason)
        module: nn.Module = self.fetch_attr(str(node.target))
        return module

    def _fitted(self, node: fx.Node, old: Any) -> _Call:
        """The node's arguments, or those that it needs now, which are noted. So is the module that it needs."""
        call = _Call(node.args, dict(node.kwargs))
        if node.op == "call_module":
            self._fit_module(node, old)
        elif target_name(node) in {"view", "reshape"} and isinstance(old, Tensor):
            return self._fitted_view(node, old)
        elif self._is_whole_pool(node, old) and len(node.args) > 1:
            kernel = list(self.values[node.all_input_nodes[0]].shape[2:])
            self.found.arguments.append((node, 1, kernel))
            return _Call((node.args[0], kernel, *node.args[2:]), call.kwargs)
        return call

    def _fitted_view(self, node: fx.Node, old: Tensor) -> _Call:
        """A view whose constant sizes are those of the new map."""
        source = node.args[0]
        wanted = None
        if isinstance(source, fx.Node) and source in self.values:
            wanted = regrouped(self.env[source].shape, self.values[source].shape, old.shape)
        if wanted is None:
            raise _ObstacleError(node, "how it regroups the dims of the changed map is not known")
        listed = len(node.args) == 2 and isinstance(node.args[1], (list, tuple))
        sizes: Any = node.args[1] if listed else node.args[1:]
        if len(sizes) != len(wanted):
            raise _ObstacleError(node, "its sizes are not given one by one")
        new = list[Any]()
        for size, want in zip(sizes, wanted, strict=True):
            now = self._now(size) if isinstance(size, fx.Node) else size
            if now not in {want, -1} and isinstance(size, fx.Node):
                raise _ObstacleError(node, f"its size %{size} is computed: {now} where {want} is wanted")
            new.append(size if now in {want, -1} else want)
        if new != list(sizes) and listed:
            self.found.arguments.append((node, 1, new))
        elif new != list(sizes):
            self.found.arguments += [(node, n, size) for n, size in enumerate(new, 1) if size != sizes[n - 1]]
        return _Call((source, new) if listed else (source, *new), dict(node.kwargs))

    def _fit_module(self, node: fx.Node, old: Any) -> None:
        """A convolution of other channels, or over the whole map, and a pool over the whole map."""
        module, source = self.program.module(node), node.all_input_nodes[0]
        if source in self.values and isinstance(module, _NormBase):
            self._fit_norm(node, module, source)
            return
        if source not in self.values or not isinstance(module, (_ConvNd, _AvgPoolNd, _MaxPoolNd)):
            return
        if self._is_whole_pool(node, old):
            self._own(node)
            pool: Any = copy.copy(module)
            pool.kernel_size = pool.stride = tuple(self.values[source].shape[2:])
            self.found.modules[str(node.target)] = pool
        elif isinstance(module, _ConvNd) and (factors := self._conv_factors(node, module, source, old)) is not None:
            own, shape = self._own(node), tuple(self.values[source].shape[2:])
            weight, _ = self.taker.entries(own.get_parameter("weight").detach(), factors)
            inner = [len(f) if f is not None else n for f, n in zip(factors, module.weight.shape[1:], strict=True)]
            new: Any = refit(own, {"weight": weight.reshape(len(weight), *inner)})
            new.kernel_size = module.kernel_size if factors[1:] == [None] * len(shape) else shape
            self.found.modules[str(node.target)] = new

    def _fit_norm(self, node: fx.Node, module: _NormBase, source: fx.Node) -> None:
        """A norm of other channels: one without entries, or that of copies."""
        channels = int(self.values[source].shape[1])
        if channels == module.num_features or (module.state_dict() and not self.change.are_copies):
            return
        own, tensors = self._own(node), dict[str, Tensor]()
        if module.state_dict():
            layout = self.layouts.get(source)
            if layout is None or (factor := layout.channels()) is None:
                raise _ObstacleError(node, "which of its inputs is which channel is not known")
            copied, entries = factor.argmax(1), (*own.named_parameters(), *own.named_buffers())
            tensors = {name: t.detach()[copied.to(t.device)] for name, t in entries if t.dim()}
        self.found.modules[str(node.target)] = refit(own, tensors, Sizes(channels=channels))

    def _conv_factors(self, node: fx.Node, module: _ConvNd, source: fx.Node, old: Tensor) -> list[Tensor | None] | None:
        """What becomes of a convolution's weight along its inputs and its kernel; `None` if it stays."""
        before, now, layout = self.env[source], self.values[source], self.layouts.get(source)
        factors: list[Tensor | None] = [None] * (before.dim() - 1)
        if layout is None or module.transposed:
            return None
        if before.shape[1] != now.shape[1]:
            if module.groups > 1:
                raise _ObstacleError(node, "its groups of channels cannot take others")
            if (channels := layout.channels()) is None:
                raise _ObstacleError(node, "which of its inputs is which channel is not known")
            factors[0] = channels
        if before.shape[2:] != now.shape[2:] and _covers(node, self.program, before, old):
            for dim in range(2, before.dim()):
                if (found := layout.axis(dim)) is None:
                    raise _ObstacleError(node, "which of its inputs is which position is not known")
                factors[dim - 1] = found[0].factors[found[1]]
        return None if all(f is None for f in factors) else factors

    def _is_whole_pool(self, node: fx.Node, old: Any) -> bool:
        """Whether a node is a pool whose one window is the whole map, and was chosen for it."""
        pool = read_pool(self.program, node)
        if pool is None or not isinstance(old, Tensor):
            return False
        before = self.env[node.all_input_nodes[0]]
        return pool.kernel == tuple(before.shape[2:]) and not any(pool.padding) and max(pool.kernel) > LOCAL


def _covers(node: fx.Node, program: Program, before: Tensor, old: Tensor) -> bool:
    """Whether a convolution is a dense layer: its kernel is the whole map."""
    module: Any = program.module(node)
    whole = tuple(module.kernel_size) == tuple(before.shape[2:]) and set(old.shape[2:]) == {1}
    padded = any(n != "valid" and n for n in _flat(module.padding))
    return whole and max(module.kernel_size) > LOCAL and not padded and set(module.dilation) == {1}


def _flat(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def _holds_tensors(value: Any) -> bool:
    return any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(value))


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
                    raise _ObstacleError(node, "a map of one position would be repeated to meet another")
