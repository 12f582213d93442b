"""Watches runs of a model for random numbers that control its Python code, which symbolic tracing misses."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from typing_extensions import override

from fxsurgery.capture import reference_runs
from fxsurgery.capture.diagnostics import offended, running_line
from fxsurgery.capture.draws import OUT_OF_WHOLE, REMEDY, has_numbers, python_draws, steers
from fxsurgery.capture.interception import meeting_modules
from fxsurgery.capture.module_mode import IsLeaf, ModuleMode
from fxsurgery.capture.trace import OffenceError
from fxsurgery.inputs import Inputs
from fxsurgery.ops import registry
from fxsurgery.ops.operator import Operator


class SteeringWatch:
    """Notes whether random numbers controlled Python code, outside modules that are kept whole, in any of its runs."""

    def __init__(self, is_leaf: IsLeaf) -> None:
        self._is_leaf = is_leaf
        self._offence: OffenceError | None = None

    def forward(self, model: nn.Module, inputs: Inputs) -> object:
        """Call `model` on `inputs`, as they are, and watch what it does; to be handed to `reference_runs`."""
        mode = _Watch(model, self._is_leaf)
        try:
            with meeting_modules(mode.call), python_draws(model, mode.steered), mode:
                return model(*inputs.args, **inputs.kwargs)
        finally:
            self._offence = self._offence or mode.offence

    def refuse(self, model: nn.Module) -> None:
        """Refuse `model` where a run of it was controlled by random numbers.

        Raises:
            CaptureError: it names the module and the line.
        """
        if self._offence is not None:
            raise offended(self._offence, model) from self._offence


class _Watch(ModuleMode):
    """One run, in which the tensors that random numbers had a part in are known."""

    def __init__(self, model: nn.Module, is_leaf: IsLeaf) -> None:
        super().__init__(model, is_leaf)
        self.offence: OffenceError | None = None
        """The first that was met."""
        self._hidden = False
        self._drawn = dict[int, Tensor]()

    def steered(self, source: str, line: str) -> None:
        """Note that Python got a random number."""
        self._hidden = True
        if not self.quiet and self.offence is None:
            self.offence = OffenceError(self._inside[-1], steers(source), REMEDY, line)

    @override
    def meet_module(
        self, run: Callable[..., Any], module: nn.Module, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        return self._whole(run, args, kwargs) if self._is_leaf(module, path) else run(*args, **kwargs)

    def _whole(self, run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call what is kept whole. It may draw, but not give Python what comes of that."""
        self._hidden, before = False, reference_runs.torch_states()
        self.quiet += 1
        try:
            out = run(*args, **kwargs)
        finally:
            self.quiet -= 1
        if has_numbers(out) and (self._hidden or reference_runs.torch_states() != before):
            self.steered(OUT_OF_WHOLE, running_line())
        return out

    @override
    def meet_function(self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        drawn = bool(self._drawn) and any(id(leaf) in self._drawn for leaf in pytree.tree_leaves((args, kwargs)))
        if drawn and (operator := _operator(func, name)) is not None and operator.refused is not None:
            self.steered(f"{name} of a tensor that was drawn", running_line())
        before = reference_runs.torch_states()
        out = func(*args, **kwargs)
        if drawn or (self._drew(before, args, kwargs) and not _regularizes(func, name)):
            written = args[:1] if name == "__setitem__" else ()
            self._note((out, written))
        return out

    def _drew(self, before: tuple[bytes, ...], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether a call drew random numbers: from a global generator, or from one that it was given."""
        given = any(map(_is_generator, map(type, (*args, *kwargs.values()))))
        return given or reference_runs.torch_states() != before

    def _note(self, values: object) -> None:
        for leaf in pytree.tree_leaves(values):
            if isinstance(leaf, Tensor):
                self._drawn[id(leaf)] = leaf


@functools.cache
def _is_generator(kind: type) -> bool:
    """Whether a type is that of PyTorch's generators. It is asked of each argument of each call, under a profiler."""
    return issubclass(kind, torch.Generator)


def _operator(func: Any, name: str) -> Operator | None:
    return registry.of_function(func) or registry.of_method(name)


def _regularizes(func: Any, name: str) -> bool:
    """Return True if a function uses random numbers only to regularize its result, which is then not a draw itself."""
    operator = _operator(func, name)
    return operator is not None and operator.draws == "regularizes"
