"""Sums of products over a dim: linear layers, convolutions, matrix products."""

import torch
from torch import nn

from fxsurgery.ops import macs, module_sizes
from fxsurgery.ops.facets import Infix, OperandArgument, SizeArguments, SizeRule, Weight, Window
from fxsurgery.ops.fast import calls, modules
from fxsurgery.ops.operator import Kind, Operator
from fxsurgery.ops.rules import contraction, parametric
from fxsurgery.ops.rules.call import Rule

LINEAR = Operator(
    name="linear",
    kind=Kind.CONTRACTION,
    size_attributes=module_sizes.linear,
    modules=(nn.Linear,),
    weight=Weight(OperandArgument(1, "weight"), outputs=0, inputs=1, bias=OperandArgument(2, "bias")),
    rule=contraction.linear,
    macs=macs.linear,
    fast_module=modules.linear,
    fast_call=calls.linear,
)


def _convolution(rank: int, module: type[nn.Module]) -> Operator:
    groups = OperandArgument(6, "groups", 1)
    return Operator(
        name=f"conv{rank}d",
        kind=Kind.CONTRACTION,
        size_attributes=module_sizes.convolution,
        modules=(module,),
        rank=rank,
        weight=Weight(
            OperandArgument(1, "weight"), outputs=0, inputs=1, bias=OperandArgument(2, "bias"), groups=groups
        ),
        window=Window(
            rank,
            "weighted sum",
            stride=OperandArgument(3, "stride", 1),
            padding=OperandArgument(4, "padding", 0),
            dilation=OperandArgument(5, "dilation", 1),
        ),
        sizes=SizeArguments(SizeRule.GROUPS, (groups,)),
        fast_module=modules.convolution,
    )


def _transposed_convolution(rank: int, module: type[nn.Module]) -> Operator:
    groups = OperandArgument(6, "groups", 1)
    return Operator(
        name=f"conv_transpose{rank}d",
        kind=Kind.CONTRACTION,
        size_attributes=module_sizes.transposed_convolution,
        modules=(module,),
        rank=rank,
        weight=Weight(
            OperandArgument(1, "weight"), outputs=1, inputs=0, bias=OperandArgument(2, "bias"), groups=groups
        ),
        window=Window(
            rank,
            "weighted sum",
            stride=OperandArgument(3, "stride", 1),
            padding=OperandArgument(4, "padding", 0),
            dilation=OperandArgument(7, "dilation", 1),
            transposed=True,
        ),
        sizes=SizeArguments(SizeRule.GROUPS, (groups,)),
    )


CONVOLUTION = Operator(
    name="convolution",
    kind=Kind.CONTRACTION,
    aten=("_convolution", "convolution_overrideable"),
    sizes=SizeArguments(SizeRule.GROUPS, (OperandArgument(8, "groups", 1),)),
    rule=parametric.convolution,
    macs=macs.convolution,
)
"""The ATen operation behind convolutions of every rank, including transposed ones."""


def _product(name: str, count: macs.Macs | None = None, rule: Rule | None = None) -> Operator:
    return Operator(name=name, kind=Kind.CONTRACTION, macs=count, rule=rule)


CONVOLUTIONS = tuple(map(_convolution, (1, 2, 3), (nn.Conv1d, nn.Conv2d, nn.Conv3d)))
TRANSPOSED_CONVOLUTIONS = tuple(
    map(_transposed_convolution, (1, 2, 3), (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d))
)

MATMUL = Operator(
    name="matmul",
    kind=Kind.CONTRACTION,
    dunder="matmul",
    functions=(torch.linalg.matmul,),
    weight=Weight(OperandArgument(1, "other"), outputs=1, inputs=0),
    macs=macs.product(),
    infix=Infix("@", 13),
)
MM = Operator(
    name="mm",
    kind=Kind.CONTRACTION,
    weight=Weight(OperandArgument(1, "mat2"), outputs=1, inputs=0),
    rule=contraction.product,
    macs=macs.product(),
)
ADDMM = Operator(
    name="addmm",
    kind=Kind.CONTRACTION,
    weight=Weight(OperandArgument(2, "mat2"), outputs=1, inputs=0),
    rule=contraction.product,
    macs=macs.product(1),
)

DECLARED = (
    LINEAR,
    *CONVOLUTIONS,
    *TRANSPOSED_CONVOLUTIONS,
    MATMUL,
    MM,
    ADDMM,
    CONVOLUTION,
    _product("bmm", macs.product(), contraction.batched_product),
    _product("baddbmm", macs.product(1), contraction.batched_product),
    _product("addbmm", macs.summed_product),
    _product("addmv", macs.product(1)),
    _product("addr", macs.outer_product),
    _product("mv", macs.product()),
    _product("dot", macs.product()),
    _product("vdot", macs.product()),
    _product("conv_tbc", macs.time_major_convolution),
    Operator(
        name="cdist",
        kind=Kind.CONTRACTION,
        aten=("_cdist_forward", "_euclidean_dist"),
        macs=macs.product(),
    ),
    Operator(name="pdist", kind=Kind.CONTRACTION, aten=("_pdist_forward",), macs=macs.product()),
    Operator(name="bilinear", kind=Kind.CONTRACTION, modules=(nn.Bilinear,), aten=("_trilinear",), macs=macs.trilinear),
    Operator(name="outer", kind=Kind.CONTRACTION, aliases=("ger",)),
    *map(_product, "chain_matmul einsum inner kron tensordot".split()),
)
