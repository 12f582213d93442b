"""Add a layer after an activation: Net2Deeper (ECToNAS, Eq. 3).

    f(x)  ->  f(norm(I f(x)))

I is the identity: the unit matrix, or a convolution that passes each channel through its center tap. f is
applied once more, so the outputs stay the same if and only if f is idempotent, f(f(x)) = f(x), as ReLU is ("piecewise
linear", as in the paper, is not enough: LeakyReLU is not idempotent); for any other f the result is lossy.

The norm must be the identity as well, in train mode too. It undoes statistics that are measured on the example
inputs in train mode, n values per channel (`analysis.identity_norm`): exact in eval mode, and in train mode up to
sqrt(n / (n - 1)). The usual pair (mean 0, variance 1, weight 1, bias 0) is the identity in eval mode only.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from typing_extensions import override

from fxsurgery.analysis.activations import read_values
from fxsurgery.analysis.blocks import shape_of
from fxsurgery.analysis.identity_norm import undoing, without_statistics
from fxsurgery.analysis.naming import node_named, stem_of
from fxsurgery.analysis.pointwise import pointwise
from fxsurgery.analysis.structure import structure
from fxsurgery.calls import checked_construction
from fxsurgery.edit import Editor
from fxsurgery.errors import SpecError
from fxsurgery.match import Match, Refusal
from fxsurgery.ops import registry
from fxsurgery.ops.arithmetic import ADD, DIV, MUL, SUB
from fxsurgery.ops.layers import CONVOLUTION
from fxsurgery.program import Program
from fxsurgery.surgery import Effect, Rewrite, Trains

WIDEST = 127
"""A kernel larger than this must cover more than padding."""


@checked_construction
@dataclass(frozen=True)
class Deepen(Rewrite):
    """Insert an identity layer, with a norm if the layer before has one, and the same activation again."""

    name: ClassVar[str] = "deepen"
    trains: ClassVar[Trains] = Trains.ON

    after: str
    """Name of the node of the activation."""
    kernel: int = 3
    """Kernel size of a new convolution, odd; a map of one position gets a kernel of 1."""
    norm: Literal["auto", "batch", "none"] = "auto"
    """Whether a batch norm follows the new layer; `auto`: if one follows the layer before."""

    @classmethod
    @override
    def candidates(cls, program: Program) -> Iterator[Self]:
        """Yield every activation that is neither a gate, which only scales other values, nor a step of a formula."""
        for node in program.nodes:
            site, move = _site(program, node), cls(node.name)
            if isinstance(site, Refusal) or _is_step(program, node) or _only_scales(program, node):
                continue
            if not _normed(move, site) or _unmeasurable(program, site) is None:
                yield move

    def is_dense(self, program: Program) -> bool:
        """Return True if the new layer is a linear one."""
        site = _site(program, self._node(program))
        return isinstance(site, _Site) and site.is_last

    @override
    def rewrite(self, edit: Editor) -> Effect:
        program, node = edit.program, self._node(edit.program)
        site = _site(program, node)
        if isinstance(site, Refusal):
            edit.decline(site)
            return Effect.EXACT
        widest = 2 * max((*site.shape[2:], 1)) - 1
        if not site.is_last and self.kernel > max(widest, WIDEST):
            most = max(widest, WIDEST)
            raise SpecError(f"kernel={self.kernel!r} is larger than the map: it must be at most {most}")
        added = [_identity(site, self.kernel, bias=not _normed(self, site))]
        if _normed(self, site):
            if site.is_last and site.dims > 2:
                edit.refuse(node, f"a batch norm takes the channels at dim 1; here they are at dim {site.dims - 1}")
                return Effect.EXACT
            if refusal := _unmeasurable(program, site):
                edit.refuse(node, refusal)
                return Effect.EXACT
            norm = undoing(read_values(program, {node.name}, training=True)[node.name], site.norm)
            if norm is None:
                edit.refuse(node, "no statistics for a batch norm: the example inputs give one value per channel")
                return Effect.EXACT
            added.append(norm.requires_grad_(site.like.requires_grad))
        _insert(edit, site, added)
        fact = pointwise(program, node)
        return Effect.EXACT if fact is not None and fact.is_idempotent else Effect.LOSSY

    def _node(self, program: Program) -> fx.Node:
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise SpecError(f"kernel={self.kernel!r}: it must be odd; an even kernel has no center tap")
        known = (n.name for n in program.nodes if isinstance(_site(program, n), _Site))
        return node_named(program, self.after, lambda: known, "nodes that a layer can follow")


@dataclass(frozen=True, eq=False)
class _Site:
    """An activation, and the properties of the layer to insert after it."""

    node: fx.Node
    path: str
    """Path next to which the new modules are added."""
    like: Tensor
    """A parameter whose dtype, device and `requires_grad` the new ones share."""
    shape: tuple[int, ...]
    is_last: bool
    """Whether the channels are along the last dim (a linear layer) instead of dim 1 (a convolution)."""
    norm: _BatchNorm | None
    """The batch norm between the layer before and the activation, if any."""

    @property
    def dims(self) -> int:
        return len(self.shape)

    @property
    def channels(self) -> int:
        return self.shape[-1 if self.is_last else 1]


def _site(program: Program, node: fx.Node) -> Match[_Site]:
    """Return the place for a layer after `node`, or a refusal."""
    fact, shape = pointwise(program, node), shape_of(program, node)
    if fact is None or fact.is_identity or shape is None:
        return Refusal(node.name, "it is not an activation: a function of single entries without parameters")
    if not node.users:
        return Refusal(node.name, "nothing reads it")
    if node.op == "call_method" and _function(program, node) is None:
        return Refusal(node.name, f"the method {node.target} has no equivalent function to call again")
    layer, norm = _producer(program, node)
    is_last = _is_last(program, node, layer, shape)
    if is_last is None:
        return Refusal(node.name, "which dim carries the channels is not known")
    owner = node if node.op == "call_module" else layer
    like = next((program.module(layer) if layer is not None else program.graph_module).parameters())
    return _Site(node, stem_of(str(owner.target) if owner else node.name), like, shape, is_last, norm)


def _is_step(program: Program, node: fx.Node) -> bool:
    """Return True for a node that is part of a formula: rotary embeddings, attention, a GELU or a norm written out."""
    operator = program.operator(node)
    return operator is not None and operator.role == "step"


def _only_scales(program: Program, node: fx.Node) -> bool:
    """Return True if every reader of `node`, past shifts and scales by constants, multiplies another value by it."""
    for reader in node.users:
        operator = program.operator(reader)
        by_constant = len(reader.all_input_nodes) == 1 and operator in {MUL, ADD, SUB, DIV}
        if not (_only_scales(program, reader) and reader.users if by_constant else operator is MUL):
            return False
    return True


def _is_last(program: Program, node: fx.Node, layer: fx.Node | None, shape: tuple[int, ...]) -> bool | None:
    """Return True for channels along the last dim, as of a linear layer, False for dim 1; `None` if unknown."""
    module = program.module(layer) if layer is not None else None
    if isinstance(module, nn.Linear):
        return True if len(shape) > 1 else None
    if isinstance(module, _ConvNd):
        return False if len(shape) == len(module.kernel_size) + 2 else None
    labels = structure(program).values[node.name]
    dims = set(structure(program).along(labels))
    if dims == {len(shape) - 1} and len(shape) > 1:
        return True
    return False if dims == {1} and len(shape) in CONVOLUTION else None


def _producer(program: Program, node: fx.Node) -> tuple[fx.Node | None, _BatchNorm | None]:
    """Return the linear layer or convolution before `node`, past channel-wise operations, and its batch norm."""
    norm: _BatchNorm | None = None
    while True:
        inputs = node.all_input_nodes
        operator = program.operator(node)
        if not inputs or operator is None or not (operator.keeps_channels or operator is ADD):
            return None, norm
        node = inputs[0]
        if node.op != "call_module":
            continue
        module = program.module(node)
        if isinstance(module, nn.Linear) or (isinstance(module, _ConvNd) and not module.transposed):
            return node, norm
        norm = norm or (module if isinstance(module, _BatchNorm) else None)


def _normed(move: Deepen, site: _Site) -> bool:
    """Return True if a batch norm follows the new layer."""
    if move.norm != "auto":
        return move.norm == "batch"
    return site.norm is not None and not (site.is_last and site.dims > 2)


def _unmeasurable(program: Program, site: _Site) -> Refusal | None:
    """Return a refusal if a norm gets a single value per channel in train mode, so that there are no statistics."""
    shapes = {node.name: shape_of(program, node) for node, _ in program.calls(_BatchNorm)}
    for name, shape in {**shapes, site.node.name: site.shape}.items():
        channels = site.channels if name == site.node.name else (shape or (1, 1))[1]
        if shape is not None and torch.Size(shape).numel() <= channels:
            return Refusal(
                name, f"no statistics for a batch norm: the example inputs give %{name} one value per channel"
            )
    return without_statistics(program)


def _identity(site: _Site, kernel: int, *, bias: bool) -> nn.Module:
    """Return the layer that passes each channel through."""
    like, channels = site.like, site.channels
    layer: nn.Linear | _ConvNd
    weight = torch.eye(channels, device=like.device, dtype=like.dtype)
    if site.is_last:
        layer = nn.Linear(channels, channels, bias, "meta")  # drawn from no random numbers: replaced below
    else:
        sizes = tuple(kernel if extent > 1 else 1 for extent in site.shape[2:])
        around = tuple(size // 2 for size in sizes)
        layer = CONVOLUTION[site.dims](channels, channels, sizes, padding=around, bias=bias, device="meta")
        weight = F.pad(weight.reshape(channels, channels, *(1 for _ in sizes)), [n for n in around[::-1] for _ in "<>"])
    layer.weight = nn.Parameter(weight)
    if layer.bias is not None:
        layer.bias = nn.Parameter(torch.zeros(channels, device=like.device, dtype=like.dtype))
    return layer.requires_grad_(like.requires_grad)


def _insert(edit: Editor, site: _Site, added: list[nn.Module]) -> None:
    """Insert `added` and the activation once more after the activation, for all its readers."""
    node, last = site.node, site.node
    readers, before = list(node.users), node.next
    for module, stem in zip(added, ("deeper", "deeper_norm"), strict=False):
        last = edit.insert_call(edit.new_path(f"{site.path}_{stem}"), module, (last,), before=before)
    if node.op == "call_module":
        again = copy.deepcopy(edit.program.module(node))
        last = edit.insert_call(edit.new_path(f"{site.path}_deeper_act"), again, (last,), before=before)
    elif (function := _function(edit.program, node)) is not None:
        last = edit.insert_function(function, (last, *node.args[1:]), before=before, **node.kwargs)
    edit.replace_uses(node, last, readers)


def _function(program: Program, node: fx.Node) -> Callable[..., object] | None:
    """Return the function that a node calls, or the one equivalent to its method; `None` if there is none."""
    operator = program.operator(node)
    if not isinstance(node.target, str):
        return node.target
    return None if operator is None else registry.function_of(operator)
