"""The weight of a layer as a matrix: which layers have one, and its approximations of lower rank.

    W = U diag(s) V^T,  |W - W_r|_F^2 = sum_{i > r} s_i^2    (Eckart and Young: no matrix of rank r is nearer)

In float64 on the CPU, so that every device gets the same tensors.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from fxsurgery.analysis.refit import is_parametrized
from fxsurgery.analysis.shared_modules import shared
from fxsurgery.errors import SpecError
from fxsurgery.match import Refusal
from fxsurgery.ops.layers import CONVOLUTIONS, MIXING
from fxsurgery.program import Program

"""Layers whose weight is (outputs, inputs, *kernel)."""

_RIDGES = (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0)


@dataclass(frozen=True, eq=False)
class Svd:
    """The factors of a matrix `left @ diag(values) @ right`."""

    left: Tensor
    """Shape (rows, k), with k the smaller of rows and columns; orthonormal columns."""
    values: Tensor
    """Shape (k,), decreasing."""
    right: Tensor
    """Shape (k, columns); orthonormal rows."""

    def kept(self, rank: int) -> float:
        """Return the fraction of the squared singular values in the largest `rank` of them."""
        energy = self.values.square()
        return float(energy[:rank].sum() / energy.sum())

    def rank_for(self, energy: float, noise: float) -> int:
        """Return the smallest rank that keeps the fraction `energy`, apart from what `noise` explains."""
        lost = 1 - self.values.square().cumsum(0) / self.values.square().sum()
        return int((lost > max(1 - energy, noise**2)).sum()) + 1

    def is_within(self, rank: int, noise: float) -> bool:
        """Return True if the error of `rank`, |W - W_r| / |W|, is at most `noise`."""
        return bool(self.values[rank:].norm() <= noise * self.values.norm())


def svd(matrix: Tensor) -> Svd:
    """Return the singular value decomposition of (rows, columns), in float64 on the CPU."""
    return Svd(*torch.linalg.svd(wide(matrix), full_matrices=False))


def wide(tensor: Tensor) -> Tensor:
    """Return a tensor in float64 on the CPU, without gradients."""
    return tensor.detach().to("cpu", torch.float64)


def rounding(tensor: Tensor) -> float:
    """Return the relative change of a tensor that rounding in its own dtype can cause."""
    return 4 * torch.finfo(tensor.dtype).eps


def calls_to(program: Program, path: str, kinds: Sequence[type[nn.Module]] = MIXING) -> list[fx.Node]:
    """Return the nodes that call the module at `path`.

    Raises:
        SpecError: no node calls it.
    """
    if found := [n for n in program.nodes if n.op == "call_module" and n.target == path]:
        return found
    known = ", ".join(dict.fromkeys(str(n.target) for n, _ in program.calls(*kinds)))
    raise SpecError(f"the program calls no layer {path!r}; there are: {known or 'none'}")


def obstacle(program: Program, path: str) -> Refusal | None:
    """Return why the weight of the module at `path` cannot be factorized as a matrix; `None` if it can."""
    module = program.graph_module.get_submodule(path)
    if is_parametrized(module) or "weight" not in module._parameters:  # noqa: SLF001 -- not what a hook sets
        return Refusal(path, "it has no weight, or one that is computed from other tensors")
    if type(module) not in MIXING:
        return Refusal(path, f"a {type(module).__name__} is none of {', '.join(kind.__name__ for kind in MIXING)}")
    if isinstance(module, CONVOLUTIONS) and getattr(module, "groups", 1) > 1:
        return Refusal(path, f"it has {module.groups} groups: each is a matrix of its own")
    weight = module.get_parameter("weight")
    if not weight.is_floating_point() or not bool(weight.isfinite().all()):
        return Refusal(path, "its weight holds something other than finite real numbers")
    if not bool(weight.any()):
        return Refusal(path, "its weight is all zero")
    return shared(program, path)


def principal(h: Tensor, matrix: Tensor, rank: int) -> Tensor:
    """Return the directions (n, rank) in which h (rows, n), centered, varies most; else the directions of `matrix`."""
    centered = h - h.mean(0)
    seen, reach = centered.T @ centered, matrix @ matrix.T
    weight = 1e-9 * float(seen.trace() / reach.trace()) or 1.0
    vectors: Tensor = torch.linalg.eigh(seen + weight * reach).eigenvectors
    return vectors.flip(1)[:, :rank]


def best_signs(function: Callable[[Tensor], Tensor], h: Tensor, basis: Tensor, metric: Tensor) -> Tensor:
    """Return the signs s, (r,), that make sum_k s_k f(s_k h v_k) v_k approximate f(h), up to a constant.

    The initial sign has more of the squares of h v_k on its side; signs are then flipped one at a time while that
    helps. A sign with which the unit is constant over all of h, so that it could not train, is excluded.
    """
    z = (h @ basis).T
    both = torch.stack([function(z), -function(-z)])
    both = both - both.mean(2, keepdim=True)
    wanted = function(h)
    wanted = ((wanted - wanted.mean(0)) @ metric @ basis).T.contiguous()
    gram = basis.T @ metric @ basis
    negated = (z.clamp(min=0).square().sum(1) < z.clamp(max=0).square().sum(1)).long()
    chosen = both[negated, torch.arange(len(negated))]
    given = gram @ chosen  # kept up to date: a sum over all units for every one that is tried takes minutes
    size = both.square().sum(2)
    dead = torch.where(size > 0, 0.0, torch.inf)
    for _ in range(20):
        before = negated.clone()
        for k in range(len(negated)):
            rest = wanted[k] - given[k] + chosen[k] * gram[k, k]
            errors = size[:, k] * gram[k, k] - 2 * both[:, k] @ rest + dead[:, k]
            side = int(negated[k])
            if errors[side] - errors[1 - side] > 1e-9 * size[side, k] * gram[k, k]:  # of an odd f, both are the same
                given.addr_(gram[k], both[1 - side, k] - chosen[k])
                negated[k], chosen[k] = 1 - side, both[1 - side, k]
        if torch.equal(before, negated):
            break
    return 1.0 - 2.0 * negated


def way_back(after: Tensor, before: Tensor, start: Tensor, metric: Tensor) -> Tensor:
    """Return T, (r, n), close to `start`, such that `after @ T` approximates `before`, (rows, n), up to a constant."""
    halves = torch.arange(len(after)) < len(after) // 2
    if len(after) < 4:
        return start
    scale = float((after - after.mean(0)).square().sum() / after.shape[1])
    errors = {0.0: 0.0}
    for train in (halves, ~halves):
        for ridge in (None, *_RIDGES):
            fitted = start if ridge is None else _ridge(after[train], before[train], start, ridge * scale)
            residual = before[~train] - after[~train] @ fitted
            residual = residual - residual.mean(0)
            errors[ridge or 0.0] = errors.get(ridge or 0.0, 0.0) + float(((residual @ metric) * residual).sum())
    best = min(errors, key=lambda ridge: errors[ridge])
    return _ridge(after, before, start, best * scale) if best else start


def _ridge(after: Tensor, before: Tensor, start: Tensor, ridge: float) -> Tensor:
    after, before = after - after.mean(0), before - before.mean(0)
    damped = after.T @ after + ridge * torch.eye(after.shape[1], dtype=after.dtype)
    step: Tensor = torch.linalg.solve(damped, after.T @ (before - after @ start))
    return start + step
