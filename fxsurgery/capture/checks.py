"""Checks that a traced graph must pass before it replaces the user's model.

For the model f and the graph g, run on copies under one seed, up to rounding:

    f(x) = g(x) in eval mode, for the example batch x, for two calls in a row, and for twice the batch
        unless g rejects that size;
    f(x) = g(x) in train mode, with equal buffers afterwards;
    d<v, f(x)>/dp = d<v, g(x)>/dp for every parameter and input p and a random v.

The last equation detects a custom backward, a region without gradients and a `detach` that tracing lost.

A graph without baked-in sizes is checked on a compact version of x if that is informative: every gradient must exist
and be nonzero there. At the size of the example batch, only the forward pass is compared, in both modes.
"""

import inspect
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import fx, nn

from fxsurgery.argument_names import usage
from fxsurgery.capture import input_variants, reference_runs
from fxsurgery.capture.differences import GradientComparison, difference, scales
from fxsurgery.capture.model_copies import ModelCopies
from fxsurgery.capture.random_control_flow import RandomControlFlowWatch
from fxsurgery.capture.reference_runs import ReferenceOutcome, TrainStep, run_forward, run_train
from fxsurgery.capture.size_guards import REMEDY
from fxsurgery.capture.tracer import reads_training
from fxsurgery.errors import CaptureError, typed_reason
from fxsurgery.inputs import Inputs

Run = Callable[[nn.Module, Inputs], ReferenceOutcome]

IRREPRODUCIBLE = 1000.0
"""A model whose own runs differ by more than this many tolerances cannot be checked."""


class InconclusiveError(Exception):
    """The compact inputs do not show everything that the example inputs would."""


@dataclass(frozen=True)
class Comparison:
    """Compares a private copy of the user's model with the graph traced from it; changes neither."""

    copies: ModelCopies
    model: nn.Module
    graph_module: fx.GraphModule
    entered: tuple[str, ...]
    """Paths of the modules whose forward was traced."""
    watch: RandomControlFlowWatch | None = None
    """Watches a training step of the model for random control flow, and raises if there is any; None to skip it."""
    keeps_state: bool = True
    """Whether a run may affect a later run of the same copy; if not, one call is as informative as two."""

    def check(self, inputs: Inputs, compact: Inputs | None = None) -> tuple[str, ...]:
        """Run every check and return notes about what could not be compared.

        Args:
            inputs: the example inputs.
            compact: a smaller version of the inputs, for a graph without baked-in sizes. A check that passes on it is
                accepted; one that fails or is inconclusive is repeated on the example inputs.

        Raises:
            CaptureError: the graph differs from the model; the message says in which mode and where.
        """
        if compact is not None:
            with suppress(CaptureError, InconclusiveError):
                notes = self._check(compact, is_compact=True)
                self._check_train_forward(inputs)
                return notes
        return self._check(inputs)

    def _check(self, inputs: Inputs, *, is_compact: bool = False) -> tuple[str, ...]:
        other = input_variants.doubled(inputs)
        mismatch, is_held = self._eval_mismatch(reference_runs.run_eval, other, may_refuse=True)
        has_noisy_values = mismatch == "" and inputs.is_divisible
        if self.keeps_state or not has_noisy_values:
            self._check_values(inputs)
        if mismatch:
            self._refuse_eval("the graph has a shape of the example inputs baked in; at another batch size", mismatch)
        # BatchNorm needs more than one value per channel, and a batch of one can have only one.
        others = (other,) if is_held else ()
        return self._check_train((*others, inputs) if inputs.batch == 1 else (inputs,), is_compact=is_compact)

    def _check_values(self, inputs: Inputs) -> None:
        """Compare on inputs with noise or, if the model rejects those, on the inputs themselves."""
        run = reference_runs.run_twice if self.keeps_state else reference_runs.run_eval
        for choice in (input_variants.noisy(inputs), inputs):
            mismatch, _ = self._eval_mismatch(run, choice)
            if mismatch:
                self._refuse_eval("the graph does not compute the same as the model", mismatch)
            if mismatch is not None:
                return

    def _eval_mismatch(self, run: Run, inputs: Inputs, *, may_refuse: bool = False) -> tuple[str | None, bool]:
        """Return a description of the mismatch on `inputs`, and whether the graph accepts them.

        The description is empty without a mismatch. It is None if there is nothing to compare: the model rejects the
        inputs, or, if `may_refuse` is set, the graph says that it does not hold for their sizes.
        """
        expected = self._outcome(self.model, run, inputs)
        if not isinstance(expected, ReferenceOutcome):
            return None, True
        got = self._outcome(self.graph_module, run, inputs)
        if may_refuse and isinstance(got, AssertionError) and str(got).endswith(REMEDY):
            return None, False
        return self._mismatch(run, inputs, got, expected), True

    def _refuse_eval(self, context: str, mismatch: str) -> None:
        raise CaptureError(
            f"{context}, in eval mode, {mismatch}. Does forward check the type of its input, draw random numbers of a "
            "fixed size, or keep a value from call to call? Rewrite that, or keep the module as a leaf with "
            f"{usage('leaf_modules=(ThatModule,)', 'leaf_modules')}."
        )

    def _check_train(self, choices: tuple[Inputs, ...], *, is_compact: bool) -> tuple[str, ...]:
        reason = ""
        watched = reference_runs.forward if self.watch is None else self.watch.forward
        for step in (TrainStep(forward=watched), TrainStep(input_gradients=False, forward=watched)):
            for inputs in choices:
                expected = self._outcome(self.model, partial(run_train, step=step), inputs)
                if isinstance(expected, ReferenceOutcome):
                    self._refuse_random_control_flow()
                    if is_compact and not is_informative(expected):
                        raise InconclusiveError
                    self._refuse_train(
                        self._train_mismatch(replace(step, forward=reference_runs.forward), inputs, expected)
                    )
                    return ()
                reason = reason or f"{shapes(inputs)} ({typed_reason(expected, short=True)})"
        if is_compact:
            raise InconclusiveError
        self._watch_forward((*choices, input_variants.doubled(choices[-1])))
        what = "the model does not run forward and backward in train mode on inputs of shape"
        return (f"train mode was not checked: {what} {reason}",)

    def _check_train_forward(self, inputs: Inputs) -> None:
        """Compare in train mode without a backward pass, on one sample if the model accepts that.

        Code that distinguishes proxies from tensors may behave differently at that size in train mode only.
        """
        for choice in (inputs.rows(0, 1), inputs) if inputs.is_divisible else (inputs,):
            expected = self._outcome(self.model, run_forward, choice)
            if isinstance(expected, ReferenceOutcome):
                got = self._outcome(self.graph_module, run_forward, choice)
                self._refuse_train(self._mismatch(run_forward, choice, got, expected))
                return
        raise InconclusiveError

    def _refuse_random_control_flow(self) -> None:
        if self.watch is not None:
            self.watch.refuse(self.model)

    def _watch_forward(self, choices: tuple[Inputs, ...]) -> None:
        """Watch the model in train mode without a backward pass, on the first of `choices` that it accepts."""
        if self.watch is None:
            return
        for inputs in choices:
            if isinstance(
                self._outcome(self.model, partial(run_forward, forward=self.watch.forward, gradients=True), inputs),
                ReferenceOutcome,
            ):
                break
        self._refuse_random_control_flow()

    def _train_mismatch(self, step: TrainStep, inputs: Inputs, expected: ReferenceOutcome) -> str:
        """Return a description of the mismatch in a training step, comparing each gradient as soon as it exists."""
        compare = GradientComparison(expected)
        got = self._outcome(self.graph_module, partial(run_train, step=replace(step, on_gradient=compare)), inputs)
        mismatch = self._mismatch(partial(run_train, step=step), inputs, got, expected, compare.excesses)
        if not mismatch.startswith("the gradient"):
            return mismatch
        suspects = {name for name, excess in compare.excesses.items() if excess > 1}
        sizes = scales(expected)
        # Always include the largest gradient: it sets the scale for all others.
        suspects |= {name for name, size in sizes.items() if size == max(sizes.values())}
        return "" if self._agrees_in_double(replace(step, only=suspects), inputs) else mismatch

    def _refuse_train(self, mismatch: str) -> None:
        if mismatch.startswith(("output", "only")):
            raise CaptureError(f"in train mode, {mismatch}. {self._train_hint()}")
        if mismatch:
            raise CaptureError(
                f"in a training step, {mismatch}: an autograd.Function with a custom backward, a region "
                "without gradients or a buffer update was lost in tracing. Rewrite it in torch operations, or "
                f"keep its module as a leaf with {usage('leaf_modules=(ThatModule,)', 'leaf_modules')}."
            )

    def _outcome(self, model: nn.Module, run: Run, inputs: Inputs) -> ReferenceOutcome | Exception:
        """Return the outcome of a run on a copy, or the exception that it raised."""
        try:
            return run(self.copies.take(model, nonzero=True), inputs)
        except Exception as error:  # noqa: BLE001 -- returned as a value
            return error

    def _mismatch(
        self,
        run: Run,
        inputs: Inputs,
        got: ReferenceOutcome | Exception,
        expected: ReferenceOutcome,
        gradients: Mapping[str, float] | None = None,
    ) -> str:
        """Return a description of the mismatch, empty if there is none.

        Args:
            run: how `got` and `expected` were produced.
            inputs: what both ran on.
            got: the outcome of the graph, or the exception that it raised.
            expected: the outcome of the model.
            gradients: differences of gradients that have already been compared, by name.
        """
        if isinstance(got, Exception):
            return f"only the graph fails: {typed_reason(got)}"
        excess, where = difference(got, expected, gradients)
        if excess <= 1:
            return ""
        again = self._outcome(self.model, run, inputs)
        noise = difference(again, expected).excess if isinstance(again, ReferenceOutcome) else torch.inf
        if noise > IRREPRODUCIBLE:
            raise CaptureError(
                f"the model cannot be checked: {where} changes from run to run under the same seed; draw "
                "random numbers with torch only, and remove state that forward keeps from call to call"
            )
        return "" if excess <= 10 * noise else f"{where} differs (by {excess:.1e} times the tolerance)"

    def _agrees_in_double(self, step: TrainStep, inputs: Inputs) -> bool:
        """Return True if there is no mismatch in float64, where rounding is small but a real error is not.

        A gradient that cancels out, such as that of a bias before a norm, consists of the rounding errors of others.
        """
        wide = inputs.map(lambda x: x.double() if x.is_floating_point() else x)
        got, expected = (
            self._outcome(model, lambda model_copy, variant: run_train(model_copy.double(), variant, step), wide)
            for model in (self.graph_module, self.model)
        )
        if not (isinstance(got, ReferenceOutcome) and isinstance(expected, ReferenceOutcome)):
            return False  # a model that does not run in float64 cannot confirm it
        return difference(got, expected).excess <= 1

    def _train_hint(self) -> str:
        modules = [(path, self.model.get_submodule(path)) for path in dict.fromkeys(self.entered)]
        readers = [f"{_module_with_line(path, m)} reads self.training" for path, m in modules if reads_training(m)]
        readers += [
            f"{_module_with_line(path, m)} overrides train()"
            for path, m in modules
            if type(m).train is not nn.Module.train
        ]
        if not readers:
            return (
                "Tracing recorded the eval-mode value of self.training; keep the module that reads "
                f"it as a leaf with {usage('leaf_modules=(ThatModule,)', 'leaf_modules')}."
            )
        return (
            f"Tracing recorded eval mode: {'; '.join(readers)}. Move the code that depends on the mode into a "
            "module without children, or keep the module as a leaf with "
            f"{usage('leaf_modules=(ThatModule,)', 'leaf_modules')}."
        )


def is_informative(outcome: ReferenceOutcome) -> bool:
    """Return True if every output is finite and every gradient that exists is finite and nonzero."""
    found = scales(outcome).values()
    return (
        outcome.is_finite
        and all(scale > 0 for scale in found)
        and all(bool(g.isfinite().all()) for g in outcome.gradients.values() if g is not None)
    )


def shapes(inputs: Inputs) -> str:
    """Format the shapes of all input tensors."""
    return ", ".join(str(tuple(x.shape)) for x in inputs.tensors)


def _module_with_line(path: str, module: nn.Module) -> str:
    forward = inspect.unwrap(type(module).forward)
    where = f"{forward.__code__.co_filename}:{forward.__code__.co_firstlineno}"
    return f"{f'`{path}`' if path else 'the model'} ({type(module).__name__}, {where})"
