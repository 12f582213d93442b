"""Takes a user's `nn.Module` as a `Program`, or says which of its lines stands in the way.

Symbolic tracing of a private copy comes first, since its graph holds for any size of the inputs. Where it
fails, the model is run and recorded (`fxsurgery.capture.trace_frontend`). Either graph is accepted only when it is
checked against the model.
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
from fxsurgery.capture.preconditions import require_takeable
from fxsurgery.errors import CaptureError, DataError
from fxsurgery.example_inputs import ExampleInputs, inputs_of
from fxsurgery.inputs import Inputs
from fxsurgery.option_types import checked
from fxsurgery.program import Program
from fxsurgery.surroundings import plain_surroundings

__all__ = ["Inputs", "capture", "guess_inputs"]


@checked(CaptureError, apart=("model", "example_inputs"), example_kwargs=DataError)
@plain_surroundings()
def capture(
    model: nn.Module,
    example_inputs: ExampleInputs | None = None,
    *more_inputs: Any,  # noqa: ANN401 -- whatever the model takes
    leaf_modules: tuple[type[nn.Module], ...] = (),
    example_kwargs: Mapping[str, Any] | None = None,
    batch_dims: Statement = None,
) -> Program:
    """Take `model` as a program, checked to compute and to train as the model does.

    The model is left exactly as it is, and so is the state of the random number generators. What a graph
    cannot hold is kept whole with the smallest module around it, or as the function of yours that does it where
    that module would be the model, and named in `Program.notes`.

    Args:
        model: any module, in either mode; the program is in eval mode and shares no tensor with it.
        example_inputs: what the model is called with: a tensor, a tuple of positional inputs, a dict of inputs by name,
            or a `DataLoader`; arrays of numpy do as well. See `fxsurgery.example_inputs`.
        more_inputs: further positional inputs, where the first is `example_inputs`: `capture(model, x, mask)`.
        leaf_modules: types of modules to keep whole, as one node of the graph each.
        example_kwargs: inputs by name, beside the others.
        batch_dims: the dim of the inputs that is the batch, `batch_dims=1`; or of each input, by position or by name,
            `None` for one without: `batch_dims={"text": None, "offsets": 0}`. Without it, it is inferred from what the
            model's outputs follow: dim 0 of the first input, unless another dim fits and that does not.

    Raises:
        CaptureError: the model cannot be taken as a graph; the message names the line or the module.
        DataError: the example inputs do not fit the model.
    """
    require_takeable(model)
    positional = (example_inputs, *more_inputs) if more_inputs else example_inputs
    inputs = inputs_of(model, positional, example_kwargs)
    if not inputs.tensors:
        raise DataError("no example inputs that are tensors: capture(model, x) wants what the model takes")
    if any(x.is_meta for x in inputs.tensors):
        raise DataError(f"an example input {shapes(inputs)} is on the meta device: give a tensor that holds numbers")
    if any(x.layout is not torch.strided for x in inputs.tensors):
        raise DataError(
            "an example input is a sparse tensor, which cannot be copied and compared: give it dense, with .to_dense()"
        )
    if batch_dims is not None:
        inputs = as_stated(inputs, batch_dims, inputs.names(model.forward))
    with reference_runs.contained():
        run = CaptureRun(model, inputs.clone(), leaf_modules)
        found = run.captured()
        run.copies.restore()
        check_unshared(found.graph_module, model)
        notes = (*run.notes, *found.notes, *_scripted(found.graph_module))
        inputs = run.inputs
        return Program(
            found.graph_module, inputs.args, (), inputs.kwargs, notes, type(model).__name__, inputs.batch_dims,
            inputs.samples,
        )  # fmt: skip


def _scripted(graph_module: fx.GraphModule) -> Iterator[str]:
    called = dict.fromkeys(str(node.target) for node in graph_module.graph.nodes if node.op == "call_module")
    for path in called:
        if isinstance(graph_module.get_submodule(path), torch.jit.ScriptModule):
            yield f"`{path}` (ScriptModule) is kept whole: compiled code cannot be looked into"
