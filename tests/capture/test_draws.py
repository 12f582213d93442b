"""Random numbers that control Python code are met whatever their outcome; a draw that stays a tensor stays random."""

import cProfile
import os
import random
import secrets
import sys
from random import random as aliased

import numpy as np
import pytest
import torch
from numpy.random import rand as numpy_aliased
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 -- as everywhere in torch

from fxsurgery.capture import capture
from fxsurgery.errors import CaptureError

X = torch.linspace(-1, 1, 4 * 8).reshape(4, 8)
NEVER = 1e-12
"""A probability so small that the event practically never occurs in a run."""
OWN, NUMPY = random.Random(3), np.random.default_rng(0)


class Block(nn.Module):
    """Runs `function(self, x)`, with a layer and generators available."""

    def __init__(self, function):
        super().__init__()
        self.layer, self.function = nn.Linear(8, 8), function
        self.python, self.numpy, self.legacy = random.Random(0), np.random.default_rng(1), np.random.RandomState(1)
        self.box = {"deep": [np.random.default_rng(2)]}

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


class Net(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.first, self.block, self.last = nn.Linear(8, 8), Block(function), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.block(self.first(x).relu()))


def coin(probability: float) -> bool:
    return random.random() < probability


def skipping(draw):
    """Layer drop in train mode."""
    return lambda s, x: x if s.training and draw(s, x) else x + s.layer(x)


IN_PYTHON = {
    "random": skipping(lambda s, x: random.random() < NEVER),
    "under another name": skipping(lambda s, x: aliased() < NEVER),
    "randint": skipping(lambda s, x: random.randint(0, 10**12) == 3),
    "choice": lambda s, x: x + s.layer(x) * random.choice([0.5, 0.5]),
    "in a function": skipping(lambda s, x: coin(NEVER)),
    "a generator of the module": skipping(lambda s, x: s.python.uniform(0, 1) < NEVER),
    "a generator of the file": skipping(lambda s, x: OWN.random() < NEVER),
    "in eval mode alone": lambda s, x: x if not s.training and random.random() < NEVER else x + s.layer(x),
    "a factor, no branch": lambda s, x: x * (1 + NEVER * random.random()) + s.layer(x),
    "secrets": skipping(lambda s, x: secrets.randbelow(10**12) == 3),
    "urandom": skipping(lambda s, x: os.urandom(8) == b"12345678"),
    "SystemRandom": skipping(lambda s, x: random.SystemRandom().random() < NEVER),
}
IN_NUMPY = {
    "rand": skipping(lambda s, x: np.random.rand() < NEVER),  # noqa: NPY002 -- what is looked for
    "under another name": skipping(lambda s, x: numpy_aliased() < NEVER),  # noqa: NPY002
    "normal": skipping(lambda s, x: np.random.normal() < -100),  # noqa: NPY002
    "a generator of the module": skipping(lambda s, x: s.numpy.random() < NEVER),
    "deep in the module": skipping(lambda s, x: s.box["deep"][0].random() < NEVER),
    "a RandomState of the module": skipping(lambda s, x: s.legacy.uniform() < NEVER),
    "a generator of the file": skipping(lambda s, x: NUMPY.integers(10**12) == 3),
    "a new generator": skipping(lambda s, x: np.random.default_rng().random() < NEVER),
    "noise": lambda s, x: x + s.layer(x) + torch.from_numpy(s.numpy.random(8)).float() * NEVER,
}
IN_TORCH = {
    "item": skipping(lambda s, x: torch.rand(()).item() < NEVER),
    "a branch": skipping(lambda s, x: torch.rand(1) < NEVER),
    "in both modes": lambda s, x: x if torch.rand(()).item() < NEVER else x + s.layer(x),
    "bernoulli": skipping(lambda s, x: torch.bernoulli(torch.full((), NEVER)) > 0.5),
    "in place": skipping(lambda s, x: torch.empty(()).uniform_() < NEVER),
    "randint": skipping(lambda s, x: torch.randint(0, 10**9, (1,)).item() == 3),
    "randperm": lambda s, x: x[torch.randperm(4).tolist()[:0]].sum() + s.layer(x) if s.training else s.layer(x),
    "multinomial": skipping(lambda s, x: int(torch.multinomial(torch.ones(5), 1)) == 7),
    "equal": skipping(lambda s, x: torch.equal(torch.rand(3), torch.zeros(3))),
    "allclose": lambda s, x: x if torch.allclose(torch.rand(3), torch.zeros(3)) else x + s.layer(x),
    "NumPy": skipping(lambda s, x: torch.rand(3).numpy().max() < NEVER),
    "a distribution": skipping(lambda s, x: torch.distributions.Bernoulli(torch.tensor(NEVER)).sample().item() == 1),
    "noise on data": skipping(lambda s, x: (x.mean() + torch.randn(())).item() > 1e9),
}


@pytest.mark.parametrize("function", IN_PYTHON.values(), ids=IN_PYTHON)
def test_a_draw_in_python_keeps_its_module_as_leaf_and_is_named(function):
    (note,) = capture(Net(function).eval(), X).notes
    assert note.startswith("`block` (Block) is kept as a leaf: random numbers control Python code (")
    assert f"{__file__}:" in note


@pytest.mark.parametrize("function", IN_NUMPY.values(), ids=IN_NUMPY)
def test_a_draw_in_numpy_keeps_its_module_as_leaf_and_is_named(function):
    (note,) = capture(Net(function).eval(), X).notes
    assert note.startswith("`block` (Block) is kept as a leaf: random numbers control Python code (")
    assert f"{__file__}:" in note


@pytest.mark.parametrize("function", IN_TORCH.values(), ids=IN_TORCH)
def test_a_value_that_is_read_out_of_a_draw_keeps_its_module_as_leaf(function):
    (note,) = capture(Net(function).eval(), X).notes
    assert note.startswith("`block` (Block) is kept as a leaf: ")
    assert f"{__file__}:" in note


def test_the_line_is_that_of_the_draw():
    def drop(s: nn.Module, x: Tensor) -> Tensor:
        y = s.layer(x)
        probability = np.random.rand() if s.training else 1.0  # noqa: NPY002
        kept = probability >= NEVER
        z = y.relu()
        return x + z if kept else x

    (note,) = capture(Net(drop).eval(), X).notes
    assert "`probability = np.random.rand() if s.training" in note


FINE = {
    "dropout by hand": lambda s, x: x + s.layer(x) * (torch.rand(x.shape[0], 1) >= 0.5 * s.training),
    "dropout": lambda s, x: x + F.dropout(s.layer(x), 0.5, s.training),
    "noise": lambda s, x: x + s.layer(x) + torch.randn_like(x) * 0.5 * s.training,
}


@pytest.mark.parametrize("function", FINE.values(), ids=FINE)
def test_a_draw_that_stays_a_tensor_stays_random_in_the_graph(function):
    program = capture(Net(function).eval(), X)
    assert not program.notes
    model = program.graph_module.train()
    assert any(not torch.equal(model(X), model(X)) for _ in range(5))


def test_a_seeded_generator_made_on_the_spot_is_no_draw():
    assert not capture(Net(lambda s, x: x * np.random.default_rng(0).random() + s.layer(x)).eval(), X).notes


class LayerDrop(nn.Module):
    """Skips layers by chance, in the model's own forward."""

    def __init__(self, draw):
        super().__init__()
        self.layers, self.draw = nn.ModuleList(nn.Linear(8, 8) for _ in range(3)), draw
        self.coin = Coin()

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            if self.training and self.draw(self):
                continue
            x = x + layer(x).relu()
        return x


class Coin(nn.Module):
    """Returns a bool, which a graph can contain neither directly nor as the result of a leaf."""

    def forward(self) -> bool:
        return self.training and random.random() < NEVER


def caught(_: nn.Module) -> bool:
    try:
        return random.random() < NEVER
    except Exception:  # noqa: BLE001 -- as careless code has it
        return False


@pytest.mark.parametrize(
    "draw",
    [
        lambda s: torch.rand(()).item() < 0.1,
        lambda s: random.random() < 0.1,
        lambda s: np.random.rand() < 0.1,  # noqa: NPY002
        lambda s: coin(NEVER),
        lambda s: s.coin(),
        caught,
    ],
    ids=["torch", "random", "NumPy", "a function", "a module", "caught"],
)
def test_layer_drop_in_the_model_itself_is_refused_with_the_line(draw):
    with pytest.raises(CaptureError, match="the model cannot be captured as a graph: ") as raised:
        capture(LayerDrop(draw).eval(), X)
    assert f"in the model (LayerDrop), {__file__}:" in str(raised.value)


def stochastic_depth(x: Tensor, probability: float, training: bool) -> Tensor:
    return x * 0 if training and random.random() < probability else x


def test_a_function_that_draws_is_kept_as_leaf_and_stays_random():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return x + stochastic_depth(self.layer(x), 0.5, self.training)

    program = capture(Model().eval(), X)
    assert f"the function `{__name__}.stochastic_depth` is kept as a leaf: random numbers control" in program.notes[0]
    model = program.graph_module.train()
    assert len({tuple(model(X).flatten().tolist()) for _ in range(40)}) == 2


def test_profilers_go_on_after_capture():
    def profile(*_: object) -> None: ...

    before = sys.getprofile()
    try:
        sys.setprofile(profile)
        capture(Net(FINE["dropout"]).eval(), X)
        assert sys.getprofile() is profile
        sys.setprofile(None)
        with cProfile.Profile() as profiler:
            capture(Net(FINE["dropout"]).eval(), X)
            running = sys.getprofile()
        assert running is profiler
    finally:
        sys.setprofile(before)
