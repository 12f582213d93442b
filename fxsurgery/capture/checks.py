"""The checks that a traced graph must pass before it is taken for the user's model.

With the model f and the graph g, on copies, under one seed, up to rounding:

    f(x) = g(x) in eval mode, on the example batch x and on twice the batch;
    f(x) = g(x) in train mode, with equal buffers after it;
    d<v, f(x)>/dp = d<v, g(x)>/dp for every parameter and input p and a random v.

The last catches a backward of the user's own, a region without gradients, a detach that was lost.
"""

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass

from torch import fx, nn

from fxsurgery.capture import trials
from fxsurgery.capture.tracer import reads_training
from fxsurgery.errors import CaptureError
from fxsurgery.inputs import Inputs

Run = Callable[[nn.Module, Inputs], trials.Outcome]

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
        noisy, other = trials.noisy(inputs), trials.doubled(inputs)
        first = noisy if _runs(trials.run_eval, self.model, noisy) else inputs
        self._check_eval(first, "the graph does not compute what the model does")
        if _runs(trials.run_eval, self.model, other):
            self._check_eval(other, "a shape of the example inputs got baked in: at another batch size")
        return self._check_train(inputs, other)

    def _check_eval(self, inputs: Inputs, meaning: str) -> None:
        if trouble := self._trouble(trials.run_eval, inputs):
            raise CaptureError(
                f"{meaning}, in eval mode, {trouble}. Does forward ask for the type of its input, draw random "
                "numbers of a fixed size, or keep a value from call to call? Rewrite that, or keep the module "
                "whole with leaf_modules=(ThatModule,)."
            )

    def _check_train(self, inputs: Inputs, other: Inputs) -> tuple[str, ...]:
        # BatchNorm wants more than one value a channel, and a batch of one has none but its own statistics.
        if inputs.batch == 1 and _runs(trials.run_train, self.model, other):
            inputs = other
        try:
            trials.run_train(copy.deepcopy(self.model), inputs)
        except Exception as error:  # noqa: BLE001 -- whatever the user's model raises in train mode
            what = f"inputs of shape {shapes(inputs)} ({type(error).__name__}: {_first_line(error)})"
            return (f"train mode was not compared: the model does not run forward and backward in it on {what}",)
        trouble = self._trouble(trials.run_train, inputs)
        if trouble.startswith(("output", "only")):
            raise CaptureError(f"in train mode, {trouble}. {self._train_hint()}")
        if trouble:
            raise CaptureError(
                f"in a training step, {trouble}: an autograd.Function with a backward of its own, a region "
                "without gradients or a buffer update got lost in tracing. Rewrite it in torch operations, or "
                "keep its module whole with leaf_modules=(ThatModule,)."
            )
        return ()

    def _trouble(self, run: Run, inputs: Inputs) -> str:
        """What differs, in words; empty where nothing does."""
        model, graph_module = copy.deepcopy(self.model), copy.deepcopy(self.graph_module)
        trials.enliven(model, graph_module)
        wanted = run(copy.deepcopy(model), inputs)
        try:
            got = run(graph_module, inputs)
        except Exception as error:  # noqa: BLE001 - whatever the user's operations raise is the finding
            return f"only the graph fails: {type(error).__name__}: {error}"
        excess, where = trials.difference(got, wanted)
        if excess <= 1:
            return ""
        noise, _ = trials.difference(run(model, inputs), wanted)
        if noise > IRREPRODUCIBLE:
            raise CaptureError(f"the model cannot be checked: {where} changes from run to run under one seed")
        return "" if excess <= 10 * noise else f"{where} differs (by {excess:.1e} times the tolerance)"

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


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")


def _runs(run: Run, model: nn.Module, inputs: Inputs) -> bool:
    try:
        run(copy.deepcopy(model), inputs)
    except Exception:  # noqa: BLE001 - the user's model may refuse a batch size in any way it likes
        return False
    return True


def _called(path: str, module: nn.Module) -> str:
    forward = inspect.unwrap(type(module).forward)
    where = f"{forward.__code__.co_filename}:{forward.__code__.co_firstlineno}"
    return f"{f'`{path}`' if path else 'the model'} ({type(module).__name__}, {where})"
