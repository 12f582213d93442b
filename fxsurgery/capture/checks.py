"""The checks that a traced graph must pass before it is taken for the user's model.

With the model f and the graph g, on copies, under one seed, up to rounding:

    f(x) = g(x) in eval mode, on the example batch x, where they are called twice, and on twice the batch
        unless g refuses that;
    f(x) = g(x) in train mode, with equal buffers after it;
    d<v, f(x)>/dp = d<v, g(x)>/dp for every parameter and input p and a random v.

The last catches a backward of the user's own, a region without gradients, a detach that was lost.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor, fx, nn

from fxsurgery.capture import reference_runs
from fxsurgery.capture.size_guards import REMEDY
from fxsurgery.capture.tracer import reads_training
from fxsurgery.errors import CaptureError, typed_reason
from fxsurgery.inputs import Inputs

Run = Callable[[nn.Module, Inputs], reference_runs.Outcome]

IRREPRODUCIBLE = 1000.0
"""A model that differs from itself by this many tolerances cannot be checked."""


@dataclass(frozen=True)
class Comparison:
    """A private copy of the user's model beside the graph traced from it; neither is changed."""

    model: nn.Module
    graph_module: fx.GraphModule
    entered: tuple[str, ...]
    """Paths of the modules that tracing went into."""

    def check(self, inputs: Inputs) -> tuple[str, ...]:
        """Run every check; what could not be compared is said.

        Raises:
            CaptureError: the graph is not the model; the message says in which mode and where.
        """
        noisy, other = reference_runs.noisy(inputs), reference_runs.doubled(inputs)
        self._check_eval(reference_runs.run_twice, (noisy, inputs), "the graph does not compute what the model does")
        others = () if self._refuses(other) else (other,)
        self._check_eval(
            reference_runs.run_eval, others, "a shape of the example inputs got baked in: at another batch size"
        )
        # BatchNorm wants more than one value a channel, and a batch of one has none but its own statistics.
        return self._check_train((*others, inputs) if inputs.batch == 1 else (inputs,))

    def _refuses(self, inputs: Inputs) -> bool:
        """Whether the graph says of inputs that it does not hold for their sizes."""
        try:
            reference_runs.run_eval(reference_runs.lively_copy(self.graph_module, self._lively), inputs)
        except AssertionError as error:
            return str(error).endswith(REMEDY)
        except Exception:  # noqa: BLE001 -- compared with what the model does
            return False
        return False

    def _check_eval(self, run: Run, choices: tuple[Inputs, ...], meaning: str) -> None:
        for inputs in choices:
            wanted = self._run(run, inputs)
            if isinstance(wanted, reference_runs.Outcome):
                if trouble := self._trouble(run, inputs, wanted):
                    raise CaptureError(
                        f"{meaning}, in eval mode, {trouble}. Does forward ask for the type of its input, draw random "
                        "numbers of a fixed size, or keep a value from call to call? Rewrite that, or keep the module "
                        "whole with leaf_modules=(ThatModule,)."
                    )
                return

    def _check_train(self, choices: tuple[Inputs, ...]) -> tuple[str, ...]:
        reason = ""
        for run in (reference_runs.run_train, partial(reference_runs.run_train, of_inputs=False)):
            for inputs in choices:
                wanted = self._run(run, inputs)
                if isinstance(wanted, reference_runs.Outcome):
                    trouble = self._trouble(run, inputs, wanted)
                    is_rounding = trouble.startswith("the gradient") and self._agrees_in_double(run, inputs)
                    self._refuse_train("" if is_rounding else trouble)
                    return ()
                reason = reason or f"{shapes(inputs)} ({typed_reason(wanted, short=True)})"
        what = "the model does not run forward and backward in it on inputs of shape"
        return (f"train mode was not compared: {what} {reason}",)

    def _refuse_train(self, trouble: str) -> None:
        if trouble.startswith(("output", "only")):
            raise CaptureError(f"in train mode, {trouble}. {self._train_hint()}")
        if trouble:
            raise CaptureError(
                f"in a training step, {trouble}: an autograd.Function with a backward of its own, a region "
                "without gradients or a buffer update got lost in tracing. Rewrite it in torch operations, or "
                "keep its module whole with leaf_modules=(ThatModule,)."
            )

    @cached_property
    def _lively(self) -> dict[str, Tensor]:
        return reference_runs.lively(self.model)

    def _run(self, run: Run, inputs: Inputs) -> reference_runs.Outcome | Exception:
        """What the model does; the exception where it refuses, as it may in any way it likes."""
        try:
            return run(reference_runs.lively_copy(self.model, self._lively), inputs)
        except Exception as error:  # noqa: BLE001 -- handed on as a value
            return error

    def _trouble(self, run: Run, inputs: Inputs, wanted: reference_runs.Outcome) -> str:
        """What differs, in words; empty where nothing does."""
        try:
            got = run(reference_runs.lively_copy(self.graph_module, self._lively), inputs)
        except Exception as error:  # noqa: BLE001 - whatever the user's operations raise is the finding
            return f"only the graph fails: {typed_reason(error)}"
        excess, where = reference_runs.difference(got, wanted)
        if excess <= 1:
            return ""
        again = self._run(run, inputs)
        noise = reference_runs.difference(again, wanted)[0] if isinstance(again, reference_runs.Outcome) else torch.inf
        if noise > IRREPRODUCIBLE:
            raise CaptureError(
                f"the model cannot be checked: {where} changes from run to run under one seed; remove what draws "
                "random numbers without torch, or keeps state from call to call"
            )
        return "" if excess <= 10 * noise else f"{where} differs (by {excess:.1e} times the tolerance)"

    def _agrees_in_double(self, run: Run, inputs: Inputs) -> bool:
        """Whether float64, where rounding is small and a mistake is not, shows no difference.

        A gradient that cancels out, as that of a bias before a norm, is nothing but the rounding of others.
        """
        wide = inputs.map(lambda x: x.double() if x.is_floating_point() else x)
        try:
            got, wanted = (
                run(reference_runs.lively_copy(m, self._lively).double(), wide) for m in (self.graph_module, self.model)
            )
        except Exception:  # noqa: BLE001 -- a model that does not run in float64 gives no second opinion
            return False
        return reference_runs.difference(got, wanted)[0] <= 1

    def _train_hint(self) -> str:
        modules = [(path, self.model.get_submodule(path)) for path in dict.fromkeys(self.entered)]
        readers = [f"{_called(path, m)} reads self.training" for path, m in modules if reads_training(m)]
        readers += [
            f"{_called(path, m)} overrides train()" for path, m in modules if type(m).train is not nn.Module.train
        ]
        if not readers:
            return (
                "Tracing recorded the value that self.training had in eval mode; keep the module that reads "
                "it whole with leaf_modules=(ThatModule,)."
            )
        return (
            f"Tracing recorded eval mode: {'; '.join(readers)}. Put what differs between the modes into a "
            "module without children, or keep the module whole with leaf_modules=(ThatModule,)."
        )


def shapes(inputs: Inputs) -> str:
    """The shapes of the inputs, as text."""
    return ", ".join(str(tuple(x.shape)) for x in inputs.tensors)


def _called(path: str, module: nn.Module) -> str:
    forward = inspect.unwrap(type(module).forward)
    where = f"{forward.__code__.co_filename}:{forward.__code__.co_firstlineno}"
    return f"{f'`{path}`' if path else 'the model'} ({type(module).__name__}, {where})"
