"""The structure of a model's output as JSON, and back.

A type that is neither tuple, list nor dict (a named tuple, a library's output class) is looked up among those that
PyTorch's pytree knows when the structure is read; where it is not known then, a dict or tuple of the same stands in.
"""

from collections import namedtuple
from typing import Any

from torch.utils import _pytree as pytree

from fxsurgery.errors import RunError, SavingError
from fxsurgery.saving.values import decoded, encoded

Plain = Any
_KEYS = (str, int)


def structure_of(spec: pytree.TreeSpec) -> Plain:
    """A structure as JSON: `"*"` for a leaf.

    Raises:
        SavingError: it holds what has no name.
    """
    if spec.is_leaf():
        return "*"
    children = [structure_of(spec.child(i)) for i in range(spec.num_children)]
    kind, context = spec.type, spec.context
    if kind in {tuple, list}:
        return {kind.__name__: children}
    if kind is namedtuple:  # noqa: PYI024 -- what pytree calls the kind
        return {"type": _name(context), "keys": list(context._fields), "children": children}
    keys = _keys(context, len(children))
    if keys is None:
        raise SavingError(f"an output of type {_name(kind)} cannot be written: return a dict or tuple instead")
    return {"type": _name(kind), "keys": keys, "children": children, "context": encoded(context)}


def keys_of(spec: pytree.TreeSpec) -> list[Any] | None:
    """The keys or fields of a structure that has such; `None` for a named tuple, and what is not known."""
    return None if spec.type is namedtuple else _keys(spec.context, spec.num_children)  # noqa: PYI024


def _keys(context: Any, count: int) -> list[Any] | None:  # noqa: ANN401 -- what the type keeps beside its children
    """What the children are called, where the context says so: a dict's keys, or a dataclass's two lists of fields."""
    if not isinstance(context, (list, tuple)):
        return None
    lists = [context, *(c for c in context if isinstance(c, (list, tuple)))]
    return next((list(c) for c in lists if len(c) == count and all(isinstance(k, _KEYS) for k in c)), None)


def read_structure(plain: Plain, stand_ins: set[str] | None = None) -> pytree.TreeSpec:
    """The structure; the names of types that something plain stands in for are added to `stand_ins`.

    Raises:
        RunError: it is damaged.
    """
    return pytree.tree_structure(_example(plain, set() if stand_ins is None else stand_ins))


def _example(plain: Plain, stand_ins: set[str]) -> Any:  # noqa: ANN401 -- any structure
    if plain == "*":
        return 0
    try:
        if "type" not in plain:
            [(kind, children)] = plain.items()
            return {"tuple": tuple, "list": list}[kind](_example(c, stand_ins) for c in children)
        children = [_example(c, stand_ins) for c in plain["children"]]
        name, keys = str(plain["type"]), plain["keys"]
        if name == "builtins.dict":
            return dict(zip(keys, children, strict=True))
        if "context" not in plain:
            stand_ins.add(name)
            return tuple(children)
        known = next((k for k in pytree.SUPPORTED_NODES if _name(k) == name), None)
        if known is not None:
            return pytree.SUPPORTED_NODES[known].unflatten_fn(children, decoded(plain["context"]))
        stand_ins.add(name)
        return dict(zip(keys, children, strict=True))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError(f"damaged: {str(plain)[:60]} is no structure") from error


def _name(kind: Any) -> str:  # noqa: ANN401 -- a type
    return f"{kind.__module__}.{kind.__qualname__}"
