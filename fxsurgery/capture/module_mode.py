"""A torch function mode that tracks which module each torch call is made in."""

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.overrides import TorchFunctionMode
from typing_extensions import override

IsLeaf = Callable[[nn.Module, str], bool]
"""Returns True for a module, given with its path, that is kept as a leaf."""


class ModuleMode(TorchFunctionMode):
    """One run of a model that passes torch calls to `on_function` and calls of submodules to `on_module`."""

    def __init__(self, model: nn.Module, is_leaf: IsLeaf) -> None:
        super().__init__()
        self.suspended = 0
        """While above 0, calls run directly, without `on_function` and `on_module`."""
        self._model, self._is_leaf = model, is_leaf
        self._inside = [""]
        self._paths: dict[nn.Module, str] = {}
        for path, module in model.named_modules():
            self._paths.setdefault(module, path)

    @override
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        kwargs = kwargs or {}
        if self.suspended:
            return func(*args, **kwargs)
        return self.on_function(func, getattr(func, "__name__", str(func)), args, kwargs)

    def call(self, run: Callable[..., Any], module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Handle a module call; pass it to `interception.intercepting_modules` as `on_call`."""
        path = self._paths.get(module)
        if self.suspended or path is None or module is self._model:
            return run(*args, **kwargs)
        self._inside.append(path)
        try:
            return self.on_module(run, module, path, args, kwargs)
        finally:
            self._inside.pop()

    def on_function(self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a torch function or method and process the call; return its result."""
        raise NotImplementedError

    def on_module(
        self, run: Callable[..., Any], module: nn.Module, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Call the module at `path` and process the call; return its result."""
        raise NotImplementedError
