"""What the runs share in which every torch call is seen: the call, and the module that it is made in."""

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.overrides import TorchFunctionMode
from typing_extensions import override

IsLeaf = Callable[[nn.Module, str], bool]
"""Whether a module, at its path, is kept whole."""


class ModuleMode(TorchFunctionMode):
    """One run of a model: torch calls go by `meet_function`, calls of its inner modules by `meet_module`."""

    def __init__(self, model: nn.Module, is_leaf: IsLeaf) -> None:
        super().__init__()
        self.quiet = 0
        """Above 0, nothing is met."""
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
        if self.quiet:
            return func(*args, **kwargs)
        return self.meet_function(func, getattr(func, "__name__", str(func)), args, kwargs)

    def call(self, run: Callable[..., Any], module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Meet a module call, as `interception.meeting_modules` hands it in."""
        path = self._paths.get(module)
        if self.quiet or path is None or module is self._model:
            return run(*args, **kwargs)
        self._inside.append(path)
        try:
            return self.meet_module(run, module, path, args, kwargs)
        finally:
            self._inside.pop()

    def meet_function(self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a torch function or method, and see to what it does."""
        raise NotImplementedError

    def meet_module(
        self, run: Callable[..., Any], module: nn.Module, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Call the module at `path`, and see to what it does."""
        raise NotImplementedError
