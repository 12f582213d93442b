"""The front door: a model in, a smaller one out."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from fxsurgery.budget import Budget
from fxsurgery.capture import capture
from fxsurgery.errors import BudgetError, SurgeryError
from fxsurgery.result import BeforeAfter, Result
from fxsurgery.searchers import dnal
from fxsurgery.searchers.dnal import Dnal
from fxsurgery.training import Progress, evaluate

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
    example_inputs: Sequence[Tensor] | None = None,
    leaf_modules: tuple[type[nn.Module], ...] = (),
    batch_size: int = 64,
    seed: int = 0,
    device: str | None = None,
    verbose: bool = True,
) -> Result:
    """Make `model` smaller. The model passed in is left bit for bit as it was.

    Args:
        model: any module that `fxsurgery.capture.capture` can take.
        method: `"dnal"`.
        train_data: a `DataLoader`, a `Dataset`, or a tuple of tensors or arrays `(inputs, targets)`; or a
            ready `fxsurgery.training.Task`, which then carries validation data, loss and metric too.
        val_data: the same; everything is selected on it.
        test_data: the same; looked at once, for the result.
        budget: what the result may take; half the MACs unless said.
        loss: `loss(output, target)`, a scalar; cross-entropy unless said.
        metric: `metric(output, target)`, higher is better; accuracy for the default loss.
        trained: whether the model's weights are trained. If not, they are trained first.
        config: the method's own settings.
        example_inputs: what to capture the model on; from the first training batch unless said.
        leaf_modules: module classes that the capture shall not look into.
        batch_size: for data given as tensors or as a `Dataset`.
        seed: the same seed gives the same result on the same machine.
        device: `"cpu"` or `"cuda"`; where the model is unless said.
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
        raise SurgeryError(f"optimize takes a torch.nn.Module, not {type(model).__name__}")
    config = config or Dnal()
    if budget is None and config.penalty is None:
        budget = Budget(macs=0.5)
    if budget is not None and budget.latency_ms is not None:
        raise BudgetError("latency budgets are not supported yet: budget params or macs, then result.benchmark()")
    where = _device(model, device)
    task = _task(train_data, val_data, test_data, (loss, metric), batch_size, seed)
    examples = tuple(example_inputs) if example_inputs is not None else task.example_inputs()
    program = capture(model, *(x.to(where.own) for x in examples), leaf_modules=leaf_modules)
    progress = Progress(verbose=verbose)
    _announce(program, budget, config, progress, trained=trained)
    session = dnal.Session(task, seed, progress, str(where.asked))
    outcome = dnal.search(program, budget, config, session, trained=trained)
    metrics = {"val": BeforeAfter(outcome.before.metric, outcome.after.metric)}
    if task.test_data is not None:
        scores = [
            evaluate(p.graph_module, task, data=task.test_data, device=session.device).metric
            for p in (outcome.trained, outcome.program)
        ]
        metrics["test"] = BeforeAfter(*scores)
    return Result(
        program=outcome.program,
        original=outcome.trained,
        metric_name=task.metric_name,
        metrics=metrics,
        notes=(*_left_alone(program), *outcome.notes),
        history=tuple(progress.history),
        gates=outcome.gates,
        seed=seed,
    )
