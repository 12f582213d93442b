"""Make your own PyTorch model smaller and faster by surgery on its torch.fx graph."""

from fxsurgery.budget import Budget, Cost, Spend
from fxsurgery.capture import capture
from fxsurgery.errors import (
    BudgetError,
    CaptureError,
    DataError,
    DeviceError,
    DivergedError,
    ExportError,
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
from fxsurgery.optimize import optimize, plan
from fxsurgery.plan import Plan
from fxsurgery.program import Program
from fxsurgery.result import Result, load
from fxsurgery.searchers.dnal import Dnal
from fxsurgery.searchers.ectonas import Ectonas
from fxsurgery.searchers.prune import Prune
from fxsurgery.training import Task

__all__ = [
    "Budget",
    "BudgetError",
    "CaptureError",
    "Cost",
    "DataError",
    "DeviceError",
    "DivergedError",
    "Dnal",
    "Ectonas",
    "ExportError",
    "Inspection",
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
