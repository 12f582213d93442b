"""Takes a user's `nn.Module` as a `Program`, or says which of its lines stands in the way.

Front end 1: symbolic tracing of a private copy, accepted only when checked against the model.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy

from fxsurgery.capture import trials
from fxsurgery.capture.blame import untraceable
from fxsurgery.capture.build import build, check_unassigned, check_unshared, lost_error, lost_tensors
from fxsurgery.capture.checks import Comparison, shapes
from fxsurgery.capture.tracer import CaptureTracer
from fxsurgery.errors import CaptureError, DataError
from fxsurgery.program import Program

__all__ = ["capture"]


def capture(model: nn.Module, *example_inputs: Tensor, leaf_modules: tuple[type[nn.Module], ...] = ()) -> Program:
    """Take `model` as a program, checked to compute and to train as the model does.

    The model is left exactly as it is, and so is the state of the random number generators.

    Args:
        model: any module, in either mode; the program is in eval mode and shares no tensor with it.
        example_inputs: positional inputs, batch first.
        leaf_modules: types of modules to keep whole, as one node of the graph each.

    Raises:
        CaptureError: the model cannot be taken as a graph; the message names the line or the module.
        DataError: the example inputs do not fit the model.
    """
    _check_inputs(example_inputs)
    _check_kind(model, leaf_modules)
    with trials.contained():
        private = _copied(model)
        inputs = tuple(x.detach().clone() for x in example_inputs)
        _check_runs(private, inputs)
        graph_module, entered = _trace(private, inputs, leaf_modules)
        check_unshared(graph_module, model)
        Comparison(private, graph_module, entered).check(inputs)
        return Program(graph_module, inputs)


def _check_inputs(inputs: Sequence[object]) -> None:
    if not inputs:
        raise DataError("no example inputs: capture(model, x) wants what the model takes, batch first")
    for position, value in enumerate(inputs):
        if not isinstance(value, Tensor):
            raise DataError(f"example input {position} is a {type(value).__name__}, not a tensor")


def _check_kind(model: nn.Module, leaf_modules: tuple[type[nn.Module], ...]) -> None:
    if type(model).__name__ == "OptimizedModule":
        raise CaptureError("the model comes from torch.compile: pass the module that was compiled")
    if "forward" in vars(model):
        raise CaptureError("the model's forward was replaced on the object: pass the unwrapped model")
    if any(map(is_lazy, model.parameters())):
        raise CaptureError("the model has lazy parameters, which have no shape yet: run one batch through it")
    whole = [module for module in model.modules() if isinstance(module, leaf_modules)]
    for path, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule) and module not in whole:
            raise CaptureError(
                f"{f'`{path}`' if path else 'the model'} is a ScriptModule, whose code cannot be traced: use "
                "the Python module that was scripted"
            )


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise CaptureError(
            f"the model cannot be deep-copied, and capture only works on copies: {error}. "
            "Does it hold an open file, a lock, a generator, or a tensor that is not a leaf?"
        ) from error


def _check_runs(model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    try:
        outcome = trials.run_eval(copy.deepcopy(model), inputs)
    except Exception as error:
        raise DataError(
            f"the model does not take example inputs of shape {shapes(inputs)}: {type(error).__name__}: {error}"
        ) from error
    leaves = list(outcome.outputs.values())
    if not any(isinstance(leaf, Tensor) for leaf in leaves):
        kinds = ", ".join(type(leaf).__name__ for leaf in leaves) or "nothing"
        raise CaptureError(f"the model's output is not a tensor: {kinds}")


def _trace(
    model: nn.Module, inputs: tuple[Tensor, ...], leaf_modules: tuple[type[nn.Module], ...]
) -> tuple[fx.GraphModule, tuple[str, ...]]:
    # train() first: a model may keep values worked out from its parameters until it is trained again.
    traced = copy.deepcopy(model).train().eval()
    tracer = CaptureTracer(len(inputs), leaf_modules)
    try:
        graph = tracer.trace(traced)
    except Exception as error:
        raise untraceable(error, model, next(reversed(tracer.inside), "")) from error
    check_unassigned(traced)
    graph_module = build(traced, graph, set(model.state_dict()))
    if lost := lost_tensors(graph_module, model):
        raise lost_error(lost, _reached_in_training(model, len(inputs), leaf_modules))
    return graph_module, tuple(tracer.entered)


def _reached_in_training(model: nn.Module, inputs: int, leaf_modules: tuple[type[nn.Module], ...]) -> tuple[str, ...]:
    """Paths of the modules and parameters that forward uses in train mode; none where it cannot be traced."""
    try:
        graph = CaptureTracer(inputs, leaf_modules).trace(copy.deepcopy(model).train())
    except Exception:  # noqa: BLE001 - only the wording of an error hangs on it
        return ()
    return tuple(str(node.target) for node in graph.nodes if node.op in {"call_module", "get_attr"})
