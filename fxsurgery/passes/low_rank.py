"""Factorize a linear or convolutional layer into two plain ones with r channels between them.

The weight W (o, c, *k) is read as a matrix, truncated where the Frobenius norm loses least, and split evenly:

    W ~ (U_r S_r^(1/2)) (S_r^(1/2) V_r^T)          second layer, first layer

| scheme  | rows     | columns  | first           | second          | largest rank      |
|---------|----------|----------|-----------------|-----------------|-------------------|
| output  | o        | (c, k)   | k, c -> r       | 1, r -> o       | min(o, c K)       |
| input   | (o, k)   | c        | 1, c -> r       | k, r -> o       | min(o K, c)       |
| spatial | (o, k_x) | (c, k_y) | k_y x 1, c -> r | 1 x k_x, r -> o | min(o k_x, c k_y) |

A linear layer has no k, so that output and input coincide. Stride, padding and dilation follow the kernel, dim by dim;
the bias goes to the second layer. The first has none, so that zero padding between the two equals zero padding before
them, and other padding modes only copy entries. S^(1/2) on either side gives both factors the same scale, and so
gradients of the same size; a direction with s = 0 keeps a gradient through a first factor of usual length.

EXACT if the rank loses no more than the rounding of the weight, LOSSY below. `energy` and `params` refuse if no
parameter would be saved; `rank` does not check that. Sources: Zhang et al. 2016 (output), Jaderberg et al. 2014
(spatial), without their refitting to data.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from typing_extensions import override

from fxsurgery.analysis.svd import Svd, calls_to, obstacle, rounding, svd
from fxsurgery.calls import checked_construction
from fxsurgery.edit import Editor
from fxsurgery.errors import SpecError
from fxsurgery.lineage import Origin
from fxsurgery.match import Refusal
from fxsurgery.ops.layers import MIXING
from fxsurgery.program import Program
from fxsurgery.surgery import Effect, Rewrite

Scheme = Literal["output", "input", "spatial"]
SCHEMES: tuple[Scheme, ...] = ("output", "input", "spatial")

Layer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d


@checked_construction
@dataclass(frozen=True)
class LowRank(Rewrite):
    """Replace a layer by two of lower rank; exactly one of `rank`, `energy` and `params` sets the rank."""

    name: ClassVar[str] = "low-rank"
    layer: str
    """Path of the module; each of its calls becomes two."""
    rank: int | None = None
    """The rank r."""
    energy: float | None = None
    """Take the smallest r that keeps this fraction of the squared singular values; above 0, at most 1."""
    params: float | None = None
    """Take the largest r with at most this fraction of the layer's parameters, including bias; between 0 and 1."""
    scheme: Literal["auto", "output", "input", "spatial"] = "auto"
    """Scheme of the factorization; `auto`: for `rank` and `energy` the one with the fewest parameters, for `params` the
    one that keeps most energy; the first of them in a tie."""

    @classmethod
    @override
    def candidates(cls, program: Program) -> Iterator[Self]:
        """Yield each layer at half of its parameters."""
        for path in dict.fromkeys(str(node.target) for node, _ in program.calls(*MIXING)):
            move = cls(path, params=0.5)
            if obstacle(program, path) is None and move._splits(program):
                yield move

    @override
    def rewrite(self, edit: Editor) -> Effect:
        self._check()
        calls = calls_to(edit.program, self.layer)
        if refusal := obstacle(edit.program, self.layer) or self._misfit(edit.program):
            edit.refuse(calls[0], refusal)
            return Effect.EXACT
        if not (splits := self._splits(edit.program)):
            edit.refuse(calls[0], f"no rank saves parameters with {self._wish()}")
            return Effect.EXACT
        matrix, rank = min(splits, key=self._cost) if len(splits) > 1 else splits[0]
        paths = [edit.new_path(f"{self.layer}_{which}") for which in ("first", "second")]
        first, second = matrix.layers(rank)
        for call in calls:
            inner = edit.insert_call(paths[0], first, (edit.first_input(call),), before=call)
            edit.replace_uses(call, edit.insert_call(paths[1], second, (inner,), before=call))
            edit.erase(call)
        if second.bias is not None:
            edit.record_origin(f"{paths[1]}.bias", Origin(f"{self.layer}.bias"))
        return Effect.EXACT if matrix.svd.is_within(rank, rounding(matrix.layer.weight)) else Effect.LOSSY

    def _check(self) -> None:
        given = {k: v for k in ("rank", "energy", "params") if (v := getattr(self, k)) is not None}
        if len(given) != 1:
            raise SpecError(
                f"low-rank takes exactly one of rank, energy and params, not {sorted(given) or 'none'}; give one, "
                "such as energy=0.9"
            )
        if self.energy is not None and not 0 < self.energy <= 1:
            raise SpecError(
                f"energy={self.energy!r} is a fraction and must be above 0, at most 1; pass one such as 0.9"
            )
        if self.params is not None and not 0 < self.params < 1:
            raise SpecError(f"params={self.params!r} is a fraction and must be above 0, below 1; pass one such as 0.5")

    def _wish(self) -> str:
        return f"energy={self.energy}" if self.params is None else f"params={self.params}"

    def _misfit(self, program: Program) -> Refusal | None:
        module = program.graph_module.get_submodule(self.layer)
        if self.scheme == "spatial" and not isinstance(module, nn.Conv2d):
            return Refusal(
                self.layer, f"the spatial scheme splits height from width: a {type(module).__name__} does not have both"
            )
        return None

    def _cost(self, split: tuple["_Matrix", int]) -> float:
        matrix, rank = split
        return -round(matrix.svd.kept(rank), 12) if self.params is not None else rank * sum(matrix.shape)

    def _splits(self, program: Program) -> list[tuple["_Matrix", int]]:
        """Return the possible splits of the layer, each with its rank.

        Raises:
            SpecError: the layer does not have that rank.
        """
        layer: Layer = program.graph_module.get_submodule(self.layer)  # type: ignore[assignment]
        matrices = [_Matrix(layer, scheme) for scheme in (_schemes(layer) if self.scheme == "auto" else (self.scheme,))]
        if self.rank is not None:
            largest = max(min(m.shape) for m in matrices)
            if not 1 <= self.rank <= largest:
                raise SpecError(f"{self.layer} has ranks from 1 to {largest}, not {self.rank}; choose one of these")
        return [(m, rank) for m in matrices if (rank := self._rank(m))]

    def _rank(self, matrix: "_Matrix") -> int:
        """Return the rank that the fields ask for; 0 if there is none."""
        rows, columns = matrix.shape
        if self.rank is not None:
            return self.rank if self.rank <= min(rows, columns) else 0
        if self.params is not None:
            bias = 0 if matrix.layer.bias is None else matrix.layer.bias.numel()
            return max(0, math.floor(self.params * (rows * columns + bias) - bias) // (rows + columns))
        rank = matrix.svd.rank_for(self.energy or 1.0, rounding(matrix.layer.weight))
        return rank if rank * (rows + columns) < rows * columns else 0


def _schemes(layer: Layer) -> tuple[Scheme, ...]:
    """Return the schemes that differ for this layer."""
    kernel = tuple(layer.weight.shape[2:])
    if all(k == 1 for k in kernel):
        return SCHEMES[:1]
    return SCHEMES if len(kernel) == 2 and min(kernel) > 1 else SCHEMES[:2]


@dataclass(frozen=True, eq=False)
class _Matrix:
    """The weight of a layer as a matrix in one scheme."""

    layer: Layer
    scheme: Scheme

    @property
    def kernel(self) -> tuple[int, ...]:
        """Kernel sizes (*k); () for a linear layer."""
        return tuple(self.layer.weight.shape[2:])

    @property
    def later(self) -> tuple[int, ...]:
        """The dims of the kernel that belong to the second layer."""
        dims = range(len(self.kernel))
        return {"output": (), "input": tuple(dims), "spatial": tuple(dims[1:])}[self.scheme]

    @property
    def shape(self) -> tuple[int, int]:
        """Sizes of rows, for the second layer, and columns, for the first."""
        rows = self.layer.weight.shape[0] * math.prod(self.kernel[d] for d in self.later)
        return rows, self.layer.weight.numel() // rows

    @cached_property
    def svd(self) -> Svd:
        return svd(self.layer.weight.permute(self._order).reshape(self.shape))

    @property
    def _order(self) -> tuple[int, ...]:
        """Order of the weight's dims: outputs and kernel dims of the second layer, then the others."""
        dims = range(len(self.kernel))
        return (0, *(d + 2 for d in self.later), 1, *(d + 2 for d in dims if d not in self.later))

    def layers(self, rank: int) -> tuple[Layer, Layer]:
        """Return the two layers, first and second."""
        found, weight = self.svd, self.layer.weight
        values = found.values[:rank]
        known = values > rounding(weight) * values[0]
        scale = torch.where(known, values, values[known].mean()).sqrt()
        outputs, inputs = weight.shape[:2]
        before = [1 if d in self.later else k for d, k in enumerate(self.kernel)]
        after = [k if d in self.later else 1 for d, k in enumerate(self.kernel)]
        first = (scale[:, None] * found.right[:rank]).reshape(rank, inputs, *before)
        second = (found.left[:, :rank] * (values / scale)).reshape(outputs, math.prod(after), rank)
        return (
            self._layer(first, is_first=True),
            self._layer(second.transpose(1, 2).reshape(outputs, rank, *after), is_first=False),
        )

    def _layer(self, weight: Tensor, *, is_first: bool) -> Layer:
        """Return a layer of the same kind with its part of stride, padding and dilation."""
        old = self.layer
        outputs, inputs = weight.shape[:2]
        new: Layer
        if isinstance(old, nn.Linear):
            new = nn.Linear(inputs, outputs, bias=False, device="meta")
        else:
            own = [(d not in self.later) == is_first for d in range(len(self.kernel))]
            padding = old.padding
            if not isinstance(padding, str):
                padding = tuple(p if o else 0 for p, o in zip(padding, own, strict=True))
            build: Callable[..., Layer] = type(old)
            new = build(
                inputs,
                outputs,
                tuple(weight.shape[2:]),
                tuple(s if o else 1 for s, o in zip(old.stride, own, strict=True)),
                padding,
                tuple(d if o else 1 for d, o in zip(old.dilation, own, strict=True)),
                bias=False,
                padding_mode=old.padding_mode if any(own) else "zeros",
                device="meta",
            )
        new.weight = nn.Parameter(weight.to(old.weight).contiguous(), old.weight.requires_grad)
        if not is_first:
            new.bias = old.bias
        return new
