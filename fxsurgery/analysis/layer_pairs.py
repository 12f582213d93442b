"""Pairs of mixing layers: a layer and the one that reads it through pointwise operations and possibly a flatten.

h = x A + b1,  y = f(h) W2 + b2        in row vectors; n units of h lie between the two
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from fxsurgery.analysis.pointwise import only_reader, pointwise
from fxsurgery.analysis.shared_modules import called_again
from fxsurgery.analysis.svd import calls_to, obstacle, wide
from fxsurgery.match import Match, Refusal
from fxsurgery.ops import registry
from fxsurgery.ops.facets import OperandArgument
from fxsurgery.ops.layers import CONVOLUTIONS, MIXING
from fxsurgery.ops.movement import FLATTEN
from fxsurgery.program import Program

_ENTRIES = 2**23
"""Maximum number of values to read, which bounds the memory of the regression."""


@dataclass(frozen=True, eq=False)
class LayerPair:
    """Two layers and the operations between them: `f`, and possibly a flatten."""

    node: fx.Node
    first: nn.Linear | _ConvNd
    path: str
    second: nn.Linear | _ConvNd
    activation: Callable[[Tensor], Tensor]
    is_linear: bool
    """Whether f is the identity."""

    @property
    def width(self) -> int:
        """Number n of units."""
        return self.first.weight.shape[0]

    @cached_property
    def matrix(self) -> Tensor:
        """The transposed A, (n, inputs * taps)."""
        return wide(self.first.weight).flatten(1)

    @property
    def largest(self) -> int:
        """Number of singular vectors: any further unit would be constant."""
        return min(self.matrix.shape)

    @cached_property
    def bias(self) -> Tensor:
        """Shape (n,)."""
        return self.matrix.new_zeros(self.width) if self.first.bias is None else wide(self.first.bias)

    @cached_property
    def reading(self) -> Tensor:
        """W2: (outputs, n, taps), with positions instead of taps after a flatten."""
        return wide(self.second.weight).reshape(self.second.weight.shape[0], self.width, -1)

    def rows(self, h: Tensor) -> Tensor:
        """Values of h: (samples and positions, n), evenly subsampled if there are too many."""
        rows = h.movedim(-self.first.weight.dim() + 1, -1).reshape(-1, self.width)
        return rows[:: 1 + rows.numel() // _ENTRIES]

    def coverage(self, h: Tensor) -> Tensor:
        """Fraction of outputs at which a tap of the second layer reads an entry of h, not zero padding: (taps,)."""
        taps = self.reading.shape[2]
        if isinstance(self.second, nn.Linear):
            return h.new_ones(taps)
        kernel = self.second.weight.shape[2:]
        each = torch.eye(taps, dtype=h.dtype).reshape(taps, 1, *kernel)
        seen: Tensor = self.second._conv_forward(h.new_ones(1, 1, *h.shape[-len(kernel) :]), each, None)  # noqa: SLF001
        return seen.flatten(2).mean((0, 2))


def find_pair(program: Program, path: str) -> Match[LayerPair]:
    """Return the layer at `path` and the one that reads it, or why they cannot be shrunk."""
    node, first = calls_to(program, path)[0], program.graph_module.get_submodule(path)
    if refusal := called_again(program, path) or obstacle(program, path):
        return Refusal(node.name, refusal.reason)
    chain = list(_chain(program, node))
    between, reader = chain[1:-1], chain[-1]
    second = program.module(reader) if reader.op == "call_module" else None
    if not isinstance(second, MIXING) or len(chain) == 1:
        return Refusal(node.name, _no_reader(program, reader))
    if refusal := called_again(program, str(reader.target)) or obstacle(program, str(reader.target)):
        return Refusal(node.name, f"{reader.target}: {refusal}")
    flattens = any(_is_flatten(program, n) for n in between)
    if type(second) is not (nn.Linear if flattens else type(first)):
        return Refusal(node.name, f"{reader.target} mixes other dims than {path} gives its units in")
    function, is_linear = _activation(program, between)
    return LayerPair(node, first, str(reader.target), second, function, is_linear)  # type: ignore[arg-type]


def _chain(program: Program, node: fx.Node) -> Iterator[fx.Node]:
    """Return `node` and its successive only readers, up to the first that is neither pointwise nor a flatten."""
    may_flatten = isinstance(program.module(node), CONVOLUTIONS)
    yield node
    while (reader := only_reader(node)) is not None:
        yield reader
        if may_flatten and _is_flatten(program, reader):
            may_flatten = False
        elif pointwise(program, reader) is None:
            return
        node = reader


def _no_reader(program: Program, last: fx.Node) -> str:
    if last.op == "call_module" and isinstance(program.module(last), _BatchNorm):
        return f"the batch norm %{last} stands between: run fold-bn first"
    if any(reader.op == "output" for reader in last.users):
        return f"%{last} is an output"
    if len(last.users) > 1:
        return f"%{last} has {len(last.users)} readers"
    return f"%{last}, which reads it, is neither pointwise nor a linear or convolutional layer"


def _is_flatten(program: Program, node: fx.Node) -> bool:
    """Return True if `node` joins channels and positions, and keeps the batch dim."""
    if program.operator(node) is not FLATTEN:
        return False
    module = program.module(node) if node.op == "call_module" else None
    start, end = (
        registry.argument(node, module, a)
        for a in (OperandArgument(1, "start_dim", 0), OperandArgument(2, "end_dim", -1))
    )
    return bool((start, end) == (1, -1))


def _activation(program: Program, between: list[fx.Node]) -> tuple[Callable[[Tensor], Tensor], bool]:
    """Return the pointwise function of some nodes, and whether it is the identity."""
    steps = list[Callable[[Tensor], Tensor]]()
    for node in between:
        known = pointwise(program, node)
        if known is not None and not known.is_identity:
            steps.append(_step(program, node))

    def run(x: Tensor) -> Tensor:
        with torch.no_grad():
            for step in steps:
                x = step(x.clone())  # it may work in place
        return x

    return run, not steps


def _step(program: Program, node: fx.Node) -> Callable[[Tensor], Tensor]:
    if node.op == "call_module":
        return program.module(node)
    call: Callable[..., Tensor] = getattr(Tensor, node.target) if isinstance(node.target, str) else node.target
    return lambda x: call(x, *node.args[1:], **node.kwargs)
