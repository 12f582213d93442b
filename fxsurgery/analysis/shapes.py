"""Which modules and nodes carry sizes as constants, and how these are brought up to date.

A module states its sizes as attributes (`Conv2d.in_channels`): `refit` makes a copy on resized tensors. A
node states them as arguments (`x.view(n, 2, 58)`): `SIZED` lists the targets whose arguments `resize`
rewrites. Data that is reshaped anywhere else freezes.
"""

import copy
from collections.abc import Mapping

from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

SIZED = {
    "view",
    "reshape",
    "expand",
    "chunk",
    "split",
    "split_with_sizes",
    "getitem",
    "unflatten",
    "narrow",
    "pad",
}
"""Functions and methods whose size arguments are rewritten."""

SHAPELESS = {
    "flatten", "permute", "transpose", "t", "squeeze", "unsqueeze", "contiguous", "linear", "unbind",
    "adaptive_avg_pool2d", "adaptive_avg_pool1d", "batch_norm", "pixel_shuffle", "pixel_unshuffle",
    "channel_shuffle", "movedim", "swapaxes", "interpolate", "stack", "cat", "concat",
}  # fmt: skip
"""Functions and methods that reshape by the shapes they meet, with no constant of their own."""

RESIZABLE = (_ConvNd, nn.Linear, _NormBase, nn.LayerNorm, nn.GroupNorm, nn.PReLU)
"""Modules with tensors that `refit` knows."""

CONSTANT_SHAPE = (nn.Unflatten, nn.Fold, nn.Unfold)
"""Modules without tensors that hold a shape."""


def target_name(node: fx.Node) -> str:
    """`view` for `x.view(...)`, `flatten` for `torch.flatten(x)`; the path for a module."""
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))


def is_sized(node: fx.Node) -> bool:
    """Whether `resize` rewrites the sizes among `node`'s arguments."""
    if node.op not in {"call_function", "call_method"} or target_name(node) not in SIZED:
        return False
    computed_pad = target_name(node) == "pad" and len(node.all_input_nodes) > 1
    return bool(node.args) and isinstance(node.args[0], fx.Node) and not computed_pad


def hides_its_shape(node: fx.Node, root: nn.Module) -> bool:
    """Whether `node` may reshape by a constant that no rewrite reaches."""
    if node.op == "call_module":
        return isinstance(root.get_submodule(str(node.target)), CONSTANT_SHAPE)
    return node.op in {"call_function", "call_method"} and not is_sized(node) and target_name(node) not in SHAPELESS


def is_resizable(module: nn.Module) -> bool:
    """Whether the tensors of a called module, if it has any, can be resized."""
    if hasattr(module, "parametrizations"):
        return False
    return isinstance(module, RESIZABLE) or not list(module.state_dict())


def refit(module: nn.Module, tensors: Mapping[str, Tensor], groups: int | None) -> nn.Module:
    """A copy of `module` on `tensors` (by their names in it), its size attributes to match.

    Args:
        module: one that `is_resizable`; it is left alone.
        tensors: the resized parameters and buffers; the others are shared.
        groups: the new number of groups, where it changed.
    """
    new = copy.copy(module)
    new._parameters, new._buffers = dict(module._parameters), dict(module._buffers)  # noqa: SLF001
    for name, tensor in tensors.items():
        if (old := module._parameters.get(name)) is not None:  # noqa: SLF001
            shared = tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor, old.requires_grad)
            new._parameters[name] = shared  # noqa: SLF001
        else:
            new._buffers[name] = tensor  # noqa: SLF001
    for name, value in _sizes(new, groups).items():
        setattr(new, name, value)
    return new


def _sizes(module: nn.Module, groups: int | None) -> dict[str, object]:
    sizes: dict[str, object]
    if isinstance(module, _ConvNd):
        groups = groups or module.groups
        first, second = module.weight.shape[:2]
        out, inner = (second * groups, first) if isinstance(module, _ConvTransposeNd) else (first, second * groups)
        sizes = {"groups": groups, "in_channels": inner, "out_channels": out}
    elif isinstance(module, nn.Linear):
        sizes = {"out_features": module.weight.shape[0], "in_features": module.weight.shape[1]}
    elif isinstance(module, nn.GroupNorm):
        width, groups = module.num_channels // module.num_groups, groups or module.num_groups
        channels = module.weight.shape[0] if module.affine else groups * width
        sizes = {"num_groups": groups, "num_channels": channels}
    elif isinstance(module, nn.LayerNorm):
        sizes = {"normalized_shape": tuple(module.weight.shape)}
    elif isinstance(module, nn.PReLU):
        sizes = {"num_parameters": module.weight.numel()}
    else:
        vectors = (t for t in (*module.parameters(), *module.buffers()) if t.dim() == 1)
        sizes = {"num_features": next(vectors).shape[0]}
    return sizes
