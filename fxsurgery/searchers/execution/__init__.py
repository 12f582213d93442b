"""Running trainings that stand alone: here, in other processes, or on other machines, to the same end."""

from fxsurgery.searchers.execution.job import Ended, Job
from fxsurgery.searchers.execution.workshop import TIME_UP, Executor, Workshop

__all__ = ["TIME_UP", "Ended", "Executor", "Job", "Workshop"]
