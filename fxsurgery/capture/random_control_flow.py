"""Detection of random numbers that control Python code, which symbolic tracing does not see."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from typing_extensions import override

from fxsurgery.capture import reference_runs
from fxsurgery.capture.diagnostics import running_line, unsupported_code
from fxsurgery.capture.draws import OUT_OF_LEAF, REMEDY, draw_message, has_python_values, python_draws
from fxsurgery.capture.interception import intercepting_modules
from fxsurgery.capture.module_mode import IsLeaf, ModuleMode
from fxsurgery.capture.trace import UnsupportedCodeError
from fxsurgery.inputs import Inputs
from fxsurgery.ops import registry
from fxsurgery.ops.operator import Operator


class RandomControlFlowWatch:
    """Watches runs of a model for random numbers that control Python code outside of leaf modules."""

    def __init__(self, is_leaf: IsLeaf) -> None:
        self._is_leaf = is_leaf
        self._error: UnsupportedCodeError | None = None

    def forward(self, model: nn.Module, inputs: Inputs) -> object:
        """Call `model` on `inputs`, unchanged, and watch it; pass this method to `reference_runs` as `forward`."""
        mode = _Watch(model, self._is_leaf)
        try:
            with intercepting_modules(mode.call), python_draws(model, mode.on_draw), mode:
                return model(*inputs.args, **inputs.kwargs)
        finally:
            self._error = self._error or mode.error

    def refuse(self, model: nn.Module) -> None:
        """Raise if random numbers controlled Python code in a watched run.

        Raises:
            CaptureError: it names the module and the line.
        """
        if self._error is not None:
            raise unsupported_code(self._error, model) from self._error


class _Watch(ModuleMode):
    """One watched run, with the set of tensors that depend on random numbers."""

    def __init__(self, model: nn.Module, is_leaf: IsLeaf) -> None:
        super().__init__(model, is_leaf)
        self.error: UnsupportedCodeError | None = None
        """The first offending draw; None without one."""
        self._drew_in_python = False
        self._random = dict[int, Tensor]()

    def on_draw(self, source: str, line: str) -> None:
        """Record that Python received a random number."""
        self._drew_in_python = True
        if not self.suspended and self.error is None:
            self.error = UnsupportedCodeError(self._inside[-1], draw_message(source), REMEDY, line)

    @override
    def on_module(
        self, run: Callable[..., Any], module: nn.Module, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        return self._call_leaf(run, args, kwargs) if self._is_leaf(module, path) else run(*args, **kwargs)

    def _call_leaf(self, run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a leaf module, which may draw random numbers but not return Python values that depend on them."""
        self._drew_in_python, before = False, reference_runs.torch_states()
        self.suspended += 1
        try:
            out = run(*args, **kwargs)
        finally:
            self.suspended -= 1
        if has_python_values(out) and (self._drew_in_python or reference_runs.torch_states() != before):
            self.on_draw(OUT_OF_LEAF, running_line())
        return out

    @override
    def on_function(self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        is_random = bool(self._random) and any(id(leaf) in self._random for leaf in pytree.tree_leaves((args, kwargs)))
        if is_random and (operator := _operator(func, name)) is not None and operator.unsupported is not None:
            self.on_draw(f"{name} of a random tensor", running_line())
        before = reference_runs.torch_states()
        out = func(*args, **kwargs)
        if is_random or (self._drew(before, args, kwargs) and not _regularizes(func, name)):
            written = args[:1] if name == "__setitem__" else ()
            self._mark_random((out, written))
        return out

    def _drew(self, before: tuple[bytes, ...], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Return True if a call drew random numbers from a global generator or from one among its arguments."""
        has_generator = any(map(_is_generator, map(type, (*args, *kwargs.values()))))
        return has_generator or reference_runs.torch_states() != before

    def _mark_random(self, values: object) -> None:
        for leaf in pytree.tree_leaves(values):
            if isinstance(leaf, Tensor):
                self._random[id(leaf)] = leaf


@functools.cache
def _is_generator(kind: type) -> bool:
    """Return True for generator types of PyTorch; cached, since it runs for every argument under a profiler."""
    return issubclass(kind, torch.Generator)


def _operator(func: Any, name: str) -> Operator | None:
    return registry.of_function(func) or registry.of_method(name)


def _regularizes(func: Any, name: str) -> bool:
    """Return True if a function uses random numbers only to regularize its result, which is then not a draw itself."""
    operator = _operator(func, name)
    return operator is not None and operator.draws == "regularizes"
