"""Tensors beside each other or around: concatenation, stacking, padding."""

from torch import nn

from fxsurgery.ops.facets import Argument, SizeArguments, SizeRule
from fxsurgery.ops.operator import Kind, Operator

CAT = Operator(name="cat", kind=Kind.JOINING, aliases=("concat", "concatenate"), keeps_zero=True)
PAD = Operator(
    name="pad",
    kind=Kind.JOINING,
    aliases=(
        "constant_pad_nd", "reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "replication_pad1d",
        "replication_pad2d", "replication_pad3d",
    ),
    modules=(
        nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d, nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d,
        nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d, nn.ReplicationPad1d, nn.ReplicationPad2d,
        nn.ReplicationPad3d, nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d,
    ),
    sizes=SizeArguments(SizeRule.PADDING, (Argument(1, "pad", None, ("padding",)),), needs_constants=True),
)  # fmt: skip

DECLARED = (
    CAT,
    PAD,
    *(
        Operator(name=name, kind=Kind.JOINING, keeps_zero=True)
        for name in "stack hstack dstack column_stack block_diag cartesian_prod meshgrid".split()
    ),
    Operator(name="vstack", kind=Kind.JOINING, aliases=("row_stack",), keeps_zero=True),
)
