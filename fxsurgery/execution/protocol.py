"""Messages of a worker process to its parent: plain data, in a format that runs no code."""

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
    """Return the message with the result of `work`, or with the error that it raised."""
    try:
        report = work()
        content = {
            "records": plain(report.records, "records"),
            "tensors": None if report.tensors is None else dict(report.tensors),
            "failure": report.failure,
        }
    except SurgeryError as error:
        content = {"error": type(error).__name__, "text": str(error), "traceback": traceback.format_exc()}
    except BaseException as error:  # noqa: BLE001 -- it is raised again, in the other process
        content = {"error": None, "text": repr(error), "traceback": traceback.format_exc()}
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def report_of(message: bytes, job: Job) -> Report:
    """Return the result in a message.

    Raises:
        SurgeryError: the message holds such an error; raised with the same class and text.
        WorkerError: the message holds another error.
    """
    content: dict[str, Any] = torch.load(io.BytesIO(message), map_location="cpu", weights_only=True)
    if "error" in content:
        raise _error_of(content, job)
    return Report(tuple(content["records"]), content["tensors"], content["failure"])


def _error_of(content: dict[str, Any], job: Job) -> SurgeryError:
    kind = getattr(errors, content["error"] or "", None)
    if isinstance(kind, type) and issubclass(kind, SurgeryError):
        error = kind(content["text"])
        error.add_note(f"in the process of job {job.name!r}:\n{content['traceback']}")
        return error
    return WorkerError(
        f"job {job.name!r} ended with {content['text']} in its process; correct what it shows:\n{content['traceback']}"
    )
