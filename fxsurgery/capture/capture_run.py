"""A single capture: reference runs of a private copy of the model, then attempts to build a graph of it."""

import copy
from contextlib import suppress
from dataclasses import replace

from torch import Tensor, nn

from fxsurgery.argument_names import usage
from fxsurgery.batch_layout import by_running
from fxsurgery.capture import reference_runs
from fxsurgery.capture.build import check_unshared
from fxsurgery.capture.checks import Comparison, shapes
from fxsurgery.capture.compact_inputs import compact_variant, neighbors, with_batch
from fxsurgery.capture.fx_frontend import trace_graph, trace_in_train_mode, used_paths
from fxsurgery.capture.model_copies import ModelCopies, ScratchCopy
from fxsurgery.capture.preconditions import is_exported, uncopiable_attribute
from fxsurgery.capture.random_control_flow import RandomControlFlowWatch
from fxsurgery.capture.reference_runs import ReferenceOutcome
from fxsurgery.capture.size_guards import ResolvedSizes, resolve_sizes
from fxsurgery.capture.size_trials import SizeTrials
from fxsurgery.capture.size_variants import SizeVariants, Variant, leaf_names
from fxsurgery.capture.trace_frontend import CapturedGraph, record_graph
from fxsurgery.capture.tracer import is_leaf
from fxsurgery.errors import CaptureError, DataError, TrainOnlyError, first_line, reason_of, typed_reason
from fxsurgery.example_inputs import remedy_for
from fxsurgery.inputs import Inputs
from fxsurgery.surroundings import left_outside


class CaptureRun:
    """A private copy of a model, the results of its reference runs, and the front ends. Use it inside `isolated()`.

    Args:
        model: the user's model, left unchanged.
        inputs: example inputs, on memory of their own.
        leaf_modules: module types to keep as leaves.

    Raises:
        CaptureError: the model cannot be copied, or returns no tensor.
        DataError: the model does not accept the inputs.
    """

    def __init__(self, model: nn.Module, inputs: Inputs, leaf_modules: tuple[type[nn.Module], ...]) -> None:
        self._leaf_modules = leaf_modules
        self._model = _copied(model)
        check_unshared(self._model, model)
        self.copies = ModelCopies(self._model, model)
        self._scratch = ScratchCopy(self.copies, self._model)
        self._watch = RandomControlFlowWatch(lambda module, _: is_leaf(module, leaf_modules))
        outcome = self._reference_outcome(inputs)
        compact = compact_variant(self._scratch, inputs)
        if self.copies.nonzero_values and outcome is not None and not (compact and self._runs(compact.inputs)):
            self._run_unchanged(inputs)
        self._sizes = SizeVariants(self._scratch, inputs, outcome)
        self.inputs, self.notes = self._infer_batch(inputs, compact)
        """The inputs with their batch dims as inferred from the model's outputs, and notes about this inference."""
        self._compact = with_batch(compact, self.inputs)
        self._sizes = SizeVariants(self._scratch, self.inputs, outcome)
        if is_exported(self._model):
            self._require_any_batch()

    def capture(self) -> CapturedGraph:
        """Return the checked graph from symbolic tracing or, if that fails, from recording.

        Raises:
            CaptureError: both front ends fail. The error of symbolic tracing is chained as the cause.
        """
        reason = CaptureError("symbolic tracing accepts positional tensors only; pass them as in capture(model, x)")
        reached = tuple[str, ...]()
        if _is_positional(self.inputs):
            count = len(self.inputs.args)
            trained = trace_in_train_mode(self.copies, self._model, count, self._leaf_modules)
            reached = used_paths(trained)
            try:
                captured = trace_graph(self.copies, self._model, count, self._leaf_modules, trained)
                self._watch.refuse(self._model)
                return self._check_traced(captured)
            except CaptureError as error:
                reason = error
        try:
            return self._record(reached)
        except CaptureError as error:
            if isinstance(reason, TrainOnlyError):
                raise reason from error
            raise error from reason

    def _reference_outcome(self, inputs: Inputs) -> ReferenceOutcome | None:
        """Return the outcome with all-zero parameters randomized; None if it fails with those values."""
        try:
            outcome = nonzero = self._first_run(inputs, nonzero=True)
        except Exception:  # noqa: BLE001 -- with other values it may raise anything: its own values decide
            outcome, nonzero = self._run_unchanged(inputs), None
        if not outcome.tensors:
            kinds = ", ".join(type(leaf).__name__ for leaf in outcome.outputs.values()) or "None"
            raise CaptureError(f"the model's output contains no tensor ({kinds}); return tensors from `forward`")
        return nonzero

    def _first_run(self, inputs: Inputs, *, nonzero: bool) -> ReferenceOutcome:
        forward = self._watch.forward if _is_positional(inputs) else reference_runs.forward
        return reference_runs.run_eval(self.copies.take(self._model, nonzero=nonzero), inputs, forward=forward)

    def _run_unchanged(self, inputs: Inputs) -> ReferenceOutcome:
        try:
            return self._first_run(inputs, nonzero=False)
        except CaptureError:
            raise
        except Exception as error:
            raise DataError(
                f"the model does not accept example inputs of shape {shapes(inputs)}: {typed_reason(error)}"
                f"{left_outside()}; {remedy_for(inputs, self._model.forward)}"
            ) from error

    def _runs(self, inputs: Inputs) -> bool:
        """Return True if the model accepts `inputs` with its own parameter values."""
        try:
            reference_runs.run_eval(self.copies.take(self._model), inputs)
        except Exception:  # noqa: BLE001 -- a model may reject inputs with any exception
            return False
        return True

    def _infer_batch(self, inputs: Inputs, compact: Variant | None) -> tuple[Inputs, tuple[str, ...]]:
        names = inputs.names(self._model.forward)

        def run(variant: Inputs) -> list[Tensor]:
            return reference_runs.run_eval(self._scratch.copy(), variant).tensors

        if compact is not None:
            inferred, note = by_running(compact.inputs, run, compact.outcome.tensors, names)
            if note is None and inferred.dims == inputs.dims:
                return replace(inputs, batch_dims=inferred.batch_dims), ()
        try:
            outputs = self._sizes.example.outcome.tensors
        except Exception:  # noqa: BLE001 -- it may raise anything with other weights: then nothing can be inferred
            return inputs, ()
        inferred, note = by_running(inputs, run, outputs, names)
        return inferred, () if note is None else (note,)

    def _require_any_batch(self) -> None:
        """Raise if the model comes from torch.export with a fixed batch size, which its graph has baked in."""
        if self.inputs.batch is None:
            return
        try:
            reference_runs.run_eval(self.copies.take(self._model), self.inputs.grown())
        except Exception as error:
            reason = first_line(error)
            raise CaptureError(
                f"the model comes from torch.export and accepts only a batch size of {self.inputs.batch} ({reason}); "
                "export it with dynamic_shapes=({0: torch.export.Dim('batch')},), or pass the module that was exported"
            ) from error

    def _check_traced(self, captured: CapturedGraph) -> CapturedGraph:
        """Check a symbolically traced graph at the example size and, where possible, more deeply at a compact size."""
        trials = SizeTrials(self.copies, captured.graph_module)
        example, compact = trials.run(self._sizes.example), self._compact
        others = [] if compact is None else [trials.run(v) for v in (compact, *neighbors(self._scratch, compact))]
        if not others or not all(trial.is_correct for trial in others):
            compact, others = None, [trials.run(variant) for variant in self._sizes.few]
        resolved = resolve_sizes(captured.graph_module, self._names, [example, *others])
        keeps_state = self._scratch.keeps_state or trials.scratch.keeps_state
        comparison = Comparison(
            self.copies, self._model, captured.graph_module, captured.entered, self._watch, keeps_state
        )
        return self._checked(captured, resolved, comparison, compact)

    def _record(self, reached: tuple[str, ...]) -> CapturedGraph:
        """Record with symbolic sizes; fall back to the sizes of the inputs if forward does not work with symbolic ones.

        If a branch is taken differently at other sizes, a recording at such a size may hold for all of them.
        """
        try:
            captured, resolved = self._attempt(self._sizes.example, reached)
        except CaptureError as error:
            try:
                return self._attempt(self._sizes.example, reached, trace_sizes=False)[0]
            except CaptureError:
                raise error from None
        for variant in resolved.rejected[:1]:
            with suppress(CaptureError):
                wider, again = self._attempt(variant, reached)
                if not again.notes:
                    return wider
        return captured

    def _attempt(
        self, base: Variant, reached: tuple[str, ...], *, trace_sizes: bool = True
    ) -> tuple[CapturedGraph, ResolvedSizes]:
        sizes = self._sizes
        captured = record_graph(
            self.copies, self._model, base.inputs, self._leaf_modules, reached, trace_sizes=trace_sizes
        )
        others = tuple(variant for variant in sizes.all if variant is not base)
        if base is not sizes.example:
            others = (*others, replace(sizes.example, dims=base.dims))
        trials = SizeTrials(self.copies, captured.graph_module)
        runs = [trials.run(variant) for variant in (base, *others)]
        probes = [trial for variant in sizes.rejected if (trial := trials.probe(variant)) is not None]
        resolved = resolve_sizes(captured.graph_module, self._names, runs, probes, is_traced=trace_sizes)
        comparison = Comparison(self.copies, self._model, captured.graph_module, captured.entered)
        return self._checked(captured, resolved, comparison), resolved

    def _checked(
        self, captured: CapturedGraph, resolved: ResolvedSizes, comparison: Comparison, compact: Variant | None = None
    ) -> CapturedGraph:
        notes = comparison.check(self.inputs, None if compact is None else compact.inputs)
        if not resolved.is_correct:
            raise CaptureError(
                "the graph and the model differ on the example inputs by more than rounding. Does forward keep a value "
                "from call to call? Keep that module as a leaf with "
                f"{usage('leaf_modules=(ThatModule,)', 'leaf_modules')}"
            )
        return CapturedGraph(captured.graph_module, captured.entered, (*captured.notes, *resolved.notes, *notes))

    @property
    def _names(self) -> list[str]:
        return leaf_names(self._model, self.inputs)


def _is_positional(inputs: Inputs) -> bool:
    """Return True if all inputs are positional tensors, the only kind that symbolic tracing accepts."""
    return not inputs.kwargs and all(isinstance(a, Tensor) for a in inputs.args)


def _copied(model: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise CaptureError(
            "the model cannot be deep-copied, which capture requires: "
            f"{uncopiable_attribute(model) or f'{reason_of(error)}; remove what cannot be copied from the model'}"
        ) from error
