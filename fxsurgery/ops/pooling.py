"""Pooling over windows, and resampling: interpolation and grid sampling."""

from dataclasses import replace
from itertools import chain

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 -- as everywhere in torch

from fxsurgery.ops.facets import OperandArgument, Window
from fxsurgery.ops.fast.modules import global_average, maximum
from fxsurgery.ops.macs import product
from fxsurgery.ops.operator import Function, Kind, Operator
from fxsurgery.ops.rules.lookup import sampling
from fxsurgery.ops.rules.reduction import windowed

_KERNEL, _STRIDE, _PADDING = (
    OperandArgument(1, "kernel_size"),
    OperandArgument(2, "stride"),
    OperandArgument(3, "padding", 0),
)
_OUTPUT = OperandArgument(1, "output_size")


def _pool(name: str, module: type[nn.Module], window: Window) -> Operator:
    return Operator(
        name=name, kind=Kind.POOLING, modules=(module,), rank=window.rank, window=window, rule=windowed(window.rank)
    )


def _with_indices(name: str, window: Window, *others: Function) -> Operator:
    """Return the variant of a max pooling that always returns indices too."""
    return Operator(
        name=f"{name}_with_indices",
        kind=Kind.POOLING,
        functions=others,
        # For adaptive pooling, the ATen operation has the shorter name.
        aten=(name,) if window.is_adaptive else (),
        rank=window.rank,
        window=replace(window, returns_indices=OperandArgument(-1, "return_indices", True)),  # noqa: FBT003
        rule=windowed(window.rank),
    )


def _average(rank: int, module: type[nn.Module]) -> Operator:
    window = Window(
        rank,
        "average",
        kernel=_KERNEL,
        stride=_STRIDE,
        padding=_PADDING,
        ceil_mode=OperandArgument(4, "ceil_mode", False),  # noqa: FBT003 -- the default
        counts_padding=OperandArgument(5, "count_include_pad", True),  # noqa: FBT003
        divisor=OperandArgument(6, "divisor_override"),
    )
    return _pool(f"avg_pool{rank}d", module, window)


def _maximum(rank: int, module: type[nn.Module]) -> tuple[Operator, Operator]:
    window = Window(
        rank,
        "maximum",
        kernel=_KERNEL,
        stride=_STRIDE,
        padding=_PADDING,
        dilation=OperandArgument(4, "dilation", 1),
        ceil_mode=OperandArgument(5, "ceil_mode", False),  # noqa: FBT003
        returns_indices=OperandArgument(6, "return_indices", False),  # noqa: FBT003
    )
    name = f"max_pool{rank}d"
    return replace(_pool(name, module, window), fast_module=maximum(rank)), _with_indices(name, window)


def _adaptive_average(rank: int, module: type[nn.Module]) -> Operator:
    pool = _pool(f"adaptive_avg_pool{rank}d", module, Window(rank, "average", output_size=_OUTPUT))
    return replace(pool, aten=(f"_{pool.name}",), fast_module=global_average(rank))


def _adaptive_maximum(rank: int, module: type[nn.Module]) -> tuple[Operator, Operator]:
    name = f"adaptive_max_pool{rank}d"
    window = Window(
        rank,
        "maximum",
        output_size=_OUTPUT,
        returns_indices=OperandArgument(2, "return_indices", False),  # noqa: FBT003
    )
    pool = replace(_pool(name, module, window), is_named=False, functions=(getattr(F, name),))
    bare = torch.adaptive_max_pool1d if rank == 1 else getattr(torch._C._nn, name)  # noqa: SLF001
    return pool, _with_indices(name, window, bare)


def _power(rank: int, module: type[nn.Module]) -> Operator:
    window = Window(
        rank,
        "power",
        kernel=OperandArgument(2, "kernel_size"),
        stride=OperandArgument(3, "stride"),
        ceil_mode=OperandArgument(4, "ceil_mode", False),  # noqa: FBT003
    )
    return Operator(name=f"lp_pool{rank}d", kind=Kind.POOLING, modules=(module,), rank=rank, window=window)


def _fractional(rank: int, module: type[nn.Module]) -> Operator:
    name = f"fractional_max_pool{rank}d"
    return Operator(
        name=name,
        kind=Kind.POOLING,
        functions=(getattr(F, name),),
        is_named=False,
        modules=(module,),
        rank=rank,
        draws="regularizes",
    )


def _fractional_with_indices(rank: int) -> Operator:
    name = f"fractional_max_pool{rank}d"
    bare = getattr(torch._C._nn, name)  # noqa: SLF001 -- it has the shorter name there
    return Operator(
        name=f"{name}_with_indices",
        kind=Kind.POOLING,
        functions=(bare,),
        aten=(name,),
        rank=rank,
        draws="regularizes",
    )


def _unpooling(rank: int, module: type[nn.Module]) -> Operator:
    return Operator(name=f"max_unpool{rank}d", kind=Kind.RESAMPLING, modules=(module,), rank=rank)


def _upsampling(name: str, rank: int) -> Operator:
    """Return the ATen operation that interpolation runs as."""
    return Operator(name=name, kind=Kind.RESAMPLING, rank=rank, rule=windowed(rank))


_RANKS = (1, 2, 3)
AVERAGE = tuple(map(_average, _RANKS, (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)))
_MAXIMA = tuple(map(_maximum, _RANKS, (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)))
MAXIMUM = tuple(pool for pool, _ in _MAXIMA)

DECLARED = (
    *AVERAGE,
    *chain(*_MAXIMA),
    *map(_adaptive_average, _RANKS, (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)),
    *chain(*map(_adaptive_maximum, _RANKS, (nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d))),
    *map(_power, _RANKS, (nn.LPPool1d, nn.LPPool2d, nn.LPPool3d)),
    *map(_fractional, (2, 3), (nn.FractionalMaxPool2d, nn.FractionalMaxPool3d)),
    *map(_fractional_with_indices, (2, 3)),
    *map(_unpooling, _RANKS, (nn.MaxUnpool1d, nn.MaxUnpool2d, nn.MaxUnpool3d)),
    Operator(
        name="interpolate",
        kind=Kind.RESAMPLING,
        aliases=("upsample", "upsample_nearest", "upsample_bilinear"),
        modules=(nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d),
    ),
    *(_upsampling(f"upsample_nearest{rank}d", rank) for rank in _RANKS),
    *(_upsampling(f"_upsample_nearest_exact{rank}d", rank) for rank in _RANKS),
    _upsampling("upsample_linear1d", 1),
    _upsampling("upsample_bilinear2d", 2),
    _upsampling("upsample_bicubic2d", 2),
    _upsampling("upsample_trilinear3d", 3),
    Operator(
        name="grid_sample",
        kind=Kind.RESAMPLING,
        aliases=("grid_sampler", "grid_sampler_2d", "grid_sampler_3d"),
        rule=sampling,
    ),
    Operator(
        name="affine_grid",
        kind=Kind.CONTRACTION,
        functions=(F.affine_grid,),
        is_named=False,
        aten=("affine_grid_generator",),
        macs=product(),
    ),
)
