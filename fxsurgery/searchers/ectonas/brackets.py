"""Competitions in brackets (ECToNAS, figure 2): the draw of the matches.

A competition has a fixed number of rounds. In each, the entries are drawn into groups of two, one of which advances; an
odd entry is alone in its group, trains like the others and advances: a lucky ticket. An entry that has won before the
last round trains alone in the remaining ones, so that all winners of a competition have trained equally long. If pairs
would leave too many winners, groups are larger:

    groups in round k of K = min(ceil(entries / 2), winners * 2^(K - k)), and never fewer than winners
"""

import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


def drawn(entries: Sequence[T], *, left: int, winners: int, rng: np.random.Generator) -> list[list[T]]:
    """Return the groups of one round, as even as possible, largest first; one entry of each advances.

    Args:
        entries: the networks that compete.
        left: number of rounds after this one.
        winners: number of winners of the last round, if there are as many entries.
        rng: the random generator of the draw.
    """
    if not entries:
        return []
    most = winners * 2**left
    count = min(len(entries), max(winners, min(math.ceil(len(entries) / 2), most)))
    order = [entries[i] for i in rng.permutation(len(entries))]
    return [order[i::count] for i in range(count)]
