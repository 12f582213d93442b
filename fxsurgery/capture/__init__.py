"""Capture an `nn.Module` as a `Program`.

A private copy is traced symbolically first: such a graph holds for any input size. If tracing fails, the model is run
and its torch calls are recorded (`fxsurgery.capture.trace_frontend`). Either graph is accepted only after it has been
compared with the model: outputs, gradients and buffers, in eval and in train mode.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import fx, nn

from fxsurgery.batch_layout import Statement, as_stated
from fxsurgery.capture import reference_runs
from fxsurgery.capture.build import check_unshared
from fxsurgery.capture.capture_run import CaptureRun
from fxsurgery.capture.checks import shapes
from fxsurgery.capture.input_inference import guess_inputs
from fxsurgery.capture.preconditions import require_capturable
from fxsurgery.errors import CaptureError, DataError
from fxsurgery.example_inputs import ExampleInputs, inputs_of
from fxsurgery.inputs import Inputs
from fxsurgery.option_types import checked
from fxsurgery.program import Program
from fxsurgery.surroundings import plain_surroundings

__all__ = ["Inputs", "capture", "guess_inputs"]


@checked(CaptureError, apart=("example_inputs",), example_kwargs=DataError)
@plain_surroundings()
def capture(
    model: nn.Module,
    example_inputs: ExampleInputs | None = None,
    *more_inputs: Any,  # noqa: ANN401 -- whatever the model takes
    leaf_modules: tuple[type[nn.Module], ...] = (),
    example_kwargs: Mapping[str, Any] | None = None,
    batch_dims: Statement = None,
) -> Program:
    """Capture `model` as a `Program` and verify that it computes and trains like the model.

    The model and the states of the global random number generators are left unchanged. Code that a graph cannot
    represent is kept as a leaf: the smallest module that contains it becomes one node. If that module would be the
    model itself, the function that contains the code becomes the node. `Program.notes` lists the leaves with reasons.

    Args:
        model: any module, in either mode. The program is in eval mode and shares no tensor with it.
        example_inputs: what the model is called with: a tensor, a tuple of positional inputs, a dict of keyword inputs,
            or a `DataLoader`; NumPy arrays are accepted too. See `fxsurgery.example_inputs`.
        more_inputs: further positional inputs if `example_inputs` is the first: `capture(model, x, mask)`.
        leaf_modules: module types to keep as leaves, each call one node of the graph.
        example_kwargs: keyword inputs in addition to the others.
        batch_dims: the batch dim of all inputs (`batch_dims=1`), or of each input by position or by name, with `None`
            for an input without one (`batch_dims={"text": None, "offsets": 0}`). By default it is inferred from how the
            output shapes follow the input shapes: dim 0 of the first input, unless only another dim fits.

    Returns:
        The checked program; its `notes` say what was assumed, fixed or kept as a leaf.

    Raises:
        CaptureError: the model cannot be captured; the message names the line or the module.
        DataError: the example inputs do not fit the model.

    Example:
        >>> from torch import nn
        >>> program = capture(nn.Sequential(nn.Linear(8, 4), nn.ReLU()), torch.randn(2, 8))
        >>> [str(node.target) for node in program.nodes if node.op == "call_module"]
        ['0', '1']
    """
    require_capturable(model)
    positional = (example_inputs, *more_inputs) if more_inputs else example_inputs
    inputs = inputs_of(model, positional, example_kwargs)
    if not inputs.tensors:
        raise DataError("capture: no example input is a tensor; pass what forward takes, as in capture(model, x)")
    if any(x.is_meta for x in inputs.tensors):
        raise DataError(
            f"capture: an example input {shapes(inputs)} is on the meta device; pass tensors that hold values"
        )
    if any(x.layout is not torch.strided for x in inputs.tensors):
        raise DataError(
            "capture: an example input is a sparse tensor, which cannot be copied and compared; "
            "make it dense with .to_dense()"
        )
    if batch_dims is not None:
        inputs = as_stated(inputs, batch_dims, inputs.names(model.forward))
    with reference_runs.isolated():
        run = CaptureRun(model, inputs.clone(), leaf_modules)
        captured = run.capture()
        run.copies.restore()
        check_unshared(captured.graph_module, model)
        notes = (*run.notes, *captured.notes, *_script_module_notes(captured.graph_module))
        inputs = run.inputs
        return Program(
            captured.graph_module, inputs.args, (), inputs.kwargs, notes, type(model).__name__, inputs.batch_dims,
            inputs.samples,
        )  # fmt: skip


def _script_module_notes(graph_module: fx.GraphModule) -> Iterator[str]:
    called = dict.fromkeys(str(node.target) for node in graph_module.graph.nodes if node.op == "call_module")
    for path in called:
        if isinstance(graph_module.get_submodule(path), torch.jit.ScriptModule):
            yield f"`{path}` (ScriptModule) is kept as a leaf: compiled TorchScript code cannot be traced"
