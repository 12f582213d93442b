"""Sums of products over a dim: linear layers, convolutions, matrix products."""

import torch
from torch import nn

from fxsurgery.ops.facets import Argument, Infix, SizeArguments, SizeRule, Weight, Window
from fxsurgery.ops.operator import Kind, Operator

LINEAR = Operator(
    name="linear",
    kind=Kind.CONTRACTION,
    modules=(nn.Linear,),
    weight=Weight(Argument(1, "weight"), outputs=0, inputs=1, bias=Argument(2, "bias")),
)


def _convolution(rank: int, module: type[nn.Module]) -> Operator:
    groups = Argument(6, "groups", 1)
    return Operator(
        name=f"conv{rank}d",
        kind=Kind.CONTRACTION,
        modules=(module,),
        rank=rank,
        weight=Weight(Argument(1, "weight"), outputs=0, inputs=1, bias=Argument(2, "bias"), groups=groups),
        window=Window(
            rank,
            "weighted sum",
            stride=Argument(3, "stride", 1),
            padding=Argument(4, "padding", 0),
            dilation=Argument(5, "dilation", 1),
        ),
        sizes=SizeArguments(SizeRule.GROUPS, (groups,)),
    )


def _transposed_convolution(rank: int, module: type[nn.Module]) -> Operator:
    groups = Argument(6, "groups", 1)
    return Operator(
        name=f"conv_transpose{rank}d",
        kind=Kind.CONTRACTION,
        modules=(module,),
        rank=rank,
        weight=Weight(Argument(1, "weight"), outputs=1, inputs=0, bias=Argument(2, "bias"), groups=groups),
        window=Window(
            rank,
            "weighted sum",
            stride=Argument(3, "stride", 1),
            padding=Argument(4, "padding", 0),
            dilation=Argument(7, "dilation", 1),
            transposed=True,
        ),
        sizes=SizeArguments(SizeRule.GROUPS, (groups,)),
    )


def _product(name: str) -> Operator:
    return Operator(name=name, kind=Kind.CONTRACTION)


CONVOLUTIONS = tuple(map(_convolution, (1, 2, 3), (nn.Conv1d, nn.Conv2d, nn.Conv3d)))
TRANSPOSED_CONVOLUTIONS = tuple(
    map(_transposed_convolution, (1, 2, 3), (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d))
)

MATMUL = Operator(
    name="matmul",
    kind=Kind.CONTRACTION,
    dunder="matmul",
    functions=(torch.linalg.matmul,),
    weight=Weight(Argument(1, "other"), outputs=1, inputs=0),
    infix=Infix("@", 13),
)
MM = Operator(name="mm", kind=Kind.CONTRACTION, weight=Weight(Argument(1, "mat2"), outputs=1, inputs=0))
ADDMM = Operator(name="addmm", kind=Kind.CONTRACTION, weight=Weight(Argument(2, "mat2"), outputs=1, inputs=0))

DECLARED = (
    LINEAR,
    *CONVOLUTIONS,
    *TRANSPOSED_CONVOLUTIONS,
    MATMUL,
    MM,
    ADDMM,
    Operator(name="bilinear", kind=Kind.CONTRACTION, modules=(nn.Bilinear,)),
    Operator(name="outer", kind=Kind.CONTRACTION, aliases=("ger",)),
    *map(
        _product,
        "addbmm addmv addr baddbmm bmm cdist chain_matmul conv_tbc dot einsum inner kron mv pdist tensordot "
        "vdot".split(),
    ),
)
