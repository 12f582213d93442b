"""Every entry trains in one group, one of each group goes on, and a competition ends with as many as it shall."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxsurgery.searchers.ectonas.brackets import drawn
from nonempty import possibly_empty


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@given(st.integers(0, 40), st.integers(0, 4), st.integers(1, 5), st.integers(0, 99))
def test_everyone_is_in_one_group_and_groups_are_even(entries: int, left: int, winners: int, seed: int):
    groups = drawn(range(entries), left=left, winners=winners, rng=rng(seed))
    assert sorted(entry for group in possibly_empty(groups) for entry in group) == [*range(entries)]
    sizes = [len(group) for group in groups]
    assert not sizes or (min(sizes) >= 1 and max(sizes) - min(sizes) <= 1)
    assert sizes == sorted(sizes, reverse=True)


@given(st.integers(1, 60), st.integers(1, 4), st.integers(1, 5))
def test_a_competition_ends_with_its_winners(entries: int, rounds: int, winners: int):
    pool = list(range(entries))
    for round_ in range(1, rounds + 1):
        pool = [group[0] for group in drawn(pool, left=rounds - round_, winners=winners, rng=rng(round_))]
    assert len(pool) == min(entries, winners)


@pytest.mark.parametrize(("entries", "left", "sizes"), [(2, 2, [2]), (5, 2, [2, 2, 1]), (8, 2, 4 * [2]), (1, 2, [1])])
def test_pairs_and_lucky_tickets_where_that_is_enough(entries: int, left: int, sizes: list[int]):
    assert [len(group) for group in drawn(range(entries), left=left, winners=1, rng=rng())] == sizes


def test_larger_groups_where_pairs_are_not_enough():
    assert [len(group) for group in drawn(range(16), left=0, winners=2, rng=rng())] == [8, 8]
    assert [len(group) for group in drawn(range(20), left=2, winners=1, rng=rng())] == [5, 5, 5, 5]


def test_never_fewer_go_on_than_win():
    assert len(drawn(range(4), left=2, winners=3, rng=rng())) == 3
    assert len(drawn(range(2), left=2, winners=3, rng=rng())) == 2


def test_the_draw_follows_the_seed():
    assert drawn(range(20), left=2, winners=1, rng=rng(1)) == drawn(range(20), left=2, winners=1, rng=rng(1))
    assert drawn(range(20), left=2, winners=1, rng=rng(1)) != drawn(range(20), left=2, winners=1, rng=rng(2))
