"""Shrink what flows between two mixing layers from n units to r, along singular vectors (ECToNAS, appendix A.1).

In row vectors, h = x A + b1 and y = f(h) W2 + b2. With V (n, r) the right singular vectors of A that matter most,

    A' = A V = U_r S_r,  b1' = b1 V,  W2' = V^T W2,  b2' = b2 + c W2,  c = b1 (I - V V^T).

Conditions. f = identity, A of rank r: EXACT. Else LOSSY, and two things are left open:

* *Signs.* Each column of V may be negated, and an f such as relu sees it: the error changes by half of y with that
  alone. `signs="data"` negates one vector at a time, as long as the error of y on the example inputs falls; then c is
  what keeps the mean of y there, c = E[f(h)] - E[f(h V)] V^T, which is the formula's where f = identity and A' holds
  all of A. `signs="as is"` takes what the decomposition gives, and c from the formula, which ignores f.
* *Which directions matter.* `whiten` asks the data: V are the principal directions of h, centred, so that x A is best
  kept in the mean over the inputs and not over all x alike.

`refit` goes on to fit W2' = T W2 and c by ridge regression of f(h) on f(h V), toward T = V^T; two-fold cross-validation
over the samples says how much. In a convolution every tap of W2 is multiplied by V^T, and c by the sum of the taps,
which is not exact next to zero padding unless c = 0; on data a tap counts by how often it sees no padding.

The published formula leaves both biases as they were, which is wrong at full rank already. A dropout between the two
then drops among r units, not among n.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from typing_extensions import override

from fxsurgery.analysis.activations import read_values
from fxsurgery.analysis.pointwise import only_reader, pointwise
from fxsurgery.analysis.refit import refit
from fxsurgery.analysis.shapes import target_name
from fxsurgery.analysis.shared_modules import called_again
from fxsurgery.analysis.svd import (
    CONVS,
    MIXING,
    best_signs,
    calls_to,
    obstacle,
    principal,
    rounding,
    svd,
    way_back,
    wide,
)
from fxsurgery.edit import Editor
from fxsurgery.errors import SpecError
from fxsurgery.lineage import Origin
from fxsurgery.program import Program
from fxsurgery.surgery import Effect, Rewrite

_ENTRIES = 2**23
"""Of the values read at most, so that the regression's working memory stays small."""


@dataclass(frozen=True)
class SvdShrink(Rewrite):
    """`units` units in place of all, between a layer and the one mixing layer that reads it through pointwise ops."""

    name: ClassVar[str] = "svd-shrink"
    layer: str
    """Path of the first layer."""
    units: int
    whiten: bool = False
    """Whether the directions kept are those of the data, not of the weight alone."""
    signs: Literal["data", "as is"] = "data"
    refit: bool = False
    """Whether the second layer is fitted to what the first then gives."""

    @classmethod
    @override
    def candidates(cls, program: Program, step: Callable[[int], int] | None = None) -> Iterator[Self]:
        """Half of the units of each layer that can lose some.

        Args:
            program: to be changed.
            step: how many go of a width, instead of half; more where there are fewer singular vectors.
        """
        for path in dict.fromkeys(str(node.target) for node, _ in program.calls(*MIXING)):
            if not isinstance(pair := _find(program, path), str) and pair.largest > 1:
                left = pair.width // 2 if step is None else max(1, pair.width - step(pair.width))
                yield cls(path, min(left, pair.largest))

    @override
    def rewrite(self, edit: Editor) -> Effect:
        if self.signs not in {"data", "as is"}:
            raise SpecError(f"signs={self.signs!r}: it must be 'data' or 'as is'")
        node = calls_to(edit.program, self.layer)[0]
        pair = _find(edit.program, self.layer)
        if isinstance(pair, str):
            edit.refuse(node, pair)
            return Effect.EXACT
        if not 1 <= self.units <= pair.largest:
            raise SpecError(
                f"{self.layer} can have from 1 to {pair.largest} units, not {self.units}; choose a number in this range"
            )
        h = wide(read_values(edit.program, [node.name])[node.name])
        if not bool(h.isfinite().all()):
            edit.refuse(node, "it gives something other than finite numbers on the example inputs")
            return Effect.EXACT
        shrunk = self._shrunk(pair, h)
        pair.put(edit, shrunk)
        return Effect.EXACT if pair.is_exact(shrunk) else Effect.LOSSY

    def _shrunk(self, pair: "_Pair", h: Tensor) -> "_Shrunk":
        rows = pair.rows(h)
        basis = principal(rows, pair.matrix, self.units) if self.whiten else svd(pair.matrix).left[:, : self.units]
        constant = pair.bias - basis @ (basis.T @ pair.bias)
        plain = _Shrunk(basis, basis.T, constant, pair.reading.sum(2) @ constant)
        if pair.is_exact(plain) or (self.signs == "as is" and not self.refit):
            return plain
        taps = pair.coverage(h)
        seen = (pair.reading * taps.sqrt()).transpose(0, 1).flatten(1)
        metric = seen @ seen.T
        if self.signs == "data":
            basis = basis * best_signs(pair.activation, rows, basis, metric)
        before, after = pair.activation(rows), pair.activation(rows @ basis)
        back = way_back(after, before, basis.T, metric) if self.refit else basis.T
        constant = before.mean(0) - after.mean(0) @ back
        return _Shrunk(basis, back, constant, (pair.reading @ taps) @ constant)


@dataclass(frozen=True, eq=False)
class _Shrunk:
    """`f(h)` is now `f(h @ basis) @ back + constant`."""

    basis: Tensor
    """(n, r)."""
    back: Tensor
    """(r, n)."""
    constant: Tensor
    """(n,)."""
    added: Tensor
    """(outputs,): what the constant adds to the bias of the second layer."""


@dataclass(frozen=True, eq=False)
class _Pair:
    """Two layers and what stands between them: `f`, and maybe a flatten."""

    node: fx.Node
    first: nn.Linear | _ConvNd
    path: str
    second: nn.Linear | _ConvNd
    activation: Callable[[Tensor], Tensor]
    is_linear: bool
    """Whether f is the identity."""

    @property
    def width(self) -> int:
        """The number n of units."""
        return self.first.weight.shape[0]

    @cached_property
    def matrix(self) -> Tensor:
        """(n, inputs * taps): A, transposed."""
        return wide(self.first.weight).flatten(1)

    @property
    def largest(self) -> int:
        """The number of singular vectors: a unit more would be constant."""
        return min(self.matrix.shape)

    @cached_property
    def bias(self) -> Tensor:
        """(n,)."""
        return self.matrix.new_zeros(self.width) if self.first.bias is None else wide(self.first.bias)

    @cached_property
    def reading(self) -> Tensor:
        """(outputs, n, taps), or positions where there is a flatten: W2."""
        return wide(self.second.weight).reshape(self.second.weight.shape[0], self.width, -1)

    def rows(self, h: Tensor) -> Tensor:
        """(samples and positions, n), where there are too many every second one and so on."""
        rows = h.movedim(-self.first.weight.dim() + 1, -1).reshape(-1, self.width)
        return rows[:: 1 + rows.numel() // _ENTRIES]

    def coverage(self, h: Tensor) -> Tensor:
        """(taps,): at what share of its outputs a tap of the second layer sees an entry of h and no zero padding."""
        taps = self.reading.shape[2]
        if isinstance(self.second, nn.Linear):
            return h.new_ones(taps)
        kernel = self.second.weight.shape[2:]
        each = torch.eye(taps, dtype=h.dtype).reshape(taps, 1, *kernel)
        seen: Tensor = self.second._conv_forward(h.new_ones(1, 1, *h.shape[-len(kernel) :]), each, None)  # noqa: SLF001
        return seen.flatten(2).mean((0, 2))

    def is_exact(self, shrunk: _Shrunk) -> bool:
        """Whether nothing is lost, for any input."""
        if not self.is_linear:
            return False
        limit, matrix = rounding(self.first.weight), self.matrix
        lost = matrix - shrunk.basis @ (shrunk.basis.T @ matrix)
        is_padded = isinstance(self.second, _ConvNd) and self.second.padding_mode == "zeros" and _pads(self.second)
        is_even = not is_padded or bool(shrunk.constant.norm() <= limit * self.bias.norm())
        return is_even and bool(lost.norm() <= limit * matrix.norm())

    def put(self, edit: Editor, shrunk: _Shrunk) -> None:
        """Replace both layers. No entry of an optimizer's state belongs to the new units."""
        first, second = self.first, self.second
        weight = (shrunk.basis.T @ self.matrix).reshape(-1, *first.weight.shape[1:])
        tensors = {"weight": weight.to(first.weight)}
        if first.bias is not None:
            tensors["bias"] = (shrunk.basis.T @ self.bias).to(first.bias)
        edit.replace_module(str(self.node.target), refit(first, tensors))
        weight = torch.einsum("ont,rn->ort", self.reading, shrunk.back)
        weight = weight.reshape(len(weight), -1, *second.weight.shape[2:]).to(second.weight)
        edit.replace_module(self.path, _with_bias(refit(second, {"weight": weight}), shrunk.added))
        for name in tensors:
            edit.carry(f"{self.node.target}.{name}", Origin(f"{self.node.target}.{name}", _new(0, len(shrunk.back))))
        edit.carry(f"{self.path}.weight", Origin(f"{self.path}.weight", _new(1, weight.shape[1])))


def _new(dim: int, size: int) -> dict[int, Tensor]:
    return {dim: torch.full((size,), -1)}


def _pads(conv: _ConvNd) -> bool:
    return conv.padding != "valid" if isinstance(conv.padding, str) else any(conv.padding)


def _with_bias(layer: nn.Module, added: Tensor) -> nn.Module:
    """`layer`, new and not in use yet, its bias larger by `added`; none where it has none and needs none."""
    weight, old = layer.get_parameter("weight"), layer._parameters["bias"]  # noqa: SLF001 -- None where there is none
    if not bool(added.any()):
        return layer
    bias = added if old is None else wide(old) + added
    layer.register_parameter("bias", nn.Parameter(bias.to(weight), (weight if old is None else old).requires_grad))
    return layer


def _find(program: Program, path: str) -> _Pair | str:
    """The layer at `path` and the one that reads it, or why they cannot be shrunk."""
    node, first = calls_to(program, path)[0], program.graph_module.get_submodule(path)
    if reason := called_again(program, path) or obstacle(program, path):
        return reason
    chain = list(_chain(program, node))
    between, reader = chain[1:-1], chain[-1]
    second = program.module(reader) if reader.op == "call_module" else None
    if not isinstance(second, MIXING) or len(chain) == 1:
        return _no_reader(program, reader)
    if reason := called_again(program, str(reader.target)) or obstacle(program, str(reader.target)):
        return f"{reader.target}: {reason}"
    flattens = any(_is_flatten(program, n) for n in between)
    if type(second) is not (nn.Linear if flattens else type(first)):
        return f"{reader.target} mixes other dims than {path} gives its units in"
    function, is_linear = _activation(program, between)
    return _Pair(node, first, str(reader.target), second, function, is_linear)  # type: ignore[arg-type]


def _chain(program: Program, node: fx.Node) -> Iterator[fx.Node]:
    """`node`, then readers, one of the other alone, as far as the first that is neither pointwise nor a flatten."""
    may_flatten = isinstance(program.module(node), CONVS)
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
    """Whether `node` joins channels and positions, and leaves the batch."""
    if node.op == "call_module":
        module = program.module(node)
        return isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) == (1, -1)
    options = dict(zip(("start_dim", "end_dim"), node.args[1:], strict=False)) | node.kwargs
    return target_name(node) == "flatten" and (options.get("start_dim", 0), options.get("end_dim", -1)) == (1, -1)


def _activation(program: Program, between: list[fx.Node]) -> tuple[Callable[[Tensor], Tensor], bool]:
    """What nodes compute, entry by entry, and whether that is nothing."""
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
