"""Fold batch normalization into the convolution or linear layer before it.

    y = gamma * (conv(x) - mean) / sqrt(var + eps) + beta

is one convolution, with weight[o, :] scaled by gamma[o] / sqrt(var[o] + eps) and bias
beta + (bias - mean) * gamma / sqrt(var + eps). This holds for inference only, and only if the norm runs over the
outputs of the convolution and nothing else reads them or its tensors, or calls either module.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvTransposeNd
from typing_extensions import override

from fxsurgery.analysis.blocks import shape_of
from fxsurgery.analysis.refit import refit
from fxsurgery.analysis.shared_modules import called_again, read_elsewhere, shared
from fxsurgery.calls import checked_construction
from fxsurgery.edit import Editor
from fxsurgery.match import Refusal
from fxsurgery.nn.elastic import ELASTIC_CONVS
from fxsurgery.ops.layers import BATCH_NORMS, MIXING, TRANSPOSED_CONVOLUTIONS
from fxsurgery.program import Program
from fxsurgery.surgery import Effect, Rewrite, Trains

_FOLDABLE = (*MIXING, *TRANSPOSED_CONVOLUTIONS)
_PLAIN = {*_FOLDABLE, *ELASTIC_CONVS.values(), *BATCH_NORMS}


@checked_construction
@dataclass(frozen=True)
class FoldBn(Rewrite):
    """Fold every `BatchNorm(conv(x))` and `BatchNorm1d(linear(x))` for which this is exact."""

    name: ClassVar[str] = "fold-bn"
    trains: ClassVar[Trains] = Trains.NO

    @classmethod
    @override
    def candidates(cls, program: Program) -> Iterator[Self]:
        if any(refusal is None for *_, refusal in _pairs(program)):
            yield cls()

    @override
    def rewrite(self, edit: Editor) -> Effect:
        for before, node, norm, refusal in _pairs(edit.program):
            if refusal:
                edit.refuse(node, refusal)
                continue
            edit.replace_module(str(before.target), _fused(edit.program.module(before), norm))
            edit.bypass(node)
        if not edit.changes and not edit.refusals:
            edit.refuse("output", "no batch norm follows a convolution or linear layer")
        return Effect.EXACT


def _pairs(program: Program) -> Iterator[tuple[fx.Node, fx.Node, _BatchNorm, Refusal | None]]:
    """Yield each layer that a norm reads, with the norm and a refusal; `None` if they can be folded."""
    for node, norm in program.calls(*BATCH_NORMS):
        if (before := _producer(program, node)) is not None:
            refusal = _shared(program, before, node) or _unfoldable(program, before, norm)
            yield before, node, norm, refusal


def _producer(program: Program, norm: fx.Node) -> fx.Node | None:
    before = norm.all_input_nodes[0]
    foldable = before.op == "call_module" and isinstance(program.module(before), _FOLDABLE)
    return before if foldable else None


def _fused(layer: nn.Module, norm: _BatchNorm) -> nn.Module:
    """Return the folded layer (`torch.nn.utils.fusion` lacks grouped transposed convolutions, norms without scale)."""
    affine, own = norm._parameters, layer._parameters  # noqa: SLF001 -- None where there is none, as no public way has it
    weight, bias = layer.get_parameter("weight"), own["bias"]
    mean, variance = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
    with torch.no_grad():
        scale = (variance + norm.eps).rsqrt() * (1.0 if (gamma := affine["weight"]) is None else gamma)
        shifted = (-mean if bias is None else bias - mean) * scale
        shifted = shifted if (beta := affine["bias"]) is None else shifted + beta
        # The weight of a transposed convolution is (in, out / groups, ...): each group of inputs has its own outputs.
        groups, transposed = getattr(layer, "groups", 1), isinstance(layer, _ConvTransposeNd)
        by_output = weight.reshape(groups if transposed else 1, -1, *weight.shape[1:])
        factor = scale.reshape(groups, 1, -1) if transposed else scale.reshape(1, -1, 1)
        folded = by_output * factor.reshape(*factor.shape, *(1 for _ in weight.shape[2:]))
    new = refit(layer, {"weight": folded.reshape(weight.shape).to(weight.dtype)})
    new.bias = nn.Parameter(shifted.to(weight.dtype), requires_grad=weight.requires_grad)
    return new


def _shared(program: Program, before: fx.Node, node: fx.Node) -> Refusal | None:
    """Return a refusal if something else would see the layer or the norm change."""
    if refusal := called_again(program, str(before.target)) or called_again(program, str(node.target)):
        return refusal
    if len(before.users) > 1:
        return Refusal(before.name, f"%{before} has {len(before.users)} readers")
    return shared(program, str(before.target)) or read_elsewhere(program, str(before.target))


def _unfoldable(program: Program, before: fx.Node, norm: _BatchNorm) -> Refusal | None:
    layer = program.module(before)
    if "weight" not in layer._parameters:  # noqa: SLF001 -- not what a hook sets
        return Refusal(before.name, f"the weight of {before.target} is computed from other tensors")
    for module in (layer, norm):
        if type(module) not in _PLAIN:
            return Refusal(before.name, f"a {type(module).__name__} may override the computation of its base class")
    if not norm.track_running_stats:
        return Refusal(before.name, "the batch norm has no running statistics")
    if not _runs_over_outputs(program, before, layer, norm):
        return Refusal(before.name, f"the norm runs over another dim of %{before}")
    return None


def _runs_over_outputs(program: Program, before: fx.Node, layer: nn.Module, norm: _BatchNorm) -> bool:
    """Return True if the norm, which takes dim 1 (dim 0 without a batch), runs over the outputs of the layer."""
    if isinstance(norm, BATCH_NORMS[1:]):  # it takes values of one number of dims alone
        return True
    shape = shape_of(program, before)
    return shape is not None and len(shape) == layer.get_parameter("weight").dim()
