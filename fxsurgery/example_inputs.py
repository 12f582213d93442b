"""Example inputs in any form that a user has them in, as `Inputs`: one rule for every function that takes a model.

| `example_inputs` | what the model is called with |
|---|---|
| a tensor or an array | its one positional input |
| a tuple or list | its positional inputs, in order |
| a dict | its inputs by name; one input that is a dict, where `forward` takes one thing and has no such parameters |
| a `DataLoader` or `Dataset` | the inputs of its first batch, or first two samples, without the target |

Arrays of numpy become tensors, also within tuples, lists and dicts: float64 as float32 and small integers as int64, as
training data do. All tensors go to the device of the model.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, Dataset

from fxsurgery.argument_names import named
from fxsurgery.errors import DataError, reason_of
from fxsurgery.inputs import Inputs
from fxsurgery.option_text import shown
from fxsurgery.seeding import seeded

ExampleInputs: TypeAlias = (
    Tensor | np.ndarray[Any, Any] | Sequence[Any] | Mapping[str, Any] | DataLoader[Any] | Dataset[Any] | Inputs
)
"""Values that `example_inputs=` accepts: see the table of this module."""
TARGETS = ("labels", "label", "targets", "target", "y")
"""Keys of a dict that hold the target of a batch."""
_FORMS = (Tensor, np.ndarray, Sequence, Mapping, DataLoader, Dataset, Inputs, type(None))
_FLOATS = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.uint8})
"""Types of inputs that a layer takes only in the type of its weights; bytes are those of images."""
_NUMBERS = "biufc"
"""The kinds of numpy's types that are numbers."""


def inputs_of(
    model: nn.Module | None, example_inputs: ExampleInputs | None, example_kwargs: Mapping[str, Any] | None = None
) -> Inputs:
    """Return example inputs as the model is called with them; their batch dims are still to be found.

    Args:
        model: decides whether a dict is given by name or as one input, and the device of the tensors; without a model
            a dict is given by name.
        example_inputs: in one of the forms of this module's table; `None` for no positional inputs.
        example_kwargs: inputs by name, beside the others.

    Raises:
        DataError: they have none of these forms, an array holds no numbers, or an input is given twice.

    Example:
        >>> inputs_of(nn.Linear(4, 2), np.zeros((3, 4))).args[0].dtype
        torch.float32
    """
    require_form(example_inputs)
    if example_kwargs is not None and not isinstance(example_kwargs, Mapping):
        raise DataError(f"example_kwargs={shown(example_kwargs)}: it must be a dict of inputs by name")
    found = _call_of(example_inputs)
    if model is not None:
        found = by_parameters(found, model.forward, example_kwargs)
    by_name = dict(example_kwargs or {})
    if twice := [name for name in by_name if name in found.kwargs]:
        raise DataError(f"{twice[0]!r} is in {named('example_inputs')} and in example_kwargs; pass it once")
    args, kwargs = pytree.tree_map_only(np.ndarray, tensor_of, (found.args, {**found.kwargs, **by_name}))
    if model is None:
        return Inputs(args, kwargs)
    found = Inputs(args, _in_order(kwargs, model.forward))
    device = next((t.device for t in (*model.parameters(), *model.buffers())), None)
    return found if device is None else found.map(lambda x: _moved(x, device))


def _in_order(kwargs: Mapping[str, Any], forward: Callable[..., Any]) -> Mapping[str, Any]:
    """Return keyword inputs in the order of the signature of `forward`."""
    known = list(inspect.signature(forward).parameters) if kwargs else []
    order = sorted(kwargs, key=lambda name: known.index(name) if name in known else len(known))
    return {name: kwargs[name] for name in order}


def _moved(x: Tensor, device: torch.device) -> Tensor:
    return x if x.is_meta or device.type == "meta" else x.to(device)


def require_form(example_inputs: object) -> None:
    """Refuse what has none of the forms of example inputs.

    Raises:
        DataError: it says which forms there are.
    """
    if isinstance(example_inputs, str | bytes) or not isinstance(example_inputs, _FORMS):
        raise DataError(
            f"{named('example_inputs')} is {shown(example_inputs)}; it must be a tensor, a tuple of "
            "positional inputs, a dict of inputs by name, a DataLoader or a Dataset"
        ).at("example_inputs")


def _call_of(example_inputs: Any) -> Inputs:  # noqa: ANN401 -- of any form
    """The inputs, with a dict by name."""
    if isinstance(example_inputs, Inputs):
        return example_inputs
    if isinstance(example_inputs, DataLoader | Dataset):
        return _call_of(_first_inputs(example_inputs))
    if isinstance(example_inputs, Mapping):
        return Inputs((), dict(example_inputs))
    if isinstance(example_inputs, Tensor | np.ndarray):
        return Inputs((example_inputs,))
    return Inputs(tuple(example_inputs or ()))


def _first_inputs(data: DataLoader[Any] | Dataset[Any]) -> Any:  # noqa: ANN401
    """The inputs of the first batch, without its target."""
    loader = data if isinstance(data, DataLoader) else DataLoader(data, batch_size=2)
    try:
        with seeded(0, torch.device("cpu")):
            batch = next(iter(loader), None)
    except (TypeError, ValueError, RuntimeError, LookupError, AttributeError) as error:
        name = named("example_inputs")
        raise DataError(f"{name}: no batch can be read: {reason_of(error)}; pass tensors instead") from error
    if batch is None:
        raise DataError(f"{named('example_inputs')} holds no batch; pass data with at least one sample")
    if isinstance(batch, Mapping):
        keys = [key for key in TARGETS if key in batch]
        return {k: v for k, v in batch.items() if k not in keys} if len(keys) == 1 < len(batch) else batch
    if not isinstance(batch, tuple | list) or len(batch) < 2:
        return batch
    inputs = tuple(batch[:-1])
    return inputs[0] if len(inputs) == 1 and isinstance(inputs[0], Mapping) else inputs


def by_parameters(inputs: Inputs, forward: Callable[..., Any], others: Mapping[str, Any] | None = None) -> Inputs:
    """Return keyword inputs as one dict if `forward` has no such parameters but accepts one positional input.

    Args:
        inputs: the inputs.
        forward: the model's forward.
        others: further keyword inputs that `forward` is called with.

    Raises:
        DataError: some entries are parameters of `forward`, and others are not.
    """
    if inputs.args or not inputs.kwargs:
        return inputs
    whole = dict(inputs.kwargs)
    if not (extra := unknown_names(whole, forward)):
        return inputs
    if len(extra) == len(whole) and _takes_one(forward, whole, others or {}):
        return Inputs((whole,), {}, inputs.batch_dims, inputs.samples)
    raise DataError(names_fault(whole, forward, named("example_inputs"))).at("example_inputs")


def names_fault(names: Mapping[str, Any], forward: Callable[..., Any], where: str) -> str:
    """Return the message on names that `forward` has no parameter for, with what to rename or leave out.

    Args:
        names: keyword inputs by name.
        forward: the model's forward.
        where: what holds the inputs.

    Example:
        >>> names_fault({"img": 1, "table": 2}, lambda image, table: None, "data")
        "forward has no parameter 'img', it takes image, table; in data, rename 'img' to 'image'"
    """
    parameters = inspect.signature(forward).parameters
    extra = unknown_names(names, forward)
    renamed = renames(names, forward)
    missing = [name for name in _required(forward) if name not in names and name not in renamed.values()]
    steps = [f"rename {old!r} to {new!r}" for old, new in renamed.items()]
    if missing:
        steps.append(f"add {', '.join(map(repr, missing))}")
    if others := [name for name in extra if name not in renamed]:
        steps.append(f"leave out {', '.join(map(repr, others))}")
    return (
        f"forward has no parameter {', '.join(map(repr, extra))}, it takes {', '.join(parameters)}; "
        f"in {where}, {' and '.join(steps)}"
    )


def renames(names: Mapping[str, Any], forward: Callable[..., Any]) -> dict[str, str]:
    """Return the parameter that each unknown name stands for, as far as one is similar, or the only one missing."""
    extra, required = unknown_names(names, forward), _required(forward)
    free = [name for name in inspect.signature(forward).parameters if name not in names]
    found = dict[str, str]()
    for name in extra:
        left = [parameter for parameter in free if parameter not in found.values()]
        if near := get_close_matches(name, left, 1, 0.5):
            found[name] = near[0]
    missing = [name for name in required if name not in names and name not in found.values()]
    others = [name for name in extra if name not in found]
    return found | dict(zip(others, missing, strict=True)) if len(others) == len(missing) == 1 else found


def _required(forward: Callable[..., Any]) -> list[str]:
    parameters = inspect.signature(forward).parameters.values()
    return [p.name for p in parameters if p.default is p.empty and p.kind in {p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY}]


def remedy_for(inputs: Inputs, forward: Callable[..., Any]) -> str:
    """Return what to do about inputs that a model does not take, for a message."""
    if types := _unlike_weights(inputs, forward):
        other, weights = types
        conversion = ".float()" if weights == "float32" else f".to(torch.{weights})"
        return f"pass x{conversion}: an input is {other}, and the weights are {weights}"
    positional = [
        p for p in inspect.signature(forward).parameters.values()
        if p.kind in {p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.VAR_POSITIONAL}
    ]  # fmt: skip
    if any(p.kind is p.VAR_POSITIONAL for p in positional) or len(inputs.args) <= len(positional):
        return "pass inputs that its forward takes"
    names = ", ".join(p.name for p in positional)
    return (
        f"forward({names}) takes {len(positional)} by position, and {len(inputs.args)} were given: leave the target "
        "out, and wrap one input that is a tuple or list in a tuple of its own, ((a, b),)"
    )


def _unlike_weights(inputs: Inputs, forward: Callable[..., Any]) -> tuple[str, str] | None:
    """Return the type of an input of another precision, or of raw bytes, and that of the weights."""
    model = getattr(forward, "__self__", None)
    parameters = model.parameters() if isinstance(model, nn.Module) else ()
    weights = next((p.dtype for p in parameters if p.is_floating_point()), None)
    other = next((x.dtype for x in inputs.tensors if x.dtype in _FLOATS and x.dtype != weights), None)
    if weights is None or other is None:
        return None
    return str(other).removeprefix("torch."), str(weights).removeprefix("torch.")


def unknown_names(names: Mapping[str, Any], forward: Callable[..., Any]) -> list[str]:
    """Return the names that `forward` has no parameter for."""
    parameters = inspect.signature(forward).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return []
    return [name for name in names if name not in parameters]


def _takes_one(forward: Callable[..., Any], value: object, others: Mapping[str, Any]) -> bool:
    try:
        inspect.signature(forward).bind(value, **others)
    except TypeError:
        return False
    return True


def holds_numbers(array: np.ndarray[Any, Any]) -> bool:
    """Return True if the entries of an array are numbers or booleans."""
    return array.dtype.kind in _NUMBERS


def tensor_of(array: np.ndarray[Any, Any]) -> Tensor:
    """Return an array as a tensor: float64 as float32, and int8, int16 and int32 as int64.

    Raises:
        DataError: it holds no numbers.
    """
    if not holds_numbers(array):
        raise DataError(f"an array of type {array.dtype} holds no numbers; encode it as numbers first")
    tensor: Tensor = torch.from_numpy(np.ascontiguousarray(array))
    if tensor.dtype == torch.float64:
        return tensor.to(torch.get_default_dtype())
    return tensor.long() if tensor.dtype in {torch.int8, torch.int16, torch.int32} else tensor
