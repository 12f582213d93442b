"""The quick copy of a module is what `copy.deepcopy` gives."""

import copy
import gc
import weakref

import pytest
import torch
from torch import fx, nn

from fxsurgery.capture.module_copy import copy_module


class Shared(nn.Module):
    """Holds what refers to itself and to other parts."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.register_buffer("table", torch.arange(6.0))
        self.view, self.plain = self.table[2:], torch.ones(2)
        self.cache = {}
        self.again, self.names, self.pairs = self.cache, {"a": [1, {"b": self.plain}]}, {1: [2]}
        self.me = [self]

    def forward(self, x):
        return self.linear(x)


class Own(nn.Module):
    """Says how it is copied."""

    def __deepcopy__(self, memo):
        twin = type(self)()
        twin.is_own = True
        return twin


class Momentary(nn.Module):
    """Its state holds a module that nothing else refers to."""

    def __getstate__(self):
        part = nn.Identity()
        self.reference[:] = [weakref.ref(part)]
        return {**self.__dict__, "reference": None, "part": part}

    def __init__(self):
        super().__init__()
        self.reference = []


def test_what_was_copied_lives_as_long_as_the_memo_that_knows_it_by_its_id():
    model, memo = Momentary(), {}
    copy_module(model, memo)
    (reference,) = model.reference
    assert id(reference()) in memo
    del memo
    gc.collect()
    assert reference() is None


def test_what_parts_share_stays_shared():
    model = Shared()
    twin = copy_module(model, {})
    assert twin is not model
    assert twin.cache is twin.again is not model.cache
    assert twin.me[0] is twin
    assert twin.names["a"][1]["b"] is twin.plain is not model.plain
    assert twin.pairs == {1: [2]}
    assert twin.pairs[1] is not model.pairs[1]
    twin.table[3] = -1
    assert twin.view[1] == -1
    assert model.table[3] == 3


def test_what_stands_for_an_object_is_taken():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    weight = nn.Parameter(torch.zeros(2, 2))
    twin = copy_module(model, {id(model[0].weight): weight})
    assert twin[0].weight is weight
    assert twin[1].running_mean is not model[1].running_mean


def test_a_module_with_a_way_of_its_own_is_copied_so():
    assert copy_module(nn.Sequential(Own()), {})[0].is_own


@pytest.mark.parametrize(
    "model",
    [
        nn.LSTM(3, 4, 2), nn.MultiheadAttention(4, 2), nn.TransformerEncoderLayer(4, 2, 8), nn.Upsample(scale_factor=2),
        nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)), nn.ParameterList([nn.Parameter(torch.ones(2))]),
    ],
)  # fmt: skip
def test_modules_of_torch_are_copied_as_ever(model):
    twin, wanted = copy_module(model, {}), copy.deepcopy(model)
    assert type(twin) is type(wanted)
    assert vars(twin).keys() == vars(wanted).keys()
    assert twin.state_dict().keys() == model.state_dict().keys()
    torch.testing.assert_close(dict(twin.state_dict()), dict(model.state_dict()), rtol=0, atol=0)
    held = [{value.data_ptr() for value in m.state_dict().values()} for m in (twin, model)]
    assert held[0].isdisjoint(held[1])


def test_a_graph_module_is_copied_without_its_graph():
    model = fx.symbolic_trace(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    twin, x = copy_module(model, {}), torch.randn(3, 2)
    assert twin.graph is model.graph
    assert twin.get_submodule("0") is not model.get_submodule("0")
    assert torch.equal(twin(x), model(x))
    with torch.no_grad():
        twin.get_submodule("0").bias.add_(1)
    assert not torch.equal(twin(x), model(x))
