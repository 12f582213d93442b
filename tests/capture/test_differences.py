"""Differences are computed in the tensors' own dtype if they are clearly small, else in float64."""

import pytest
import torch

from fxsurgery.capture.differences import GRADIENT_FLOOR, TOLERANCE, GradientComparison, difference
from fxsurgery.capture.reference_runs import ReferenceOutcome, TrainStep, run_train
from fxsurgery.inputs import Inputs
from nonempty import nonempty

DTYPES = [torch.float32, torch.float64, torch.complex64, torch.float16, torch.bfloat16]


def values(dtype, count=200_000):
    return torch.randn(count, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


def excess(got, wanted):
    return difference(ReferenceOutcome({"output[0]": got}), ReferenceOutcome({"output[0]": wanted})).excess


@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_tensors_do_not_differ(dtype):
    assert excess(values(dtype), values(dtype)) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64])
@pytest.mark.parametrize("where", [0, 100_000, -1])
def test_one_entry_that_is_off_by_twice_the_tolerance_is_found(dtype, where):
    wanted = values(dtype)
    got = wanted.clone()
    got[where] += 2 * TOLERANCE[dtype] * wanted.abs().max()
    assert excess(got, wanted) == pytest.approx(2, rel=0.3)
    got[where] = wanted[where] + 0.5 * TOLERANCE[dtype] * wanted.abs().max()
    assert excess(got, wanted) == pytest.approx(0.5, rel=0.3)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_must_stand_in_the_same_places(number):
    wanted = values(torch.float32)
    wanted[7] = number
    assert excess(wanted.clone(), wanted) == 0
    assert excess(values(torch.float32), wanted) == torch.inf
    assert excess(wanted, values(torch.float32)) == torch.inf


def test_a_difference_that_overflows_is_found():
    assert excess(torch.tensor([3e38]), torch.tensor([-3e38])) > 1


def test_integers_must_be_equal():
    assert excess(torch.tensor([1, 2]), torch.tensor([1, 2])) == 0
    assert excess(torch.tensor([1, 3]), torch.tensor([1, 2])) == torch.inf


def test_a_small_gradient_is_compared_on_the_scale_of_the_largest():
    wanted = ReferenceOutcome({}, {"large": torch.ones(3), "small": torch.full((3,), GRADIENT_FLOOR / 10)})
    compare = GradientComparison(wanted)
    compare("small", torch.full((3,), GRADIENT_FLOOR / 10 * (1 + 1e-6)))
    compare("large", torch.ones(3) * (1 + 1e-3))
    assert compare.excesses["small"] < 1
    assert compare.excesses["large"] == pytest.approx(100, rel=0.01)


def test_a_gradient_that_one_of_them_lacks_is_found():
    compare = GradientComparison(ReferenceOutcome({}, {"a": torch.zeros(3), "b": None}))
    compare("a", None)
    compare("b", torch.zeros(3))
    assert compare.excesses == {"a": torch.inf, "b": torch.inf}


def test_gradients_that_come_one_by_one_are_those_that_come_together():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.unused = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)
            self.rows = torch.nn.Embedding(4, 3, sparse=True)
            self.tied = self.first

        def forward(self, x):
            return self.tied(self.first(x)) + self.rows(torch.tensor([1, 2]))

    model, inputs, met = Net(), Inputs((torch.randn(2, 3),)), {}
    wanted = run_train(model, inputs).gradients
    assert run_train(model, inputs, TrainStep(on_gradient=met.__setitem__)).gradients == {}
    assert met.keys() == wanted.keys()
    assert {"input 0", "first.weight", "tied.weight", "rows.weight", "unused.bias"} <= met.keys()
    torch.testing.assert_close(met, wanted, rtol=0, atol=0)
    assert met["unused.bias"] is None
    assert all(parameter.grad is None for parameter in nonempty(model.parameters()))
