"""Shrink what flows between two mixing layers from n units to r, along singular vectors (ECToNAS, appendix A.1).

In row vectors, h = x A + b1 and y = f(h) W2 + b2. With V (n, r) the right singular vectors of A that matter most,

    A' = A V = U_r S_r,  b1' = b1 V,  W2' = V^T W2,  b2' = b2 + c W2,  c = b1 (I - V V^T).

Conditions. f = identity, A of rank r: EXACT. Else LOSSY, and two things are left open:

* *Signs.* Each column of V may be negated, and an f such as relu sees it: the error changes by half of y with that
  alone. `signs="data"` negates one vector at a time, as long as the error of y on the example inputs falls; then c is
  what keeps the mean of y there, c = E[f(h)] - E[f(h V)] V^T, which is the formula's where f = identity and A' holds
  all of A. `signs="as is"` takes what the decomposition gives, and c from the formula, which ignores f.
* *Which directions matter.* `whiten` asks the data: V are the principal directions of h, centered, so that x A is best
  kept in the mean over the inputs and not over all x alike.

`refit` goes on to fit W2' = T W2 and c by ridge regression of f(h) on f(h V), toward T = V^T; two-fold cross-validation
over the samples says how much. In a convolution every tap of W2 is multiplied by V^T, and c by the sum of the taps,
which is not exact next to zero padding unless c = 0; on data a tap counts by how often it sees no padding.

The published formula leaves both biases as they were, which is wrong at full rank already. A dropout between the two
then drops among r units, not among n.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from typing_extensions import override

from fxsurgery.analysis.activations import read_values
from fxsurgery.analysis.layer_pairs import LayerPair, find_pair
from fxsurgery.analysis.refit import refit
from fxsurgery.analysis.svd import (
    best_signs,
    calls_to,
    principal,
    rounding,
    svd,
    way_back,
    wide,
)
from fxsurgery.calls import checked_construction
from fxsurgery.edit import Editor
from fxsurgery.errors import SpecError
from fxsurgery.lineage import Origin
from fxsurgery.match import Refusal
from fxsurgery.ops.layers import MIXING
from fxsurgery.program import Program
from fxsurgery.surgery import Effect, Rewrite


@checked_construction
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
            if isinstance(pair := find_pair(program, path), LayerPair) and pair.largest > 1:
                left = pair.width // 2 if step is None else max(1, pair.width - step(pair.width))
                yield cls(path, min(left, pair.largest))

    @override
    def rewrite(self, edit: Editor) -> Effect:
        node = calls_to(edit.program, self.layer)[0]
        pair = find_pair(edit.program, self.layer)
        if isinstance(pair, Refusal):
            edit.decline(pair)
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
        _put(edit, pair, shrunk)
        return Effect.EXACT if _is_exact(pair, shrunk) else Effect.LOSSY

    def _shrunk(self, pair: LayerPair, h: Tensor) -> "_Shrunk":
        rows = pair.rows(h)
        basis = principal(rows, pair.matrix, self.units) if self.whiten else svd(pair.matrix).left[:, : self.units]
        constant = pair.bias - basis @ (basis.T @ pair.bias)
        plain = _Shrunk(basis, basis.T, constant, pair.reading.sum(2) @ constant)
        if _is_exact(pair, plain) or (self.signs == "as is" and not self.refit):
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


def _is_exact(pair: LayerPair, shrunk: _Shrunk) -> bool:
    """Whether nothing is lost, for any input."""
    if not pair.is_linear:
        return False
    limit, matrix = rounding(pair.first.weight), pair.matrix
    lost = matrix - shrunk.basis @ (shrunk.basis.T @ matrix)
    is_padded = isinstance(pair.second, _ConvNd) and pair.second.padding_mode == "zeros" and _pads(pair.second)
    is_even = not is_padded or bool(shrunk.constant.norm() <= limit * pair.bias.norm())
    return is_even and bool(lost.norm() <= limit * matrix.norm())


def _put(edit: Editor, pair: LayerPair, shrunk: _Shrunk) -> None:
    """Replace both layers. No entry of an optimizer's state belongs to the new units."""
    first, second = pair.first, pair.second
    weight = (shrunk.basis.T @ pair.matrix).reshape(-1, *first.weight.shape[1:])
    tensors = {"weight": weight.to(first.weight)}
    if first.bias is not None:
        tensors["bias"] = (shrunk.basis.T @ pair.bias).to(first.bias)
    edit.replace_module(str(pair.node.target), refit(first, tensors))
    weight = torch.einsum("ont,rn->ort", pair.reading, shrunk.back)
    weight = weight.reshape(len(weight), -1, *second.weight.shape[2:]).to(second.weight)
    edit.replace_module(pair.path, _with_bias(refit(second, {"weight": weight}), shrunk.added))
    for name in tensors:
        edit.record_origin(
            f"{pair.node.target}.{name}", Origin(f"{pair.node.target}.{name}", _new(0, len(shrunk.back)))
        )
    edit.record_origin(f"{pair.path}.weight", Origin(f"{pair.path}.weight", _new(1, weight.shape[1])))


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
