"""Importance of each unit of a channel group: from its weights, or from their effect on the loss.

A unit's *entries* are those of every parameter that go when it goes, over its whole group of tied layers: the rows that
make it, the scales and offsets of its norms, the columns that read it. Each counts once, also in a tensor that both
makes and reads the unit; a head has the entries of all its channels. With w an entry and L the loss on one batch:

* *magnitude*: sum |w|^order over the entries of matrices and kernels, as DepGraph has it (Fang et al. 2023, group
  sums); biases, and scales that stand alone, are left out. Li et al. 2017 take the L1 norm of what makes the unit.
* *BN-gamma*: the mean |gamma| over the unit's entries in batch norms (network slimming, Liu et al. 2017).
* *Taylor*: |sum w * dL/dw| over all entries, for one batch: to first order, by how much L moves when they all go to
  0 (Molchanov et al. 2019, who square the sum). The absolute value is taken after the sum over entries and before
  the mean over batches, since at a minimum the gradients of all batches together vanish.

Sums over more entries are larger, so magnitudes of two groups do not compare: see `over_their_mean`.

`least_important` is ECToNAS's: the smallest |gamma| goes first; without a norm, the smallest L1 norm of the columns.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import combinations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from fxsurgery.analysis.cached import cached
from fxsurgery.analysis.elastic_widths import Scores, consumed_l1
from fxsurgery.analysis.structure import ChannelGroup, Mask, structure
from fxsurgery.ops.union_find import Ids
from fxsurgery.program import Program


def magnitude(program: Program, order: float = 1.0) -> Scores:
    """Return for each unit the sum of |w|^order over its entries in matrices and kernels.

    Args:
        program: the program with the weights.
        order: 1 for the L1 norm, 2 for the square of the L2 norm.
    """
    weights = {name: p.detach() for name, p in program.graph_module.named_parameters() if p.dim() > 1}
    return unit_sums(program, {name: w.double().abs() ** order for name, w in weights.items()})


def bn_gamma(program: Program) -> Scores:
    """Return for each unit the mean |gamma| of its entries in batch norms; NaN if no batch norm scales it."""
    gammas = {f"{path}.weight": gamma.abs() for path, gamma in _gammas(program)}
    total = unit_sums(program, gammas)
    count = unit_sums(program, {name: torch.ones_like(gamma) for name, gamma in gammas.items()})
    found: Scores = np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)
    return found


def taylor(program: Program, model: nn.Module) -> Scores:
    """Return for each unit |sum w * dL/dw|, with the current gradients of `model`, a copy of the program's."""
    products = {name: (p * p.grad).detach() for name, p in model.named_parameters() if p.grad is not None}
    return np.abs(unit_sums(program, products))


def unit_sums(program: Program, amounts: Mapping[str, Tensor]) -> Scores:
    """Return for each unit the sum of `amounts` over its entries; 0 for id 0, which is never removed.

    Args:
        program: the program with the units.
        amounts: tensors of the parameters' shapes, by parameter name.
    """
    facts = structure(program)
    total = np.zeros(facts.size)
    for name, amount in amounts.items():
        dims = {dim: ids for dim, ids in facts.tensors.get(name, {}).items() if ids.any()}
        for dim, ids in dims.items():
            np.add.at(total, ids, _summed_to(amount, [dim]))
        # An entry that belongs to one unit by several of its dims was added for each: inclusion and exclusion.
        for several in _tied(dims):
            sign = -1.0 if len(several) % 2 == 0 else 1.0
            found = np.ix_(*(dims[d] for d in several))
            whose, same = _agreeing(found)
            np.add.at(total, whose, sign * _summed_to(amount, several)[same])
    total[0] = 0.0
    return total


def over_their_mean(scores: Scores, groups: Iterable[ChannelGroup]) -> Scores:
    """Return the scores divided by their mean over each group, so that groups can be compared.

    Without this, the ranking follows the size of the layers' sums, which depends more on their fan and initialization
    than on their function: some layers would be cut to the minimum, others not at all.
    """
    scaled = scores.copy()
    for group in groups:
        mean = scores[group.units].mean()
        scaled[group.units] /= mean if mean > 0 else 1.0
    return scaled


@cached
def norm_scales(program: Program) -> Scores:
    """Return for each unit the smallest |gamma| of its batch norms; infinite if it has none."""
    facts = structure(program)
    found = np.full(facts.size, np.inf)
    for path, gamma in _gammas(program):
        ids = facts.tensors.get(f"{path}.weight", {}).get(0)
        if ids is not None:
            np.minimum.at(found, ids, gamma.abs().double().cpu().numpy())
    return found


def least_important(program: Program, group: ChannelGroup, count: int) -> tuple[int, ...]:
    """Return the positions of the `count` least important units of a group, in increasing order."""
    scales = norm_scales(program)[group.units]
    scores = scales if np.isfinite(scales).all() else consumed_l1(program)[group.units]
    return tuple(sorted(np.argsort(scores, kind="stable")[:count].tolist()))


def _gammas(program: Program) -> Iterator[tuple[str, Tensor]]:
    """Return the scale of each batch norm that has one, by the path of the norm."""
    found = dict(program.calls(_NormBase))
    for path, module in {str(node.target): module for node, module in found.items()}.items():
        if module.affine:
            yield path, module.get_parameter("weight").detach()


def _summed_to(amount: Tensor, dims: Iterable[int]) -> Scores:
    """Return the sum over all dims except `dims`, which must be in increasing order."""
    others = [d for d in range(amount.dim()) if d not in set(dims)]
    wide = amount.double()
    return (wide.sum(others) if others else wide).cpu().numpy()


def _tied(dims: Mapping[int, Ids]) -> Iterator[tuple[int, ...]]:
    """Yield the sets of several dims of a tensor that carry the same unit."""
    for many in range(2, len(dims) + 1):
        for several in combinations(sorted(dims), many):
            first, *others = (set(dims[d].tolist()) - {0} for d in several)
            if first.intersection(*others):
                yield several


def _agreeing(found: tuple[Ids, ...]) -> tuple[Ids, Mask]:
    first, *others = np.broadcast_arrays(*found)
    same = np.logical_and.reduce([first == other for other in others])
    return first[same], same
