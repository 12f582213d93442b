"""Distill the outputs of the original network: they are the targets, so no labels are needed.

For class scores z (those of the original are t) at temperature T the loss is `T^2 KL(softmax(t / T) || softmax(z / T))`
(Hinton et al. 2015, Eq. 2-4); for any other output it is the unexplained fraction of the variance,
`mean((z - t)^2) / var(t)`. The loss is the mean over the outputs.

Class scores are recognized by their structure alone: an entry named `logits` or `out`, else a single output of two
dims, (batch, classes), with at least two classes. The classes are in dim 1, except for `logits` of three dims,
(batch, tokens, classes). `classes=False` declares that such an output holds no class scores.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from fxsurgery.argument_names import named
from fxsurgery.errors import DataError
from fxsurgery.inputs import InputPath, Inputs, tensors_in
from fxsurgery.program import Program
from fxsurgery.surroundings import plain_surroundings
from fxsurgery.training.batches import describe_inputs, loader_of
from fxsurgery.training.device import Device
from fxsurgery.training.finite import wrong_values
from fxsurgery.training.invocation import predict
from fxsurgery.training.model_state import borrowed
from fxsurgery.training.task import Task

SCORES = ("logits", "out")
"""Names of the entry that holds class scores, in outputs with names."""
TEMPERATURE = 2.0
_LEAST = 1e-8


@dataclass(frozen=True)
class Output:
    """One floating tensor of a model's output whose dim 0 is the batch."""

    place: InputPath
    classes: int | None = None
    """Dim of the classes; `None` if the output holds other values."""
    probabilities: bool = False
    """Whether the values of the classes are probabilities, not logits."""
    variance: float = 1.0
    """Variance over the samples, averaged over everything else."""

    def logits(self, scores: Tensor) -> Tensor:
        """Return class scores (samples, classes), up to a constant for each sample."""
        scores = scores.float().movedim(self.classes or 1, -1).flatten(0, -2)
        return scores.clamp_min(_LEAST).log() if self.probabilities else scores

    def missed(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the unexplained fraction of the target's variance: 1 for a constant output equal to its mean."""
        return nn.functional.mse_loss(output.float(), target.float()) / self.variance


def outputs_of(program: Program, *, classes: bool | None = None) -> tuple[Output, ...]:
    """Return the outputs of `program` that can be learned, in order, without their statistics.

    Args:
        program: the network, which is run on its examples.
        classes: whether a single output holds class scores; by default if it has two dims.

    Raises:
        DataError: no output is a floating-point tensor with the batch in dim 0, or the inputs have it elsewhere.
    """
    sizes = [examples.batch or 0 for examples in (program.examples, program.examples.grown())]
    try:
        few, more = (_floating(program, inputs) for inputs in (program.examples, program.examples.grown()))
    except DataError as error:
        raise DataError(
            f"to learn from its own answers a model must take inputs with the batch in dim 0, and takes none: {error}. "
            f"Give {named('train_data')} and {named('val_data')}, with your loss"
        ) from error
    found = [
        (place, tensor)
        for place, tensor in few.items()
        if tensor.dim() and place in more and [len(tensor), len(more[place])] == sizes
    ]
    if not found:
        raise DataError(
            "no output of the model is a floating-point tensor with the batch in dim 0, so there is nothing to "
            f"distill; give {named('train_data')} and {named('val_data')}, with your loss"
        )
    by_name = [place for place, tensor in found if place and place[-1] in SCORES and tensor.dim() >= 2]
    lone = len(found) == 1 and (found[0][1].dim() == 2 if classes is None else classes)
    scores = None if classes is False else by_name[0] if by_name else found[0][0] if lone else None
    return tuple(Output(place, _classes_dim(place, tensor) if place == scores else None) for place, tensor in found)


def _floating(program: Program, inputs: Inputs) -> dict[InputPath, Tensor]:
    own = inputs.clone()
    with torch.no_grad():
        return {p: t for p, t in tensors_in(predict(program.graph_module, own)) if t.is_floating_point()}


def _classes_dim(place: InputPath, tensor: Tensor) -> int | None:
    dim = 2 if tensor.dim() == 3 and place and place[-1] == "logits" else 1
    return dim if tensor.dim() > dim and tensor.shape[dim] > 1 else None


@dataclass(frozen=True, eq=False)
class OutputMatch:
    """Loss and metric of distillation: how well outputs match those of the original.

    The target holds the original's outputs by their index, `{"0": ..., "1": ...}`.
    """

    outputs: tuple[Output, ...]
    temperature: float = TEMPERATURE

    @property
    def scores(self) -> int | None:
        """Index of the output that holds class scores; `None` if there is none."""
        return next((i for i, output in enumerate(self.outputs) if output.classes is not None), None)

    @property
    def name(self) -> str:
        """Name of the metric."""
        return "variance explained of the original's outputs" if self.scores is None else "agreement with the original"

    def loss(self, output: Any, target: Mapping[str, Tensor]) -> Tensor:  # noqa: ANN401
        """Return the mean loss over the outputs, a scalar."""
        losses = [self._loss(*item) for item in zip(self.outputs, self._found(output), target.values(), strict=True)]
        return torch.stack(losses).mean()

    def _loss(self, output: Output, given: Tensor, wanted: Tensor) -> Tensor:
        if output.classes is None:
            return output.missed(given, wanted)
        logits, goal = (output.logits(x) / self.temperature for x in (given, wanted))
        divergence = nn.functional.kl_div(
            logits.log_softmax(-1), goal.log_softmax(-1), reduction="batchmean", log_target=True
        )
        return self.temperature**2 * divergence

    def metric(self, output: Any, target: Mapping[str, Tensor]) -> Tensor:  # noqa: ANN401
        """Return the fraction of equal classes; for other outputs the explained variance, 0 if it is negative."""
        found, wanted = self._found(output), list(target.values())
        if (i := self.scores) is not None:
            chosen, goal = (self.outputs[i].logits(x).argmax(-1) for x in (found[i], wanted[i]))
            return (chosen == goal).double().mean()
        missed = [o.missed(f, w) for o, f, w in zip(self.outputs, found, wanted, strict=True)]
        return (1 - torch.stack(missed).clamp(max=1)).mean()

    def _found(self, output: Any) -> list[Tensor]:  # noqa: ANN401
        tensors = dict(tensors_in(output))
        return [tensors[o.place] for o in self.outputs]


@plain_surroundings()
def distilled_task(  # noqa: PLR0913 -- each by name
    program: Program,
    train_inputs: Inputs,
    val_inputs: Inputs,
    *,
    batch_size: int = 64,
    seed: int = 0,
    device: Device = None,
    classes: bool | None = None,
    on: str = "synthetic inputs",
) -> Task:
    """Return a task whose targets are the outputs of `program`, computed once in eval mode and kept in memory.

    Args:
        program: the original network.
        train_inputs: all training inputs as one batch, synthetic ones or a user's own without labels.
        val_inputs: validation inputs of the same structure.
        batch_size: samples per batch.
        seed: seed of the shuffle of the training batches.
        device: device to run the original on; `None` is its own.
        classes: whether the output holds class scores; see the module.
        on: description of the inputs, for the name of the metric.

    Raises:
        DataError: the inputs are empty or do not fit the program, or it has no output that can be learned, or one
            that is not finite.
    """
    kinds = outputs_of(program, classes=classes)
    train_inputs, val_inputs = (_as_captured(program, inputs) for inputs in (train_inputs, val_inputs))
    train, val = (_answered(program, inputs, kinds, batch_size, device) for inputs in (train_inputs, val_inputs))
    for name, (_, answers) in (("train_inputs", train), ("val_inputs", val)):
        if wrong := wrong_values(answers):
            raise DataError(
                f"{name}: the original's outputs on them cannot be learned: {wrong}; check whether its weights overflow"
            )
    match = OutputMatch(tuple(_measured(kind, answer) for kind, answer in zip(kinds, train[1].values(), strict=True)))
    return Task(
        loader_of(train, batch_size, seed, "train_inputs"),
        loader_of(val, batch_size, None, "val_inputs"),
        loss=match.loss,
        metric=match.metric,
        metric_name=f"{match.name} on {on}",
        split=_Rebuilt(train_inputs),
    )


def _as_captured(program: Program, inputs: Inputs) -> Inputs:
    """Return the inputs with the batch dims of the program, unless they have their own."""
    dims = program.batch_dims
    if dims is None or inputs.batch_dims is not None or len(inputs.tensors) != len(dims):
        return inputs
    fits = all(dim is None or dim < x.dim() for x, dim in zip(inputs.tensors, dims, strict=True))
    return replace(inputs, batch_dims=dims) if fits else inputs


def commonest_answer(program: Program, task: Task) -> float | None:
    """Return the fraction of the validation inputs of a `distilled_task` in the most frequent class.

    Near 1, agreement is not informative. `None` if no output holds class scores.
    """
    kinds = outputs_of(program)
    scored = next((i for i, kind in enumerate(kinds) if kind.classes is not None), None)
    if scored is None:
        return None
    _, answers = task.val_data.dataset[slice(None)]
    classes = kinds[scored].logits(answers[str(scored)]).argmax(-1)
    return float((classes == classes.mode().values).double().mean())


@dataclass(frozen=True, eq=False)
class _Rebuilt:
    """Restores the structure of the inputs from the tensors of a batch, samples first."""

    template: Inputs

    def __call__(self, batch: tuple[Mapping[str, Tensor], Mapping[str, Tensor]]) -> tuple[Inputs, Any]:
        given, target = batch
        device, dims = next(iter(given.values())).device, self.template.dims
        parts = iter(
            [
                x.to(device) if dim is None else given[str(i)].movedim(0, dim)
                for i, (x, dim) in enumerate(zip(self.template.tensors, dims, strict=True))
            ]
        )
        return replace(self.template.map(lambda _: next(parts)), batch_dims=dims), target


def _answered(
    program: Program, inputs: Inputs, kinds: Sequence[Output], batch_size: int, device: Device
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the inputs that have a batch dim, samples first, and the program's outputs, by their index."""
    if not inputs.batch:
        raise DataError(
            f"no tensor among the inputs has samples: {describe_inputs(inputs)}; "
            f"give {named('train_data')} and {named('val_data')}"
        )
    if not inputs.is_divisible:
        raise DataError(
            f"offsets or lengths count out the rows of one of the inputs: {describe_inputs(inputs)}; "
            f"give {named('train_data')} and {named('val_data')}"
        )
    pairs = enumerate(zip(inputs.tensors, inputs.dims, strict=True))
    given = {str(i): x.detach().movedim(dim, 0) for i, (x, dim) in pairs if dim is not None}
    answers = list[list[Tensor]]()
    bounds = [*range(0, inputs.batch, batch_size), inputs.batch]
    with borrowed(program.graph_module, device) as there, torch.no_grad():
        for start, end in pairwise(bounds):
            part = _Rebuilt(inputs)(({name: x[start:end].to(there) for name, x in given.items()}, {}))[0].clone()
            found = dict(tensors_in(predict(program.graph_module, part)))
            answers.append([found[kind.place].cpu() for kind in kinds])
    return given, {str(i): torch.cat(parts) for i, parts in enumerate(zip(*answers, strict=True))}


def _measured(kind: Output, answers: Tensor) -> Output:
    """Return the output with the statistics of the original's outputs on the training inputs."""
    values = answers.double()
    variance = float(values.var(0, correction=0).mean()) or float(values.square().mean()) or 1.0
    normed = kind.classes is not None and bool(
        (values >= 0).all() and torch.allclose(values.sum(kind.classes), torch.ones((), dtype=values.dtype), atol=1e-3)
    )
    return Output(kind.place, kind.classes, normed, variance)
