"""Fold batch normalization into the convolution or linear layer before it.

    y = gamma * (conv(x) - mean) / sqrt(var + eps) + beta

is one convolution, with weight[o, :] scaled by gamma[o] / sqrt(var[o] + eps) and bias
beta + (bias - mean) * gamma / sqrt(var + eps). True of inference only, and only where nothing else reads
the convolution or calls either module.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvTransposeNd
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval
from typing_extensions import override

from fxsurgery.analysis.refit import refit
from fxsurgery.edit import Editor
from fxsurgery.program import Program
from fxsurgery.surgery import Effect, Rewrite, Trains

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True)
class FoldBn(Rewrite):
    """Fold every `BatchNorm(conv(x))` and `BatchNorm1d(linear(x))` that can be."""

    name: ClassVar[str] = "fold-bn"
    trains: ClassVar[Trains] = Trains.NO

    @classmethod
    @override
    def candidates(cls, program: Program) -> Iterator[Self]:
        if any(_producer(program, node) for node, _ in program.calls(*NORMS)):
            yield cls()

    @override
    def rewrite(self, edit: Editor) -> Effect:
        program = edit.program
        counts = Counter(str(n.target) for n in program.nodes if n.op == "call_module")
        for node, norm in program.calls(*NORMS):
            if (before := _producer(program, node)) is None:
                continue
            if reason := _unsafe(before, node, norm, counts):
                edit.refuse(node, reason)
                continue
            edit.replace_module(str(before.target), _fused(program.module(before), norm))
            edit.bypass(node)
        if not edit.changes and not edit.refusals:
            edit.refuse("output", "no batch norm follows a convolution or linear layer")
        return Effect.EXACT


def _producer(program: Program, norm: fx.Node) -> fx.Node | None:
    before = norm.all_input_nodes[0]
    foldable = before.op == "call_module" and isinstance(program.module(before), (*CONVS, nn.Linear))
    return before if foldable else None


def _fused(layer: nn.Module, norm: _BatchNorm) -> nn.Module:
    fused: nn.Module
    if isinstance(layer, nn.Linear):
        fused = fuse_linear_bn_eval(layer, norm)
    elif isinstance(layer, CONVS[3:]) and layer.groups > 1:
        fused = _fused_by_groups(layer, norm)
    else:
        fused = fuse_conv_bn_eval(layer, norm, transpose=isinstance(layer, CONVS[3:]))  # type: ignore[type-var]
    # torch leaves a bias that it had to make untrainable.
    return fused.requires_grad_(layer.get_parameter("weight").requires_grad)


def _fused_by_groups(layer: _ConvTransposeNd, norm: _BatchNorm) -> nn.Module:
    """A transposed convolution's weight is (in, out / groups, ...): each group of inputs has outputs of its own."""
    affine = norm._parameters  # noqa: SLF001 -- None where there is none, which no public way tells mypy
    mean, variance = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
    with torch.no_grad():
        scale = (variance + norm.eps).rsqrt() * (1.0 if (weight := affine["weight"]) is None else weight)
        bias = (-mean if layer.bias is None else layer.bias - mean) * scale
        bias = bias if (offset := affine["bias"]) is None else bias + offset
        by_group = layer.weight.reshape(layer.groups, -1, *layer.weight.shape[1:])
        folded = by_group * scale.reshape(layer.groups, 1, -1, *(1 for _ in layer.kernel_size))
    new = refit(layer, {"weight": folded.reshape(layer.weight.shape)})
    new.bias = nn.Parameter(bias)
    return new


def _unsafe(before: fx.Node, node: fx.Node, norm: _BatchNorm, counts: Counter[str]) -> str | None:
    if not norm.track_running_stats:
        return "the batch norm has no running statistics"
    if len(before.users) > 1:
        return f"%{before} has {len(before.users)} readers"
    for called in (before, node):
        if (calls := counts[str(called.target)]) > 1:
            return f"{called.target} is called {calls} times"
    return None
