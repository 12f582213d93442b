"""Normalization with statistics over the batch, over groups of channels, or over trailing dims."""

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from fxsurgery.ops import module_sizes
from fxsurgery.ops.facets import OperandArgument, SizeArguments, SizeRule, Weight
from fxsurgery.ops.fast import calls, modules
from fxsurgery.ops.operator import Kind, Operator
from fxsurgery.ops.rules import parametric

_TRAILING = SizeArguments(SizeRule.NORMALIZED, (OperandArgument(1, "normalized_shape"),))
_SCALE = Weight(OperandArgument(2, "weight"), outputs=0, inputs=None, bias=OperandArgument(3, "bias"))

BATCH_NORM = Operator(
    name="batch_norm",
    kind=Kind.NORM,
    size_attributes=module_sizes.statistics,
    modules=(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, _BatchNorm),
    statistics="channel",
    aten=tuple(
        "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training cudnn_batch_norm "
        "miopen_batch_norm _batch_norm_no_update".split()
    ),
    rule=parametric.channel_norm,
    fast_module=modules.batch_norm,
    weight=Weight(OperandArgument(3, "weight"), outputs=0, inputs=None, bias=OperandArgument(4, "bias")),
)
INSTANCE_NORM = Operator(
    name="instance_norm",
    kind=Kind.NORM,
    size_attributes=module_sizes.statistics,
    modules=(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, _InstanceNorm),
    statistics="instance",
    weight=Weight(OperandArgument(3, "weight"), outputs=0, inputs=None, bias=OperandArgument(4, "bias")),
)
GROUP_NORM = Operator(
    name="group_norm",
    kind=Kind.NORM,
    size_attributes=module_sizes.group_norm,
    modules=(nn.GroupNorm,),
    statistics="group",
    aten=("native_group_norm",),
    rule=parametric.group_norm,
    weight=_SCALE,
    sizes=SizeArguments(SizeRule.GROUPS, (OperandArgument(1, "num_groups"),)),
)
LAYER_NORM = Operator(
    name="layer_norm",
    kind=Kind.NORM,
    size_attributes=module_sizes.trailing_norm,
    modules=(nn.LayerNorm,),
    statistics="trailing",
    weight=_SCALE,
    sizes=_TRAILING,
    aten=("native_layer_norm",),
    rule=parametric.layer_norm,
    fast_module=modules.layer_norm,
    fast_call=calls.layer_norm,
)
RMS_NORM = Operator(
    name="rms_norm",
    kind=Kind.NORM,
    size_attributes=module_sizes.trailing_norm,
    modules=(nn.RMSNorm,),
    statistics="trailing",
    weight=_SCALE,
    sizes=_TRAILING,
    rule=parametric.layer_norm,
)
WEIGHT_NORM = Operator(
    name="weight_norm",
    kind=Kind.NORM,
    is_named=False,
    aten=("_weight_norm", "_weight_norm_interface"),
    rule=parametric.weight_norm,
)

DECLARED = (
    BATCH_NORM,
    INSTANCE_NORM,
    GROUP_NORM,
    LAYER_NORM,
    RMS_NORM,
    WEIGHT_NORM,
    Operator(name="local_response_norm", kind=Kind.NORM, modules=(nn.LocalResponseNorm, nn.CrossMapLRN2d)),
)
