"""Split an edge of a grown network: append operations to it, or add a parallel node (SEArch).

    op(x) = skip(x) + BN(point(depth(relu(x))))               activation="before"
    op(x) = relu(skip(x) + BN(point(depth(x))))               activation="after"

`depth` is a depthwise 3x3 convolution of stride 1 or 2, `point` a 1x1 one: the residual separable convolution of
App. B, fig. A.6. The paper does not specify the position of its activation, nor its skip across a change of size.
Here `skip` is the identity if the shape stays, and a 1x1 convolution of the same stride if it changes; both
convolutions give ceil(size / 2) at stride 2 for every size.

    deepen    v  ->  op(...op(v))                              `ops` of them; all readers of v read the result
    widen     v_j  ->  v_j + BN(edge(v_k)),  v_k = edge(v_i)   as many ops per edge as its strides need

*Function-preserving* (our addition, `zero="keep"`), by one norm per edge whose scale and offset start at 0:
in deepen the BN of each appended op, exact since the activation precedes the sum (with "after", only if v >= 0, as the
effect says); in widen a norm after the last sum, in place of that op's own, so that the **whole output of the edge,
including the skip**, starts at 0. No two zeros are in series, so the norm trains at the first step
and all before it at the second: a zero in front of a ReLU would never train, since relu'(0) = 0.
`zero="fresh"` is the paper's plain initialization.

The modules of one split are under one path P: `P.0`, `P.1` ... (deepen); `P.into.0` ..., `P.out.0` ..., `P.norm`
(widen). v_k is the input of the first op under `P.out`.
"""

import itertools
import math
import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F  # noqa: N812 -- as everywhere in torch
from typing_extensions import override

from fxsurgery.analysis.activations import read_values
from fxsurgery.analysis.blocks import dims_of, sum_operands, writes_into
from fxsurgery.analysis.naming import node_named
from fxsurgery.analysis.nonnegativity import is_non_negative
from fxsurgery.analysis.pointwise import only_reader, pointwise
from fxsurgery.analysis.pool_windows import feature_maps
from fxsurgery.calls import checked_construction
from fxsurgery.edit import Editor
from fxsurgery.errors import SpecError
from fxsurgery.match import Refusal
from fxsurgery.option_types import MOST_UNITS, Range, Seed
from fxsurgery.program import Program
from fxsurgery.surgery import Effect, Rewrite

Size = tuple[int, int]
Stride = tuple[int, int]

_CANDIDATE_MAPS = 3
"""Number of feature maps for which `candidates` yields moves."""


@checked_construction
@dataclass(frozen=True)
class SplitEdge(Rewrite):
    """Deepen the edge that ends at a feature map, or widen between two of them."""

    name: ClassVar[str] = "split-edge"
    mode: Literal["deepen", "widen"]
    target: str
    """Name of the node v (deepen) or v_j (widen), which gives a feature map (batch, channels, height, width)."""
    source: str | None = None
    """Name of the node v_i (widen)."""
    ops: Annotated[int, Range(most=100)] = 3
    """Number of operations to append (deepen)."""
    channels: Annotated[int | None, Range(most=MOST_UNITS)] = None
    """Number of channels of the new node (widen); that of v_j by default."""
    size: tuple[int, int] | None = None
    """Height and width of the new node (widen); those of v_j by default."""
    zero: Literal["keep", "fresh"] = "keep"
    activation: Literal["before", "after"] = "before"
    seed: Seed = 0

    @classmethod
    @override
    def candidates(cls, program: Program) -> Iterator[Self]:
        """Yield moves for the first, middle and last larger feature map: deepen each, widen from one to the next."""
        maps = list(_feature_maps(program))
        places = sorted({round(i * (len(maps) - 1) / (_CANDIDATE_MAPS - 1)) for i in range(_CANDIDATE_MAPS)})
        chosen = [maps[i] for i in places] if maps else []
        for node in chosen:
            yield cls("deepen", node.name)
        for before, after in itertools.pairwise(chosen):
            reachable = strides(dims_of(program, before)[2:], dims_of(program, after)[2:]) is not None
            if reachable and not _overwriters(program, before):
                yield cls("widen", after.name, before.name)

    @override
    def rewrite(self, edit: Editor) -> Effect:
        self._check()
        target = _found(edit.program, self.target)
        if refusal := _unfit(edit.program, target):
            edit.decline(refusal)
            return Effect.EXACT
        return self._deepen(edit, target) if self.mode == "deepen" else self._widen(edit, target)

    def _check(self) -> None:
        if self.mode == "widen" and self.source is None:
            raise SpecError("split-edge with mode='widen' goes from a node to a node: pass source=")
        if self.mode == "deepen" and (self.source, self.channels, self.size) != (None, None, None):
            raise SpecError(
                "split-edge with mode='deepen' keeps size and channels and has no source: leave source=, size= and "
                "channels= out"
            )
        if self.mode == "widen" and self.ops != type(self).ops:
            raise SpecError("split-edge with mode='widen' puts in as many ops as its strides need: leave ops= out")
        if min(self.ops, self.channels or 1, *(self.size or (1,))) < 1:
            raise SpecError("split-edge: ops=, channels= and size= must be at least 1")

    def _deepen(self, edit: Editor, target: fx.Node) -> Effect:
        readers = list(target.users)
        build = self._builder(edit, target)
        width = dims_of(edit.program, target)[1]
        end = target
        for position in range(self.ops):
            place = f"{build.path}.{position}"
            end = build.operation(place, end, (width, width), (1, 1), scale=0.0 if self.zero == "keep" else 1.0)
        edit.replace_uses(target, end, readers)
        kept = self.activation == "before" or is_non_negative(edit.program, target)
        return Effect.EXACT if self.zero == "keep" and kept else Effect.LOSSY

    def _widen(self, edit: Editor, target: fx.Node) -> Effect:
        program = edit.program
        source = _found(program, str(self.source))
        order = {node: position for position, node in enumerate(program.nodes)}
        if order[source] >= order[target]:
            raise SpecError(
                f"%{source} does not run before %{target}: choose a source that does, since an edge goes forward"
            )
        start, final = dims_of(program, source), dims_of(program, target)
        middle = self.size or (final[2], final[3])
        refusal = _unfit(program, source)
        if not refusal and (writers := _overwriters(program, source)):
            refusal = Refusal(source.name, f"its value is overwritten by %{writers[0]}")
        if refusal:
            edit.decline(refusal)
            return Effect.EXACT
        into, out = strides(start[2:], middle), strides(middle, final[2:])
        if into is None or out is None:
            sizes = " -> ".join(f"{h}x{w}" for h, w in (start[2:], middle, final[2:]))
            edit.refuse(target, f"sizes {sizes} are not reached by halving, rounded up")
            return Effect.EXACT
        readers, build = list(target.users), self._builder(edit, target)
        width = self.channels or final[1]
        node = build.edge(f"{build.path}.into", source, (start[1], width), into)
        end = build.edge(f"{build.path}.out", node, (width, final[1]), out, close=self.zero == "keep")
        if self.zero == "keep":
            end = build.norm(f"{build.path}.norm", end, final[1], scale=0.0)
        edit.replace_uses(target, build.call(operator.add, target, end), readers)
        return Effect.EXACT if self.zero == "keep" else Effect.LOSSY

    def _builder(self, edit: Editor, target: fx.Node) -> "_Builder":
        value = read_values(edit.program, [target.name])[target.name]
        stem = str(target.target) if target.op == "call_module" else target.name
        before = target.next
        while before.op == "placeholder":
            before = before.next
        generator = torch.Generator().manual_seed(self.seed)
        path = edit.new_path(f"{stem}_{'deepened' if self.mode == 'deepen' else 'widened'}")
        return _Builder(edit, before, path, generator, value, after=self.activation == "after")


def strides(start: tuple[int, ...], end: tuple[int, ...]) -> list[Stride] | None:
    """Return the stride, 1 or 2, of each of the max(1, ceil(log2(ratio))) ops of a new edge; `None` if none fit."""
    halvings = list[int]()
    for from_size, to_size in zip(start, end, strict=True):
        count = max(0, math.ceil(math.log2(from_size / to_size)))
        if -(-from_size // 2**count) != to_size:
            return None
        halvings.append(count)
    high, wide = halvings
    return [(1 + (step < high), 1 + (step < wide)) for step in range(max(1, high, wide))]


@dataclass(frozen=True)
class _Builder:
    """Inserts operations before one node of a graph."""

    edit: Editor
    before: fx.Node
    path: str
    generator: torch.Generator
    like: Tensor
    """A tensor with the dtype and device of new parameters."""
    after: bool
    """Whether the activation follows the sum."""

    def edge(self, path: str, x: fx.Node, widths: Size, steps: list[Stride], *, close: bool = False) -> fx.Node:
        """Insert one op per entry of `steps`; the first changes the channels, with `close` the last has no norm."""
        first, width = widths
        for position, stride in enumerate(steps):
            scale = None if close and position == len(steps) - 1 else 1.0
            x = self.operation(f"{path}.{position}", x, (width if position else first, width), stride, scale=scale)
        return x

    def operation(self, path: str, x: fx.Node, widths: Size, stride: Stride, *, scale: float | None) -> fx.Node:
        """Insert one op; `scale` is that of its norm, `None` for no norm."""
        entering, own = x if self.after else self.call(F.relu, x), (widths[0], widths[0])
        spatial = {"kernel_size": 3, "padding": 1, "stride": stride, "groups": widths[0]}
        depth = self._conv(f"{path}.depth", entering, own, **spatial)
        branch = self._conv(f"{path}.point", depth, widths, kernel_size=1)
        if scale is not None:
            branch = self.norm(f"{path}.norm", branch, widths[1], scale=scale)
        same = widths[0] == widths[1] and stride == (1, 1)
        skip = x if same else self._conv(f"{path}.skip", x, widths, kernel_size=1, stride=stride)
        total = self.call(operator.add, skip, branch)
        return self.call(F.relu, total) if self.after else total

    def norm(self, path: str, x: fx.Node, width: int, *, scale: float) -> fx.Node:
        """Insert a batch norm with offset 0 and this initial scale."""
        norm = nn.BatchNorm2d(width)
        nn.init.constant_(norm.weight, scale)
        return self._insert(path, norm, x)

    def call(self, function: object, *args: fx.Node) -> fx.Node:
        """Insert a call of a function of torch."""
        return self.edit.insert_function(function, args, before=self.before)  # type: ignore[arg-type]

    def _conv(self, path: str, x: fx.Node, widths: Size, **options: Any) -> fx.Node:  # noqa: ANN401
        """Insert a convolution without bias, initialized for inputs after a ReLU, or for full inputs in a skip."""
        conv: nn.Conv2d = nn.utils.skip_init(nn.Conv2d, *widths, bias=False, **options)  # type: ignore[no-untyped-call]
        gain = 1 if path.endswith(".skip") else 2
        with torch.no_grad():
            std = math.sqrt(gain / conv.weight[0].numel())
            conv.weight.copy_(torch.randn(conv.weight.shape, generator=self.generator) * std)
        return self._insert(path, conv, x)

    def _insert(self, path: str, module: nn.Module, x: fx.Node) -> fx.Node:
        return self.edit.insert_call(path, module.to(self.like.device, self.like.dtype), (x,), before=self.before)


def _found(program: Program, name: str) -> fx.Node:
    maps = (n.name for n in program.nodes if n.op != "output" and len(dims_of(program, n)) == 4)
    return node_named(program, name, lambda: maps, "feature maps")


def _unfit(program: Program, node: fx.Node) -> Refusal | None:
    if len(shape := dims_of(program, node)) != 4:
        return Refusal(node.name, f"no feature map (batch, channels, height, width): its shape is {shape}")
    if node.op == "get_attr":
        return Refusal(node.name, "a constant of the model, not a feature map")
    if read_values(program, [node.name])[node.name].is_floating_point():
        return None
    return Refusal(node.name, "it holds no real numbers")


def _overwriters(program: Program, node: fx.Node) -> list[fx.Node]:
    return [reader for reader in node.users if writes_into(program, reader) is node]


def _feature_maps(program: Program) -> Iterator[fx.Node]:
    """Return the sums and activations of feature maps, except those followed by an activation only, in order."""
    known = feature_maps(program)  # four dims alone may be heads of attention, or channels that stand last
    for node in program.nodes:
        shape = known.get(node.name, ())
        if len(shape) != 4 or shape[2] * shape[3] == 1 or not node.users:
            continue
        reader = only_reader(node)
        activated = reader is not None and _is_activation(program, reader)
        if (sum_operands(program, node) is not None or _is_activation(program, node)) and not activated:
            yield node


def _is_activation(program: Program, node: fx.Node) -> bool:
    known = pointwise(program, node)
    return known is not None and not known.is_identity
