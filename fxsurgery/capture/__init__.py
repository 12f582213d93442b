"""Takes a user's `nn.Module` as a `Program`, or says which of its lines stands in the way.

Symbolic tracing of a private copy comes first, since its graph holds for any size of the inputs. Where it
fails, the model is run and recorded (`fxsurgery.capture.trace_frontend`). Either graph is accepted only when it is
checked against the model.
"""

import copy
import inspect
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxsurgery.batch_layout import Statement, as_stated, by_running
from fxsurgery.capture import reference_runs
from fxsurgery.capture.build import check_unshared
from fxsurgery.capture.checks import Comparison, shapes
from fxsurgery.capture.fx_frontend import traced, traced_in_training, used_by
from fxsurgery.capture.input_inference import guess_inputs
from fxsurgery.capture.preconditions import is_exported, require_takeable, uncopiable
from fxsurgery.capture.size_guards import Settled, settle_sizes
from fxsurgery.capture.size_variants import SizeVariants, Variant
from fxsurgery.capture.steering import refuse_steering
from fxsurgery.capture.trace_frontend import Recorded, recorded
from fxsurgery.capture.tracer import is_leaf
from fxsurgery.errors import CaptureError, DataError, TrainOnlyError, first_line, reason_of, typed_reason
from fxsurgery.inputs import Inputs
from fxsurgery.option_types import checked
from fxsurgery.program import Program
from fxsurgery.surroundings import left_outside, plain_surroundings

__all__ = ["capture", "guess_inputs"]


@checked(CaptureError, apart=("model",), example_kwargs=DataError)
@plain_surroundings()
def capture(
    model: nn.Module,
    *example_inputs: Any,  # noqa: ANN401 -- whatever the model takes
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
        example_inputs: positional inputs: tensors, or tuples, lists and dicts of them.
        leaf_modules: types of modules to keep whole, as one node of the graph each.
        example_kwargs: inputs by name.
        batch_dims: the dim of the inputs that is the batch, `batch_dims=1`; or of each input, by position or by name,
            `None` for one without: `batch_dims={"text": None, "offsets": 0}`. Without it, it is inferred from what the
            model's outputs follow: dim 0 of the first input, unless another dim fits and that does not.

    Raises:
        CaptureError: the model cannot be taken as a graph; the message names the line or the module.
        DataError: the example inputs do not fit the model.
    """
    inputs = Inputs(example_inputs, dict(example_kwargs or {}))
    if not inputs.tensors:
        raise DataError("no example inputs that are tensors: capture(model, x) wants what the model takes")
    if any(x.is_meta for x in inputs.tensors):
        raise DataError(f"an example input {shapes(inputs)} is on the meta device: give a tensor that holds numbers")
    if any(x.layout is not torch.strided for x in inputs.tensors):
        raise DataError(
            "an example input is a sparse tensor, which cannot be copied and compared: give it dense, with .to_dense()"
        )
    require_takeable(model)
    inputs = _ordered(model, inputs)
    if batch_dims is not None:
        inputs = as_stated(inputs, batch_dims, inputs.names(model.forward))
    with reference_runs.contained():
        inputs = inputs.clone()
        private = _copied(model)
        check_unshared(private, model)
        _check_runs(private, inputs)
        inputs, where = _located(private, inputs)
        if is_exported(private):
            _require_any_batch(private, inputs)
        found = _captured(private, inputs, leaf_modules)
        check_unshared(found.graph_module, model)
        notes = (*where, *found.notes, *_scripted(found.graph_module))
        return Program(
            found.graph_module, inputs.args, (), inputs.kwargs, notes, type(model).__name__, inputs.batch_dims,
            inputs.samples,
        )  # fmt: skip


def _located(model: nn.Module, inputs: Inputs) -> tuple[Inputs, tuple[str, ...]]:
    """The inputs with the batch that the model's outputs tell, and what a user should know of that."""
    lively = reference_runs.lively(model)

    def run(given: Inputs) -> list[Tensor]:
        found = reference_runs.run_eval(reference_runs.lively_copy(model, lively), given).outputs.values()
        return [value for value in found if isinstance(value, Tensor)]

    try:
        outputs = run(inputs)
    except Exception:  # noqa: BLE001 -- whatever it raises with other weights: then nothing can be told of it
        return inputs, ()
    found, note = by_running(inputs, run, outputs, inputs.names(model.forward))
    return found, () if note is None else (note,)


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
    reason = CaptureError("symbolic tracing takes positional tensors alone: pass them as in capture(model, x)")
    reached = tuple[str, ...]()
    sizes = SizeVariants(model, inputs)
    if not inputs.kwargs and all(isinstance(a, Tensor) for a in inputs.args):
        trained = traced_in_training(model, len(inputs.args), leaf_modules)
        reached = used_by(trained)
        try:
            found = traced(model, len(inputs.args), leaf_modules, trained)
            refuse_steering(model, inputs, lambda module, _: is_leaf(module, leaf_modules))
            settled = settle_sizes(model, found.graph_module, sizes.example, sizes.few)
            return _compared(model, found, settled, inputs)
        except CaptureError as error:
            reason = error
    try:
        return _recorded(model, inputs, leaf_modules, reached, sizes)
    except CaptureError as error:
        if isinstance(reason, TrainOnlyError):
            raise reason from error
        raise error from reason


def _recorded(
    model: nn.Module,
    inputs: Inputs,
    leaf_modules: tuple[type[nn.Module], ...],
    reached: tuple[str, ...],
    sizes: SizeVariants,
) -> Recorded:
    """Record with symbolic sizes; where something in forward does not take those, with the sizes of the inputs.

    Where a branch goes another way at other sizes, the recording of such a size may hold for all of them.
    """

    def attempt(at: Variant, *, trace_sizes: bool = True) -> tuple[Recorded, Settled]:
        found = recorded(_copied(model), at.inputs, leaf_modules, reached, trace_sizes=trace_sizes)
        others = tuple(v for v in sizes.all if v is not at)
        if at is not sizes.example:
            others = (*others, replace(sizes.example, dims=at.dims))
        settled = settle_sizes(model, found.graph_module, at, others, sizes.refused, is_traced=trace_sizes)
        return _compared(model, found, settled, inputs), settled

    try:
        found, settled = attempt(sizes.example)
    except CaptureError as error:
        try:
            return attempt(sizes.example, trace_sizes=False)[0]
        except CaptureError:
            raise error from None
    for variant in settled.refused[:1]:
        with suppress(CaptureError):
            wider, again = attempt(variant)
            if not again.notes:
                return wider
    return found


def _compared(model: nn.Module, found: Recorded, settled: Settled, inputs: Inputs) -> Recorded:
    notes = Comparison(model, found.graph_module, found.entered).check(inputs)
    if not settled.is_right:
        raise CaptureError(
            "the graph does not compute what the model does on the example inputs, by more than rounding: does it keep "
            "a value from call to call? Keep that module whole with leaf_modules=(ThatModule,)"
        )
    return Recorded(found.graph_module, found.entered, (*found.notes, *settled.notes, *notes))


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise CaptureError(
            "the model cannot be deep-copied, and capture only works on copies: "
            f"{uncopiable(model) or reason_of(error)}"
        ) from error


def _require_any_batch(model: nn.Module, inputs: Inputs) -> None:
    """Refuse a model from torch.export that holds for one batch size alone: its graph has that size written in."""
    if inputs.batch is None:
        return
    try:
        reference_runs.run_eval(copy.deepcopy(model), inputs.grown())
    except Exception as error:
        reason = first_line(error)
        raise CaptureError(
            f"the model comes from torch.export and takes batches of {inputs.batch} alone ({reason}): export it with "
            "dynamic_shapes=({0: torch.export.Dim('batch')},), or pass the module that was exported"
        ) from error


def _check_runs(model: nn.Module, inputs: Inputs) -> None:
    try:
        outcome = reference_runs.run_eval(copy.deepcopy(model), inputs)
    except CaptureError:
        raise
    except Exception as error:
        raise DataError(
            f"the model does not take example inputs of shape {shapes(inputs)}: {typed_reason(error)}{left_outside()}; "
            "pass inputs that its forward takes"
        ) from error
    leaves = list(outcome.outputs.values())
    if not any(isinstance(leaf, Tensor) for leaf in leaves):
        kinds = ", ".join(type(leaf).__name__ for leaf in leaves) or "nothing"
        raise CaptureError(f"the model's output is not a tensor: {kinds}; return tensors from `forward`")
