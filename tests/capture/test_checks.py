"""Faults that the checks of a graph must find, even where they share runs or use compact inputs."""

import copy

import pytest
import torch
from torch import fx, nn
from torch.nn import functional

from fxsurgery.capture import capture, checks
from fxsurgery.capture.checks import Comparison
from fxsurgery.capture.compact_inputs import compact_variant
from fxsurgery.capture.model_copies import ModelCopies, ScratchCopy
from fxsurgery.errors import CaptureError
from fxsurgery.inputs import Inputs

SIZE, SMALL = 96, 64


def images(size, batch=2):
    return Inputs((torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0)),))


class Scaled(torch.autograd.Function):
    """Its gradient is too large by 0.1 %."""

    @staticmethod
    def forward(ctx, x):
        return x * 1.0

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 1.001


class Net(nn.Module):
    """A convolution, a norm, dropout and a head, each of which can be given a fault."""

    def __init__(self, *, momentum=0.1, drops=True, scales=False, writes=False, counts=False, detaches=False):
        super().__init__()
        self.conv, self.norm, self.head = (
            nn.Conv2d(3, 4, 3, stride=4),
            nn.BatchNorm2d(4, momentum=momentum),
            nn.Linear(4, 2),
        )
        self.register_buffer("seen", torch.zeros(1))
        self.drops, self.scales, self.writes, self.counts, self.detaches = drops, scales, writes, counts, detaches

    def forward(self, x):
        if self.writes:
            self.conv.weight.data.mul_(0.5)
        weight = Scaled.apply(self.conv.weight) if self.scales else self.conv.weight
        x = functional.relu(self.norm(functional.conv2d(x, weight, self.conv.bias, 4)))
        if self.counts:
            self.seen += 1
        x = functional.dropout(x, 0.5, self.training and self.drops)
        x = self.head(x.mean((2, 3)))
        return x.detach().requires_grad_(self.training) if self.detaches else x


class Same(nn.Module):
    """Stands in for a graph: calls another module unchanged."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner


def compared(model, other, compact, **settings):
    """Compare `model` with a graph that computes what `other` does, with the same parameters."""
    private = copy.deepcopy(model)
    copies = ModelCopies(private, model)
    twin = copies.take(private)
    twin.__dict__.update({name: value for name, value in vars(other).items() if not name.startswith("_")})
    twin.norm.momentum = other.norm.momentum
    graph = fx.Graph()
    graph.output(graph.call_module("inner", (graph.placeholder("x"),)))
    graph_module = fx.GraphModule(Named(twin), graph)
    holder = Named(private)
    return Comparison(ModelCopies(holder, Named(model)), holder, graph_module, (), **settings).check(
        images(SIZE), images(SMALL) if compact else None
    )


class Named(Same):
    """Both models have tensors of the same names."""

    def forward(self, x):
        return self.inner(x)


@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize(
    ("model", "graph", "match"),
    [
        ({"scales": True}, {}, "the gradient of inner.conv.weight differs"),
        ({}, {"scales": True}, "the gradient of inner.conv.weight differs"),
        ({}, {"drops": False}, "in train mode, output"),
        ({"drops": False}, {}, "in train mode, output"),
        ({"momentum": 0.11}, {}, "the buffer inner.norm.running_"),
        ({"counts": True}, {}, "the buffer inner.seen"),
        ({"writes": True}, {}, "in eval mode, output"),
        ({}, {"writes": True}, "in eval mode, output"),
    ],
)
def test_a_fault_is_found(model, graph, match, compact):
    with pytest.raises(CaptureError, match=match):
        compared(Net(**model), Net(**graph), compact)


@pytest.mark.parametrize("compact", [False, True])
def test_a_graph_that_is_the_model_passes(compact):
    assert compared(Net(), Net(), compact) == ()
    assert compared(Net(writes=True), Net(writes=True), compact) == ()


@pytest.mark.parametrize("keeps_state", [False, True])
def test_a_write_to_shared_memory_is_seen_by_no_later_run(keeps_state):
    with pytest.raises(CaptureError, match="in eval mode, output"):
        compared(Net(writes=True), Net(), compact=True, keeps_state=keeps_state)


def test_what_shows_at_the_full_size_alone_is_found():
    class Cropping(nn.Module):
        """Crops a proxy to the compact size, which does not show on compact inputs."""

        def forward(self, x):
            return x[..., :SMALL, :SMALL] if not isinstance(x, torch.Tensor) else x

    model = nn.Sequential(Cropping(), nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1))
    program = capture(model, *images(SIZE).args)
    with torch.no_grad():
        torch.testing.assert_close(program(*images(SIZE).args), model.eval()(*images(SIZE).args))


@pytest.mark.parametrize("sizes", ["table", "branch"])
def test_what_train_mode_does_at_the_full_size_alone_is_found(sizes):
    class Sized(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            height = x.shape[-1]
            rate = {SIZE: 0.5}.get(height, 0.0) if sizes == "table" else 0.5 * (isinstance(height, int) and height > 80)
            return functional.dropout(self.conv(x), rate, self.training)

    model = Sized()
    program = capture(model, *images(SIZE).args)
    ours, theirs = program.trainable_copy().train(), copy.deepcopy(model).train()
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(1)
        got = ours(*images(SIZE).args)
        torch.default_generator.manual_seed(1)
        torch.testing.assert_close(got, theirs(*images(SIZE).args))


class Edges(nn.Module):
    """Depends only on what is outside of the compact size."""

    def __init__(self, *, scales):
        super().__init__()
        self.conv, self.edge, self.scales = nn.Conv2d(3, 4, 3), nn.Linear(3, 4), scales

    def forward(self, x):
        weight = Scaled.apply(self.edge.weight) if self.scales else self.edge.weight
        edge = functional.linear(x[..., SMALL:, SMALL:].sum((2, 3)), weight, self.edge.bias)
        return self.conv(x).mean((2, 3)) + edge


def test_a_small_size_that_reaches_less_is_not_taken_for_the_full_one(monkeypatch):
    model = Named(Edges(scales=True))
    private = copy.deepcopy(model)
    copies = ModelCopies(private, model)
    twin = copies.take(private)
    twin.inner.scales = False
    graph = fx.Graph()
    graph.output(graph.call_module("inner", (graph.placeholder("x"),)))
    comparison = Comparison(copies, private, fx.GraphModule(twin, graph), ())
    with pytest.raises(CaptureError, match=r"the gradient of inner\.edge\.weight differs"):
        comparison.check(images(SIZE), images(SMALL))
    # That is due to the gradients of zeros.
    monkeypatch.setattr(checks, "is_informative", lambda outcome: True)
    assert comparison.check(images(SIZE), images(SMALL)) == ()


def compact_of(model, inputs):
    private = copy.deepcopy(model)
    return compact_variant(ScratchCopy(ModelCopies(private, model), private), inputs)


def test_inputs_become_small_where_the_model_takes_them():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, stride=4), nn.AdaptiveAvgPool2d(1))
    found = compact_of(model, images(224))
    assert [tuple(x.shape) for x in found.inputs.tensors] == [(2, 3, 64, 64)]
    assert compact_of(model, images(64)) is None


def test_inputs_stay_large_where_a_map_would_have_one_place():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, stride=16), nn.Conv2d(4, 4, 3, stride=2), nn.AdaptiveAvgPool2d(1))
    found = compact_of(model, images(224))
    assert [tuple(x.shape) for x in found.inputs.tensors] == [(2, 3, 96, 96)]


def test_inputs_stay_as_they_are_where_the_model_takes_no_others():
    assert compact_of(nn.Sequential(nn.Flatten(), nn.Linear(3 * 96 * 96, 2)), images(96)) is None


def test_inputs_stay_as_they_are_where_small_ones_give_no_numbers():
    class Empty(nn.Module):
        def forward(self, x):
            return x[..., 64:, 64:].mean((2, 3))

    assert compact_of(Empty(), images(80)) is None


def test_runs_at_the_size_of_the_example_are_few():
    class Noting(nn.Module):
        def forward(self, x):
            sizes.append(x.shape[-1])
            return x * 2

    sizes = list[int]()
    model = nn.Sequential(nn.Conv2d(3, 4, 3, stride=4), nn.BatchNorm2d(4), Noting(), nn.AdaptiveAvgPool2d(1))
    capture(model, *images(224).args, leaf_modules=(Noting,))
    full, small = (len(range(0, side - 2, 4)) for side in (224, SMALL))
    # The model and the graph, each once in eval mode and once forward in train mode.
    assert sizes.count(full) == 4
    assert sizes.count(small) >= 8


def test_gradients_that_the_model_alone_lacks_are_found():
    with pytest.raises(CaptureError, match="the gradient of inner"):
        compared(Net(detaches=True, drops=False), Net(drops=False), compact=False)
