"""What a process that worked on a job tells the one that asked for it: plain data, as bytes that run no code."""

import io
import traceback
from collections.abc import Callable
from typing import Any

import torch

from fxsurgery import errors
from fxsurgery.errors import SurgeryError, WorkerError
from fxsurgery.execution.job import Job
from fxsurgery.execution.worker import Report
from fxsurgery.training.snapshot import plain


def message_of(work: Callable[[], Report]) -> bytes:
    """What `work` gives, or the error that it ends with, whatever error that is."""
    try:
        report = work()
        content = {
            "records": plain(report.records, "records"),
            "tensors": None if report.tensors is None else dict(report.tensors),
            "failure": report.failure,
        }
    except SurgeryError as error:
        content = {"error": type(error).__name__, "said": str(error), "traceback": traceback.format_exc()}
    except BaseException as error:  # noqa: BLE001 -- it is raised again, in the other process
        content = {"error": None, "said": repr(error), "traceback": traceback.format_exc()}
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def report_of(message: bytes, job: Job) -> Report:
    """What a message tells.

    Raises:
        SurgeryError: the error that it tells of, of the same class and with the same words.
        WorkerError: it tells of another one.
    """
    told: dict[str, Any] = torch.load(io.BytesIO(message), map_location="cpu", weights_only=True)
    if "error" in told:
        raise _error_of(told, job)
    return Report(tuple(told["records"]), told["tensors"], told["failure"])


def _error_of(told: dict[str, Any], job: Job) -> SurgeryError:
    kind = getattr(errors, told["error"] or "", None)
    if isinstance(kind, type) and issubclass(kind, SurgeryError):
        error = kind(told["said"])
        error.add_note(f"in the process of job {job.name!r}:\n{told['traceback']}")
        return error
    return WorkerError(
        f"job {job.name!r} ended with {told['said']} in its process; correct what it shows:\n{told['traceback']}"
    )
