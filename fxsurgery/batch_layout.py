"""Which dim of each input is the batch: as the user states it, as the target tells, or as the model's outputs tell.

A dim of size n is the batch where the outputs *follow* it, a dim of theirs growing from k n to k (n + 1) as it grows by
one, and where samples are *apart*: a change of the first one changes no more than the k places of its own. So flat ids
with offsets have their batch in the offsets, and a recurrent net that runs over dim 0 has it in dim 1.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxsurgery.errors import DataError
from fxsurgery.inputs import BatchDims, Inputs, dims_of_size, is_integer_vector, is_rising_from_zero, tensors_in

Statement: TypeAlias = int | Sequence[Any] | Mapping[Any, Any] | None
"""What a user says of the batch: the dim of all inputs; or, for each, its dim or `None`, by position or by name."""
Run: TypeAlias = Callable[[Inputs], Sequence[Tensor]]
"""The output tensors on some inputs; it raises where the model does not take them."""

_SEED = 20_012
_MOST_DIMS = 3
"""Of an input whose dim 1 is taken for the batch because the target is as long: more are an image's."""


def as_stated(inputs: Inputs, statement: Statement, names: Sequence[str] = ()) -> Inputs:
    """The inputs with the batch where `statement` says.

    Args:
        inputs: what the model is called with.
        statement: an int for all inputs; a sequence with one entry for each positional input; or a mapping from the
            names of inputs, or their positions, to entries. An entry is the dim, `None` where an input has no batch
            dim, or a sequence or mapping of entries for an input of that structure. Of inputs that a mapping leaves
            out, and of those that are too short for an int, the dim is the one of that size.
        names: what `forward` calls the positional inputs; a mapping may use these, too.

    Raises:
        DataError: there is no such input or dim, or the sizes differ.
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
    """The mapping that states the batch of `inputs` as it is."""
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
    """A mapping with positions in place of the names of positional inputs; any other statement as it is."""
    if not isinstance(statement, Mapping):
        return statement
    return {names.index(key) if key in names else key: entry for key, entry in statement.items()}


def _entries(inputs: Inputs, statement: Any, names: Sequence[str]) -> Iterator[tuple[Any, Any]]:  # noqa: ANN401
    """Each input with what is said of it; `...` where nothing is."""
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
            f"batch_dims={statement!r}: give an int for all inputs, one entry for each of the {len(values)} inputs, or "
            "a dict by name, such as {'text': None, 'offsets': 0}"
        )
    yield from zip(values, statement, strict=True)


def _spread(value: Any, entry: Any, statement: Any) -> list[Any]:  # noqa: ANN401
    """The entry for each tensor in a value."""
    if entry is None or entry is ... or (isinstance(entry, int) and not isinstance(entry, bool)):
        return [entry for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]
    if isinstance(value, Mapping) and isinstance(entry, Mapping) and not entry.keys() - value.keys():
        return [d for key, part in value.items() for d in _spread(part, entry.get(key, ...), statement)]
    if isinstance(value, list | tuple) and isinstance(entry, list | tuple) and len(value) == len(entry):
        return [d for part, e in zip(value, entry, strict=True) for d in _spread(part, e, statement)]
    raise DataError(
        f"batch_dims={statement!r}: {entry!r} does not fit the structure of its input; give one dim for each of its "
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
            f"batch_dims={statement!r}: the inputs differ in their numbers of samples: {sizes}; name the dims that "
            "count the samples"
        )
    return replace(inputs, batch_dims=tuple(found))


def by_target(inputs: Inputs, target: object) -> Inputs:
    """The inputs with the batch where they are as long as the target is.

    Dim 0 of the first tensor where a part of the target is as long; else dim 0 of another tensor, and dim 1 of those
    that are time first beside it; else dim 1 of the first. Where nothing is as long as the target, which may hold any
    number of things, the batch stays where it was.
    """
    wanted, tensors = target_sizes(target), inputs.tensors
    if inputs.batch_dims is not None or not wanted or inputs.batch in wanted:
        return inputs
    for size in wanted:
        if size and any(x.dim() and len(x) == size for x in tensors):
            return replace(inputs, batch_dims=_with_second(tensors, dims_of_size(tensors, size), size))
    first = next((x for x in tensors if x.dim()), None)
    if first is not None and 2 <= first.dim() <= _MOST_DIMS and first.size(1) == wanted[0] > 0:
        return replace(inputs, batch_dims=dims_of_size(tensors, wanted[0], 1))
    return inputs


def _with_second(tensors: Sequence[Tensor], dims: BatchDims, size: int) -> BatchDims:
    """The dims, with dim 1 of those that have none and are time first."""
    return tuple(_second(x, size) if dim is None else dim for x, dim in zip(tensors, dims, strict=True))


def _second(x: Tensor, size: int) -> int | None:
    """Dim 1 of a sequence of vectors or numbers, time first, where it is of that size."""
    is_sequence = x.dim() == _MOST_DIMS or (x.dim() == 2 and not x.is_floating_point())
    return 1 if is_sequence and x.size(1) == size else None


def is_ambiguous(inputs: Inputs, target: object) -> bool:
    """Whether the sizes leave open which dim is the batch: two dims of an input, or none, fit the target.

    Images and the like have theirs in dim 0.
    """
    tensors, wanted = [x for x in inputs.tensors if x.dim()], target_sizes(target)
    if not tensors or not wanted or tensors[0].dim() > _MOST_DIMS:
        return False
    is_square = (1 < x.dim() <= _MOST_DIMS and x.size(0) == x.size(1) == inputs.batch for x in tensors)
    return inputs.batch not in wanted or any(is_square)


def sample_count(inputs: Inputs, target: object, output: object = None) -> int:
    """Number of samples in a batch: of the inputs, or of a target that only the output is as long as.

    Args:
        inputs: of one batch, with the batch dims as they are known.
        target: of any structure.
        output: what the model gives; nothing where it has not run.
    """
    wanted, size = target_sizes(target), inputs.batch
    if size is not None and (not wanted or size in wanted):
        return size
    made = next((len(x) for _, x in tensors_in(output) if x.dim()), None)
    if made is not None and made in wanted:
        return made
    return 1 if size is None else size


def target_sizes(target: object) -> list[int]:
    """How long the parts of a target are along dim 0, in order; a list of dicts has one for each sample."""
    if isinstance(target, list | tuple) and target and all(isinstance(part, Mapping) for part in target):
        return [len(target)]
    return [x.size(0) for _, x in tensors_in(target) if x.dim()]


@dataclass(frozen=True)
class _Verdict:
    """What a run says of a choice of dims; `None` where it says nothing."""

    follows: bool | None
    """The outputs grow with the batch; nothing is said where the model refuses to."""
    apart: bool | None
    """A change of one sample stays within its part of the outputs."""

    @property
    def is_batch(self) -> bool:
        return bool(self.follows) and self.apart is not False


def by_running(inputs: Inputs, run: Run, outputs: Sequence[Tensor], names: Sequence[str]) -> tuple[Inputs, str | None]:
    """The inputs with the batch where the model's outputs follow it, and a note where that is not dim 0 of the first.

    Args:
        inputs: example inputs; where they have batch dims these stay.
        run: runs the model, alike each time.
        outputs: what it gave on `inputs`.
        names: what the note calls each positional input, and each by name.
    """
    if inputs.batch_dims is not None or not inputs.batch or not any(x.dim() for x in outputs):
        return inputs, None
    usual = replace(inputs, batch_dims=inputs.dims)
    verdict = _judged(usual, run, outputs)
    if verdict.is_batch:
        return usual, None
    others = _others(usual)
    if verdict.follows is None and verdict.apart is not False:
        # The samples are along dim 0, but of more tensors than have it there, or of a number that the model fixes.
        alike = (other for other in others if other.batch == usual.batch and _includes(other, usual))
        return next((other for other in alike if _judged(other, run, outputs).is_batch), usual), None
    others = [other for other in others if _judged(other, run, outputs).is_batch]
    if others:
        also = f", and {_described(others[1], names)} would do too" if len(others) > 1 else ""
        return others[0], (
            f"the batch is taken to be {_described(others[0], names)}, which the outputs follow{also}; "
            "batch_dims= says otherwise"
        )
    samples = _counted_out(inputs, outputs)
    if verdict.apart or (verdict.follows is not False and samples is None):
        return usual, None
    costs = "all of the example inputs together" if samples is None else f"one of the {samples} samples in them"
    return replace(inputs, batch_dims=(None,) * len(usual.tensors), samples=samples), (
        f"no dim of the inputs is taken to be the batch, since no output follows one: costs are for {costs}; "
        "batch_dims= says otherwise"
    )


def _counted_out(inputs: Inputs, outputs: Sequence[Tensor]) -> int | None:
    """Number of samples that the inputs share the rows of a tensor out among, where an output is as long.

    By n + 1 bounds from 0 to the number of rows; by the sample of each row, from 0 to n - 1; or by n lengths.
    """
    made, lengths = {len(x) for x in outputs if x.dim()}, {len(x) for x in inputs.tensors if x.dim() > 1}
    for x in inputs.tensors:
        others = lengths | {len(y) for y in inputs.tensors if y.dim() and y is not x}
        if (found := _samples_by(x, others)) is not None and found in made:
            return found
    return None


def _samples_by(x: Tensor, lengths: set[int]) -> int | None:
    if is_rising_from_zero(x):
        last = int(x[-1])
        return len(x) - 1 if last in lengths else last + 1 if len(x) in lengths else None
    return len(x) if is_integer_vector(x) and int(x.sum()) in lengths else None


def _includes(other: Inputs, usual: Inputs) -> bool:
    return all(dim is None or dim == d for dim, d in zip(usual.dims, other.dims, strict=True))


def _others(usual: Inputs) -> list[Inputs]:
    """Other places of the batch: dim 0 of a later tensor, with dim 1 of what is time first; and dim 1 of each."""
    tensors = usual.tensors
    sizes = dict.fromkeys(len(x) for x in tensors if x.dim())
    found = dict[BatchDims, None]()
    for dims, size in ((dims_of_size(tensors, size), size) for size in sizes):
        found[dims] = None
        found[_with_second(tensors, dims, size)] = None
    found |= dict.fromkeys(dims_of_size(tensors, x.size(1), 1) for x in tensors if x.dim() > 1)
    found.pop(usual.dims, None)
    return [replace(usual, batch_dims=dims) for dims in found]


def _judged(inputs: Inputs, run: Run, outputs: Sequence[Tensor]) -> _Verdict:
    if not inputs.is_resizable:
        return _Verdict(None, None)
    size = inputs.batch or 0
    grown = _tried(run, inputs.grown())
    follows = None if grown is None else _follow(outputs, grown, size)
    if size < 2:
        return _Verdict(follows, None)
    moved = _tried(run, _first_changed(inputs))
    if moved is None or len(moved) != len(outputs):
        return _Verdict(follows, None)
    pairs = [(a, b) for a, b in zip(outputs, moved, strict=True) if a.dim() and not _same(a, b)]
    return _Verdict(follows, all(_is_apart(a, b, size) for a, b in pairs) if pairs else None)


def _tried(run: Run, inputs: Inputs) -> Sequence[Tensor] | None:
    try:
        return run(inputs)
    except Exception:  # noqa: BLE001 -- a model refuses inputs in any way it likes, and that is the finding
        return None


def _follow(outputs: Sequence[Tensor], grown: Sequence[Tensor], size: int) -> bool:
    """Whether a dim of an output grows with the batch, or the number of outputs changes."""
    return len(outputs) != len(grown) or any(_grows(a, b, size) for a, b in zip(outputs, grown, strict=True))


def _grows(before: Tensor, after: Tensor, size: int) -> bool:
    """Whether a dim goes from k n to k (n + 1)."""
    if before.dim() != after.dim():
        return size == 1  # squeezed away
    pairs = zip(before.shape, after.shape, strict=True)
    return any(a and a % size == 0 and b == a // size * (size + 1) for a, b in pairs)


def _first_changed(inputs: Inputs) -> Inputs:
    """Another first sample: noise on floats, the last sample's other values; offsets stay."""
    generator = torch.Generator().manual_seed(_SEED)
    offsets = iter([found for found, d in zip(inputs.offsets, inputs.dims, strict=True) if d is not None])

    def changed(x: Tensor, dim: int) -> Tensor:
        if next(offsets):
            return x
        first, last = x.select(dim, 0), x.select(dim, x.size(dim) - 1)
        if x.is_floating_point():
            spread = float(x.double().std(correction=0))
            last = first + torch.randn(first.shape, generator=generator).to(x) * (0.3 * spread or 1.0)
        new = x.clone()
        new.select(dim, 0).copy_(last)
        return new

    return inputs.map_batched(changed)


def _is_apart(before: Tensor, after: Tensor, size: int) -> bool:
    """Whether no more than one sample's places along a dim have changed."""
    if before.shape != after.shape:
        return False
    different = ~_equal(before, after)
    for dim, length in enumerate(before.shape):
        if length and length % size == 0:
            along = different.movedim(dim, 0).reshape(length, -1).any(1)
            if int(along.sum()) <= length // size:
                return True
    return False


def _same(before: Tensor, after: Tensor) -> bool:
    return before.shape == after.shape and bool(_equal(before, after).all())


def _equal(before: Tensor, after: Tensor) -> Tensor:
    return (before == after) | (before.isnan() & after.isnan())


def _described(inputs: Inputs, names: Sequence[str]) -> str:
    """The first dim that is the batch, in words."""
    dims = iter(inputs.dims)
    for name, value in zip(names, [*inputs.args, *inputs.kwargs.values()], strict=True):
        for leaf in pytree.tree_leaves(value):
            if isinstance(leaf, Tensor) and (dim := next(dims)) is not None:
                return f"dim {dim} of `{name}`"
    return "no dim"
