"""`nn.MultiheadAttention` and torch's transformers are written out, with the user's keys and a live dropout."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from capture.parity import assert_same, leaf_paths, taken
from nonempty import nonempty

X = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
CAUSAL = torch.ones(5, 5, dtype=torch.bool).triu(1)
PADDING = torch.tensor([[False] * 5, [False, False, False, True, True]])


class Attend(nn.Module):
    def __init__(self, options=None, call=None, cross=False):
        super().__init__()
        self.attend = nn.MultiheadAttention(8, 2, **{"batch_first": True, **(options or {})})
        self.norm = nn.LayerNorm(8)
        self.call, self.cross = call or {}, cross

    def forward(self, x):
        other = self.norm(x) if self.cross else x
        found, weights = self.attend(x, other, other, **self.call)
        return x + found, weights


@pytest.mark.parametrize(
    ("options", "call", "cross"),
    [
        ({}, {}, False),
        ({}, {}, True),
        ({"dropout": 0.3}, {}, False),
        ({"dropout": 0.3}, {"need_weights": False}, False),
        ({"bias": False}, {"need_weights": False}, True),
        ({"batch_first": False}, {"need_weights": False}, False),
        ({"batch_first": False}, {}, True),
        ({}, {"average_attn_weights": False}, False),
        ({}, {"attn_mask": CAUSAL}, False),
        ({}, {"attn_mask": CAUSAL, "is_causal": True, "need_weights": False}, False),
        ({}, {"attn_mask": torch.zeros(4, 5, 5).masked_fill(CAUSAL, float("-inf")), "need_weights": False}, False),
    ],
)
def test_attention_is_written_out(options, call, cross):
    model = Attend(options, call, cross)
    program = taken(model, X)
    assert not list(program.calls(nn.MultiheadAttention))
    assert any(n.target == "attend.out_proj" for n in program.nodes)
    assert {k for k in program.graph_module.state_dict() if "attend" in k} == {
        f"attend.{k}" for k in nonempty(model.attend.state_dict())
    }


def test_a_padding_mask_of_the_batch_is_an_input():
    class Padded(Attend):
        def forward(self, x, hidden):
            return self.attend(x, x, x, key_padding_mask=hidden, attn_mask=CAUSAL, need_weights=False)[0]

    model = Padded()
    program = taken(model, X, PADDING)
    assert_same(program, model, X.repeat(2, 1, 1), PADDING.repeat(2, 1))


@pytest.mark.parametrize("options", [{"kdim": 6, "vdim": 6}, {"add_bias_kv": True}, {"add_zero_attn": True}])
def test_attention_of_another_kind_is_one_node(options):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.attend = nn.MultiheadAttention(8, 2, batch_first=True, **options)
            self.narrow = nn.Linear(8, self.attend.kdim)

        def forward(self, x):
            other = self.narrow(x)
            return self.attend(x, other, other)[0]

    assert list(taken(Odd(), X).calls(nn.MultiheadAttention))


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("masks", [{}, {"mask": CAUSAL}, {"src_key_padding_mask": PADDING}])
def test_torchs_encoder_is_looked_into(norm_first, masks):
    layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.2, batch_first=True, norm_first=norm_first)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    program = taken(model, X, **masks)
    assert not list(program.calls(nn.TransformerEncoderLayer, nn.MultiheadAttention))
    assert program.graph_module.state_dict().keys() == model.state_dict().keys()
    assert not leaf_paths(program)


def test_torchs_whole_transformer_is_looked_into():
    model = nn.Transformer(8, 2, 1, 1, 12, batch_first=True)
    program = taken(model, X, X[:, :3])
    assert not list(program.calls(nn.TransformerEncoderLayer, nn.TransformerDecoderLayer, nn.MultiheadAttention))


def test_dropout_of_the_fused_attention_follows_the_mode():
    class Fused(nn.Module):
        def __init__(self):
            super().__init__()
            self.project = nn.Linear(8, 24)

        def forward(self, x):
            q, k, v = self.project(x).chunk(3, -1)
            return functional.scaled_dot_product_attention(q, k, v, dropout_p=0.5 if self.training else 0.0)

    model = nn.Sequential(Fused(), nn.Linear(8, 3))
    program = taken(model, X)
    trained = program.trainable_copy().train()
    assert not torch.equal(trained(X), trained(X))
    assert torch.equal(trained.eval()(X), trained(X))
