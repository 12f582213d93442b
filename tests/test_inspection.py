"""`inspect`: how much surgery can reach, and an honest reason for the rest."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fxsurgery
from fxsurgery.inspection import inspect_program
from fxsurgery.searchers.common.layer_names import LayerNames
from nonempty import nonempty
from programs import program
from zoo import ZOO, Encoder, example

IMAGE = torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)


class HalfReachable(nn.Module):
    """Two equal branches; an operation without a rule holds one of them on both sides."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 5, 1)
        self.c, self.d = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x)) + self.d(torch.renorm(self.c(x), 2, 2, 1.0))


def test_share_and_reasons_of_a_model_that_is_half_reachable():
    model = HalfReachable()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = fxsurgery.inspect(model, IMAGE)
    assert found.editable_macs == pytest.approx(0.5)
    assert [(w.name, w.units, w.exact) for w in found.widths] == [("a", 8, True)]
    assert {part.name for part in found.fixed} == {"c", "d"}
    reasons = {part.name: part.reason for part in found.fixed}
    assert "renorm" in reasons["c"]
    assert "renorm" in reasons["d"]
    assert "the model's output" in reasons["d"]
    assert any("'renorm'" in note for note in found.notes)
    assert all(torch.equal(v, before[k]) for k, v in nonempty(model.state_dict().items()))


def test_page_says_it_all():
    page = str(fxsurgery.inspect(HalfReachable(), IMAGE))
    assert "50.0% of the MACs" in page
    assert "a: 8 channels" in page
    assert "renorm" in page


class Heads(nn.Module):
    """Attention over four heads of width 6, whose queries, keys and values one layer makes."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(24, 72), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(len(x), -1, 3, 4, 6).permute(2, 0, 3, 1, 4).unbind(0)
        return self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def test_where_a_unit_is_several_channels_both_are_told():
    found = fxsurgery.inspect(Heads(), torch.randn(2, 7, 24))
    assert [(w.name, w.units, w.channels) for w in found.widths] == [("qkv", 4, 72)]
    assert "qkv: 4 units of 18 channels" in str(found)


def test_widths_under_a_norm_are_marked():
    found = inspect_program(program("GroupNormNet"))
    assert [(w.name, w.exact) for w in found.widths] == [("a", True), ("b", False)]


def test_everything_is_editable_in_a_plain_net():
    found = inspect_program(program("Plain"))
    assert found.editable_macs == 1.0
    assert not found.fixed
    assert found.editable_params > 0.9


class Whole(nn.Module):
    """Takes a decision by value, in a module of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) if x.sum().item() > -1e9 else x


class WithWhole(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.whole, self.b, self.c = nn.Conv2d(3, 8, 1), Whole(), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.whole(self.a(x))))


def test_a_module_kept_as_leaf_counts_as_fixed():
    found = fxsurgery.inspect(WithWhole(), IMAGE, leaf_modules=(Whole,))
    [whole] = [part for part in found.fixed if part.name == "whole"]
    assert whole.macs == 8 * 8 * 8 * 8 * 9
    assert [w.name for w in found.widths] == ["b"]


def test_inputs_by_name_and_by_position_are_the_same():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.b(self.a(x).relu()) + y

    x, y = torch.randn(2, 4, generator=torch.Generator().manual_seed(0)), torch.zeros(2, 3)
    model = Two()
    pages = {str(fxsurgery.inspect(model, given)) for given in ((x, y), [x, y], {"x": x, "y": y})}
    assert len(pages) == 1


class Spectral(nn.Module):
    """Most of its work may lie in a transform, of which nobody says how many MACs it takes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(12, 16), nn.Linear(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.fft.rfft(self.first(x)).abs())


def test_macs_that_nobody_counts_are_named():
    found = fxsurgery.inspect(Spectral(), torch.linspace(-1, 1, 24).reshape(2, 12))
    assert found.cost.unknown_macs == ("_fft_r2c",)
    assert "note: the MACs of _fft_r2c (at fft_rfft) are not counted" in str(found)


class BothWays(nn.Module):
    """A bilinear form of two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.both = nn.Linear(12, 32), nn.Linear(12, 24), nn.Bilinear(32, 24, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.both(self.a(x).relu(), self.b(x).tanh())


def test_a_bilinear_form_is_counted_where_it_is():
    found = fxsurgery.inspect(BothWays(), torch.linspace(-1, 1, 24).reshape(2, 12))
    assert found.cost.macs == 12 * 32 + 12 * 24 + 32 * 24 * 16
    assert next(part.name for part in found.fixed) == "both"


class Functional(nn.Module):
    """Functions that take parameters of their own, of a part and of a sum, and a product of two activations."""

    def __init__(self) -> None:
        super().__init__()
        self.part, self.query = nn.Module(), nn.Module()
        self.part.kernel, self.weight = nn.Parameter(torch.ones(8, 3, 3, 3)), nn.Parameter(torch.ones(6, 8))
        self.query.value, self.query.place = nn.Parameter(torch.ones(5, 6)), nn.Parameter(torch.zeros(5, 6))
        self.read, self.head = nn.Linear(6, 4), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        gram = x.flatten(1) @ x.flatten(1).T
        x = nn.functional.conv2d(x, self.part.kernel).relu().mean((2, 3))
        queries = self.read(self.query.value + self.query.place).sum() + gram.sum()
        return self.head(nn.functional.linear(x, self.weight).relu()) + queries


TOKENS = torch.arange(14).reshape(2, 7)
NAMED = [
    *((name, lambda name=name: ZOO[name](), example(name)) for name in ZOO),
    ("Functional", Functional, IMAGE),
    ("Encoder", Encoder, TOKENS),
    ("HalfReachable", HalfReachable, IMAGE),
    ("WithWhole", WithWhole, IMAGE),
]


@pytest.mark.parametrize(("build", "inputs"), [one[1:] for one in NAMED], ids=[one[0] for one in NAMED])
def test_keep_takes_every_name_that_is_shown(build: Callable[[], nn.Module], inputs: Tensor):
    model = build().eval()
    start = fxsurgery.capture(model, inputs, leaf_modules=(Whole,))
    found, names = inspect_program(start), LayerNames(model, start)
    assert len({width.name for width in found.widths}) == len(found.widths)
    shown = [name for width in found.widths for name in (width.name, *width.producers)]
    for name in nonempty([*shown, *(part.name for part in found.fixed)]):
        assert names.find(name, "keep")


def test_attention_is_named_by_its_module():
    found = fxsurgery.inspect(Encoder().eval(), TOKENS)
    widths = {width.name: width for width in found.widths}
    assert [*widths] == [
        "tok", "enc.layers.0.self_attn", "enc.layers.0.linear1", "enc.layers.1.self_attn", "enc.layers.1.linear1",
    ]  # fmt: skip
    assert widths["tok"].producers[:3] == ("tok", "enc.layers.0.self_attn.out_proj", "enc.layers.0.linear2")
    assert "enc_layers" not in str(found)


def test_a_recurrent_layer_has_one_channel_for_each_unit():
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.GRU(5, 24, batch_first=True), nn.Linear(24, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.rnn(x)[0])

    found = fxsurgery.inspect(Recurrent(), torch.ones(2, 7, 5))
    assert [(width.name, width.units, width.channels) for width in found.widths] == [("rnn", 24, 24)]


class Fixed(nn.Module):
    """A channel count that is used as a number, single channels, and a product of activations."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(1, 1, 3), nn.Conv2d(1, 4, 3), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(x))
        return self.c(x.mean((2, 3))) * x.shape[1]


def test_reasons_are_clauses_about_inputs_and_outputs():
    reasons = {part.name: part.reason for part in fxsurgery.inspect(Fixed(), IMAGE[:, :1]).fixed}
    assert reasons["a"] == "it has a single output; it has a single input"
    assert reasons["b"] == "forward computes with the number of its outputs (at mul); it has a single input"
    reasons = {part.name: part.reason for part in fxsurgery.inspect(HalfReachable(), IMAGE).fixed}
    assert reasons["c"] == "renorm needs all of its outputs; its inputs are the model's input"
    assert reasons["d"] == "its outputs are the model's output; renorm needs all of its inputs"
