"""What is met without PyTorch's dispatcher is what the dispatcher shows."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from analysis.awkward import AWKWARD
from fxsurgery.analysis import propagation
from fxsurgery.analysis.cost import cost
from fxsurgery.analysis.structure import structure
from fxsurgery.capture import capture
from fxsurgery.ops.labels import Labels
from fxsurgery.program import Program
from nonempty import nonempty, possibly_empty
from programs import program
from zoo import ZOO, lively


def dispatched(start: Program, monkeypatch: pytest.MonkeyPatch) -> Program:
    """The same program, whose facts are worked out by the dispatcher alone."""
    monkeypatch.setattr(propagation, "plain_module", lambda *_: None)
    monkeypatch.setattr(propagation, "plain_function", lambda *_: None)
    monkeypatch.setattr(propagation, "computes_no_tensor", lambda *_: False)
    return start.with_weights(start.graph_module)


def assert_same_facts(start: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    fast, whole = structure(start), cost(start)
    other = dispatched(start, monkeypatch)
    slow = structure(other)
    assert fast.unknown == slow.unknown
    assert cost(other).macs == whole.macs
    # A linear layer on a broadcast input comes as a batched product, of which no node is told the producer.
    if not any("expand" in str(n.target) for n in start.nodes):
        assert [(g.name, g.producers) for g in possibly_empty(fast.groups)] == [
            (g.name, g.producers) for g in slow.groups
        ]
    assert sorted(g.units.tolist() for g in possibly_empty(fast.groups)) == sorted(
        g.units.tolist() for g in slow.groups
    )
    assert fast.tensors.keys() == slow.tensors.keys()
    for name, dims in nonempty(fast.tensors.items()):
        assert {d: i.tolist() for d, i in possibly_empty(dims.items())} == {
            d: i.tolist() for d, i in slow.tensors[name].items()
        }
    assert (fast.inexact, fast.ungateable) == (slow.inexact, slow.ungateable)
    for name, value in nonempty(fast.values.items()):
        assert not isinstance(value, Labels) or value.shape == slow.values[name].shape, name


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("name", AWKWARD)
def test_awkward_networks(name: str, monkeypatch: pytest.MonkeyPatch):
    build, example, _ = AWKWARD[name]
    assert_same_facts(capture(lively(build()).eval(), example), monkeypatch)


@pytest.mark.parametrize("name", ZOO)
def test_tiny_networks(name: str, monkeypatch: pytest.MonkeyPatch):
    assert_same_facts(program(name), monkeypatch)


class Called(nn.Module):
    """A function between two layers."""

    def __init__(self, function):
        super().__init__()
        self.first, self.function, self.last = nn.Linear(6, 8), function, nn.Linear(8, 3)

    def forward(self, x):
        return self.last(self.function(self.first(x)))


WEIGHT = torch.randn(8)
FUNCTIONS = {
    "add a number": lambda x: x + 1.5,
    "add to itself": lambda x: x.add(x).add_(x),
    "double, in place": lambda x: x.mul_(2) * 2,
    "minus a column": lambda x: x - x.mean(1, keepdim=True),
    "scale a number": lambda x: 2 * x / 3,
    "divide by a table": lambda x: torch.div(x, torch.arange(1.0, 9.0)),
    "flatten": lambda x: torch.flatten(x.unsqueeze(1), 1),
    "unflatten": lambda x: torch.unflatten(x, 1, (2, 4)).relu().reshape(x.shape[0], -1),
    "view back and forth": lambda x: x.view(-1, 4, 2).permute(0, 2, 1).transpose(1, 2).contiguous().view(-1, 8),
    "permuted by a tuple": lambda x: x.view(-1, 4, 2).permute((0, 2, 1)).flatten(1),
    "layer norm": lambda x: functional.layer_norm(x, (8,), eps=1e-4),
    "softmax": lambda x: functional.softmax(x, dim=1),
    "softmax in another type": lambda x: torch.softmax(x, 1, dtype=torch.float32),
    "activations": lambda x: functional.gelu(functional.silu(torch.tanh(x).sigmoid()), approximate="tanh"),
    "dropout": lambda x: functional.dropout(functional.relu(x, inplace=True), 0.5, training=False),
    "hard activations": lambda x: functional.hardswish(functional.hardsigmoid(x)),
    "means": lambda x: x.view(-1, 2, 4).mean((1,), keepdim=True).flatten(1).repeat(1, 2) + x.mean(dim=1, keepdim=True),
    "unbound": lambda x: torch.cat([y * y for y in x.view(-1, 2, 4).unbind(1)], 1) + torch.unbind(x[None])[0],
    "nothing of it": lambda x: torch.cat([x[:, :0], x[:, 0:]], 1),
    "bits": lambda x: x * (x > 0).view(torch.uint8).float(),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name: str, monkeypatch: pytest.MonkeyPatch):
    assert_same_facts(capture(lively(Called(FUNCTIONS[name])).eval(), torch.randn(2, 6)), monkeypatch)


class Attention(nn.Module):
    """Attention over `heads` heads of width 4, between linear layers."""

    def __init__(self, heads: int, **kwargs):
        super().__init__()
        self.heads, self.kwargs = heads, kwargs
        self.into, self.out = nn.ModuleList([nn.Linear(6, 4 * heads) for _ in "qkv"]), nn.Linear(4 * heads, 3)

    def forward(self, x):
        query, key, value = (layer(x).view(len(x), -1, self.heads, 4).transpose(1, 2) for layer in self.into)
        mixed = functional.scaled_dot_product_attention(query, key, value, **self.kwargs)
        return self.out(mixed.transpose(1, 2).flatten(2))


ATTENTION = {
    "heads": lambda: Attention(3),
    "one head": lambda: Attention(1),
    "causal": lambda: Attention(3, is_causal=True, scale=0.3),
    "a mask": lambda: Attention(2, attn_mask=torch.randn(5, 5)),
    "a mask of its own for each head": lambda: Attention(2, attn_mask=torch.randn(2, 5, 5) > -1),
}


@pytest.mark.parametrize("name", ATTENTION)
def test_attention(name: str, monkeypatch: pytest.MonkeyPatch):
    assert_same_facts(capture(lively(ATTENTION[name]()).eval(), torch.randn(2, 5, 6)), monkeypatch)


def pooled(layer: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), layer, nn.Flatten(), nn.LazyLinear(2))


LAYERS = {
    "one place": lambda: nn.AdaptiveAvgPool2d(1),
    "two places": lambda: nn.AdaptiveAvgPool2d((2, 2)),
    "same padding": lambda: nn.Conv2d(8, 6, 3, padding="same"),
    "circular padding": lambda: nn.Conv2d(8, 6, 3, padding=1, padding_mode="circular"),
    "strides": lambda: nn.Conv2d(8, 6, (3, 2), stride=(2, 1), dilation=(1, 2), padding=(0, 1), groups=2),
    "no statistics": lambda: nn.BatchNorm2d(8, track_running_stats=False),
    "no scale": lambda: nn.BatchNorm2d(8, affine=False),
    "dropped channels": nn.Dropout2d,
    "weight norm": lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 6, 3)),
    "leaky": lambda: nn.LeakyReLU(0.2, inplace=True),
    "max pool": lambda: nn.MaxPool2d(2),
    "max pool with all sizes": lambda: nn.MaxPool2d((3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)),
    "max pool with a part of a window": lambda: nn.MaxPool2d(2, ceil_mode=True),
    "average pool": lambda: nn.AvgPool2d(3, stride=2),
    "flattened from behind": lambda: nn.Flatten(-2),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name: str, monkeypatch: pytest.MonkeyPatch):
    model, x = pooled(LAYERS[name]()), torch.randn(2, 3, 9, 9)
    model(x)
    assert_same_facts(capture(lively(model).eval(), x), monkeypatch)


@pytest.mark.parametrize("rank", [1, 3])
def test_max_pools_of_other_dims(rank: int, monkeypatch: pytest.MonkeyPatch):
    conv, pool = (nn.Conv1d, nn.MaxPool1d) if rank == 1 else (nn.Conv3d, nn.MaxPool3d)
    model = nn.Sequential(conv(3, 8, 3), pool(2, padding=1), nn.Flatten(), nn.LazyLinear(2))
    x = torch.randn(2, 3, *[9] * rank)
    model(x)
    assert_same_facts(capture(lively(model).eval(), x), monkeypatch)


def test_a_hook_on_a_layer_is_run(monkeypatch: pytest.MonkeyPatch):
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    start = capture(model.eval(), torch.randn(2, 6))
    start.graph_module.get_submodule("1").register_forward_hook(lambda module, args, out: out.flip(1))
    assert_same_facts(start, monkeypatch)
