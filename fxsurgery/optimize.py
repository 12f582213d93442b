"""The front door: a model in, a smaller one out."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fxsurgery.analysis.cost import cost
from fxsurgery.analysis.structure import structure
from fxsurgery.budget import Budget
from fxsurgery.capture import capture
from fxsurgery.deploy import export_onnx, resolve_target
from fxsurgery.errors import DataError, SurgeryError
from fxsurgery.inputs import Inputs
from fxsurgery.program import Program
from fxsurgery.result import BeforeAfter, Result
from fxsurgery.searchers import dnal
from fxsurgery.searchers.dnal import Dnal
from fxsurgery.searchers.widths import Measure, space
from fxsurgery.training import Progress, Task, evaluate, resolve
from fxsurgery.training.calls import addressed

METHODS = ("dnal",)


def optimize(  # noqa: PLR0913 -- the front door takes what a user may want to say, each by name
    model: nn.Module,
    *,
    method: str = "dnal",
    train_data: Any = None,  # noqa: ANN401
    val_data: Any = None,  # noqa: ANN401
    test_data: Any = None,  # noqa: ANN401
    budget: Budget | None = None,
    loss: Callable[..., Tensor] | None = None,
    metric: Callable[..., Any] | None = None,
    trained: bool = True,
    config: Dnal | None = None,
    example_inputs: Sequence[Any] | None = None,
    example_kwargs: Mapping[str, Any] | None = None,
    leaf_modules: tuple[type[nn.Module], ...] = (),
    batch_size: int = 64,
    seed: int = 0,
    device: str | None = None,
    target: str = "local",
    verbose: bool = True,
) -> Result:
    """Make `model` smaller. The model passed in is left bit for bit as it was.

    Args:
        model: any module that `fxsurgery.capture.capture` can take.
        method: `"dnal"`.
        train_data: a `DataLoader`, a `Dataset`, tensors or arrays `(inputs, targets)`, or a dict of them; or a
            ready `fxsurgery.training.Task`, which then carries validation data, loss and metric too. Batches may be
            dicts, with a key `labels`, `label`, `targets`, `target` or `y`: the model is called by name with the rest.
        val_data: the same; everything is selected on it.
        test_data: the same; looked at once, for the result.
        budget: what the result may take; half the MACs unless said.
        loss: `loss(output, target)`, a scalar, `output` being just what the model gives; cross-entropy unless said,
            of the output or of its `logits`.
        metric: `metric(output, target)`, higher is better; accuracy for the default loss.
        trained: whether the model's weights are trained. If not, they are trained first.
        config: the method's own settings.
        example_inputs: what to capture the model on, by position; from the training data unless said.
        example_kwargs: the same by name.
        leaf_modules: module classes that the capture shall not look into.
        batch_size: for data given as tensors or as a `Dataset`.
        seed: the same seed gives the same result on the same machine.
        device: where to train, `"cpu"` or `"cuda"`; the GPU where there is one, unless said.
        target: the device that a budget of `latency_ms` is measured on: its median for one sample, through ONNX
            Runtime. Such a result depends on the measurements, not on the seed alone.
        verbose: show progress.

    Returns:
        The smaller model with its costs, scores and log.

    Raises:
        CaptureError: the model cannot be taken as a graph; the message names file and line.
        BudgetError: the budget cannot be reached; the message says what can.
        StructureError: nothing of the model can be removed, and why.
        DataError: the data does not fit the model.
        TrainingError: training failed, e.g. the loss is not finite.
        DeviceError: there is no such device.
    """
    if method not in METHODS:
        raise SurgeryError(f"no method is named {method!r}; there are: {', '.join(METHODS)}")
    if not isinstance(model, nn.Module):
        raise SurgeryError(f"optimize takes a torch.nn.Module, not a {type(model).__name__}")
    config = config or Dnal()
    if budget is None and config.penalty is None:
        budget = Budget(macs=0.5)
    resolve(device)
    measure = _measure(target, seed) if budget is not None and budget.latency_ms is not None else None
    if isinstance(train_data, Task):
        task = train_data
    else:
        _require_data(train_data, val_data)
        task = Task.of(
            train_data, val_data, test_data=test_data, loss=loss, metric=metric, batch_size=batch_size, seed=seed
        )
    given = example_inputs is not None or example_kwargs is not None
    examples = Inputs(tuple(example_inputs or ()), example_kwargs or {}) if given else addressed(model, task.examples())
    program = _captured(model, examples, leaf_modules)
    progress = Progress(verbose=verbose)
    _announce(program, budget, config, progress, trained=trained)
    session = dnal.Session(task, seed, progress, device, measure)
    outcome = dnal.search(program, budget, config, session, trained=trained)
    metrics = {
        "val": BeforeAfter(outcome.before.metric, outcome.after.metric),
        "val, not fine-tuned": BeforeAfter(outcome.before.metric, outcome.pruned.metric),
    }
    if task.test_data is not None:
        ends = (outcome.trained, outcome.program)
        scores = [evaluate(p.graph_module, task, task.test_data, device=device).metric for p in ends]
        metrics["test"] = BeforeAfter(*scores)
    return Result(
        program=outcome.program,
        original=outcome.trained,
        metric_name=task.metric_name,
        metrics=metrics,
        notes=(*program.notes, *_left_alone(program), *outcome.notes, *_latency_note(outcome, budget, measure)),
        history=tuple(progress.history),
        gates=outcome.gates,
        seed=seed,
    )


def _measure(target: str, seed: int) -> Measure:
    """Median latency of one sample on a target, in milliseconds."""
    device = resolve_target(target)

    def latency_ms(program: Program) -> float:
        with tempfile.TemporaryDirectory(prefix="fxsurgery-") as folder:
            exported = export_onnx(
                program.graph_module,
                program.example_inputs,
                Path(folder) / "candidate.onnx",
                example_kwargs=program.example_kwargs,
                exporter="legacy",
                check=False,
            )
            one = program.examples.resized(1)
            report = device.compare({"candidate": exported}, one, rounds=100, seconds=3.0, seed=seed)
            return report["candidate"].p50_ms

    return latency_ms


def _latency_note(outcome: dnal.Outcome, budget: Budget | None, measure: Measure | None) -> tuple[str, ...]:
    if measure is None or budget is None:
        return ()
    before, after = measure(outcome.trained), measure(outcome.program)
    return (f"latency {before:.3g} ms before, {after:.3g} ms after, {budget.latency_ms:g} ms allowed",)


def _require_data(train_data: object, val_data: object) -> None:
    if train_data is None or val_data is None:
        missing = "train_data" if train_data is None else "val_data"
        raise DataError(
            f"{missing} is missing: optimize(model, train_data=(images, labels), val_data=(images, labels)), each "
            "a tuple of tensors, a Dataset or a DataLoader"
        )


def _captured(model: nn.Module, examples: Inputs, leaf_modules: tuple[type[nn.Module], ...]) -> Program:
    tensor = next((t for t in (*model.parameters(), *model.buffers())), None)
    if tensor is not None:
        examples = examples.map(lambda x: x.to(tensor.device))
    named = {"example_kwargs": examples.kwargs} if examples.kwargs else {}
    return capture(model, *examples.args, leaf_modules=leaf_modules, **named)


def _announce(program: Program, budget: Budget | None, config: Dnal, progress: Progress, *, trained: bool) -> None:
    """Say what there is, what can be reached and what is wanted, before anything is trained."""
    found = space(program, align=config.align, inner_only=config.inner_only)
    whole, least = cost(program), found.smallest()
    wanted = dict(budget.limits(whole)) if budget is not None else {}
    for name in ("params", "macs"):
        target = f", budget {wanted[name]:,.0f}" if name in wanted else ""
        progress.note(f"{name}: {getattr(whole, name):,} now, {getattr(least, name):,} at the least{target}")
    for note in program.notes:
        progress.note(f"note: {note}")
    if trained:
        progress.note("taking the weights as trained; pass trained=False to train them first")


def _left_alone(program: Program) -> tuple[str, ...]:
    """What of the model cannot shrink, and why."""
    facts = structure(program)
    total = sum(w.macs for w in facts.work) or 1.0
    fixed = sum(w.macs for w in facts.work if not any(ids.any() for ids in w.dims))
    share = (f"{fixed / total:.1%} of the MACs cannot shrink",) if fixed / total > 0.001 else ()
    unknown = tuple(
        f"operation {op!r} (at {', '.join(nodes[:3])}) has no rule: what flows into it keeps its width"
        for op, nodes in facts.unknown.items()
    )
    return (*share, *unknown)
