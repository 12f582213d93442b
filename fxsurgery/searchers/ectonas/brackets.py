"""Competitions in brackets (ECToNAS, figure 2): who trains against whom.

A competition has a fixed number of rounds. In each, the entries are drawn into groups of two, of which one goes on; an
odd entry is alone in its group, trains as the others do and goes on: a lucky ticket. Whoever is left before the last
round trains alone in the rest, so that all winners of a competition have trained alike. Where so many entries would
not come down to the winners by pairs, groups are larger:

    groups in round k of K = min(ceil(entries / 2), winners * 2^(K - k)), and never fewer than winners
"""

import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


def drawn(entries: Sequence[T], *, left: int, winners: int, rng: np.random.Generator) -> list[list[T]]:
    """The groups of one round, as even as they can be, the largest first; of each, one goes on.

    Args:
        entries: who takes part.
        left: rounds that follow this one.
        winners: how many go out of the last round, where there are as many.
        rng: draws.
    """
    if not entries:
        return []
    most = winners * 2**left
    many = min(len(entries), max(winners, min(math.ceil(len(entries) / 2), most)))
    order = [entries[i] for i in rng.permutation(len(entries))]
    return [order[i::many] for i in range(many)]
