"""MACs by operation: counted as worked out by hand, or named as unknown, never 0 without a word."""

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 -- as everywhere in torch
from torch.nn.attention.flex_attention import flex_attention
from torch.utils._python_dispatch import _get_current_dispatch_mode

from fxsurgery.analysis.cost import cost, cost_after, unknown_macs_notes
from fxsurgery.analysis.structure import structure
from fxsurgery.analysis.work_counter import WorkCounter
from fxsurgery.budget import Budget
from fxsurgery.capture import capture
from fxsurgery.program import Program

X = torch.linspace(-1, 1, 3 * 5 * 16).reshape(3, 5, 16)
"""Three samples of 5 tokens of width 16."""


class Wrapped(nn.Module):
    """A linear layer, for something to prune, and a function of its output and of what else is held."""

    def __init__(self, function, **held):
        super().__init__()
        self.first, self.function = nn.Linear(16, 16, bias=False), function
        for name, value in held.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, self.first(x))


def program(function, **held) -> Program:
    torch.manual_seed(0)
    return capture(Wrapped(function, **held).eval(), X)


def macs(function, **held) -> int:
    """Of one sample, without those of the first layer."""
    return cost(program(function, **held)).macs - 5 * 16 * 16


def weight(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.linspace(-1, 1, torch.Size(shape).numel()).reshape(shape))


BY_HAND = {
    "nn.Bilinear": (lambda s, x: s.both(x, x.tanh()), {"both": lambda: nn.Bilinear(16, 16, 3)}, 5 * 16 * 16 * 3),
    "F.bilinear": (lambda s, x: F.bilinear(x, x, s.w), {"w": lambda: weight(3, 16, 16)}, 5 * 16 * 16 * 3),
    "mv": (lambda s, x: torch.mv(x.reshape(-1, 16), s.w), {"w": lambda: weight(16)}, 5 * 16),
    "matrix @ vector": (lambda s, x: x @ s.w, {"w": lambda: weight(16)}, 5 * 16),
    "row @ matrix": (lambda s, x: x.sum(1, keepdim=True) @ x.mT, {}, 16 * 5),
    "addbmm": (
        lambda s, x: x @ torch.addbmm(s.w, x.mT, x), {"w": lambda: weight(16, 16)}, 16 * 16 * 5 + 5 * 16 * 16,
    ),
    "baddbmm": (lambda s, x: torch.baddbmm(x, x @ x.mT, x), {}, 2 * 5 * 5 * 16),
    "tensordot": (lambda s, x: torch.tensordot(x, s.w, ([2], [0])), {"w": lambda: weight(16, 4)}, 5 * 16 * 4),
    "einsum of two": (lambda s, x: torch.einsum("bij,kj->bik", x, s.w), {"w": lambda: weight(7, 16)}, 5 * 16 * 7),
    "einsum of three": (
        lambda s, x: torch.einsum("bij,bkj,kl->bil", x, x, s.w), {"w": lambda: weight(5, 3)}, 5 * 5 * 16 + 5 * 5 * 3,
    ),
    "multi_dot": (
        lambda s, x: torch.linalg.multi_dot([x.flatten(0, 1), s.v, s.w]).view_as(x),
        {"v": lambda: weight(16, 2), "w": lambda: weight(2, 16)}, 2 * 5 * 16 * 2,
    ),
    "cdist": (lambda s, x: torch.cdist(x, x), {}, 5 * 5 * 16),
    "conv1d": (lambda s, x: F.conv1d(x, s.w), {"w": lambda: weight(6, 5, 3)}, 6 * 14 * 5 * 3),
    "conv_transpose1d": (lambda s, x: F.conv_transpose1d(x, s.w), {"w": lambda: weight(5, 6, 3)}, 16 * 5 * 6 * 3),
    "conv_tbc": (
        lambda s, x: torch.conv_tbc(x.transpose(0, 1).contiguous(), s.w, s.b).transpose(0, 1),
        {"w": lambda: weight(3, 16, 4), "b": lambda: weight(4)}, 3 * 3 * 16 * 4,
    ),
    "conv3d": (lambda s, x: F.conv3d(x.view(-1, 1, 5, 4, 4), s.w), {"w": lambda: weight(2, 1, 3, 3, 3)}, 2 * 12 * 27),
    "RNNCell": (lambda s, x: s.c(x[:, 0]), {"c": lambda: nn.RNNCell(16, 8)}, 8 * 24),
    "GRUCell": (lambda s, x: s.c(x[:, 0]), {"c": lambda: nn.GRUCell(16, 8)}, 3 * 8 * 24),
    "LSTMCell": (lambda s, x: s.c(x[:, 0])[0], {"c": lambda: nn.LSTMCell(16, 8)}, 4 * 8 * 24),
    "LSTM": (
        lambda s, x: s.c(x)[0], {"c": lambda: nn.LSTM(16, 8, 2, bidirectional=True, batch_first=True)},
        5 * 2 * 4 * 8 * (16 + 8 + 16 + 8),
    ),
    "attention": (lambda s, x: F.scaled_dot_product_attention(x, x, x), {}, 2 * 5 * 5 * 16),
    "MultiheadAttention": (
        lambda s, x: s.c(x, x, x)[0], {"c": lambda: nn.MultiheadAttention(16, 2, batch_first=True)},
        4 * 5 * 16 * 16 + 2 * 5 * 5 * 16,
    ),
    "weights made of others": (
        lambda s, x: F.linear(x, s.u @ s.v), {"u": lambda: weight(16, 4), "v": lambda: weight(4, 16)},
        16 * 4 * 16 + 5 * 16 * 16,
    ),
    "learned queries": (
        lambda s, x: s.key(s.query) + x, {"key": lambda: nn.Linear(16, 16), "query": lambda: weight(1, 5, 16)},
        5 * 16 * 16,
    ),
    "queries for each sample": (
        lambda s, x: s.key(s.query.expand(x.shape[0], -1, -1)) + x,
        {"key": lambda: nn.Linear(16, 16), "query": lambda: weight(1, 5, 16)}, 5 * 16 * 16,
    ),
    "spectral norm": (
        lambda s, x: s.c(x), {"c": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(16, 16))},
        5 * 16 * 16 + 16 * 16 + 16,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BY_HAND)
def test_macs_are_those_worked_out_by_hand(name: str):
    function, held, wanted = BY_HAND[name]
    found = program(function, **{k: make() for k, make in held.items()})
    assert cost(found).macs - 5 * 16 * 16 == wanted
    assert not cost(found).unknown_macs


def test_a_deformable_convolution_is_counted_as_a_convolution():
    def run(s: nn.Module, x: Tensor) -> Tensor:
        image = x.reshape(-1, 4, 4, 5)
        return s.deform(image, s.offset(image))

    deform = torchvision.ops.DeformConv2d(4, 6, 3, padding=1, groups=2)
    found = macs(run, deform=deform, offset=nn.Conv2d(4, 18, 3, padding=1))
    assert found == 20 * (18 * 4 * 9 + 6 * 2 * 9)


FREE = {
    "grid_sample": lambda s, x: F.grid_sample(x.reshape(-1, 1, 5, 16), x.reshape(-1, 5, 8, 2), align_corners=False),
    "interpolate": lambda s, x: F.interpolate(x.unsqueeze(1), scale_factor=2, mode="bilinear"),
    "unfold and fold": lambda s, x: F.fold(F.unfold(x.unsqueeze(1), 3, padding=1), (5, 16), 3, padding=1),
    "scatter_add": lambda s, x: torch.zeros_like(x).scatter_add(1, torch.zeros_like(x).long(), x),
    "outer": lambda s, x: x.unsqueeze(-1) * x.unsqueeze(-2),
    "embedding bag": lambda s, x: s.bag((x[..., 0] > 0).long()),
    "norms": lambda s, x: F.normalize(F.layer_norm(x, [16]), dim=-1),
    "sort": lambda s, x: x.sort(-1).values.cumsum(-1),
    "roi_align": lambda s, x: torchvision.ops.roi_align(
        x.unsqueeze(1), torch.cat([x[:, 0, :1] * 0, x[:, 0, :4].abs()], 1), (2, 2)
    ),
}


@pytest.mark.parametrize("name", FREE)
def test_what_the_convention_leaves_out_is_not_told_as_unknown(name: str):
    found = program(FREE[name], bag=nn.EmbeddingBag(4, 3))
    assert (cost(found).macs, cost(found).unknown_macs) == (5 * 16 * 16, ())


UNKNOWN = {
    "fft": (lambda s, x: torch.fft.rfft(x).real, "_fft_r2c"),
    "inverse": (lambda s, x: torch.linalg.inv(x[..., :5] * 0.01 + torch.eye(5)), "linalg_inv_ex"),
    "matrix_exp": (lambda s, x: torch.matrix_exp(x[..., :5]), "linalg_matrix_exp"),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_nobody_counts_is_named_with_its_place(name: str):
    function, op = UNKNOWN[name]
    found = program(function)
    assert cost(found).unknown_macs == (op,)
    nothing = np.zeros(0, np.int64)
    assert cost_after(found, structure(found).mask(nothing)) == cost(found)
    (note,) = unknown_macs_notes(found)
    assert note.startswith(f"the MACs of {op} (at {structure(found).unknown_macs[op][0]}) are not counted")
    assert unknown_macs_notes(found, Budget(params=0.5)) == (note,)
    assert unknown_macs_notes(found, Budget(macs=0.5))[1] == f"the budget in MACs is checked without the MACs of {op}"


def test_an_operation_of_another_library_is_not_taken_for_torchs_of_that_name():
    library = torch.library.Library("fxsurgery_test_macs", "DEF")
    library.define("mm(Tensor a, Tensor b) -> Tensor")
    library.impl("mm", lambda a, b: a @ b, "CompositeExplicitAutograd")
    try:
        found = program(lambda s, x: torch.ops.fxsurgery_test_macs.mm(x, s.w), w=weight(16, 16))
        assert cost(found).unknown_macs == ("fxsurgery_test_macs::mm",)
        assert structure(found).unknown.keys() == {"fxsurgery_test_macs::mm"}
    finally:
        library._destroy()


class Branching(nn.Module):
    """Reads a value, so that it is kept whole."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 1e9:
            x = x + 1
        out = self.inner(x)
        return out[0] if isinstance(out, tuple) else out


class InNumPy(nn.Module):
    """Computes where PyTorch does not see it."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(self.inner(x).detach().numpy() @ self.inner.weight.detach().numpy())


class Solving(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.qr(x).Q


class Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x @ w

    @staticmethod
    def backward(ctx, grad):
        x, w = ctx.saved_tensors
        return grad @ w.T, x.flatten(0, 1).T @ grad.flatten(0, 1)


class OwnBackward(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = weight(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return Product.apply(x, self.w)


LAYER = 4 * 5 * 16 * 16 + 2 * 5 * 5 * 16 + 2 * 5 * 16 * 32
WHOLE = {
    "linear": (lambda: Branching(nn.Linear(16, 16)), 5 * 16 * 16, ()),
    "fused transformer layer": (
        lambda: Branching(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)), LAYER, (),
    ),
    "fused recurrent layer": (lambda: Branching(nn.LSTM(16, 8, batch_first=True)), 5 * 4 * 8 * 24, ()),
    "scripted": (
        lambda: torch.jit.script(nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))), 2 * 5 * 16 * 16, (),
    ),
    "autograd function": (OwnBackward, 5 * 16 * 16, ()),
    "NumPy": (InNumPy, 5 * 16 * 16, ("NumPy, or other code outside PyTorch",)),
    "solver": (lambda: Branching(Solving()), 0, ("linalg_qr",)),
}  # fmt: skip


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_what_is_kept_whole_is_counted_in_each_call_or_named(name: str):
    make, wanted, unknown = WHOLE[name]
    found = program(lambda s, x: s.whole(s.whole(x)) if name == "linear" else s.whole(x), whole=make())
    assert cost(found).macs - 5 * 16 * 16 == wanted * (2 if name == "linear" else 1)
    assert cost(found).unknown_macs == unknown


def test_the_macs_do_not_depend_on_the_example_batch():
    function, held, _ = BY_HAND["weights made of others"]
    model = Wrapped(function, **{k: make() for k, make in held.items()}).eval()
    assert {cost(capture(model, X[:1].repeat(n, 1, 1))).macs for n in (1, 2, 7)} == {5 * 16 * 16 * 2 + 16 * 4 * 16}


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_run_eagerly_is_counted_as_attention():
    query = torch.linspace(-1, 1, 2 * 2 * 16 * 8).reshape(2, 2, 16, 8)
    with torch.no_grad(), torch.compiler.set_stance("force_eager"), WorkCounter((), batch=2) as counter:
        flex_attention(query, query, query)
    assert (counter.macs, counter.unknown) == (2 * 2 * 16 * 16 * 8, {})


class Unwatchable(nn.Module):
    """Does not run under a dispatch mode, and branches on a value, so that it is kept whole."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        if _get_current_dispatch_mode() is not None or x.sum() > 1e9:
            raise RuntimeError("a mode is on")
        return self.inner(x)


def test_what_does_not_run_while_it_is_counted_is_named():
    found = program(lambda s, x: s.whole(x), whole=Unwatchable())
    assert cost(found).unknown_macs == ("whole",)
    assert "the MACs of whole (at whole) are not counted" in unknown_macs_notes(found)[0]
