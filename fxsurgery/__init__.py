"""Make your own PyTorch model smaller and faster by surgery on its torch.fx graph."""

from fxsurgery.budget import Budget, Cost
from fxsurgery.capture import capture
from fxsurgery.errors import (
    BudgetError,
    CaptureError,
    DataError,
    DeviceError,
    ExportError,
    PassCrashedError,
    SpecError,
    StructureError,
    SurgeryError,
    TrainingError,
    VerifyError,
)
from fxsurgery.inspection import Inspection, inspect
from fxsurgery.optimize import optimize
from fxsurgery.program import Program
from fxsurgery.result import Result
from fxsurgery.searchers.dnal import Dnal
from fxsurgery.training import Task

__all__ = [
    "Budget",
    "BudgetError",
    "CaptureError",
    "Cost",
    "DataError",
    "DeviceError",
    "Dnal",
    "ExportError",
    "Inspection",
    "PassCrashedError",
    "Program",
    "Result",
    "SpecError",
    "StructureError",
    "SurgeryError",
    "Task",
    "TrainingError",
    "VerifyError",
    "capture",
    "inspect",
    "optimize",
]
