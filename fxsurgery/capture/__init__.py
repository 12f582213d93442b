"""Takes a user's `nn.Module` as a `Program`, or says which of its lines stands in the way.

Symbolic tracing of a private copy comes first, since its graph holds for any size of the inputs. Where it
fails, the model is run and recorded (`fxsurgery.capture.recorded`). Either graph is accepted only when it is
checked against the model.
"""

import copy
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxsurgery.capture import trials
from fxsurgery.capture.build import check_unshared
from fxsurgery.capture.checks import Comparison, shapes
from fxsurgery.capture.guess import guess_inputs
from fxsurgery.capture.kind import require_takeable
from fxsurgery.capture.recorded import Recorded, recorded
from fxsurgery.capture.symbolic import traced, traced_in_training, used_by
from fxsurgery.errors import CaptureError, DataError, TrainOnlyError
from fxsurgery.inputs import Inputs
from fxsurgery.program import Program
from fxsurgery.surroundings import left_outside, plain_surroundings

__all__ = ["capture", "guess_inputs"]


@plain_surroundings()
def capture(
    model: nn.Module,
    *example_inputs: Any,  # noqa: ANN401 -- whatever the model takes
    leaf_modules: tuple[type[nn.Module], ...] = (),
    example_kwargs: Mapping[str, Any] | None = None,
) -> Program:
    """Take `model` as a program, checked to compute and to train as the model does.

    The model is left exactly as it is, and so is the state of the random number generators. What a graph
    cannot hold is kept whole with the smallest module around it, or as the function of yours that does it where
    that module would be the model, and named in `Program.notes`.

    Args:
        model: any module, in either mode; the program is in eval mode and shares no tensor with it.
        example_inputs: positional inputs, batch first: tensors, or tuples, lists and dicts of them.
        leaf_modules: types of modules to keep whole, as one node of the graph each.
        example_kwargs: inputs by name.

    Raises:
        CaptureError: the model cannot be taken as a graph; the message names the line or the module.
        DataError: the example inputs do not fit the model.
    """
    inputs = Inputs(example_inputs, dict(example_kwargs or {}))
    if not inputs.tensors:
        raise DataError("no example inputs that are tensors: capture(model, x) wants what the model takes, batch first")
    require_takeable(model)
    inputs = _ordered(model, inputs)
    with trials.contained():
        inputs = inputs.clone()
        private = _copied(model)
        check_unshared(private, model)
        _check_runs(private, inputs)
        found = _captured(private, inputs, leaf_modules)
        check_unshared(found.graph_module, model)
        notes = (*found.notes, *_scripted(found.graph_module))
        return Program(found.graph_module, inputs.args, (), inputs.kwargs, notes, type(model).__name__)


def _scripted(graph_module: fx.GraphModule) -> Iterator[str]:
    called = dict.fromkeys(str(node.target) for node in graph_module.graph.nodes if node.op == "call_module")
    for path in called:
        if isinstance(graph_module.get_submodule(path), torch.jit.ScriptModule):
            yield f"`{path}` (ScriptModule) is kept whole: compiled code cannot be looked into"


def _ordered(model: nn.Module, inputs: Inputs) -> Inputs:
    """The named inputs in the order of the signature."""
    known = list(inspect.signature(model.forward).parameters)
    order = sorted(inputs.kwargs, key=lambda name: known.index(name) if name in known else len(known))
    return Inputs(inputs.args, {name: inputs.kwargs[name] for name in order})


def _captured(model: nn.Module, inputs: Inputs, leaf_modules: tuple[type[nn.Module], ...]) -> Recorded:
    reason, reached = CaptureError("symbolic tracing takes positional tensors alone"), tuple[str, ...]()
    if not inputs.kwargs and all(isinstance(a, Tensor) for a in inputs.args):
        trained = traced_in_training(model, len(inputs.args), leaf_modules)
        reached = used_by(trained)
        try:
            return _checked(model, traced(model, len(inputs.args), leaf_modules, trained), inputs)
        except CaptureError as error:
            reason = error
    try:
        return _checked(model, recorded(_copied(model), inputs, leaf_modules, reached), inputs)
    except CaptureError as error:
        if isinstance(reason, TrainOnlyError):
            raise reason from error
        raise error from reason


def _checked(model: nn.Module, found: Recorded, inputs: Inputs) -> Recorded:
    notes = Comparison(model, found.graph_module, found.entered).check(inputs)
    return Recorded(found.graph_module, found.entered, (*found.notes, *notes))


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise CaptureError(
            f"the model cannot be deep-copied, and capture only works on copies: {error}. "
            "Does it hold an open file, a lock, a generator, or a tensor that is not a leaf?"
        ) from error


def _check_runs(model: nn.Module, inputs: Inputs) -> None:
    try:
        outcome = trials.run_eval(copy.deepcopy(model), inputs)
    except CaptureError:
        raise
    except Exception as error:
        raise DataError(
            f"the model does not take example inputs of shape {shapes(inputs)}: {type(error).__name__}: {error}"
            f"{left_outside()}"
        ) from error
    leaves = list(outcome.outputs.values())
    if not any(isinstance(leaf, Tensor) for leaf in leaves):
        kinds = ", ".join(type(leaf).__name__ for leaf in leaves) or "nothing"
        raise CaptureError(f"the model's output is not a tensor: {kinds}")
