"""Reduce the units between two mixing layers from n to r, along singular vectors (ECToNAS, appendix A.1).

In row vectors, h = x A + b1 and y = f(h) W2 + b2. With V (n, r) the right singular vectors of A that matter most,

    A' = A V = U_r S_r,  b1' = b1 V,  W2' = V^T W2,  b2' = b2 + c W2,  c = b1 (I - V V^T).

Conditions. f = identity, A of rank r: EXACT. Else LOSSY, with two choices:

* *Signs.* Each column of V may be negated, and an f such as relu sees it: that alone changes the
  error by half of y. `signs="data"` negates one vector at a time, as long as the error of y on example inputs falls;
  then c preserves the mean of y there, c = E[f(h)] - E[f(h V)] V^T, which equals the formula if f = identity and A'
  holds all of A. `signs="as is"` takes the signs of the decomposition, and c from the formula, which ignores f.
* *Directions.* With `whiten`, V are the principal directions of the centered h, so that x A is best preserved in the
  mean over the inputs instead of over all x equally.

`refit` then fits W2' = T W2 and c by ridge regression of f(h) on f(h V), toward T = V^T; two-fold cross-validation
over the samples sets its strength. In a convolution every tap of W2 is multiplied by V^T, and c by the sum of the taps,
which is not exact next to zero padding unless c = 0; with data, a tap is weighted by how often it sees no padding.

The published formula keeps both biases, which is wrong even at full rank. A dropout between the two layers then drops
among r units instead of n.
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
    """Reduce the units of a layer that a single mixing layer reads through pointwise operations."""

    name: ClassVar[str] = "svd-shrink"
    layer: str
    """Path of the first layer."""
    units: int
    whiten: bool = False
    """Whether the directions are chosen on the data instead of by the weight alone."""
    signs: Literal["data", "as is"] = "data"
    refit: bool = False
    """Whether the second layer is fitted to the new outputs of the first."""

    @classmethod
    @override
    def candidates(cls, program: Program, step: Callable[[int], int] | None = None) -> Iterator[Self]:
        """Yield the removal of half of the units of each layer that can lose some.

        Args:
            program: the program to change.
            step: returns the number of units to remove from a width, instead of half; more for fewer singular vectors.
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
    """Replaces `f(h)` by `f(h @ basis) @ back + constant`."""

    basis: Tensor
    """(n, r)."""
    back: Tensor
    """(r, n)."""
    constant: Tensor
    """(n,)."""
    added: Tensor
    """Return the addition of the constant to the bias of the second layer, (outputs,)."""


def _is_exact(pair: LayerPair, shrunk: _Shrunk) -> bool:
    """Whether the result is exact for every input."""
    if not pair.is_linear:
        return False
    limit, matrix = rounding(pair.first.weight), pair.matrix
    lost = matrix - shrunk.basis @ (shrunk.basis.T @ matrix)
    is_padded = isinstance(pair.second, _ConvNd) and pair.second.padding_mode == "zeros" and _pads(pair.second)
    is_even = not is_padded or bool(shrunk.constant.norm() <= limit * pair.bias.norm())
    return is_even and bool(lost.norm() <= limit * matrix.norm())


def _put(edit: Editor, pair: LayerPair, shrunk: _Shrunk) -> None:
    """Replace both layers. The new units have no optimizer state."""
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
    """Return a new layer with `added` added to its bias; without a bias if it has none and needs none."""
    weight, old = layer.get_parameter("weight"), layer._parameters["bias"]  # noqa: SLF001 -- None where there is none
    if not bool(added.any()):
        return layer
    bias = added if old is None else wide(old) + added
    layer.register_parameter("bias", nn.Parameter(bias.to(weight), (weight if old is None else old).requires_grad))
    return layer
