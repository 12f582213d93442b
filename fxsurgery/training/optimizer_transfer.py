"""Transfer the state of an optimizer to the model after surgery.

Momenta and second moments are sums over past gradients, entry by entry. An entry that a pass kept or copied has
the past of the entry that it was; one that is new has none, and begins as a fresh optimizer has it, or at 0:

    state'[i, j, ...] = state[index_0[i], index_1[j], ...]      0 where an index is -1

`PassResult.origins` gives the indices. A parameter under its old name and of its old shape that `origins` does not
name is the one it was. Counters of steps go with the parameter: under Adam a new entry of an old parameter takes a
first step of up to (1 - beta1) / sqrt(1 - beta2) = 3.2 learning rates, since its moments are not corrected for
being young.
"""

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fxsurgery.errors import TrainingError
from fxsurgery.lineage import Origin

State: TypeAlias = Mapping[str, Any]
"""State of an optimizer for one parameter, by key."""

_NEEDS_STATE = ("momentum", "amsgrad", "centered")
"""Options with which an optimizer of PyTorch keeps more state for each parameter."""


def transfer_optimizer_state(
    before: Optimizer, model_before: nn.Module, after: Optimizer, model_after: nn.Module, origins: Mapping[str, Origin]
) -> tuple[str, ...]:
    """Transfer the state of `before` to `after`, for each parameter that surgery kept, resized or copied.

    Args:
        before: it has trained `model_before`; left alone.
        model_before: what the pass was applied to, such as a `trainable_copy()` that `with_weights` then took.
        after: of the same kind, over parameters of `model_after`, in any order and groups. Its options stay.
        model_after: what it is to train, on any device and of any dtype.
        origins: those of the `PassResult`; of several passes, what a `chain` of them gives, or `origins.compose`.

    Returns:
        The parameters of `after` without transferred state: new ones, and those of another shape without an origin.

    Raises:
        TrainingError: the optimizers are of two kinds, or train other models; the origins are those of others; or
            state of a changed parameter is neither shaped like it nor one value, as factored second moments are.
    """
    if type(before) is not type(after):
        raise TrainingError(
            f"a {type(after).__name__} cannot continue from the state of a {type(before).__name__}; use the same "
            "class of optimizer"
        )
    _check_owned(before, model_before, "before the surgery")
    _check_owned(after, model_after, "after the surgery")
    old, options, own = _by_name(model_before), _groups(before), _groups(after)
    packed, fresh = after.state_dict(), list[str]()
    for position, (parameter, names) in enumerate(_named(after, model_after)):
        if (found := _source(names, parameter, old, origins)) is None:
            fresh.append(names[0])
            continue
        source, origin = found
        if state := before.state.get(source):
            _check_options(options[id(source)], own[id(parameter)])
            begun = packed["state"].get(position, {})
            packed["state"][position] = _carried(state, begun, source, origin, names[0])
    after.load_state_dict(packed)
    return tuple(fresh)


def _by_name(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters of a model under all their names: a tied one has several."""
    return dict(model.named_parameters(remove_duplicate=False))


def _groups(optimizer: Optimizer) -> dict[int, Mapping[str, Any]]:
    """Return the options of each parameter, by its id."""
    return {id(p): group for group in optimizer.param_groups for p in group["params"]}


def _check_owned(optimizer: Optimizer, model: nn.Module, when: str) -> None:
    if not _groups(optimizer).keys() <= {id(p) for p in model.parameters()}:
        raise TrainingError(
            f"the optimizer {when} has parameters that the model {when} lacks; give the optimizer of that model"
        )


def _check_options(before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    if extra := [name for name in _NEEDS_STATE if after.get(name) and not before.get(name)]:
        raise TrainingError(
            f"an optimizer with {extra[0]} cannot continue from the state of one without it; give both the same options"
        )


def _named(optimizer: Optimizer, model: nn.Module) -> Iterable[tuple[nn.Parameter, list[str]]]:
    """Return the optimizer's parameters in the order of its state dict, each with its names."""
    names = dict[int, list[str]]()
    for name, parameter in _by_name(model).items():
        names.setdefault(id(parameter), []).append(name)
    return [(p, names[id(p)]) for group in optimizer.param_groups for p in group["params"]]


def _source(
    names: list[str], parameter: nn.Parameter, old: Mapping[str, nn.Parameter], origins: Mapping[str, Origin]
) -> tuple[nn.Parameter, Origin] | None:
    """Return the parameter from which one of these names was made, and how; `None` if it is new."""
    for name in names:
        if (origin := origins.get(name)) is None:
            continue
        if origin.name not in old:
            raise TrainingError(
                f"{name} is said to come from {origin.name}, which the model before does not have; pass the origins "
                "of this surgery"
            )
        if any((index < 0).all() for index in origin.index.values()):
            return None
        source = old[origin.name]
        shape = tuple(len(origin.index.get(dim, range(size))) for dim, size in enumerate(source.shape))
        if shape != tuple(parameter.shape):
            raise TrainingError(
                f"{name} is {tuple(parameter.shape)}, and its origins are those of {shape}; pass the origins of this "
                "surgery"
            )
        return source, origin
    same = [old[name] for name in names if name in old and old[name].shape == parameter.shape]
    return (same[0], Origin(names[0])) if same else None


def _carried(state: State, begun: State, source: nn.Parameter, origin: Origin, name: str) -> dict[str, Any]:
    """Return the state of a parameter made from `source`; `begun` is its state in a fresh optimizer."""
    new = dict[str, Any]()
    for key, value in state.items():
        if isinstance(value, Tensor) and value.shape == source.shape:
            new[key] = _gathered(value, begun.get(key), origin)
        elif isinstance(value, Tensor) and (value.numel() == 1 or not origin.index):
            new[key] = value.clone()
        elif isinstance(value, (int, float, str, type(None))):
            new[key] = value
        else:
            what = f"of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise TrainingError(
                f"state {key!r} of {name} is {what}, neither shaped like the parameter nor one value: it cannot follow "
                "the surgery; start this optimizer afresh"
            )
    return new


def _gathered(value: Tensor, begun: Tensor | None, origin: Origin) -> Tensor:
    """Return the entries of `value` that `origin` names; those of `begun`, or 0, if it names none."""
    new, is_new = value.clone(), torch.zeros((), dtype=torch.bool, device=value.device)
    for dim, told in origin.index.items():
        index = told.to(value.device)
        new = new.index_select(dim, index.clamp(min=0))
        is_new = is_new | (index < 0).reshape([-1 if d == dim else 1 for d in range(value.dim())])
    return new.masked_fill(is_new, 0) if begun is None else torch.where(is_new, begun.to(new), new)
