"""The checks that a traced graph must pass before it is taken for the user's model.

With the model f and the graph g, on copies, under one seed, up to rounding:

    f(x) = g(x) in eval mode, on the example batch x, where they are called twice, and on twice the batch
        unless g refuses that;
    f(x) = g(x) in train mode, with equal buffers after it;
    d<v, f(x)>/dp = d<v, g(x)>/dp for every parameter and input p and a random v.

The last catches a backward of the user's own, a region without gradients, a detach that was lost.

A graph that has no size written in is checked at a smaller size of x, as far as that shows the same: each gradient must
be there and not all zero. At the size of the example batch it is compared forward, in both modes.
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
from fxsurgery.capture.reference_runs import ReferenceOutcome, TrainStep, run_forward, run_train
from fxsurgery.capture.size_guards import REMEDY
from fxsurgery.capture.steering import SteeringWatch
from fxsurgery.capture.tracer import reads_training
from fxsurgery.errors import CaptureError, typed_reason
from fxsurgery.inputs import Inputs

Run = Callable[[nn.Module, Inputs], ReferenceOutcome]

IRREPRODUCIBLE = 1000.0
"""A model that differs from itself by this many tolerances cannot be checked."""


class UntellingError(Exception):
    """A smaller size of the inputs does not show what that of the example would."""


@dataclass(frozen=True)
class Comparison:
    """A private copy of the user's model beside the graph traced from it; neither is changed."""

    copies: ModelCopies
    model: nn.Module
    graph_module: fx.GraphModule
    entered: tuple[str, ...]
    """Paths of the modules that tracing went into."""
    watch: SteeringWatch | None = None
    """Watches a training step of the model, and then may refuse it."""
    keeps_state: bool = True
    """Whether a run may change what a later one of the same copy sees; else one call shows as much as two."""

    def check(self, inputs: Inputs, compact: Inputs | None = None) -> tuple[str, ...]:
        """Run every check; what could not be compared is said.

        Args:
            inputs: the example inputs.
            compact: the same of a smaller size, for a graph that has no size written in. What passes there passes; what
                does not, or shows less there, is decided by the example inputs.

        Raises:
            CaptureError: the graph is not the model; the message says in which mode and where.
        """
        if compact is not None:
            with suppress(CaptureError, UntellingError):
                notes = self._check(compact, is_compact=True)
                self._check_train_forward(inputs)
                return notes
        return self._check(inputs)

    def _check(self, inputs: Inputs, *, is_compact: bool = False) -> tuple[str, ...]:
        other = input_variants.doubled(inputs)
        trouble, is_held = self._eval_trouble(reference_runs.run_eval, other, may_refuse=True)
        has_noisy_values = trouble == "" and inputs.is_divisible
        if self.keeps_state or not has_noisy_values:
            self._check_values(inputs)
        if trouble:
            self._refuse_eval("a shape of the example inputs got baked in: at another batch size", trouble)
        # BatchNorm wants more than one value a channel, and a batch of one has none but its own statistics.
        others = (other,) if is_held else ()
        return self._check_train((*others, inputs) if inputs.batch == 1 else (inputs,), is_compact=is_compact)

    def _check_values(self, inputs: Inputs) -> None:
        """Compare on other values, or where the model does not take those on the inputs themselves."""
        run = reference_runs.run_twice if self.keeps_state else reference_runs.run_eval
        for choice in (input_variants.noisy(inputs), inputs):
            trouble, _ = self._eval_trouble(run, choice)
            if trouble:
                self._refuse_eval("the graph does not compute what the model does", trouble)
            if trouble is not None:
                return

    def _eval_trouble(self, run: Run, inputs: Inputs, *, may_refuse: bool = False) -> tuple[str | None, bool]:
        """What differs on `inputs`, in words, and whether the graph takes them.

        Nothing differs where the words are empty; they are `None` where there is nothing to compare: the model does not
        take the inputs, or the graph says that it does not hold for their sizes, if `may_refuse` is set.
        """
        wanted = self._of(self.model, run, inputs)
        if not isinstance(wanted, ReferenceOutcome):
            return None, True
        got = self._of(self.graph_module, run, inputs)
        if may_refuse and isinstance(got, AssertionError) and str(got).endswith(REMEDY):
            return None, False
        return self._trouble(run, inputs, got, wanted), True

    def _refuse_eval(self, meaning: str, trouble: str) -> None:
        raise CaptureError(
            f"{meaning}, in eval mode, {trouble}. Does forward ask for the type of its input, draw random numbers of a "
            "fixed size, or keep a value from call to call? Rewrite that, or keep the module whole with "
            f"{usage('leaf_modules=(ThatModule,)', 'leaf_modules')}."
        )

    def _check_train(self, choices: tuple[Inputs, ...], *, is_compact: bool) -> tuple[str, ...]:
        reason = ""
        watched = reference_runs.forward if self.watch is None else self.watch.forward
        for step in (TrainStep(forward=watched), TrainStep(of_inputs=False, forward=watched)):
            for inputs in choices:
                wanted = self._of(self.model, partial(run_train, step=step), inputs)
                if isinstance(wanted, ReferenceOutcome):
                    self._refuse_steering()
                    if is_compact and not is_telling(wanted):
                        raise UntellingError
                    self._refuse_train(
                        self._trouble_in_training(replace(step, forward=reference_runs.forward), inputs, wanted)
                    )
                    return ()
                reason = reason or f"{shapes(inputs)} ({typed_reason(wanted, short=True)})"
        if is_compact:
            raise UntellingError
        self._watch_forward((*choices, input_variants.doubled(choices[-1])))
        what = "the model does not run forward and backward in it on inputs of shape"
        return (f"train mode was not compared: {what} {reason}",)

    def _check_train_forward(self, inputs: Inputs) -> None:
        """Compare in train mode without a backward pass, on one sample of the example inputs where that does.

        Code that tells traced values from numbers may do something else at that size in train mode alone.
        """
        for choice in (inputs.rows(0, 1), inputs) if inputs.is_divisible else (inputs,):
            wanted = self._of(self.model, run_forward, choice)
            if isinstance(wanted, ReferenceOutcome):
                got = self._of(self.graph_module, run_forward, choice)
                self._refuse_train(self._trouble(run_forward, choice, got, wanted))
                return
        raise UntellingError

    def _refuse_steering(self) -> None:
        if self.watch is not None:
            self.watch.refuse(self.model)

    def _watch_forward(self, choices: tuple[Inputs, ...]) -> None:
        """Watch the model in train mode where it cannot go backward, on the first of `choices` that it takes."""
        if self.watch is None:
            return
        for inputs in choices:
            if isinstance(
                self._of(self.model, partial(run_forward, forward=self.watch.forward, gradients=True), inputs),
                ReferenceOutcome,
            ):
                break
        self._refuse_steering()

    def _trouble_in_training(self, step: TrainStep, inputs: Inputs, wanted: ReferenceOutcome) -> str:
        """What differs in a training step, in words. The graph's gradients are compared one by one as they come."""
        compare = GradientComparison(wanted)
        got = self._of(self.graph_module, partial(run_train, step=replace(step, meet=compare)), inputs)
        trouble = self._trouble(partial(run_train, step=step), inputs, got, wanted, compare.excesses)
        if not trouble.startswith("the gradient"):
            return trouble
        judged = {name for name, excess in compare.excesses.items() if excess > 1}
        sizes = scales(wanted)
        # The largest gradient is the scale of all.
        judged |= {name for name, size in sizes.items() if size == max(sizes.values())}
        return "" if self._agrees_in_double(replace(step, only=judged), inputs) else trouble

    def _refuse_train(self, trouble: str) -> None:
        if trouble.startswith(("output", "only")):
            raise CaptureError(f"in train mode, {trouble}. {self._train_hint()}")
        if trouble:
            raise CaptureError(
                f"in a training step, {trouble}: an autograd.Function with a backward of its own, a region "
                "without gradients or a buffer update got lost in tracing. Rewrite it in torch operations, or "
                f"keep its module whole with {usage('leaf_modules=(ThatModule,)', 'leaf_modules')}."
            )

    def _of(self, model: nn.Module, run: Run, inputs: Inputs) -> ReferenceOutcome | Exception:
        """What a copy does; the exception where it refuses, as it may in any way it likes."""
        try:
            return run(self.copies.take(model, lively=True), inputs)
        except Exception as error:  # noqa: BLE001 -- handed on as a value
            return error

    def _trouble(
        self,
        run: Run,
        inputs: Inputs,
        got: ReferenceOutcome | Exception,
        wanted: ReferenceOutcome,
        gradients: Mapping[str, float] | None = None,
    ) -> str:
        """What differs, in words; empty where nothing does. `gradients` are differences that are known already."""
        if isinstance(got, Exception):
            return f"only the graph fails: {typed_reason(got)}"
        excess, where = difference(got, wanted, gradients)
        if excess <= 1:
            return ""
        again = self._of(self.model, run, inputs)
        noise = difference(again, wanted).excess if isinstance(again, ReferenceOutcome) else torch.inf
        if noise > IRREPRODUCIBLE:
            raise CaptureError(
                f"the model cannot be checked: {where} changes from run to run under one seed; remove what draws "
                "random numbers without torch, or keeps state from call to call"
            )
        return "" if excess <= 10 * noise else f"{where} differs (by {excess:.1e} times the tolerance)"

    def _agrees_in_double(self, step: TrainStep, inputs: Inputs) -> bool:
        """Whether float64, where rounding is small and a mistake is not, shows no difference.

        A gradient that cancels out, as that of a bias before a norm, is nothing but the rounding of others.
        """
        wide = inputs.map(lambda x: x.double() if x.is_floating_point() else x)
        got, wanted = (
            self._of(model, lambda twin, given: run_train(twin.double(), given, step), wide)
            for model in (self.graph_module, self.model)
        )
        if not (isinstance(got, ReferenceOutcome) and isinstance(wanted, ReferenceOutcome)):
            return False  # a model that does not run in float64 gives no second opinion
        return difference(got, wanted).excess <= 1

    def _train_hint(self) -> str:
        modules = [(path, self.model.get_submodule(path)) for path in dict.fromkeys(self.entered)]
        readers = [f"{_called(path, m)} reads self.training" for path, m in modules if reads_training(m)]
        readers += [
            f"{_called(path, m)} overrides train()" for path, m in modules if type(m).train is not nn.Module.train
        ]
        if not readers:
            return (
                "Tracing recorded the value that self.training had in eval mode; keep the module that reads "
                f"it whole with {usage('leaf_modules=(ThatModule,)', 'leaf_modules')}."
            )
        return (
            f"Tracing recorded eval mode: {'; '.join(readers)}. Put what differs between the modes into a "
            "module without children, or keep the module whole with "
            f"{usage('leaf_modules=(ThatModule,)', 'leaf_modules')}."
        )


def is_telling(outcome: ReferenceOutcome) -> bool:
    """Whether everything that was reached has a gradient: numbers that are finite, and not all zero."""
    found = scales(outcome).values()
    return (
        outcome.is_finite
        and all(scale > 0 for scale in found)
        and all(bool(g.isfinite().all()) for g in outcome.gradients.values() if g is not None)
    )


def shapes(inputs: Inputs) -> str:
    """The shapes of the inputs, as text."""
    return ", ".join(str(tuple(x.shape)) for x in inputs.tensors)


def _called(path: str, module: nn.Module) -> str:
    forward = inspect.unwrap(type(module).forward)
    where = f"{forward.__code__.co_filename}:{forward.__code__.co_firstlineno}"
    return f"{f'`{path}`' if path else 'the model'} ({type(module).__name__}, {where})"
