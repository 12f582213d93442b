"""Singular values, signs and the way back: against sums and searches of another kind."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from fxsurgery.analysis.svd import best_signs, principal, svd, way_back


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_shares_and_ranks_are_those_of_the_squared_singular_values():
    found = svd(torch.diag(torch.tensor([3.0, 2.0, 1.0])))
    assert found.kept(1) == pytest.approx(9 / 14)
    assert [found.rank_for(e, 1e-9) for e in (0.5, 9 / 14 + 1e-6, 13 / 14 - 1e-6, 0.99, 1.0)] == [1, 2, 2, 3, 3]


def test_what_rounding_explains_has_no_rank():
    matrix = (drawn(30, 4) @ drawn(4, 20, seed=1)).float()
    found = svd(matrix)
    assert found.rank_for(1.0, 5e-7) == 4
    assert found.is_within(4, 5e-7)
    assert not found.is_within(3, 5e-7)


def test_principal_directions_are_those_of_the_covariance_then_of_the_matrix():
    h = torch.zeros(50, 6, dtype=torch.float64)
    h[:, 2], h[:, 4] = drawn(50), 3 * drawn(50, seed=1) + 7
    basis = principal(h, torch.diag(torch.tensor([1.0, 9.0, 1.0, 1.0, 1.0, 2.0], dtype=torch.float64)), 4)
    seen = np.cov(h.numpy()[:, [4, 2]].T)
    along = float(np.linalg.eigh(seen)[1][0, -1])
    assert abs(float(basis[4, 0])) == pytest.approx(abs(along), rel=1e-6)
    assert float(basis[[2, 4], :2].square().sum()) == pytest.approx(2.0)
    assert float(basis[1, 2].abs()) == pytest.approx(1.0)
    assert float(basis[5, 3].abs()) == pytest.approx(1.0)


@pytest.mark.parametrize("seed", range(5))
def test_signs_are_near_the_best_of_all(seed: int):
    h, matrix, reading = drawn(300, 7, seed=seed) + 0.3, drawn(7, 9, seed=seed), drawn(7, 5, seed=seed + 50)
    basis, metric = svd(matrix).left, reading @ reading.T

    def off(signs: Tensor) -> float:
        v = basis * signs
        left = (torch.relu(h) - torch.relu(h @ v) @ v.T) @ reading
        return float((left - left.mean(0)).norm())

    every = [torch.tensor(s, dtype=torch.float64) for s in itertools.product((1.0, -1.0), repeat=7)]
    assert off(best_signs(torch.relu, h, basis, metric)) <= 1.05 * min(map(off, every))


def test_way_back_is_least_squares_where_there_is_much_data():
    after, before = drawn(20_000, 5), drawn(20_000, 7, seed=1)
    before = before + after @ drawn(5, 7, seed=2) + 4
    start = torch.zeros(5, 7, dtype=torch.float64)
    wanted = np.linalg.lstsq(np.c_[after, np.ones(20_000)], before.numpy(), rcond=None)[0][:5]
    assert np.allclose(way_back(after, before, start, torch.eye(7).double()).numpy(), wanted, atol=2e-3)


def test_way_back_stays_where_the_data_say_nothing_or_nothing_new():
    start = drawn(5, 7)
    after = drawn(40, 5, seed=1)
    assert torch.equal(way_back(after[:3], drawn(3, 7), start, torch.eye(7).double()), start)
    assert torch.allclose(way_back(after, after @ start + 1, start, torch.eye(7).double()), start)


def test_signs_that_make_no_difference_stay_as_they_start():
    """tanh(-z) = -tanh(z): both sides are the same, up to rounding."""
    generator = torch.Generator().manual_seed(0)
    h, matrix = (torch.randn(n, 6, generator=generator, dtype=torch.float64) for n in (40, 9))
    basis, metric = svd(matrix.T).left[:, :3], matrix.T @ matrix
    z = h @ basis
    start = torch.where(z.clamp(min=0).square().sum(0) < z.clamp(max=0).square().sum(0), -1.0, 1.0)
    assert torch.equal(best_signs(torch.tanh, h, basis, metric), start.float())
