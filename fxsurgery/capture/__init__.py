"""From any module to a `Program`, or an error that names the line.

Front end: `torch.fx` symbolic tracing. It silently drops what it does not understand (autograd functions,
autocast and no_grad regions, hooks) and bakes in what it meets (shapes, train flags), so a trace is
accepted only when it is checked: equal outputs at two batch sizes in eval mode, equal outputs and
gradients in train mode under one seed, no parameter lost, no hook left behind.
"""

import copy

import torch
from torch import Tensor, fx, nn

from fxsurgery.capture.checks import check_capture, check_examples, check_nothing_lost
from fxsurgery.capture.tracer import trace
from fxsurgery.errors import CaptureError
from fxsurgery.program import Program

__all__ = ["capture"]


def capture(model: nn.Module, *example_inputs: Tensor, leaf_modules: tuple[type[nn.Module], ...] = ()) -> Program:
    """Take `model` as a graph. The model is not changed, and shares nothing with the program.

    Args:
        model: any module; kept as it is, in mode, weights and statistics.
        example_inputs: its positional inputs, the batch along dim 0.
        leaf_modules: classes to keep whole, as one opaque node each.

    Raises:
        CaptureError: the model cannot be traced, or its trace is not the model.
        DataError: the model does not take the example inputs.
    """
    twin = _copied(model)
    with torch.random.fork_rng():
        twin.eval()
        check_examples(twin, example_inputs)
        graph = trace(twin, example_inputs, leaf_modules)
        # The graph module shares the twin's modules; a copy makes it independent of what is checked against.
        graph_module = copy.deepcopy(fx.GraphModule(twin, graph, type(model).__name__)).eval()
        graph_module.delete_all_unused_submodules()
        check_nothing_lost(twin, graph_module)
        program = Program(graph_module, tuple(x.detach().clone() for x in example_inputs))
        check_capture(twin, program)
    return program


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:
        raise CaptureError(
            f"{type(model).__name__} cannot be copied ({error}), and the model passed in is never worked on; "
            "make it deep-copyable: no open files, locks, or tensors with a history among its attributes"
        ) from error
