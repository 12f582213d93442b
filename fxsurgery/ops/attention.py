"""Attention, as one function or as a layer that is kept whole."""

from torch import nn
from torch.nn import functional as F  # noqa: N812 -- as everywhere in torch

from fxsurgery.ops.facets import Argument, SizeArguments, SizeRule
from fxsurgery.ops.operator import Kind, Operator

DECLARED = (
    Operator(
        name="scaled_dot_product_attention",
        kind=Kind.ATTENTION,
        draws="regularizes",
        sizes=SizeArguments(SizeRule.SCALE, (Argument(6, "scale"),), computed=False),
    ),
    Operator(
        name="multi_head_attention",
        kind=Kind.ATTENTION,
        modules=(nn.MultiheadAttention,),
        functions=(F.multi_head_attention_forward,),
        draws="regularizes",
        hides_sizes=True,
        follows_mode=True,
    ),
    Operator(
        name="transformer",
        kind=Kind.ATTENTION,
        modules=(
            nn.Transformer,
            nn.TransformerEncoderLayer,
            nn.TransformerDecoderLayer,
        ),
        draws="regularizes",
        hides_sizes=True,
        follows_mode=True,
    ),
)
