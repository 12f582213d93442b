"""Operators that join or extend tensors: concatenation, stacking, padding."""

from functools import partial

from torch import nn

from fxsurgery.ops.facets import OperandArgument, SizeArguments, SizeRule
from fxsurgery.ops.operator import Kind, Operator
from fxsurgery.ops.rules import joining as rules
from fxsurgery.ops.rules.reduction import windowed

CAT = Operator(
    name="cat",
    kind=Kind.JOINING,
    aliases=("concat", "concatenate"),
    keeps_zero=True,
    rearranges=True,
    rule=rules.concatenation,
    computes=False,
)
PAD = Operator(
    name="pad",
    kind=Kind.JOINING,
    aliases=("constant_pad_nd",),
    modules=(
        nn.ConstantPad1d,
        nn.ConstantPad2d,
        nn.ConstantPad3d,
        nn.ZeroPad1d,
        nn.ZeroPad2d,
        nn.ZeroPad3d,
        nn.CircularPad1d,
        nn.CircularPad2d,
        nn.CircularPad3d,
    ),
    sizes=SizeArguments(SizeRule.PADDING, (OperandArgument(1, "pad", None, ("padding",)),), needs_constants=True),
    rule=rules.padding,
    states_sizes=True,
)


def _mirrored(name: str, rank: int, module: type[nn.Module]) -> Operator:
    """Padding of the last dims with entries of the tensor itself."""
    return Operator(name=f"{name}{rank}d", kind=Kind.JOINING, modules=(module,), rank=rank, rule=windowed(rank))


_RANKS = (1, 2, 3)

DECLARED = (
    CAT,
    PAD,
    *map(partial(_mirrored, "reflection_pad"), _RANKS, (nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d)),
    *map(
        partial(_mirrored, "replication_pad"),
        _RANKS,
        (nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d),
    ),
    Operator(
        name="stack",
        kind=Kind.JOINING,
        aten=("_stack",),
        keeps_zero=True,
        rearranges=True,
        rule=rules.stacking,
        computes=False,
    ),
    *(
        Operator(name=name, kind=Kind.JOINING, keeps_zero=True, rearranges=name in {"hstack", "dstack", "column_stack"})
        for name in "hstack dstack column_stack block_diag cartesian_prod meshgrid".split()
    ),
    Operator(name="vstack", kind=Kind.JOINING, aliases=("row_stack",), keeps_zero=True, rearranges=True),
)
