"""Modules and nodes that have sizes as constants.

A module has its sizes as attributes (`Conv2d.in_channels`), see `fxsurgery.analysis.refit`. A node has them as
arguments (`x.view(n, 2, 58)`): `resize` rewrites those of the operators that declare `sizes`. Other functions of
torch reshape by the shapes of their inputs; data that is reshaped anywhere else freezes.
"""

from torch import fx, nn

from fxsurgery.ops import registry
from fxsurgery.ops.facets import SizeArguments

_LIBRARIES = ("torch", "_operator", "builtins", "math")


def target_name(node: fx.Node) -> str:
    """Return `view` for `x.view(...)`, `flatten` for `torch.flatten(x)`, and the path for a module."""
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))


def is_sized(node: fx.Node) -> bool:
    """Return True if `resize` rewrites the sizes among the arguments of `node`, including computed ones."""
    sizes = sizes_of(node)
    if sizes is None or not sizes.computed or not node.args or not isinstance(node.args[0], fx.Node):
        return False
    return not sizes.needs_constants or len(node.all_input_nodes) == 1


def is_rewritten(node: fx.Node) -> bool:
    """Return True if `resize` handles the arguments of `node`."""
    sizes = sizes_of(node)
    return is_sized(node) or (sizes is not None and not sizes.computed and bool(node.args))


def hides_its_shape(node: fx.Node, module: nn.Module | None) -> bool:
    """Return True if `node`, or the `module` that it calls, may reshape by a constant that no rewrite can change."""
    operator = registry.of(node, module)
    if module is not None:
        return operator is not None and operator.hides_sizes
    if node.op not in {"call_function", "call_method"}:
        return False
    if operator is None:
        return not _is_of_torch(node)
    is_unreached = operator.sizes is not None and operator.sizes.computed and not is_sized(node)
    return is_unreached or operator.hides_sizes


def sizes_of(node: fx.Node) -> SizeArguments | None:
    """Return the arguments of a function or method that hold sizes, if any."""
    operator = registry.of(node) if node.op in {"call_function", "call_method"} else None
    return None if operator is None else operator.sizes


def _is_of_torch(node: fx.Node) -> bool:
    module = getattr(node.target, "__module__", None) or "torch"
    return isinstance(node.target, str) or module.partition(".")[0] in _LIBRARIES
