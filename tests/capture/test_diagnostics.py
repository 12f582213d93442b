"""The message names the user's line, the module, what happened and what to do."""

import linecache

import numpy as np
import pytest
import torch
from torch import nn

from capture.parity import taken
from fxsurgery.capture import capture
from fxsurgery.capture.diagnostics import is_user_code
from fxsurgery.errors import CaptureError
from fxsurgery.nn import gates
from fxsurgery.ops import registry


def branch(x):
    return x if x.sum() > 0 else -x


def number(x):
    return x * float(x.sum().detach())


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


REASONS = [
    (branch, "a Python branch depends on the value"),
    (number, "converted to a Python number"),
    (numpy_call, "NumPy is called"),
    (text, "formatted as text"),
]


def assert_names(message, function):
    code = function.__code__
    assert f"{code.co_filename}:{code.co_firstlineno + 1}" in message
    assert linecache.getline(code.co_filename, code.co_firstlineno + 1).strip() in message


@pytest.mark.parametrize(("function", "what"), REASONS)
def test_a_module_that_reads_values_is_kept_as_leaf_and_named(function, what):
    program = taken(nn.Sequential(nn.Linear(3, 3), Stage(function)), torch.randn(2, 3))
    (note,) = program.notes
    assert note.startswith("`1.layers.1` (Offender) is kept as a leaf: ")
    assert what in note
    assert_names(note, function)
    assert len(list(program.calls(Offender))) == 1


@pytest.mark.parametrize(("function", "what"), REASONS)
def test_the_model_itself_is_named_where_no_module_is(function, what):
    with pytest.raises(CaptureError, match=what) as caught:
        capture(Offender(function), torch.randn(2, 3))
    assert "in the model (Offender)" in str(caught.value)
    assert_names(str(caught.value), function)
    assert "move that code to a small submodule" in str(caught.value)
    assert caught.value.__cause__ is not None


def test_the_remedy_named_works():
    program = capture(nn.Sequential(Offender(branch)), torch.randn(2, 3), leaf_modules=(Offender,))
    assert len(list(program.calls(Offender))) == 1


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
    program = taken(model, torch.randn(2, 3))
    assert program.notes[0].startswith("`1` (Counting) is kept as a leaf: forward assigns the buffer `count`")
    with pytest.raises(CaptureError, match=r"assigns the buffer `count`(.|\n)*in the model \(Counting"):
        capture(Counting(), torch.randn(2, 3))


def test_what_only_symbolic_tracing_cannot_do_is_recorded():
    def odd(x):
        if not isinstance(x, torch.Tensor):
            raise KeyError("what is this?")
        return torch.stack([x * len(x) for _ in range(x.shape[1])]) + sum(column for column in x.unbind(1))[:, None]

    (note,) = taken(Offender(odd), torch.randn(2, 3)).notes
    assert note.startswith("`x` must have size 3 along dim 1")


def test_code_of_ours_is_no_users_but_that_of_our_modules():
    assert not is_user_code(registry.__file__)
    assert not is_user_code(torch.nn.functional.__file__)
    assert is_user_code(gates.__file__)
    assert is_user_code(__file__)
