"""Conversion of the structure of a model's output to JSON and back.

A type other than tuple, list or dict (a named tuple, a library's output class) is looked up by name among the types
that PyTorch's pytree knows. If it is unknown when the structure is read, a plain dict or tuple replaces it.
"""

from collections import namedtuple
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from torch.utils import _pytree as pytree

from fxsurgery.errors import RunError, SavingError
from fxsurgery.saving.values import decoded, encoded

Plain = Any
_KEYS = (str, int)


def structure_of(spec: pytree.TreeSpec) -> Plain:
    """Return a structure as JSON, with `"*"` for a leaf.

    Raises:
        SavingError: it contains a type without named children.
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
        raise SavingError(f"an output of type {_name(kind)} cannot be saved: return a dict or tuple instead")
    return {"type": _name(kind), "keys": keys, "children": children, "context": encoded(context)}


def _keys_of(spec: pytree.TreeSpec) -> list[Any] | None:
    """Return the keys or fields of a structure; None for a named tuple and for unknown types."""
    return None if spec.type is namedtuple else _keys(spec.context, spec.num_children)  # noqa: PYI024


def plain_output(spec: pytree.TreeSpec, leaves: Iterator[Any]) -> Any:  # noqa: ANN401 -- any structure
    """Return the output with dicts, tuples and lists in place of other containers."""
    if spec.is_leaf():
        return next(leaves)
    children = [plain_output(spec.child(i), leaves) for i in range(spec.num_children)]
    if spec.type in {tuple, list}:
        return spec.type(children)
    keys = _keys_of(spec)
    return tuple(children) if keys is None else dict(zip(keys, children, strict=True))


def _keys(context: Any, count: int) -> list[Any] | None:  # noqa: ANN401 -- what the type keeps beside its children
    """Return the names of the children if the context lists them, as for dicts and dataclasses; else None."""
    if not isinstance(context, (list, tuple)):
        return None
    lists = [context, *(c for c in context if isinstance(c, (list, tuple)))]
    return next((list(c) for c in lists if len(c) == count and all(isinstance(k, _KEYS) for k in c)), None)


def read_structure(plain: Plain, replaced: set[str] | None = None) -> pytree.TreeSpec:
    """Read a structure and add the names of types that a plain one replaces to `replaced`.

    No type is called, so nothing runs.

    Raises:
        RunError: it is damaged.
    """
    try:
        return _spec(plain, set() if replaced is None else replaced)
    except (KeyError, TypeError, ValueError, AttributeError, ValidationError) as error:
        raise RunError(f"damaged: {str(plain)[:60]} is not an output structure") from error


class _Saved(BaseModel):
    """A structure of a type other than tuple and list."""

    model_config = ConfigDict(extra="forbid", strict=True)
    type: str
    keys: list[str | int]
    children: list[Plain]
    context: Plain = None


def _spec(plain: Plain, replaced: set[str]) -> pytree.TreeSpec:
    if plain == "*":
        return _leaf()
    if "type" not in plain:
        [(kind, parts)] = plain.items()
        if not isinstance(parts, list):
            raise TypeError("a list is expected")
        return pytree.TreeSpec({"tuple": tuple, "list": list}[kind], None, [_spec(c, replaced) for c in parts])
    return _typed(plain, replaced)


def _typed(plain: Plain, replaced: set[str]) -> pytree.TreeSpec:
    saved = _Saved.model_validate(plain)
    children = [_spec(c, replaced) for c in saved.children]
    if len(saved.keys) != len(children) or len(set(saved.keys)) < len(children):
        raise ValueError("keys and children do not match")
    if "context" not in plain:
        replaced.add(saved.type)
        return pytree.TreeSpec(tuple, None, children)
    known = next((k for k in pytree.SUPPORTED_NODES if k is not dict and _name(k) == saved.type), None)
    if known is not None:
        context = decoded(saved.context)
        if _keys(context, len(children)) != saved.keys:
            raise ValueError("the keys do not match the context")
        return pytree.TreeSpec(known, context, children)
    if saved.type != _name(dict):
        replaced.add(saved.type)
    return pytree.TreeSpec(dict, saved.keys, children)


def _leaf() -> pytree.TreeSpec:
    return pytree.tree_structure(0)


def _name(kind: Any) -> str:  # noqa: ANN401 -- a type
    return f"{kind.__module__}.{kind.__qualname__}"
