"""What a user asks of `optimize`, checked, captured and made ready, before anything trains."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from importlib.metadata import version
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from fxsurgery.batch_layout import Statement, by_position, statement_of
from fxsurgery.budget import Budget, Spend
from fxsurgery.capture import capture, guess_inputs
from fxsurgery.deploy import Timer, resolve_target
from fxsurgery.errors import BudgetError, CaptureError, DataError, DeviceError, RunError, SurgeryError, TrainingError
from fxsurgery.execution import Executor, JobRunner
from fxsurgery.inputs import Inputs
from fxsurgery.option_text import shown
from fxsurgery.option_types import Count, OptionalFilePath, Range, Seed, check_fields
from fxsurgery.program import Program
from fxsurgery.runs.identity import fingerprint, told
from fxsurgery.runs.layout import ENVIRONMENT
from fxsurgery.runs.run_directory import RunDir
from fxsurgery.searchers.common.latency import LatencyModel
from fxsurgery.searchers.common.settings import Settings
from fxsurgery.searchers.ectonas import DEFAULT_SPEND
from fxsurgery.searchers.methods import METHODS, Method, method_of
from fxsurgery.training import Accumulate, MixedPrecision, Progress, Task, resolve
from fxsurgery.training.device import join, processes, require_real
from fxsurgery.training.evaluate import require_ends
from fxsurgery.training.finite import not_finite, wrong_values
from fxsurgery.training.invocation import addressed

_DATA_LINE = "fxsurgery.optimize(model, {}train_data=(images, labels), val_data=(images, labels))"


@dataclass(frozen=True, eq=False, kw_only=True)
class OptimizeRequest:
    """The arguments of `fxsurgery.optimize`, which tells what each is."""

    model: nn.Module
    method: str | None = None
    train_data: Any = None
    val_data: Any = None
    test_data: Any = None
    budget: Budget | None = None
    loss: Callable[..., Any] | None = None
    metric: Any = None
    trained: bool = True
    config: Settings | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    spend: Spend | None = None
    executor: Executor = "in-process"
    workers: Annotated[int | None, Range(least=1, below=10**6)] = None
    example_inputs: Sequence[Any] | Tensor | None = None
    example_kwargs: Mapping[str, Any] | None = None
    batch_dims: Statement = None
    leaf_modules: tuple[type[nn.Module], ...] = ()
    batch_size: Count = 64
    seed: Seed = 0
    device: str | None = None
    target: str = "local"
    mixed_precision: MixedPrecision | None = None
    accumulate: Accumulate = 1
    run_dir: OptionalFilePath = None
    resume: bool = False
    verbose: bool = True

    @property
    def data_free(self) -> bool:
        """Whether there is nothing but the model."""
        return self.train_data is None and self.val_data is None


@dataclass(frozen=True, eq=False)
class PreparedRun:
    """What was asked for, made ready."""

    ask: OptimizeRequest
    method: Method
    settings: Settings
    budget: Budget | None
    program: Program
    task: Task | None
    """`None` where there are no data: the task is then made of the model."""
    progress: Progress
    run: RunDir
    latency: LatencyModel | None
    """The latency on the target, where it matters; as it was measured before a kill."""
    workshop: JobRunner
    asked: Mapping[str, Any]
    """What was asked for as plain JSON."""
    notes: tuple[str, ...] = ()


def prepare(ask: OptimizeRequest) -> PreparedRun:
    """Check what can be checked, capture the model, and open the run directory.

    Raises:
        SurgeryError: one of its children, for each thing that does not fit.
    """
    _check_values(ask)
    method, settings = method_of(ask.method, ask.config, ask.settings, (f.name for f in fields(OptimizeRequest)))
    _check_evolving(ask, method)
    budget = _budget(ask, method, settings)
    where = resolve(ask.device)
    workshop = JobRunner(ask.executor, ask.workers, ask.device)
    workshop.check()
    require_real(where)
    if processes() > 1:
        join(where)
    timed = getattr(settings, "front", None) == "latency_ms" or (budget is not None and budget.latency_ms is not None)
    device = resolve_target(ask.target) if timed else None
    task = _task(ask, method, settings)
    if task is not None:
        require_ends(task)
    examples, notes = _examples(ask, task)
    progress = Progress(verbose=ask.verbose)
    for note in notes:
        progress.note(f"note: {note}")
    said = ask.batch_dims if task is None else task.batch_dims
    program = _captured(ask.model, examples, ask.leaf_modules, said, guessed=notes)
    task = _located(ask, task, program)
    _require_trainable(program, settings, trained=ask.trained)
    _require_answers(program, "the example inputs" if task is None or ask.example_inputs is not None else "train_data")
    asked = _asked(ask, method, settings, budget, program, task, timed=timed)
    run = _run(ask, asked)
    latency = None
    if device is not None:
        latency = LatencyModel(timer=Timer(device, program, ask.seed), original=program, budget=budget, run=run)
    return PreparedRun(
        ask, method, settings, budget, program, task, progress, run, latency, workshop, asked, (*notes, *run.notes)
    )


def _run(ask: OptimizeRequest, asked: Mapping[str, Any]) -> RunDir:
    if ask.resume and ask.run_dir is None:
        raise SurgeryError("resume=True continues the run of a directory: pass run_dir= as well")
    return RunDir() if ask.run_dir is None else RunDir.open(ask.run_dir, asked, resume=ask.resume)


def _check_evolving(ask: OptimizeRequest, method: Method) -> None:
    """Refuse what only a method that trains many networks can follow."""
    given = [n for n in ("spend", "executor", "workers") if getattr(ask, n) != getattr(OptimizeRequest, n)]
    if given and not method.evolves:
        others = ", ".join(f"method={m.name!r}" for m in METHODS.values() if m.evolves)
        raise SurgeryError(
            f"{given[0]}= is for {others}, which trains many networks; leave it out, since method={method.name!r} "
            "trains one, for as many epochs as its settings say"
        )
    if ask.workers is not None and ask.executor == "in-process":
        raise SurgeryError(
            "workers= is for executor='processes' or 'ray'; leave it out, since one network trains at a time in-process"
        )


def _budget(ask: OptimizeRequest, method: Method, settings: Settings) -> Budget | None:
    """What was given; half the MACs where a method needs one."""
    if ask.budget is not None or method.evolves or getattr(settings, "penalty", None) is not None:
        return ask.budget
    return Budget(macs=0.5)


def _check_values(ask: OptimizeRequest) -> None:
    if not isinstance(ask.model, nn.Module):
        raise SurgeryError(f"optimize takes a torch.nn.Module, not a {type(ask.model).__name__}")
    if not isinstance(ask.budget, Budget | None):
        raise BudgetError(f"budget={shown(ask.budget)} is no budget; name the limit, such as budget=Budget(macs=0.5)")
    if not isinstance(ask.spend, Spend | None):
        raise BudgetError(f"spend={shown(ask.spend)} is no spend; name the limit, such as spend=Spend(epochs=300)")
    examples: object = ask.example_inputs
    if isinstance(examples, str | bytes) or not isinstance(examples, Sequence | Tensor | None):
        raise DataError(f"example_inputs must be a tensor, or a tuple of what the model takes, not {shown(examples)}")
    check_fields(
        ask, SurgeryError, name="optimize", loss=DataError, batch_size=DataError, example_kwargs=DataError,
        leaf_modules=CaptureError, device=DeviceError, target=DeviceError, run_dir=RunError,
    )  # fmt: skip


def _task(ask: OptimizeRequest, method: Method, settings: Settings) -> Task | None:
    if isinstance(ask.train_data, Task):
        own = ("val_data", "test_data", "loss", "metric", "batch_dims")
        if given := [name for name in own if getattr(ask, name) is not None]:
            raise DataError(f"train_data is a Task, which holds these already: leave {', '.join(given)} out")
        return ask.train_data
    if not ask.data_free:
        _require_data(ask)
        task = Task.of(
            ask.train_data, ask.val_data, test_data=ask.test_data, loss=ask.loss, metric=ask.metric,
            batch_size=ask.batch_size, seed=ask.seed,
        )  # fmt: skip
        return task if ask.batch_dims is None else _stated(ask, task)
    named = "" if ask.method is None else f'method="{method.name}", '
    line = _DATA_LINE.format(named if ask.config is None else f"config={type(settings).__name__}(...), ")
    if reason := method.needs_data(settings):
        raise DataError(f"{reason}. With data: call {line}")
    if not ask.trained:
        raise DataError(f"trained=False trains the weights, which needs data: call {line}")
    given = [name for name in ("test_data", "loss", "metric") if getattr(ask, name) is not None]
    if given:
        raise DataError(f"{', '.join(given)} without train_data and val_data: leave them out, or call {line}")
    return None


def _stated(ask: OptimizeRequest, task: Task) -> Task:
    """The task with the batch where the user states it, by the names of the model's parameters too."""
    inputs, _ = task.take_apart(task.first_batch())
    names = inputs.names(ask.model.forward)[: len(inputs.args)]
    return replace(task, batch_dims=by_position(ask.batch_dims, names))


def _require_data(ask: OptimizeRequest) -> None:
    missing = [name for name in ("train_data", "val_data") if getattr(ask, name) is None]
    if missing:
        raise DataError(
            f"{missing[0]} is missing: call {_DATA_LINE.format('')}, each a tuple of tensors, a Dataset or a "
            "DataLoader; or neither, to work without data"
        )


def _examples(ask: OptimizeRequest, task: Task | None) -> tuple[Inputs, tuple[str, ...]]:
    if ask.example_inputs is not None or ask.example_kwargs is not None:
        given = (ask.example_inputs,) if isinstance(ask.example_inputs, Tensor) else tuple(ask.example_inputs or ())
        return Inputs(given, ask.example_kwargs or {}), ()
    if task is not None:
        return addressed(ask.model, task.capture_examples()), ()
    guessed, how = guess_inputs(ask.model)
    return guessed, (how,)


def _located(ask: OptimizeRequest, task: Task | None, program: Program) -> Task | None:
    """The task with the batch where the captured model has it, of the same inputs; as stated where it is."""
    if task is None or task.batch_dims is not None or ask.example_inputs is not None or ask.example_kwargs is not None:
        return task
    if program.batch_dims is None or program.batch_dims == replace(program.examples, batch_dims=None).dims:
        return task
    said = statement_of(program.examples)
    by_name = task.capture_examples().kwargs and not program.example_kwargs
    return replace(task, batch_dims=said[0] if by_name else said)  # a dict by name may be the model's one input


def _require_trainable(program: Program, settings: Settings, *, trained: bool) -> None:
    if broken := not_finite(program.graph_module):
        more = f" and {len(broken) - 3} more" if len(broken) > 3 else ""
        raise TrainingError(
            f"the model's weights are not numbers (NaN): {', '.join(broken[:3])}{more} hold NaN or infinite values; "
            "load a checkpoint that is whole"
        )
    if trained and settings.finetune_epochs <= 0:
        return
    parameters = list(program.graph_module.parameters())
    if parameters and not any(p.requires_grad for p in parameters):
        raise TrainingError(
            "every parameter of the model is frozen, so nothing could be fine-tuned: call model.requires_grad_(True), "
            "or say config=...(finetune_epochs=0)"
        )


def _require_answers(program: Program, source: str) -> None:
    """Refuse example inputs that are not finite and make the outputs so."""
    wrong = wrong_values(tuple(program.examples.tensors))
    if wrong and any(map(wrong_values, program.run_examples())):
        raise DataError(
            f"{source}: the model's outputs on the first samples are not finite, since {wrong}; clean the data"
        )


def _captured(
    model: nn.Module,
    examples: Inputs,
    leaf_modules: tuple[type[nn.Module], ...],
    batch_dims: Statement,
    *,
    guessed: tuple[str, ...],
) -> Program:
    tensor = next((t for t in (*model.parameters(), *model.buffers())), None)
    if tensor is not None:
        examples = examples.map(lambda x: x.to(tensor.device))
    named = {"example_kwargs": examples.kwargs} if examples.kwargs else {}
    try:
        return capture(model, *examples.args, leaf_modules=leaf_modules, batch_dims=batch_dims, **named)
    except CaptureError as error:
        if not guessed:
            raise
        raise CaptureError(f"{error}\n  What it is called with was a guess: {'; '.join(guessed)}") from error


def _asked(  # noqa: PLR0917 -- everything that the result follows from
    ask: OptimizeRequest,
    method: Method,
    settings: Settings,
    budget: Budget | None,
    program: Program,
    task: Task | None,
    *,
    timed: bool,
) -> dict[str, Any]:
    """What the result follows from: settings, model, data; and the environment, which may only change rounding."""
    spend = (ask.spend or DEFAULT_SPEND) if method.evolves else None
    return {
        "method": method.name,
        "settings": {f.name: told(getattr(settings, f.name)) for f in fields(settings)},
        "budget": None if budget is None else {k: v for k, v in asdict(budget).items() if v is not None},
        "data_free": task is None,
        "spend": None if spend is None else {k: v for k, v in asdict(spend).items() if v is not None},
        "trained": ask.trained,
        "seed": ask.seed,
        "batch_size": ask.batch_size,
        "mixed_precision": ask.mixed_precision,
        "accumulate": ask.accumulate,
        "target": ask.target if timed else None,
        "task": {} if task is None else _told_task(task),
        "model": type(ask.model).__name__,
        "fingerprint": fingerprint(program),
        ENVIRONMENT: {
            "fxsurgery": version("fxsurgery"),
            "torch": str(torch.__version__),
            "device": str(resolve(ask.device)),
            "processes": processes(),
            "threads": torch.get_num_threads(),
        },
    }


def _told_task(task: Task) -> dict[str, Any]:
    return {
        **{name: told(getattr(task, name)) for name in ("loss", "metric", "metric_name", "higher_is_better", "select")},
        "split": told(task.split),
        **{name: told(value) for name in ("batch_dims", "val_batches") if (value := getattr(task, name)) is not None},
        "batches": _batches(task),
        "tested": task.test_data is not None,
    }


def _batches(task: Task) -> list[int | None]:
    return [None if isinstance(data, torch.utils.data.IterableDataset) else _length(data) for data in
            (task.train_data, task.val_data)]  # fmt: skip


def _length(data: Any) -> int | None:  # noqa: ANN401
    try:
        return len(data)
    except TypeError:
        return None
