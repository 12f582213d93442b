"""Running trainings that stand alone: here, in other processes, or on other machines, to the same end."""

from fxsurgery.execution.job import Job, JobResult
from fxsurgery.execution.job_runner import TIME_UP, Executor, JobRunner, Workers

__all__ = ["TIME_UP", "Executor", "Job", "JobResult", "JobRunner", "Workers"]
