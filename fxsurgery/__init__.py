"""Make your own PyTorch model smaller and faster by surgery on its torch.fx graph."""

import sys
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any

from typing_extensions import override

if TYPE_CHECKING:
    from fxsurgery.budget import Budget, Cost, Spend
    from fxsurgery.capture import capture
    from fxsurgery.errors import (
        ArgumentError,
        BudgetError,
        CallbackError,
        CaptureError,
        DataError,
        DeviceError,
        DivergedError,
        ExportError,
        MissingExtraError,
        PassCrashedError,
        RunError,
        SavingError,
        SpecError,
        StructureError,
        SurgeryError,
        TrainingError,
        VerifyError,
    )
    from fxsurgery.inspection import Inspection, inspect
    from fxsurgery.loading import load
    from fxsurgery.optimize import optimize, plan
    from fxsurgery.plan import Plan
    from fxsurgery.program import Program
    from fxsurgery.result import Result
    from fxsurgery.searchers.dnal import Dnal
    from fxsurgery.searchers.ectonas import Ectonas
    from fxsurgery.searchers.prune import Prune
    from fxsurgery.training import Callback, Task

__all__ = [
    "ArgumentError",
    "Budget",
    "BudgetError",
    "Callback",
    "CallbackError",
    "CaptureError",
    "Cost",
    "DataError",
    "DeviceError",
    "DivergedError",
    "Dnal",
    "Ectonas",
    "ExportError",
    "Inspection",
    "MissingExtraError",
    "PassCrashedError",
    "Plan",
    "Program",
    "Prune",
    "Result",
    "RunError",
    "SavingError",
    "SpecError",
    "Spend",
    "StructureError",
    "SurgeryError",
    "Task",
    "TrainingError",
    "VerifyError",
    "capture",
    "inspect",
    "load",
    "optimize",
    "plan",
]

_HOMES = {
    "budget": ("Budget", "Cost", "Spend"),
    "capture": ("capture",),
    "errors": (
        "ArgumentError",
        "BudgetError",
        "CallbackError",
        "CaptureError",
        "DataError",
        "DeviceError",
        "DivergedError",
        "ExportError",
        "MissingExtraError",
        "PassCrashedError",
        "RunError",
        "SavingError",
        "SpecError",
        "StructureError",
        "SurgeryError",
        "TrainingError",
        "VerifyError",
    ),
    "inspection": ("Inspection", "inspect"),
    "loading": ("load",),
    "optimize": ("optimize", "plan"),
    "plan": ("Plan",),
    "program": ("Program",),
    "result": ("Result",),
    "searchers.dnal": ("Dnal",),
    "searchers.ectonas": ("Ectonas",),
    "searchers.prune": ("Prune",),
    "training": ("Callback", "Task"),
}
"""Modules of the package -> the public names that they define. Each is imported when a name of it is first used."""
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


class _Package(ModuleType):
    """This module, of which `capture`, `optimize` and `plan` are the functions, never the submodules of these names."""

    @override
    def __getattr__(self, name: str) -> Any:
        if name in _HOME_OF:
            value = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
            setattr(self, name, value)
            return value
        if not name.startswith("_") and find_spec(f"{__name__}.{name}") is not None:
            return import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    @override
    def __setattr__(self, name: str, value: Any) -> None:
        if name in _HOME_OF and isinstance(value, ModuleType):
            return  # the import system binds submodules to their package
        super().__setattr__(name, value)

    @override
    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *_HOME_OF})


sys.modules[__name__].__class__ = _Package
