"""The promise about sizes: on inputs of any size that a model takes, its graph computes the same or refuses.

Held for the tiny zoo and for models that pad, crop, loop and branch by sizes, through both front ends, at random
batch sizes and extents; and for what exact passes make of them.
"""

import itertools
import random

import pytest
import torch
from torch import nn
from torch.nn import functional

from fxsurgery.analysis.structure import structure
from fxsurgery.capture import capture
from fxsurgery.passes import ALL, PruneChannels
from fxsurgery.surgery import Effect
from nonempty import nonempty, possibly_empty
from zoo import ZOO, example, lively

DRAWS = 12
SLOW_DRAWS = 60
REFUSAL = ("must have", "branches on a size")


class Recorded(nn.Module):
    """What symbolic tracing cannot take, and what gives an input by name."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, given):
        assert bool(given["x"].shape[0])
        return self.model(given["x"])


class Padding(nn.Module):
    """Pads to a multiple where that is wanted, and crops."""

    def __init__(self):
        super().__init__()
        self.down, self.up = nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.ConvTranspose2d(6, 2, 2, stride=2)

    def forward(self, x):
        h, w = x.shape[-2:]
        if h % 2 or w % 2:
            x = functional.pad(x, (0, w % 2, 0, h % 2))
        return self.up(self.down(x).relu())[..., :h, :w]


class Windows(nn.Module):
    """Attends in windows; asserts that they fit."""

    def __init__(self):
        super().__init__()
        self.embed, self.mix = nn.Conv2d(3, 8, 1), nn.Linear(8, 8)

    def forward(self, x):
        x = self.embed(x)
        b, c, h, w = x.shape
        assert h % 4 == 0, "height"
        assert w % 4 == 0, "width"
        parts = x.view(b, c, h // 4, 4, w // 4, 4).permute(0, 2, 4, 3, 5, 1).reshape(-1, 16, c)
        parts = (parts @ parts.transpose(1, 2)).softmax(-1) @ self.mix(parts)
        return parts.view(b, h // 4, w // 4, 4, 4, c).permute(0, 5, 1, 3, 2, 4).reshape(b, c, h, w)


class Steps(nn.Module):
    """Reads a signal step by step."""

    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.GRUCell(3, 6), nn.Linear(6, 4)

    def forward(self, x):
        state = x.new_zeros(len(x), 6)
        for step in range(x.shape[-1]):
            state = self.cell(x[..., step], state)
        return self.head(state)


class Thirds(nn.Module):
    """Sizes by division with a remainder, and a float made of sizes."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv1d(3, 6, 3, padding=1), nn.Conv1d(6, 4, 1)

    def forward(self, x):
        n = x.shape[-1]
        x = self.first(x)[..., : n - n % 3] if n >= 3 else self.first(x)
        return self.last(functional.interpolate(x, size=n)) / n**0.5


class Positions(nn.Module):
    """Adds as much of a learned table, and masks by as much of a fixed one, as the signal is long."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 8), nn.Linear(8, 4)
        self.table = nn.Parameter(torch.randn(1, 32, 8))
        self.register_buffer("causal", torch.ones(32, 32).tril())

    def forward(self, x):
        x = self.first(x.transpose(1, 2))
        n = x.shape[1]
        x = x + self.table[:, :n]
        scores = (x @ x.transpose(1, 2)).masked_fill(self.causal[:n, :n] == 0, -1e4)
        return self.last(scores.softmax(-1) @ x)


SIGNALS = {"Conv1dNet", "Steps", "Thirds", "Positions"}
OWN = {kind.__name__: kind for kind in (Padding, Windows, Steps, Thirds, Positions)}
NAMES = [*ZOO, *OWN]


def built(name):
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        return ZOO[name]() if name in ZOO else lively(OWN[name]()).eval()


def drawn(name, draws, seed):
    """Inputs at random sizes, the example's own among them."""
    random_sizes = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    yield example("Conv1dNet" if name in SIGNALS else "Plain", batch=3, seed=1)
    for _ in range(draws):
        extents = [random_sizes.choice((12, random_sizes.randint(1, 26))) for _ in range(1 if name in SIGNALS else 2)]
        yield torch.randn(random_sizes.randint(1, 5), 3, *extents, generator=generator)


def outputs(model, given):
    """What a model gives; the error where it takes no such inputs."""
    try:
        with torch.no_grad():
            found = model(given)
    except (RuntimeError, ValueError, IndexError, TypeError, ZeroDivisionError, AssertionError) as error:
        return error
    return list(found) if isinstance(found, (tuple, list)) else [found]


def equal(got, wanted):
    return len(got) == len(wanted) > 0 and all(
        a.shape == b.shape and torch.allclose(a, b, atol=1e-4, rtol=1e-4) for a, b in zip(got, wanted, strict=True)
    )


def hold(name, recorded, draws, seed=0):
    """How many inputs of other sizes the graph computed, after all were checked."""
    model = built(name)
    model = Recorded(model).eval() if recorded else model
    as_given = (lambda x: {"x": x}) if recorded else (lambda x: x)
    program = capture(model, as_given(example("Conv1dNet" if name in SIGNALS else "Plain")))
    exact = [
        result.program
        for kind in ALL.values()
        for move in itertools.islice(kind.candidates(program), 1)
        if (result := move(program)).effect is Effect.EXACT and result.changes
    ]
    groups = structure(program).groups
    pruned = [PruneChannels(((group.name, (0,)),))(program).program for group in groups if len(group.units) > 1]
    computed = 0
    for x in nonempty(drawn(name, draws, seed)):
        wanted = outputs(model, as_given(x))
        if isinstance(wanted, Exception):
            continue
        got = outputs(program, as_given(x))
        if isinstance(got, Exception):
            assert isinstance(got, AssertionError), (tuple(x.shape), got)
            assert any(words in str(got) for words in REFUSAL), got
            continue
        computed += 1
        assert equal(got, wanted), tuple(x.shape)
        for changed in possibly_empty(exact):
            assert equal(outputs(changed, as_given(x)), wanted), (changed.log, tuple(x.shape))
        for changed in possibly_empty(pruned):
            got = outputs(changed, as_given(x))
            assert not isinstance(got, Exception), (changed.log, tuple(x.shape), got)
            assert [o.shape for o in nonempty(got)] == [o.shape for o in wanted]
    return computed


@pytest.mark.parametrize("recorded", [False, True], ids=["traced", "recorded"])
@pytest.mark.parametrize("name", NAMES)
def test_at_any_size_a_graph_computes_the_same_or_refuses(name, recorded):
    assert hold(name, recorded, DRAWS) >= 1


@pytest.mark.slow
@pytest.mark.parametrize("recorded", [False, True], ids=["traced", "recorded"])
@pytest.mark.parametrize("name", NAMES)
def test_at_many_sizes_a_graph_computes_the_same_or_refuses(name, recorded):
    assert hold(name, recorded, SLOW_DRAWS, seed=1) >= 3


@pytest.mark.parametrize("name", [n for n in NAMES if n not in {"FlattenLinear", "PooledLinear", "Steps"}])
def test_a_model_that_takes_any_size_keeps_doing_so(name):
    sizes = (12, 16, 20, 24) if name == "Windows" else (12, 13, 20, 25)
    model = Recorded(built(name)).eval()
    program = capture(model, {"x": example("Conv1dNet" if name in SIGNALS else "Plain")})
    for size in sizes:
        x = torch.randn(2, 3, *[size] * (1 if name in SIGNALS else 2), generator=torch.Generator().manual_seed(size))
        assert equal(outputs(program, {"x": x}), outputs(model, {"x": x})), size
