"""Runs a model in both modes to find random numbers that control its Python code, which symbolic tracing misses."""

import copy
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from typing_extensions import override

from fxsurgery.capture import reference_runs
from fxsurgery.capture.diagnostics import offended, running_line
from fxsurgery.capture.draws import OUT_OF_WHOLE, REMEDY, has_numbers, python_draws, steers
from fxsurgery.capture.interception import meeting_modules
from fxsurgery.capture.trace import OffenceError
from fxsurgery.inputs import Inputs
from fxsurgery.ops import registry


def refuse_steering(model: nn.Module, inputs: Inputs, is_leaf: Callable[[nn.Module, str], bool]) -> None:
    """Refuse a model whose Python code depends on random numbers in either mode, outside modules that are kept whole.

    Args:
        model: stays as it is.
        inputs: what it runs on. A run that fails on them in train mode is tried on twice the batch.
        is_leaf: whether a module, at its path, is kept whole.

    Raises:
        CaptureError: it names the module and the line.
    """
    for training, given in ((False, inputs), (True, inputs), (True, reference_runs.doubled(inputs))):
        private = copy.deepcopy(model).train().train(training)
        watch = _Watch(private, is_leaf)
        reference_runs.seed_all()
        try:
            watch.run(given)
        except OffenceError as error:
            raise offended(error, model) from error
        except Exception:  # noqa: BLE001 -- whatever the user's forward raises: the checks look into that
            continue
        finally:
            del private
        if training:
            return


class _Watch(TorchFunctionMode):
    """One run, in which the tensors that random numbers had a part in are known."""

    def __init__(self, model: nn.Module, is_leaf: Callable[[nn.Module, str], bool]) -> None:
        super().__init__()
        self._model, self._is_leaf = model, is_leaf
        self._paths: dict[nn.Module, str] = {}
        for path, module in model.named_modules():
            self._paths.setdefault(module, path)
        self._inside, self._quiet, self._hidden = [""], 0, False
        self._drawn = dict[int, Tensor]()
        self._met: OffenceError | None = None

    def run(self, inputs: Inputs) -> None:
        """Run the model.

        Raises:
            OffenceError: random numbers control its Python code.
        """
        own = inputs.clone()
        gradients = torch.set_grad_enabled(self._model.training)
        drawing = python_draws(self._model, self._steered)
        with suppress(OffenceError), gradients, meeting_modules(self._call), drawing, self:
            self._model(*own.args, **own.kwargs)
        if self._met is not None:
            raise self._met

    def _steered(self, source: str, line: str) -> None:
        self._hidden = True
        if self._quiet:
            return
        error = OffenceError(self._inside[-1], steers(source), REMEDY, line)
        # The user's code may catch it.
        self._met = self._met or error
        raise error

    def _call(self, run: Callable[..., Any], module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401 -- any module
        path = self._paths.get(module)
        if path is None or self._quiet or not path:
            return run(*args, **kwargs)
        self._inside.append(path)
        try:
            return self._whole(run, args, kwargs) if self._is_leaf(module, path) else run(*args, **kwargs)
        finally:
            self._inside.pop()

    def _whole(self, run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
        """Call what is kept whole. It may draw, but not give Python what comes of that."""
        self._quiet, self._hidden, before = self._quiet + 1, False, reference_runs.torch_states()
        try:
            out = run(*args, **kwargs)
        finally:
            self._quiet -= 1
        if has_numbers(out) and (self._hidden or reference_runs.torch_states() != before):
            self._steered(OUT_OF_WHOLE, running_line())
        return out

    @override
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        kwargs = kwargs or {}
        if self._quiet:
            return func(*args, **kwargs)
        name = getattr(func, "__name__", str(func))
        given = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        drawn = any(id(tensor) in self._drawn for tensor in given)
        operator = registry.of_function(func) or registry.of_method(name)
        if drawn and operator is not None and operator.refused is not None:
            self._steered(f"{name} of a tensor that was drawn", running_line())
        before = reference_runs.torch_states()
        out = func(*args, **kwargs)
        if drawn or (
            self._drew(before, args, kwargs) and not (operator is not None and operator.draws == "regularizes")
        ):
            written = args[:1] if name == "__setitem__" else ()
            self._note((out, written))
        return out

    def _drew(self, before: tuple[bytes, ...], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether a call drew random numbers: from a global generator, or from one that it was given."""
        given = any(isinstance(value, torch.Generator) for value in (*args, *kwargs.values()))
        return given or reference_runs.torch_states() != before

    def _note(self, values: object) -> None:
        for leaf in pytree.tree_leaves(values):
            if isinstance(leaf, Tensor):
                self._drawn[id(leaf)] = leaf
