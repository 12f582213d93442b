"""The arguments of `optimize`, each declared once with its type, bounds, default and help text.

The signatures of `optimize` and `plan`, the keys of the config file, the flags of the command line and the identity of
a run are derived from the fields of `Arguments` and of each method's settings.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal, TypeAlias

from torch import nn

from fxsurgery.batch_layout import Statement
from fxsurgery.budget import Budget, Spend
from fxsurgery.errors import BudgetError, CaptureError, DataError, DeviceError, RunError, SpecError, SurgeryError
from fxsurgery.example_inputs import ExampleInputs, require_form
from fxsurgery.execution import Executor, Workers
from fxsurgery.option_text import class_fault, shown
from fxsurgery.option_types import Count, OptionalFilePath, Seed, check_fields, hints_of
from fxsurgery.searchers.common.layer_names import require_layers
from fxsurgery.searchers.common.settings import Settings
from fxsurgery.searchers.dnal import Dnal
from fxsurgery.searchers.ectonas import EvolutionSettings
from fxsurgery.searchers.methods import MethodName
from fxsurgery.searchers.prune import Prune
from fxsurgery.training import Accumulate, Callback, MemoryFormat, MixedPrecision
from fxsurgery.training.probe import Auto
from fxsurgery.training.trackers import Logger

CALLED: ContextVar[str] = ContextVar("CALLED", default="optimize")
"""Function whose arguments are checked, for messages."""

Panel: TypeAlias = Literal["Model and inputs", "Data", "What to make", "Training", "What to keep"]
"""Section of the command-line help that lists a flag."""
Recorded: TypeAlias = Literal["as given", "resolved", "with the task", "with the program", "environment", "not"]
"""How the identity of a run includes an argument: its value, its resolved value, or as part of something else."""


@dataclass(frozen=True)
class Argument:
    """Declaration of an argument apart from its type: metadata of `Annotated`."""

    recorded: Recorded = "not"
    panel: Panel | None = None
    """Section of the help; `None` if the command line has no flag for the argument."""
    metavar: str | None = None
    """Placeholder of the value in the help; empty for a switch."""
    flags: tuple[str, ...] = ()
    """Flags, the long form first; by default the name with `-` for `_`."""
    error: type[SurgeryError] = SurgeryError
    """Error that an invalid value raises."""
    help: str | None = None
    """Help of the flag if the flag negates the argument."""


@dataclass(frozen=True, kw_only=True)
class PlainArguments:
    """Arguments that are numbers or strings: the same in Python, in a config file and as flags."""

    method: Annotated[MethodName | None, Argument("resolved", "What to make", flags=("--method", "-m"))] = None
    """Search method: `dnal` (learned gates, the default), `prune` (a simple importance) or `ectonas` (evolution).

    `prune` ranks channels by magnitude, BN-gamma, Taylor or random importance; `ectonas` grows and shrinks the network,
    and trains many candidates."""
    budget: Annotated[Budget | None, Argument("resolved", "What to make", "NAME=AMOUNT", ("--budget", "-b"))] = None
    """Upper limits on params, macs or latency_ms of the result; half the MACs by default, except for `ectonas`."""
    spend: Annotated[Spend | None, Argument("resolved", "What to make", "NAME=AMOUNT")] = None
    """Search budget of `ectonas`: epochs, summed over all its networks, or seconds; 1000 epochs by default."""
    target: Annotated[str, Argument("resolved", "What to make", "TARGET", error=DeviceError)] = "local"
    """Device on which a budget of latency_ms is measured: `local` or `cuda`.

    Latency is measured for one sample, through ONNX Runtime: the original once, every other network interleaved with
    the original. Such a result depends on the measurements, not on the seed alone. The upper bound of its 95 % interval
    is within the budget; otherwise an error is raised."""
    trained: Annotated[
        bool,
        Argument("as given", "Training", "", ("--not-trained",), help="The weights are not trained: train them first."),
    ] = True
    """Whether the weights are trained already; if not, they are trained first."""
    batch_size: Annotated[Count, Argument("as given", "Data", "N", error=DataError)] = 64
    """Batch size for data that are not a `DataLoader`."""
    device: Annotated[str | None, Argument("environment", "Training", "DEVICE", error=DeviceError)] = None
    """Device to train on: `cpu` or `cuda`; by default the GPU if there is one."""
    seed: Annotated[Seed, Argument("as given", "Training", "N")] = 0
    """Random seed: the same seed gives the same result on the same machine."""
    mixed_precision: Annotated[MixedPrecision | Auto | None, Argument("as given", "Training")] = None
    """Mixed precision of the training; the setting of `accelerate launch` by default.

    `auto` chooses `bf16` if it reduces the time of 12 steps on copies of the model to 0.9 or less and changes their
    losses by at most 2 %. Such a result depends on the measurement, not on the seed alone."""
    memory_format: Annotated[MemoryFormat | Auto | None, Argument("as given", "Training")] = None
    """Memory format of 2-D and 3-D convolution weights during training; unchanged by default.

    `auto` chooses `channels_last` if it is as much faster and changes the losses by at most 0.1 %. If both arguments
    are `auto`, all four combinations are measured. The choice is noted, and kept in the run directory."""
    accumulate: Annotated[Accumulate, Argument("as given", "Training", "N")] = 1
    """Gradient accumulation: number of batches per optimizer step."""
    executor: Annotated[Executor, Argument("not", "Training")] = "in-process"
    """Where `ectonas` trains its networks: one after another in-process, in several processes, or on a Ray cluster.

    The result is the same. `processes` forks one process for each network that trains concurrently."""
    workers: Annotated[Workers | None, Argument("not", "Training", "N")] = None
    """Number of networks that `processes` or `ray` train concurrently; the number of cores by default."""
    run_dir: Annotated[OptionalFilePath, Argument("not", "What to keep", "DIR", error=RunError)] = None
    """Directory that records the run, so that a killed run can be resumed.

    It holds settings, journal, snapshots, the best model, the result and a report."""
    resume: Annotated[bool, Argument("not", "What to keep", "")] = False
    """Resume the run in the run directory, with the same result; start it if there is none."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Arguments(PlainArguments):
    """Every argument of `optimize` except single settings by name."""

    model: Annotated[nn.Module, Argument("with the program")] = field(kw_only=False)
    """Any module that `fxsurgery.capture` accepts; it is not modified."""
    train_data: Annotated[Any, Argument("with the task")] = None
    """Training data.

    A `DataLoader`, a `Dataset`, tensors or arrays `(inputs, targets)`, or a dict of them; or a
    `fxsurgery.Task`, which also holds validation data, loss and metric. Batches may be dicts with a key
    `labels`, `label`, `targets`, `target` or `y`: the other entries are passed to the model by name."""
    val_data: Annotated[Any, Argument("with the task")] = None
    """Validation data, used for every choice that the search makes."""
    test_data: Annotated[Any, Argument("with the task")] = None
    """Test data, used once, for the result."""
    loss: Annotated[Callable[..., Any] | None, Argument("with the task", error=DataError)] = None
    """`loss(output, target)`, which returns a scalar or a dict of scalars; cross-entropy by default.

    `output` is what the model returns; the default uses it, or its `logits`."""
    metric: Annotated[Any, Argument("with the task")] = None
    """Metric that networks are compared by: a name, a function, or an object with `update` and `compute`.

    Names: `accuracy`, `top5` (`top3`, ...), `mse`, `rmse`, `mae`, `r2`, `f1`, or any class of torchmetrics, such as
    `MulticlassF1Score` (extra `torchmetrics`). A function is called as `metric(output, target)`; higher is better
    unless it has an attribute `higher_is_better` that is false. By default accuracy for the default loss, else the
    loss."""
    keep: Annotated[str | nn.Module | Collection[str | nn.Module], Argument("resolved", error=SpecError)] = ()
    """Layers that keep their number of output units, by name, pattern or module: `("head", "stem.*")`.

    A name is a module's path in the model, or that of a width as `fxsurgery.inspect` lists it; it covers all layers
    inside. A pattern is one of `fnmatch`. Layers that share channels with a kept layer, as through a residual sum, keep
    theirs too. A kept layer is never removed, grown or given gates."""
    ratios: Annotated[Mapping[str | nn.Module, float] | None, Argument("resolved", error=SpecError)] = None
    """Fraction of their units that some layers keep: `{"layer4.*": 0.5}`; names and patterns as in `keep`.

    Rounded to a multiple of `align`. The rest of the network meets the budget; without `budget`, nothing else shrinks.
    An exact name takes precedence over a pattern, and the last one of several patterns counts. A container or a pattern
    leaves out the channels that its layers share with layers outside of it; an exact name of a layer changes all layers
    that share its channels. Not for `ectonas`."""
    config: Annotated[Settings | None, Argument("resolved")] = None
    """Settings of the method: `Dnal(...)`, `Prune(...)` or `Ectonas(...)`; it implies `method`."""
    example_inputs: Annotated[ExampleInputs | None, Argument("with the program", error=DataError)] = None
    """Inputs to capture the model on; from the training data by default.

    A tensor, a tuple of positional inputs, a dict of keyword inputs, or a `DataLoader`; NumPy arrays are accepted."""
    example_kwargs: Annotated[Mapping[str, Any] | None, Argument("with the program", error=DataError)] = None
    """Keyword inputs to capture the model on, in addition to `example_inputs`."""
    batch_dims: Annotated[Statement, Argument("with the task")] = None
    """Batch dim of the inputs; inferred from data and model by default.

    `batch_dims=1` for all inputs, or one for each input, `{"text": None, "offsets": 0}`, as in `fxsurgery.capture`."""
    leaf_modules: Annotated[tuple[type[nn.Module], ...], Argument("with the program", error=CaptureError)] = ()
    """Module classes to keep as leaves: one node of the graph per call, never changed."""
    finetune: Annotated[Callable[[Any], Any] | None, Argument("resolved")] = None
    """Your own function in place of the last fine-tune stage: `finetune(model)` trains in place, or returns the model.

    It must keep layers and shapes. It gets the pruned network in train mode, on the device of the run, and is called
    once: a resumed run reads its weights back. Works without data, too."""
    teacher: Annotated[nn.Module | Literal["original"] | None, Argument("resolved")] = None
    """A trained network to distill from while fine-tuning, or `original`, the model itself before surgery.

    Its outputs must have the shapes of the model's. The settings `distillation_weight` and `distillation_temperature`
    say how."""
    callbacks: Annotated[Callback | Sequence[Callback], Argument()] = ()
    """Observers of the run, one or several of `fxsurgery.Callback`, which get its stages, steps and scores."""
    loggers: Annotated[Logger | Sequence[Logger], Argument()] = ()
    """Where to log losses, scores and costs: `tensorboard`, `wandb`, `mlflow`, or a tracker of Accelerate.

    One or several; names take an extra of the same name. TensorBoard writes to `logs` in the run directory, or to
    `fxsurgery-logs` in the current directory without one."""
    verbose: Annotated[bool, Argument()] = True
    """Whether to show progress."""

    def __post_init__(self) -> None:
        _check_objects(self)
        kinds = {name: argument.error for name, argument in arguments_of(Arguments).items()}
        check_fields(self, SurgeryError, name=CALLED.get(), **kinds)

    @property
    def observers(self) -> tuple[Callback, ...]:
        """The callbacks, whether it is one or several."""
        return (self.callbacks,) if isinstance(self.callbacks, Callback) else tuple(self.callbacks)

    @property
    def kept(self) -> tuple[str | nn.Module, ...]:
        """The entries of `keep`, whether it is one or several."""
        return (self.keep,) if isinstance(self.keep, str | nn.Module) else tuple(self.keep)

    @property
    def data_free(self) -> bool:
        """Whether neither training nor validation data were passed."""
        return self.train_data is None and self.val_data is None


@dataclass(frozen=True, eq=False, kw_only=True)
class OptimizeRequest(Arguments):
    """A call of `optimize`: all its arguments."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the method by name, instead of `config`: `greediness=0.5`."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Signature(Dnal, Prune, EvolutionSettings, Arguments):
    """Signature of `optimize` for type checkers: each argument, and each setting of every method by name.

    The default of a setting is that of the method in use; if methods differ, a type checker shows that of `dnal`.
    """


def arguments_of(owner: type[Any]) -> Mapping[str, Argument]:
    """Return the declaration of each field of a class that has one, in the order of the fields."""
    hints = hints_of(owner)
    found = {f.name: getattr(hints[f.name], "__metadata__", ()) for f in fields(owner)}
    return {
        name: one for name, metadata in found.items() if (one := next(filter(_is_argument, metadata), None)) is not None
    }


def _is_argument(metadata: object) -> bool:
    return isinstance(metadata, Argument)


def _check_objects(request: Arguments) -> None:
    """Refuse arguments of the wrong type that deserve a more helpful message than `check_fields` has."""
    if not isinstance(request.budget, Budget | type | None):
        raise BudgetError(
            f"budget={shown(request.budget)} is not a Budget; name the limit, such as budget=Budget(macs=0.5)"
        ).at("budget")
    if not isinstance(request.spend, Spend | type | None):
        raise BudgetError(
            f"spend={shown(request.spend)} is not a Spend; name the limit, such as spend=Spend(epochs=300)"
        ).at("spend")
    _check_callbacks(request.callbacks)
    require_layers(request.keep, request.ratios)
    require_form(request.example_inputs)


def _check_callbacks(given: object) -> None:
    """Refuse callbacks that are not instances of `Callback`."""
    for callback in given if isinstance(given, Sequence) else [given]:
        if isinstance(callback, type) and issubclass(callback, Callback):
            raise SurgeryError(class_fault("callbacks", callback)).at("callbacks")
        if not isinstance(callback, Callback):
            raise SurgeryError(
                f"callbacks: {shown(callback)} is not a fxsurgery.Callback; give an instance of a subclass, or a list "
                "of them"
            ).at("callbacks")
