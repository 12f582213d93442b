"""Split a batch into the model's inputs and the target by convention."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from fxsurgery.errors import DataError
from fxsurgery.example_inputs import TARGETS
from fxsurgery.training.batches import describe


def by_convention(batch: Any) -> tuple[Any, Any]:  # noqa: ANN401
    """Split a tuple or list before its last entry, a dict at its one key of `TARGETS`.

    The inputs are a tuple, passed to the model by position, or a dict, passed by name.

    Raises:
        DataError: the batch has another structure.
    """
    keys = [key for key in TARGETS if key in batch] if isinstance(batch, Mapping) else []
    if len(keys) == 1 < len(batch):
        return {key: value for key, value in batch.items() if key != keys[0]}, batch[keys[0]]
    if isinstance(batch, Mapping) and len(batch) > 1:
        raise _undecided(batch, keys)
    if not isinstance(batch, tuple | list) or len(batch) < 2:
        raise DataError(
            f"cannot tell inputs from target in a batch that is {describe(batch)}; give batches of (inputs, target), "
            "or build the data with Task.of(train, val, split=...), a function that returns both for a batch"
        )
    inputs = tuple(batch[:-1])
    return inputs[0] if len(inputs) == 1 and isinstance(inputs[0], Mapping) else inputs, batch[-1]


_OTHER_TARGETS = ("class", "cls", "classes", "category", "gt", "ground_truth", "answer", "output", "response")
"""Further names of targets, which are suggested but not assumed."""


def _undecided(batch: Mapping[Any, Any], keys: list[str]) -> DataError:
    """Return the error for a dict with no key of `TARGETS`, or several, with the call that splits it."""
    names = (*TARGETS, *_OTHER_TARGETS)
    near = (key for key in batch if get_close_matches(str(key).lower(), names, 1, 0.75))
    target = next(iter((*keys, *near)), list(batch)[-1])
    inputs = ", ".join(f"{key!r}: batch[{key!r}]" for key in batch if key != target and key not in keys)
    why = f"it has {' and '.join(map(repr, keys))}" if keys else f"none of its keys is {', '.join(TARGETS)}"
    change = f"leave out {', '.join(map(repr, keys[1:]))}" if keys else "rename it to 'labels'"
    return DataError(
        f"cannot tell inputs from target in a batch that is {describe(batch)}: {why}; if {target!r} is the target, "
        f"{change}, or build the data with Task.of(train, val, split=lambda batch: ({{{inputs}}}, batch[{target!r}]))"
    )
