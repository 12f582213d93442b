"""Which modules and nodes carry sizes as constants.

A module states its sizes as attributes (`Conv2d.in_channels`), see `fxsurgery.analysis.refit`. A node states
them as arguments (`x.view(n, 2, 58)`): `resize` rewrites those of the targets in `SIZED` and `TUNED`. Any
other function of torch reshapes by the shapes it meets; data that is reshaped anywhere else freezes.
"""

from torch import fx, nn

SIZED = {
    "view", "reshape", "expand", "broadcast_to", "chunk", "split", "split_with_sizes", "tensor_split",
    "unsafe_chunk", "unsafe_split", "getitem", "unflatten", "narrow", "pad", "select",
    "layer_norm", "rms_norm", "group_norm",
    "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
}  # fmt: skip
"""Functions and methods whose size arguments are rewritten, computed ones as well."""

TUNED = {"scaled_dot_product_attention", "roll", "setitem"}
"""Functions with a constant that depends on a size, which is rewritten where it is written out."""

HIDING = {
    "as_strided", "resize", "resize_", "resize_as_", "set_", "multi_head_attention_forward", "view_copy",
    "expand_copy", "as_strided_copy",
}  # fmt: skip
"""Functions that are told sizes in a way that nothing rewrites."""

WHOLE = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer, nn.Transformer)
"""Modules that reshape by constants of their own."""

_LIBRARIES = ("torch", "_operator", "builtins", "math")


def target_name(node: fx.Node) -> str:
    """`view` for `x.view(...)`, `flatten` for `torch.flatten(x)`; the path for a module."""
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))


def is_sized(node: fx.Node) -> bool:
    """Whether `resize` rewrites the sizes among `node`'s arguments."""
    if node.op not in {"call_function", "call_method"} or target_name(node) not in SIZED:
        return False
    computed_pad = target_name(node) == "pad" and len(node.all_input_nodes) > 1
    return bool(node.args) and isinstance(node.args[0], fx.Node) and not computed_pad


def is_rewritten(node: fx.Node) -> bool:
    """Whether `resize` looks at `node`'s arguments."""
    tuned = node.op in {"call_function", "call_method"} and target_name(node) in TUNED
    return is_sized(node) or (tuned and bool(node.args))


def hides_its_shape(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether `node`, which calls `module` if it calls any, may reshape by a constant that no rewrite reaches."""
    if module is not None:
        return isinstance(module, WHOLE)
    if node.op not in {"call_function", "call_method"}:
        return False
    unreached = target_name(node) in SIZED and not is_sized(node)
    return unreached or target_name(node) in HIDING or not _is_of_torch(node)


def _is_of_torch(node: fx.Node) -> bool:
    module = getattr(node.target, "__module__", None) or "torch"
    return isinstance(node.target, str) or module.partition(".")[0] in _LIBRARIES
