"""Run independent trainings in process, in other processes or on other machines, with the same results."""

from fxsurgery.execution.job import Job, JobResult
from fxsurgery.execution.job_runner import TIME_UP, Executor, JobRunner, Workers

__all__ = ["TIME_UP", "Executor", "Job", "JobResult", "JobRunner", "Workers"]
