"""How far outputs differ."""

import pytest
import torch

from fxsurgery.comparison import largest_error, relative_error


def test_relative_error_looks_at_every_part_of_a_large_tensor():
    wanted = torch.ones(3, 700_001)
    got = wanted.clone()
    got[2, 699_000] = 1.5
    assert relative_error(got, wanted) == pytest.approx(0.5)
    wanted[0, 0] = 4.0
    assert relative_error(got, wanted) == pytest.approx(0.75)
    assert relative_error(got, wanted[:2]) == float("inf")


def test_relative_error_sees_nan_and_infinity():
    nan, one = torch.tensor([torch.nan]), torch.tensor([1.0])
    assert relative_error(nan, nan) == 0.0
    assert relative_error(nan, one) == float("inf")
    assert relative_error(one * 1.1, one) == pytest.approx(0.1)


def test_the_largest_error_of_several_outputs_has_the_limit_of_their_precision():
    one, half = torch.ones(2), torch.ones(2, dtype=torch.float16)
    assert largest_error([one * 1.5, half], [one, half]) == (pytest.approx(0.5), 2e-2)
    assert largest_error([torch.tensor([1])], [torch.tensor([2])]) == (0.5, 0.0)
    assert largest_error([], []) == (0.0, 0.0)
