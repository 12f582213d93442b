"""Models that draw random numbers in their forward: told as such, and exported unchecked where asked."""

import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from deploy.samples import Residual, noise, seeded
from fxsurgery.deploy import check_parity, export_onnx
from fxsurgery.deploy.determinism import RUNS, require_repeatable
from fxsurgery.errors import ExportError

X = (noise(4, 12),)


class Drawing(nn.Module):
    """Two linear layers with something random between them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(12, 16), nn.Linear(16, 4)
        self.own = np.random.default_rng(0)

    def between(self, x: Tensor) -> Tensor:
        return x

    @override
    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.between(torch.relu(self.a(x))))


class Dropout(Drawing):
    def between(self, x: Tensor) -> Tensor:
        return functional.dropout(x, 0.3, training=True)


class FeatureDropout(Drawing):
    def between(self, x: Tensor) -> Tensor:
        return functional.alpha_dropout(x, 0.3, training=True)


class Leaky(Drawing):
    def between(self, x: Tensor) -> Tensor:
        return functional.rrelu(x - 1, training=True)


class Sample(Drawing):
    def between(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x)


class Factory(Drawing):
    def between(self, x: Tensor) -> Tensor:
        return x + torch.randn(16)


class Mask(Drawing):
    def between(self, x: Tensor) -> Tensor:
        return x * torch.bernoulli(torch.full_like(x, 0.8))


class Uniform(Drawing):
    def between(self, x: Tensor) -> Tensor:
        return x * torch.empty_like(x).uniform_()


class Depth(Drawing):
    """A layer that is dropped in one run of five, for the whole batch."""

    def between(self, x: Tensor) -> Tensor:
        return x * (torch.rand(1, 1) > 0.2)


class Numpy(Drawing):
    def between(self, x: Tensor) -> Tensor:
        return x * np.random.rand()  # noqa: NPY002 -- what a user's model does


class Python(Drawing):
    def between(self, x: Tensor) -> Tensor:
        return x * random.random()


class Own(Drawing):
    """A generator that no global seed reaches."""

    def between(self, x: Tensor) -> Tensor:
        return x * float(self.own.random())


class Label(Drawing):
    def forward(self, x: Tensor) -> Tensor:
        return torch.multinomial(self.b(torch.relu(self.a(x))).softmax(-1), 1)


class Counts(Drawing):
    """Nothing random: each run adds to a buffer that the next one reads."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def between(self, x: Tensor) -> Tensor:
        self.count += 1
        return x * self.count


RANDOM = [Counts, Dropout, FeatureDropout, Leaky, Sample, Factory, Mask, Uniform, Depth, Numpy, Python, Own, Label]


@pytest.mark.parametrize("kind", RANDOM)
def test_two_runs_that_differ_are_told_before_any_exporter_runs(tmp_path, kind):
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002 -- looked at
    message = r"^two runs of the model itself on the same inputs differ .* draws random numbers, .*check=False$"
    with pytest.raises(ExportError, match=message):
        export_onnx(seeded(kind), X, tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert (np.random.get_state()[1] == before[2]).all()  # noqa: NPY002


@pytest.mark.parametrize("kind", [Dropout, Sample])
def test_such_a_model_is_exported_unchecked(tmp_path, kind):
    before = torch.get_rng_state()
    file = export_onnx(seeded(kind), X, tmp_path / "a.onnx", check=False)
    assert file.parity is None
    assert file.path.stat().st_size == file.bytes
    assert torch.equal(torch.get_rng_state(), before)
    with pytest.raises(ExportError, match="two runs of the model itself"):
        check_parity(seeded(kind), file.path, X)


class DrawsInVain(Drawing):
    """The numbers that are drawn do not show."""

    def between(self, x: Tensor) -> Tensor:
        return x + 0 * torch.randn(16)


@pytest.mark.parametrize("kind", [DrawsInVain, Drawing])
def test_a_model_whose_runs_agree_is_checked(tmp_path, kind):
    assert export_onnx(seeded(kind), X, tmp_path / "a.onnx", exporter="legacy").parity.error < 1e-5


def test_a_model_that_draws_nothing_runs_twice():
    model, runs = seeded(Residual), list[int]()

    def run() -> list[Tensor]:
        runs.append(1)
        return [model(noise(2, 3, 8, 8))]

    require_repeatable(run)
    assert len(runs) == 2
    require_repeatable(lambda: [run()[0] + 0 * torch.rand(1)])
    assert len(runs) == 2 + RUNS
