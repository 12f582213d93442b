"""Inputs by name and of any structure, outputs in the user's own."""

import copy
from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

from capture.parity import assert_same, taken
from fxsurgery.capture import capture
from fxsurgery.errors import CaptureError, DataError

X = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
Pair = namedtuple("Pair", "scores hidden")  # noqa: PYI024 -- what users write


@dataclass
class Known:
    scores: torch.Tensor
    hidden: torch.Tensor | None = None


@dataclass
class Unknown:
    scores: torch.Tensor
    hidden: torch.Tensor | None = None


pytree.register_dataclass(Known)


class Net(nn.Module):
    def __init__(self, wrap=lambda scores, hidden: scores):
        super().__init__()
        self.body, self.head, self.wrap = nn.Linear(3, 4), nn.Linear(4, 2), wrap

    def forward(self, x, scale=None, *, shift=None):
        hidden = self.body(x).relu()
        scores = self.head(hidden)
        scores = scores if scale is None else scores * scale
        return self.wrap(scores if shift is None else scores + shift, hidden)


@pytest.mark.parametrize(
    ("wrap", "kind"),
    [
        (lambda s, h: (s, h), tuple),
        (lambda s, h: [s, (h, None)], list),
        (lambda s, h: {"scores": s, "more": {"hidden": h, "size": 4}}, dict),
        (Pair, Pair),
        (Known, Known),
    ],
)
@pytest.mark.parametrize("kwargs", [{}, {"shift": X[:, :2]}])
def test_outputs_come_in_the_users_structure(wrap, kind, kwargs):
    program = taken(Net(wrap), X, **kwargs)
    assert type(program(X, **kwargs)) is kind
    assert not program.notes


def test_a_dataclass_that_pytorch_does_not_know_comes_as_a_dict_with_a_note():
    program = capture(Net(Unknown), X)
    assert program(X).keys() == {"scores", "hidden"}
    assert any("Unknown becomes a dict" in note for note in program.notes)


def test_named_inputs_go_by_name_in_the_order_of_the_signature():
    program = taken(Net(), X, shift=X[:, :2], scale=X[:, :1])
    assert list(program.example_kwargs) == ["scale", "shift"]
    assert len([n for n in program.nodes if n.op == "placeholder"]) == len(program.examples.leaves) == 3
    expected = program(X, scale=X[:, :1], shift=X[:, :2])
    torch.testing.assert_close(program(X, shift=X[:, :2], scale=X[:, :1]), expected)


def test_every_input_by_name():
    taken(Net(), x=X, shift=X[:, :2])


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(3, 4)

    def forward(self, batch, pair, flag, *, mode="sum"):
        y = self.body(batch["x"]) + self.body(batch["more"][0])
        a, b = pair
        y = y * a if flag else y
        return {"y": y + b, "total": y.sum(-1)} if mode == "sum" else {"y": y}


def test_nested_inputs_and_constants_have_a_placeholder_each():
    inputs = ({"x": X, "more": [X * 2, None]}, (torch.randn(2, 1), torch.randn(2, 4)), True)
    model = Nested()
    program = taken(model, *inputs, mode="sum")
    assert len([n for n in program.nodes if n.op == "placeholder"]) == len(program.examples.leaves) == 7
    again = ({"x": X[:1], "more": [X[:1], None]}, (torch.randn(1, 1), torch.randn(1, 4)), True)
    assert_same(program, model, *again, mode="sum")


def test_the_graph_module_copies_exports_and_has_the_users_state():
    model = Net(Known)
    program = capture(model, X, example_kwargs={"shift": X[:, :2]})
    twin = copy.deepcopy(program.graph_module)
    torch.testing.assert_close(twin(X, shift=X[:, :2]).scores, model.eval()(X, shift=X[:, :2]).scores)
    assert twin.state_dict().keys() == model.state_dict().keys()
    exported = torch.export.export(twin, (X,), {"shift": X[:, :2]}, strict=False)
    torch.testing.assert_close(exported.module()(X, shift=X[:, :2]).scores, model(X, shift=X[:, :2]).scores)


def test_the_flat_graph_runs_on_the_leaves():
    program = capture(Net(Known), X, example_kwargs={"shift": X[:, :2]})
    found = torch.fx.Interpreter(program.graph_module).run(*program.examples.leaves, enable_io_processing=False)
    torch.testing.assert_close(found[0], program(X, shift=X[:, :2]).scores)


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(7, 4), nn.Linear(4, 2)

    def forward(self, tokens, attention_mask):
        x = self.embed(tokens) * attention_mask.unsqueeze(-1)
        return {"scores": self.head(x), "best": self.head(x).argmax(-1)}


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
def test_tokens_and_masks_are_inputs(dtype):
    tokens = torch.randint(7, (2, 5))
    model, mask = Tagger(), (tokens > 1).to(dtype)
    program = taken(model, tokens, attention_mask=mask)
    assert_same(program, model, tokens.repeat(2, 1), attention_mask=mask.repeat(2, 1))


def test_a_tied_parameter_that_is_used_as_a_function_keeps_a_key():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(7, 4)

        def forward(self, tokens):
            return nn.functional.linear(self.embed(tokens).relu(), self.embed.weight)

    program = taken(Tied(), tokens=torch.randint(7, (2, 5)))
    assert set(program.graph_module.state_dict()) == {"embed.weight"}


def test_a_cache_in_the_output_gets_its_own_error():
    class TokenCache:
        pass

    with pytest.raises(CaptureError, match=r"contains a TokenCache.*use_cache=False"):
        capture(Net(lambda s, h: (s, TokenCache())), X)
    with pytest.raises(CaptureError, match=r"the output contains an object of type object, which is neither"):
        capture(Net(lambda s, h: (s, object())), X)


def test_names_that_forward_does_not_have_are_a_data_error():
    with pytest.raises(DataError, match="unexpected keyword argument 'nothing'"):
        capture(Net(), X, example_kwargs={"nothing": X})
