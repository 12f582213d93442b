"""Every error that fxsurgery raises on purpose, and the text of the foreign errors that they quote."""

from typing import Self


class SurgeryError(Exception):
    """The root: `except SurgeryError` catches what fxsurgery foresaw, and nothing else."""

    path: tuple[str | int, ...] = ()
    """The argument that is at fault, from the outside in: `("budget", "macs")`; empty if it is none."""

    def at(self, *path: str | int) -> Self:
        """Return this error with the path of the argument that is at fault.

        Example:
            >>> SurgeryError("macs=-1: it must be greater than 0").at("budget", "macs").path
            ('budget', 'macs')
        """
        self.path = path
        return self


class ArgumentError(SurgeryError, TypeError):
    """A call passes an argument that does not exist, or omits a required one; the message names the one meant."""


class CaptureError(SurgeryError):
    """A model cannot be taken as a graph; the message names the user's file and line where it can."""


class TrainOnlyError(CaptureError):
    """A model uses parts in train mode alone, which the graph of its eval mode would lose."""


class VerifyError(SurgeryError):
    """A graph breaks an invariant of `Program`, or a pass broke what it promised about the outputs."""


class DifferError(VerifyError):
    """A program does not compute what was promised."""


class NotRunningError(VerifyError):
    """What a pass left does not run, or the reference that it is compared with does not."""


class PassCrashedError(SurgeryError):
    """A pass raised: a bug of the pass. The cause is chained; the message names the pass and the log."""


class SpecError(SurgeryError):
    """A pass spec cannot be read, or names what the program does not have."""


class OperatorError(SurgeryError):
    """An operator is declared under a name or a spelling that is taken, or that PyTorch does not have."""


class BudgetError(SurgeryError):
    """A budget is malformed, or cannot be reached; the message says what can."""


class StructureError(SurgeryError):
    """A program has nothing that the asked-for surgery could change; the message says why."""


class DataError(SurgeryError):
    """The user's data does not fit: an empty loader, a batch of another shape, no inputs to work with."""


class TrainingError(SurgeryError):
    """Training cannot go on: a loss that is not finite, or not a scalar."""


class DivergedError(TrainingError):
    """A loss, or a weight after the last step, is not finite."""

    retriable: bool = True
    """Whether a lower learning rate may help: not where the data or the initial weights are at fault."""


class CallbackError(SurgeryError):
    """A callback or a logger raised; the message names it, and the cause is chained."""


class WorkerError(SurgeryError):
    """A process that ran a job died again and again, or raised what nobody foresaw; the message names the job."""


class ExportError(SurgeryError):
    """A model cannot be exported, or the exported file disagrees with the model."""


class DeviceError(SurgeryError):
    """A device or target is not there, or cannot run the model."""


class MissingExtraError(SurgeryError):
    """An optional package is not installed; the message names the extra that installs it."""


class RunError(SurgeryError):
    """A run directory or saved result cannot be written or read, or belongs to something else."""


class SavingError(SurgeryError):
    """A program cannot be saved or written as code, or what was saved asks for what loading does not do."""


class ConfigError(SurgeryError):
    """A config file, or a flag of the command line, says what cannot be understood; the message says where."""


class SourceError(SurgeryError):
    """What a command was told to work with, as `module:name` or as a file, cannot be imported, made or read."""


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
