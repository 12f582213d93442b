"""The one declaration of what a user may ask of `optimize`: each argument with its type, bounds, default and text.

The signatures of `optimize` and `plan`, the config file, the flags of the command line and the identity of a run follow
from the fields of `Arguments` and from those of each method's settings.
"""

import functools
import inspect
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal, ParamSpec, TypeAlias, TypeVar, get_type_hints

from torch import nn

from fxsurgery.batch_layout import Statement
from fxsurgery.budget import Budget, Spend
from fxsurgery.calls import bound
from fxsurgery.errors import BudgetError, CaptureError, DataError, DeviceError, RunError, SurgeryError
from fxsurgery.example_inputs import ExampleInputs, require_form
from fxsurgery.execution import Executor, Workers
from fxsurgery.field_docs import docs_of, one_line
from fxsurgery.option_text import shown
from fxsurgery.option_types import Count, OptionalFilePath, Seed, check_fields, hints_of
from fxsurgery.searchers.common.settings import Settings
from fxsurgery.searchers.dnal import Dnal
from fxsurgery.searchers.ectonas import EvolutionSettings
from fxsurgery.searchers.methods import MethodName
from fxsurgery.searchers.prune import Prune
from fxsurgery.training import Accumulate, Callback, MemoryFormat, MixedPrecision
from fxsurgery.training.probe import Auto
from fxsurgery.training.trackers import Logger

P = ParamSpec("P")
R = TypeVar("R")

ARGUMENTS = "request: the arguments that `fxsurgery.request.Arguments` declares, and single settings by name."
"""What stands in a docstring for the arguments and their texts."""
Panel: TypeAlias = Literal["Model and inputs", "Data", "What to make", "Training", "What to keep"]
"""Where the help of the command line shows a flag."""
Recorded: TypeAlias = Literal["as given", "resolved", "with the task", "with the program", "environment", "not"]
"""How the identity of a run holds an argument: with its value, with what it comes to, or by its part in something."""


@dataclass(frozen=True)
class Argument:
    """What there is to declare of an argument beside its type: metadata of `Annotated`."""

    recorded: Recorded = "not"
    panel: Panel | None = None
    """`None` where the command line has no flag for it."""
    metavar: str | None = None
    """What stands for the value in the help; empty where there is none."""
    flags: tuple[str, ...] = ()
    """As the command line writes it, the long form first; the name with `-` unless given."""
    error: type[SurgeryError] = SurgeryError
    """What a wrong value raises."""
    help: str | None = None
    """What the flag does, if it is the opposite of the argument."""


@dataclass(frozen=True, kw_only=True)
class PlainArguments:
    """The arguments that are numbers and texts: the same in Python, in a config file and as flags."""

    method: Annotated[MethodName | None, Argument("resolved", "What to make", flags=("--method", "-m"))] = None
    """How to search: `dnal` (learned gates, the default), `prune` (a simple importance) or `ectonas` (evolution).

    `prune` ranks by magnitude, BN-gamma, Taylor or random importance; `ectonas` grows and shrinks, and trains many
    networks."""
    budget: Annotated[Budget | None, Argument("resolved", "What to make", "NAME=AMOUNT", ("--budget", "-b"))] = None
    """What the result may take at most: params, macs or latency_ms; half the MACs by default, but for `ectonas`."""
    spend: Annotated[Spend | None, Argument("resolved", "What to make", "NAME=AMOUNT")] = None
    """What `ectonas` may spend at most: epochs, over all its networks, or seconds; 1000 epochs by default."""
    target: Annotated[str, Argument("resolved", "What to make", "TARGET", error=DeviceError)] = "local"
    """Where a budget of latency_ms is measured: `local` or `cuda`.

    It is measured for one sample, through ONNX Runtime: the original once, every other network in turns with the
    original. Such a result depends on the measurements, not on the seed alone; it holds the budget by the upper bound
    of its 95 % interval, or is refused."""
    trained: Annotated[
        bool,
        Argument("as given", "Training", "", ("--not-trained",), help="The weights are not trained: train them first."),
    ] = True
    """Whether the weights are trained; if not, they are trained first."""
    batch_size: Annotated[Count, Argument("as given", "Data", "N", error=DataError)] = 64
    """Samples of a batch, for data that are not a `DataLoader`."""
    device: Annotated[str | None, Argument("environment", "Training", "DEVICE", error=DeviceError)] = None
    """Where to train: `cpu` or `cuda`; the GPU if there is one, by default."""
    seed: Annotated[Seed, Argument("as given", "Training", "N")] = 0
    """Seed of everything random: the same seed gives the same result on the same machine."""
    mixed_precision: Annotated[MixedPrecision | Auto | None, Argument("as given", "Training")] = None
    """Number format of the training; that of `accelerate launch` by default.

    `auto` is `bf16` where 12 steps on copies of the model take at most 0.9 of the time so, and their losses differ by
    2 % at most. Such a result depends on the measurement, not on the seed alone."""
    memory_format: Annotated[MemoryFormat | Auto | None, Argument("as given", "Training")] = None
    """How the weights of 2-D and 3-D convolutions lie in memory while they train; as they are by default.

    `auto` is `channels_last` where that is as much faster and the losses differ by 0.1 % at most. With both
    `auto`, all four combinations are measured. The choice is noted, and kept in the run directory."""
    accumulate: Annotated[Accumulate, Argument("as given", "Training", "N")] = 1
    """Batches per optimizer step, whose gradients are added up."""
    executor: Annotated[Executor, Argument("not", "Training")] = "in-process"
    """Where `ectonas` trains its networks: one by one in-process, in several processes, or on a Ray cluster.

    The result is the same. `processes` forks a process for each network that trains at once."""
    workers: Annotated[Workers | None, Argument("not", "Training", "N")] = None
    """How many networks `processes` or `ray` train at once; as many as there are cores by default."""
    run_dir: Annotated[OptionalFilePath, Argument("not", "What to keep", "DIR", error=RunError)] = None
    """Keep the run here as it goes; a killed run can go on from it.

    It holds settings, journal, snapshots, the best model, the result and a report."""
    resume: Annotated[bool, Argument("not", "What to keep", "")] = False
    """Go on with the run in the run directory, to the same end; begin it if there is none."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Arguments(PlainArguments):
    """Every argument of `optimize` but the single settings."""

    model: Annotated[nn.Module, Argument("with the program")] = field(kw_only=False)
    """Any module that `fxsurgery.capture` can take; it is left bit for bit as it was."""
    train_data: Annotated[Any, Argument("with the task")] = None
    """What to train on.

    A `DataLoader`, a `Dataset`, tensors or arrays `(inputs, targets)`, or a dict of them; or a ready
    `fxsurgery.training.Task`, which then carries validation data, loss and metric too. Batches may be dicts, with a key
    `labels`, `label`, `targets`, `target` or `y`: the model is called by name with the rest."""
    val_data: Annotated[Any, Argument("with the task")] = None
    """What everything is selected on."""
    test_data: Annotated[Any, Argument("with the task")] = None
    """What the result is tested on, once."""
    loss: Annotated[Callable[..., Any] | None, Argument("with the task", error=DataError)] = None
    """`loss(output, target)`, a scalar or several by name; cross-entropy by default.

    `output` is just what the model gives; the default takes it, or its `logits`."""
    metric: Annotated[Any, Argument("with the task")] = None
    """What networks are compared by: a name, a function, or an object with `update` and `compute`.

    Names: `accuracy`, `top5` (`top3`, ...), `mse`, `rmse`, `mae`, `r2`, `f1`, or any class of torchmetrics, such as
    `MulticlassF1Score` (extra `torchmetrics`). A function is called as `metric(output, target)`; higher is better
    unless it has an attribute `higher_is_better` that is false. By default accuracy for the default loss, else the
    loss."""
    config: Annotated[Settings | None, Argument("resolved")] = None
    """The method's own settings, `Dnal(...)`, `Prune(...)` or `Ectonas(...)`; it says the method, too."""
    example_inputs: Annotated[ExampleInputs | None, Argument("with the program", error=DataError)] = None
    """Inputs to capture the model on; from the training data by default.

    A tensor, a tuple of positional inputs, a dict of inputs by name, or a `DataLoader`; arrays of numpy do as well."""
    example_kwargs: Annotated[Mapping[str, Any] | None, Argument("with the program", error=DataError)] = None
    """Inputs to capture the model on, by name, beside `example_inputs`."""
    batch_dims: Annotated[Statement, Argument("with the task")] = None
    """Which dim of the inputs is the batch; inferred from data and model by default.

    `batch_dims=1` for all of them, or by input, `{"text": None, "offsets": 0}`, as for `fxsurgery.capture`."""
    leaf_modules: Annotated[tuple[type[nn.Module], ...], Argument("with the program", error=CaptureError)] = ()
    """Classes of modules to keep whole."""
    finetune: Annotated[Callable[[Any], Any] | None, Argument("resolved")] = None
    """Your own function in place of the last fine-tune stage: `finetune(model)` trains in place, or returns the model.

    It must keep layers and shapes. It gets the pruned network in train mode, on the device of the run, and is called
    once: a resumed run reads its weights back. Works without data, too."""
    teacher: Annotated[nn.Module | Literal["original"] | None, Argument("resolved")] = None
    """A trained network to distill from while fine-tuning, or `original`, the model itself before surgery.

    Its outputs must have the shapes of the model's. The settings `distillation_weight` and `distillation_temperature`
    say how."""
    callbacks: Annotated[Sequence[Callback], Argument()] = ()
    """Observers of the run, instances of `fxsurgery.Callback`, which get its stages, steps and scores as numbers."""
    loggers: Annotated[Logger | Sequence[Logger], Argument()] = ()
    """Where to log losses, scores and costs: `tensorboard`, `wandb`, `mlflow`, or a tracker of Accelerate.

    One or several; names take an extra of the same name. TensorBoard writes to `logs` in the run directory, or to
    `fxsurgery-logs` in the current directory without one."""
    verbose: Annotated[bool, Argument()] = True
    """Show progress."""

    def __post_init__(self) -> None:
        _check_objects(self)
        kinds = {name: argument.error for name, argument in arguments_of(Arguments).items()}
        check_fields(self, SurgeryError, name="optimize", **kinds)

    @property
    def data_free(self) -> bool:
        """Whether there is nothing but the model."""
        return self.train_data is None and self.val_data is None


@dataclass(frozen=True, eq=False, kw_only=True)
class OptimizeRequest(Arguments):
    """What is asked of `optimize`."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    """Single settings of the method by name, in place of `config`: `greediness=0.5`."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Signature(Dnal, Prune, EvolutionSettings, Arguments):
    """What a type checker sees of `optimize`: each argument, and each setting of every method by name.

    The default of a setting is that of the method in use; where methods differ, a type checker shows that of `dnal`.
    """


def front_door(signature: Callable[P, object]) -> Callable[[Callable[[OptimizeRequest], R]], Callable[P, R]]:
    """Let a function of a request be called with the arguments themselves, and give it their signature and texts.

    Args:
        signature: what a type checker takes the signature from.
    """
    del signature
    types, keywords = get_type_hints(Arguments), inspect.Parameter.KEYWORD_ONLY
    parameters = [
        inspect.Parameter("model", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=nn.Module),
        *(
            inspect.Parameter(f.name, keywords, default=f.default, annotation=types[f.name])
            for f in fields(Arguments)
            if f.name != "model"
        ),
        inspect.Parameter("settings", inspect.Parameter.VAR_KEYWORD, annotation=Any),
    ]
    known = inspect.Signature(parameters)

    def decorate(function: Callable[[OptimizeRequest], R]) -> Callable[P, R]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            given = bound(known, function.__name__, args, kwargs).arguments
            return function(OptimizeRequest(**given))

        call.__signature__ = known  # type: ignore[attr-defined]  # where inspect looks first
        call.__doc__ = _documented(function)
        return call

    return decorate


def arguments_of(owner: type[Any]) -> Mapping[str, Argument]:
    """Return what is declared of each field of a class that has a declaration, in the order of the fields."""
    hints = hints_of(owner)
    found = {f.name: getattr(hints[f.name], "__metadata__", ()) for f in fields(owner)}
    return {
        name: one for name, metadata in found.items() if (one := next(filter(_is_argument, metadata), None)) is not None
    }


def _is_argument(metadata: object) -> bool:
    return isinstance(metadata, Argument)


def _check_objects(request: Arguments) -> None:
    """Refuse what is no such object at all, in words of its own."""
    if not isinstance(request.model, nn.Module):
        raise SurgeryError(f"optimize takes a torch.nn.Module, not a {type(request.model).__name__}").at("model")
    if not isinstance(request.budget, Budget | None):
        raise BudgetError(
            f"budget={shown(request.budget)} is no budget; name the limit, such as budget=Budget(macs=0.5)"
        ).at("budget")
    if not isinstance(request.spend, Spend | None):
        raise BudgetError(
            f"spend={shown(request.spend)} is no spend; name the limit, such as spend=Spend(epochs=300)"
        ).at("spend")
    callbacks: object = request.callbacks
    wrong = [c for c in callbacks if not isinstance(c, Callback)] if isinstance(callbacks, Sequence) else [callbacks]
    if wrong:
        is_class = isinstance(wrong[0], type) and issubclass(wrong[0], Callback)
        remedy = f"give an instance: {wrong[0].__name__}()" if is_class else "derive its class from fxsurgery.Callback"
        what = f"the class {wrong[0].__name__}" if is_class else shown(wrong[0])
        raise SurgeryError(f"callbacks must be a list of callbacks, not {what}; {remedy}").at("callbacks")
    require_form(request.example_inputs)


def _documented(function: Callable[..., object]) -> str:
    """The docstring with the text of each argument where it refers to the declaration."""
    texts = docs_of(OptimizeRequest)
    rows = (f"{name}: {one_line(texts[name])}" for name in ("model", *(name for name in texts if name != "model")))
    indent, rest = " " * 4, " " * 8
    wrapped = [textwrap.fill(row, 116, initial_indent=indent, subsequent_indent=rest) for row in rows]
    return (inspect.getdoc(function) or "").replace(f"{indent}{ARGUMENTS}", "\n".join(wrapped))
