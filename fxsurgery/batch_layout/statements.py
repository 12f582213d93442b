"""Batch dims of the inputs as the user declares them with `batch_dims=`."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

from torch import Tensor
from torch.utils import _pytree as pytree

from fxsurgery.errors import DataError
from fxsurgery.inputs import BatchDims, Inputs, dims_of_size

Statement: TypeAlias = int | Sequence[Any] | Mapping[Any, Any] | None
"""Value of `batch_dims=`: the dim of all inputs; or the dim of each, or `None`, by position or by name."""


def as_stated(inputs: Inputs, statement: Statement, names: Sequence[str] = ()) -> Inputs:
    """Return the inputs with the batch dims that `statement` declares.

    Args:
        inputs: what the model is called with.
        statement: an int for all inputs; a sequence with one entry for each positional input; or a mapping from names
            or positions of inputs to entries. An entry is the dim, `None` for an input without a batch dim, or a
            sequence or mapping of entries for an input of that structure. Inputs that a mapping omits, and inputs with
            too few dims for an int, have their batch in the dim of that size.
        names: names of the positional inputs in `forward`, which a mapping may use.

    Raises:
        DataError: an input or dim does not exist, or the sizes differ.
    """
    if isinstance(statement, int) and not isinstance(statement, bool):
        return _checked(inputs, _from_one(inputs, statement), statement)
    said = list[Any]()
    for value, entry in _entries(inputs, statement, names):
        said += _spread(value, entry, statement)
    known = _checked(inputs, [None if d is ... else d for d in said], statement)
    others = dims_of_size(inputs.tensors, known.batch)
    pairs = zip(said, known.dims, others, strict=True)
    return replace(known, batch_dims=tuple(other if d is ... else dim for d, dim, other in pairs))


def statement_of(inputs: Inputs) -> dict[int | str, Any]:
    """Return the mapping that declares the batch dims of `inputs` as they are."""
    dims = iter(inputs.dims)
    args, kwargs = pytree.tree_map(
        lambda leaf: next(dims) if isinstance(leaf, Tensor) else None, (inputs.args, dict(inputs.kwargs))
    )
    found: dict[int | str, Any] = {**dict(enumerate(args)), **kwargs}
    return found


def _from_one(inputs: Inputs, dim: int) -> BatchDims:
    size = next((x.size(dim) for x in inputs.tensors if -x.dim() <= dim < x.dim()), None)
    if size is None:
        raise DataError(f"batch_dims={dim}: no input has a dim {dim}; name a dim that the inputs have")
    firsts = (dims_of_size([x], size, dim % x.dim() if x.dim() else 0)[0] for x in inputs.tensors)
    return tuple(firsts)


def by_position(statement: Statement, names: Sequence[str]) -> Statement:
    """Return a mapping with positions instead of the names of positional inputs; other statements unchanged."""
    if not isinstance(statement, Mapping):
        return statement
    return {names.index(key) if key in names else key: entry for key, entry in statement.items()}


def _entries(inputs: Inputs, statement: Any, names: Sequence[str]) -> Iterator[tuple[Any, Any]]:  # noqa: ANN401
    """Yield each input with its declared dim; `...` if nothing is declared."""
    if isinstance(statement, Mapping):
        said: Any = by_position(statement, names[: len(inputs.args)])
        named = dict[Any, Any](enumerate(inputs.args)) | dict(inputs.kwargs)
        if not inputs.kwargs and len(inputs.args) == 1 and isinstance(inputs.args[0], Mapping) and 0 not in said:
            named = dict(inputs.args[0])
        if unknown := [key for key in said if key not in named]:
            known = [names[key] if isinstance(key, int) and key < len(names) else key for key in named]
            raise DataError(
                f"batch_dims={statement!r}: there is no input {unknown[0]!r}; there are: {', '.join(map(repr, known))}"
            )
        yield from ((value, said.get(key, ...)) for key, value in named.items())
        return
    values = [*inputs.args, *inputs.kwargs.values()]
    if not isinstance(statement, list | tuple) or len(statement) != len(values):
        raise DataError(
            f"batch_dims={statement!r}: pass an int for all inputs, one entry for each of the {len(values)} inputs, or "
            "a dict by name, such as {'text': None, 'offsets': 0}"
        )
    yield from zip(values, statement, strict=True)


def _spread(value: Any, entry: Any, statement: Any) -> list[Any]:  # noqa: ANN401
    """Return the entry for each tensor in a value."""
    if entry is None or entry is ... or (isinstance(entry, int) and not isinstance(entry, bool)):
        return [entry for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]
    if isinstance(value, Mapping) and isinstance(entry, Mapping) and not entry.keys() - value.keys():
        return [d for key, part in value.items() for d in _spread(part, entry.get(key, ...), statement)]
    if isinstance(value, list | tuple) and isinstance(entry, list | tuple) and len(value) == len(entry):
        return [d for part, e in zip(value, entry, strict=True) for d in _spread(part, e, statement)]
    raise DataError(
        f"batch_dims={statement!r}: {entry!r} does not fit the structure of its input; pass one dim for each of its "
        "tensors"
    )


def _checked(inputs: Inputs, dims: Sequence[int | None], statement: Any) -> Inputs:  # noqa: ANN401
    found = list[int | None]()
    for x, dim in zip(inputs.tensors, dims, strict=True):
        if dim is not None and not -x.dim() <= dim < x.dim():
            raise DataError(
                f"batch_dims={statement!r}: an input of shape {tuple(x.shape)} has no dim {dim}; name one that it has"
            )
        found.append(None if dim is None else dim % x.dim())
    sizes = [x.size(d) for x, d in zip(inputs.tensors, found, strict=True) if d is not None]
    if len(set(sizes)) > 1:
        raise DataError(
            f"batch_dims={statement!r}: the inputs differ in their numbers of samples: {sizes}; pass the dims along "
            "which the samples are"
        )
    return replace(inputs, batch_dims=tuple(found))
