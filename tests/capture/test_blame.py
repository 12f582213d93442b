"""The message names the user's line, the module, what happened and what to do."""

import linecache
import re

import numpy as np
import pytest
import torch
from torch import nn

from fxsurgery.capture import capture
from fxsurgery.errors import CaptureError


def branch(x):
    return x if x.sum() > 0 else -x


def number(x):
    return x * float(x.sum().detach())


def size(x):
    return torch.stack([x for _ in range(x.shape[0])])


def length(x):
    return x * len(x)


def iteration(x):
    return sum(row for row in x)


def numpy_call(x):
    return torch.from_numpy(np.asarray(x.detach()))


def text(x):
    return x if f"{x.sum():.2f}" else -x


class Offender(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Stage(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 3), Offender(function))

    def forward(self, x):
        return self.layers(x)


@pytest.mark.parametrize(
    ("function", "what"),
    [
        (branch, "a Python branch depends on the value"),
        (number, "converted to a Python number"),
        (size, "converted to a Python number"),
        (length, r"len\(\) is taken"),
        (iteration, "iterates over a tensor"),
        (numpy_call, "NumPy is called"),
        (text, "formatted as text"),
    ],
)
def test_the_line_and_the_module_are_named(function, what):
    model = nn.Sequential(nn.Linear(3, 3), Stage(function))
    with pytest.raises(CaptureError, match=what) as caught:
        capture(model, torch.randn(2, 3))
    message, code = str(caught.value), function.__code__
    assert f"{code.co_filename}:{code.co_firstlineno + 1}" in message
    assert linecache.getline(code.co_filename, code.co_firstlineno + 1).strip() in message
    assert "`1.layers.1` (Offender)" in message
    assert "leaf_modules=(Offender,)" in message
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize("function", [branch, number, size, length, iteration, text])
def test_the_remedy_named_works(function):
    model = nn.Sequential(nn.Linear(3, 3), Offender(function))
    capture(model, torch.randn(2, 3), leaf_modules=(Offender,))


def test_the_model_itself_is_named_where_no_module_is():
    with pytest.raises(CaptureError, match=re.escape("in the model (Offender)")) as caught:
        capture(Offender(branch), torch.randn(2, 3))
    assert "move that code to a small module" in str(caught.value)


def test_a_module_kept_in_a_list_is_named():
    class Hidden(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = [nn.Linear(3, 3)]

        def forward(self, x):
            return self.layers[0](x)

    with pytest.raises(CaptureError, match="not registered") as caught:
        capture(Hidden(), torch.randn(2, 3))
    assert "`return self.layers[0](x)`" in str(caught.value)
    assert "nn.ModuleList" in str(caught.value)


def test_a_buffer_that_is_assigned_is_named():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("count", torch.zeros(()))

        def forward(self, x):
            self.count = self.count + 1
            return x

    model = nn.Sequential(nn.Linear(3, 3), Counting())
    with pytest.raises(CaptureError, match=r"assigns the buffer `count` of `1` \(Counting.*test_blame.py:"):
        capture(model, torch.randn(2, 3))
    capture(model, torch.randn(2, 3), leaf_modules=(Counting,))


def test_an_error_of_another_kind_keeps_its_own_words():
    def odd(x):
        if not isinstance(x, torch.Tensor):
            raise KeyError("what is this?")
        return x

    with pytest.raises(CaptureError, match="forward raises on a traced tensor") as caught:
        capture(Offender(odd), torch.randn(2, 3))
    assert "what is this?" in str(caught.value)
