"""Attention as a function, and attention layers that are leaves of the graph."""

from torch import nn
from torch.nn import functional as F  # noqa: N812 -- as everywhere in torch

from fxsurgery.ops import macs
from fxsurgery.ops.facets import OperandArgument, SizeArguments, SizeRule
from fxsurgery.ops.fast.calls import attention
from fxsurgery.ops.operator import Kind, Operator

DECLARED = (
    Operator(
        name="scaled_dot_product_attention",
        kind=Kind.ATTENTION,
        aten=tuple(
            f"_scaled_dot_product_{name}"
            for name in (
                "attention_math attention_math_for_mps cudnn_attention efficient_attention flash_attention "
                "flash_attention_for_cpu fused_attention_overrideable"
            ).split()
        ),
        macs=macs.attention,
        fast_call=attention,
        draws="regularizes",
        sizes=SizeArguments(SizeRule.SCALE, (OperandArgument(6, "scale"),), computed=False),
    ),
    Operator(
        name="multi_head_attention",
        kind=Kind.ATTENTION,
        modules=(nn.MultiheadAttention,),
        functions=(F.multi_head_attention_forward,),
        aten=("_native_multi_head_attention",),
        macs=macs.whole_attention,
        draws="regularizes",
        hides_sizes=True,
    ),
    Operator(
        name="transformer",
        kind=Kind.ATTENTION,
        modules=(
            nn.Transformer,
            nn.TransformerEncoderLayer,
            nn.TransformerDecoderLayer,
        ),
        aten=("_transformer_encoder_layer_fwd",),
        macs=macs.transformer_layer,
        draws="regularizes",
        hides_sizes=True,
    ),
)
