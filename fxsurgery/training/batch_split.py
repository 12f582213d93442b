"""Split a batch into the model's inputs and the target by convention."""

from collections.abc import Mapping
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
    if not isinstance(batch, tuple | list) or len(batch) < 2:
        raise DataError(
            f"cannot tell inputs from target in a batch that is {describe(batch)}; "
            "build the data with Task.of(train, val, split=lambda batch: ((batch['image'],), batch['class']))"
        )
    inputs = tuple(batch[:-1])
    return inputs[0] if len(inputs) == 1 and isinstance(inputs[0], Mapping) else inputs, batch[-1]
