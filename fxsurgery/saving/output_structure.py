"""The structure of a model's output as JSON, and back.

A type that is neither tuple, list nor dict (a named tuple, a library's output class) is looked up among those that
PyTorch's pytree knows when the structure is read; where it is not known then, a dict or tuple of the same stands in.
"""

from collections import namedtuple
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
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

    No type is called to read it, so that nothing runs.

    Raises:
        RunError: it is damaged.
    """
    try:
        return _spec(plain, set() if stand_ins is None else stand_ins)
    except (KeyError, TypeError, ValueError, AttributeError, ValidationError) as error:
        raise RunError(f"damaged: {str(plain)[:60]} is no structure") from error


class _Saved(BaseModel):
    """A structure of another type than tuple and list."""

    model_config = ConfigDict(extra="forbid", strict=True)
    type: str
    keys: list[str | int]
    children: list[Plain]
    context: Plain = None


def _spec(plain: Plain, stand_ins: set[str]) -> pytree.TreeSpec:
    if plain == "*":
        return _leaf()
    if "type" not in plain:
        [(kind, parts)] = plain.items()
        if not isinstance(parts, list):
            raise TypeError("a list is wanted")
        return pytree.TreeSpec({"tuple": tuple, "list": list}[kind], None, [_spec(c, stand_ins) for c in parts])
    return _typed(plain, stand_ins)


def _typed(plain: Plain, stand_ins: set[str]) -> pytree.TreeSpec:
    saved = _Saved.model_validate(plain)
    children = [_spec(c, stand_ins) for c in saved.children]
    if len(saved.keys) != len(children) or len(set(saved.keys)) < len(children):
        raise ValueError("each key names one child")
    if "context" not in plain:
        stand_ins.add(saved.type)
        return pytree.TreeSpec(tuple, None, children)
    known = next((k for k in pytree.SUPPORTED_NODES if k is not dict and _name(k) == saved.type), None)
    if known is not None:
        context = decoded(saved.context)
        if _keys(context, len(children)) != saved.keys:
            raise ValueError("the keys are others in the context")
        return pytree.TreeSpec(known, context, children)
    if saved.type != _name(dict):
        stand_ins.add(saved.type)
    return pytree.TreeSpec(dict, saved.keys, children)


def _leaf() -> pytree.TreeSpec:
    return pytree.tree_structure(0)


def _name(kind: Any) -> str:  # noqa: ANN401 -- a type
    return f"{kind.__module__}.{kind.__qualname__}"
