"""One capture: the runs of a private copy of the model, and the attempts to make a graph of it."""

import copy
from contextlib import suppress
from dataclasses import replace

from torch import Tensor, nn

from fxsurgery.argument_names import usage
from fxsurgery.batch_layout import by_running
from fxsurgery.capture import reference_runs
from fxsurgery.capture.build import check_unshared
from fxsurgery.capture.checks import Comparison, shapes
from fxsurgery.capture.compact_inputs import beside, compact_variant, with_batch
from fxsurgery.capture.fx_frontend import traced, traced_in_training, used_by
from fxsurgery.capture.model_copies import ModelCopies, Scratch
from fxsurgery.capture.preconditions import is_exported, uncopiable
from fxsurgery.capture.reference_runs import ReferenceOutcome
from fxsurgery.capture.size_guards import Settled, leaf_names, settle_sizes
from fxsurgery.capture.size_trials import SizeTrials
from fxsurgery.capture.size_variants import SizeVariants, Variant
from fxsurgery.capture.steering import SteeringWatch
from fxsurgery.capture.trace_frontend import Recorded, recorded
from fxsurgery.capture.tracer import is_leaf
from fxsurgery.errors import CaptureError, DataError, TrainOnlyError, first_line, reason_of, typed_reason
from fxsurgery.example_inputs import remedy_for
from fxsurgery.inputs import Inputs
from fxsurgery.surroundings import left_outside


class CaptureRun:
    """The private copy of a model, what runs of it have shown, and the ways to a graph. Used within `contained`.

    Args:
        model: the user's, which stays as it is.
        inputs: example inputs, on memory of their own.
        leaf_modules: types that are kept whole.

    Raises:
        CaptureError: the model cannot be copied, or gives no tensor.
        DataError: it does not take the inputs.
    """

    def __init__(self, model: nn.Module, inputs: Inputs, leaf_modules: tuple[type[nn.Module], ...]) -> None:
        self._leaf_modules = leaf_modules
        self._model = _copied(model)
        check_unshared(self._model, model)
        self.copies = ModelCopies(self._model, model)
        self._scratch = Scratch(self.copies, self._model)
        self._watch = SteeringWatch(lambda module, _: is_leaf(module, leaf_modules))
        outcome = self._outcome_of(inputs)
        compact = compact_variant(self._scratch, inputs)
        if self.copies.lively_values and outcome is not None and not (compact and self._runs(compact.inputs)):
            self._run_as_it_is(inputs)
        self._sizes = SizeVariants(self._scratch, inputs, outcome)
        self.inputs, self.notes = self._located(inputs, compact)
        """The inputs with the batch that the model's outputs tell, and what a user should know of that."""
        self._compact = with_batch(compact, self.inputs)
        self._sizes = SizeVariants(self._scratch, self.inputs, outcome)
        if is_exported(self._model):
            self._require_any_batch()

    def captured(self) -> Recorded:
        """The graph, by symbolic tracing or else by recording, with the reason why not by the first.

        Raises:
            CaptureError: neither takes the model.
        """
        reason = CaptureError("symbolic tracing takes positional tensors alone: pass them as in capture(model, x)")
        reached = tuple[str, ...]()
        if _is_positional(self.inputs):
            count = len(self.inputs.args)
            trained = traced_in_training(self.copies, self._model, count, self._leaf_modules)
            reached = used_by(trained)
            try:
                found = traced(self.copies, self._model, count, self._leaf_modules, trained)
                self._watch.refuse(self._model)
                return self._compared_traced(found)
            except CaptureError as error:
                reason = error
        try:
            return self._recorded(reached)
        except CaptureError as error:
            if isinstance(reason, TrainOnlyError):
                raise reason from error
            raise error from reason

    def _outcome_of(self, inputs: Inputs) -> ReferenceOutcome | None:
        """What the model gives with lively values; `None` where it runs with its own numbers alone."""
        try:
            outcome = lively = self._first_run(inputs, lively=True)
        except Exception:  # noqa: BLE001 -- whatever it raises with other numbers: its own ones decide
            outcome, lively = self._run_as_it_is(inputs), None
        if not outcome.tensors:
            kinds = ", ".join(type(leaf).__name__ for leaf in outcome.outputs.values()) or "nothing"
            raise CaptureError(f"the model's output is not a tensor: {kinds}; return tensors from `forward`")
        return lively

    def _first_run(self, inputs: Inputs, *, lively: bool) -> ReferenceOutcome:
        forward = self._watch.forward if _is_positional(inputs) else reference_runs.forward
        return reference_runs.run_eval(self.copies.take(self._model, lively=lively), inputs, forward=forward)

    def _run_as_it_is(self, inputs: Inputs) -> ReferenceOutcome:
        try:
            return self._first_run(inputs, lively=False)
        except CaptureError:
            raise
        except Exception as error:
            raise DataError(
                f"the model does not take example inputs of shape {shapes(inputs)}: {typed_reason(error)}"
                f"{left_outside()}; {remedy_for(inputs, self._model.forward)}"
            ) from error

    def _runs(self, inputs: Inputs) -> bool:
        """Whether the model takes `inputs` with its own numbers."""
        try:
            reference_runs.run_eval(self.copies.take(self._model), inputs)
        except Exception:  # noqa: BLE001 -- a model refuses inputs in any way it likes
            return False
        return True

    def _located(self, inputs: Inputs, compact: Variant | None) -> tuple[Inputs, tuple[str, ...]]:
        names = inputs.names(self._model.forward)

        def run(given: Inputs) -> list[Tensor]:
            return reference_runs.run_eval(self._scratch.copy(), given).tensors

        if compact is not None:
            found, note = by_running(compact.inputs, run, compact.outcome.tensors, names)
            if note is None and found.dims == inputs.dims:
                return replace(inputs, batch_dims=found.batch_dims), ()
        try:
            outputs = self._sizes.example.outcome.tensors
        except Exception:  # noqa: BLE001 -- whatever it raises with other weights: then nothing can be told of it
            return inputs, ()
        found, note = by_running(inputs, run, outputs, names)
        return found, () if note is None else (note,)

    def _require_any_batch(self) -> None:
        """Refuse a model from torch.export that holds for one batch size alone: its graph has that size written in."""
        if self.inputs.batch is None:
            return
        try:
            reference_runs.run_eval(self.copies.take(self._model), self.inputs.grown())
        except Exception as error:
            reason = first_line(error)
            raise CaptureError(
                f"the model comes from torch.export and takes batches of {self.inputs.batch} alone ({reason}): export "
                "it with dynamic_shapes=({0: torch.export.Dim('batch')},), or pass the module that was exported"
            ) from error

    def _compared_traced(self, found: Recorded) -> Recorded:
        """What symbolic tracing gave, once it is checked: at the size of the example, and further at a compact one."""
        trials = SizeTrials(self.copies, found.graph_module)
        example, compact = trials.run(self._sizes.example), self._compact
        others = [] if compact is None else [trials.run(v) for v in (compact, *beside(self._scratch, compact))]
        if not others or not all(trial.is_right for trial in others):
            compact, others = None, [trials.run(variant) for variant in self._sizes.few]
        settled = settle_sizes(found.graph_module, self._names, [example, *others])
        keeps_state = self._scratch.keeps_state or trials.scratch.keeps_state
        comparison = Comparison(self.copies, self._model, found.graph_module, found.entered, self._watch, keeps_state)
        return self._compared(found, settled, comparison, compact)

    def _recorded(self, reached: tuple[str, ...]) -> Recorded:
        """Record with symbolic sizes; where something in forward does not take those, with the sizes of the inputs.

        Where a branch goes another way at other sizes, the recording of such a size may hold for all of them.
        """
        try:
            found, settled = self._attempt(self._sizes.example, reached)
        except CaptureError as error:
            try:
                return self._attempt(self._sizes.example, reached, trace_sizes=False)[0]
            except CaptureError:
                raise error from None
        for variant in settled.refused[:1]:
            with suppress(CaptureError):
                wider, again = self._attempt(variant, reached)
                if not again.notes:
                    return wider
        return found

    def _attempt(self, at: Variant, reached: tuple[str, ...], *, trace_sizes: bool = True) -> tuple[Recorded, Settled]:
        sizes = self._sizes
        found = recorded(self.copies, self._model, at.inputs, self._leaf_modules, reached, trace_sizes=trace_sizes)
        others = tuple(variant for variant in sizes.all if variant is not at)
        if at is not sizes.example:
            others = (*others, replace(sizes.example, dims=at.dims))
        trials = SizeTrials(self.copies, found.graph_module)
        runs = [trials.run(variant) for variant in (at, *others)]
        probes = [trial for variant in sizes.refused if (trial := trials.probe(variant)) is not None]
        settled = settle_sizes(found.graph_module, self._names, runs, probes, is_traced=trace_sizes)
        comparison = Comparison(self.copies, self._model, found.graph_module, found.entered)
        return self._compared(found, settled, comparison), settled

    def _compared(
        self, found: Recorded, settled: Settled, comparison: Comparison, compact: Variant | None = None
    ) -> Recorded:
        notes = comparison.check(self.inputs, None if compact is None else compact.inputs)
        if not settled.is_right:
            raise CaptureError(
                "the graph does not compute what the model does on the example inputs, by more than rounding: does it "
                "keep a value from call to call? Keep that module whole with "
                f"{usage('leaf_modules=(ThatModule,)', 'leaf_modules')}"
            )
        return Recorded(found.graph_module, found.entered, (*found.notes, *settled.notes, *notes))

    @property
    def _names(self) -> list[str]:
        return leaf_names(self._model, self.inputs)


def _is_positional(inputs: Inputs) -> bool:
    """Whether the inputs are positional tensors alone, which is what symbolic tracing takes."""
    return not inputs.kwargs and all(isinstance(a, Tensor) for a in inputs.args)


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise CaptureError(
            "the model cannot be deep-copied, and capture only works on copies: "
            f"{uncopiable(model) or reason_of(error)}"
        ) from error
