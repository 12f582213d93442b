"""The errors that fxsurgery raises, and the text of other errors that they quote."""

from typing import Self


class SurgeryError(Exception):
    """Base class of all errors that fxsurgery raises on purpose."""

    path: tuple[str | int, ...] = ()
    """Path of the argument at fault, outermost first: `("budget", "macs")`; empty if no argument is."""

    def at(self, *path: str | int) -> Self:
        """Return this error with the path of the argument at fault.

        Example:
            >>> SurgeryError("macs=-1: it must be greater than 0").at("budget", "macs").path
            ('budget', 'macs')
        """
        self.path = path
        return self


class ArgumentError(SurgeryError, TypeError):
    """A call passes an argument that does not exist, or omits a required one; the message names the one meant."""


class CaptureError(SurgeryError):
    """A model cannot be captured as a graph; the message names the user's file and line if they are known."""


class TrainOnlyError(CaptureError):
    """A model uses parts only in train mode, which the graph of its eval mode would lose."""


class VerifyError(SurgeryError):
    """A graph breaks an invariant of `Program`, or a pass broke what it promised about the outputs."""


class DifferError(VerifyError):
    """A program does not compute what was promised."""


class NotRunningError(VerifyError):
    """The result of a pass does not run, or the reference that it is compared with does not."""


class PassCrashedError(SurgeryError):
    """A pass raised an exception, which is a bug of the pass. The message names the pass and the log."""


class SpecError(SurgeryError):
    """The text of a pass cannot be parsed, or refers to something that the program does not have."""


class OperatorError(SurgeryError):
    """An operator is declared under a name that is taken, or that PyTorch does not have."""


class BudgetError(SurgeryError):
    """A budget is malformed, or cannot be reached; the message says what can be reached."""


class StructureError(SurgeryError):
    """A program has nothing that the requested surgery could change; the message says why."""


class DataError(SurgeryError):
    """The data do not fit the model: an empty loader, a batch of another shape, no inputs."""


class TrainingError(SurgeryError):
    """Training cannot continue, e.g. because the loss is not finite or not a scalar."""


class DivergedError(TrainingError):
    """A loss, or a weight after the last step, is not finite."""

    retriable: bool = True
    """Whether a lower learning rate may help: not where the data or the initial weights are at fault."""


class CallbackError(SurgeryError):
    """A callback or a logger raised; the message names it, and the cause is chained."""


class WorkerError(SurgeryError):
    """A worker process died repeatedly, or raised an unexpected error; the message names the job."""


class ExportError(SurgeryError):
    """A model cannot be exported, or the exported file disagrees with the model."""


class DeviceError(SurgeryError):
    """A device or target does not exist, or cannot run the model."""


class MissingExtraError(SurgeryError):
    """An optional package is not installed; the message names the extra that installs it."""


class RunError(SurgeryError):
    """A run directory or saved result cannot be written or read, or belongs to something else."""


class SavingError(SurgeryError):
    """A program cannot be saved or written as code, or a saved one requires what loading does not do."""


class ConfigError(SurgeryError):
    """A config file or a command-line flag is invalid; the message says where."""


class SourceError(SurgeryError):
    """The model or data of a command, given as `module:name` or as a file, cannot be imported, built or read."""


def reason_of(error: BaseException) -> str:
    """Return the text of an error; the name of its type if it has none.

    Example:
        >>> reason_of(ValueError("no 3")), reason_of(AssertionError())
        ('no 3', 'AssertionError')
    """
    return str(error).strip() or type(error).__name__


def first_line(error: BaseException) -> str:
    r"""Return the first line of the text of an error; the name of its type if it has none.

    Example:
        >>> first_line(RuntimeError("size 3\nat line 7")), first_line(AssertionError())
        ('size 3', 'AssertionError')
    """
    return reason_of(error).splitlines()[0]


def typed_reason(error: BaseException, *, short: bool = False) -> str:
    """Return the type of an error and its text, or the type alone if there is no text.

    Args:
        error: the error.
        short: only the first line of the text.

    Example:
        >>> typed_reason(ValueError("no 3")), typed_reason(AssertionError())
        ('ValueError: no 3', 'AssertionError')
    """
    name, text = type(error).__name__, first_line(error) if short else reason_of(error)
    return name if text == name else f"{name}: {text}"
