"""Synthetic inputs from a model alone: noise, optimized until the batch norms see the statistics of their training.

For each batch norm, with mu and sigma the mean and deviation of a channel of what reaches it, m and s its running
ones and v the mean of s^2 over its channels, the gap is

    mean over channels of ((mu - m)^2 + (sigma - s)^2) / (s^2 + v / 20)

and the mean of that over the norms is minimized over the inputs themselves, by Adam, a batch at a time (Yin et al.
2020, DeepInversion, Eq. 4; the division, by which every layer weighs alike, is ours). Two priors can be added:
the entropy of the mean prediction, which spreads a batch over the classes, and smoothness.

Floating inputs with a batch dim move. Integer ones are random ids, below the size of the embedding that reads them;
those that no embedding reads, and all that is not batched, are as in the example. Without batch norms that an input
reaches, noise it stays.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import reduce
from typing import Any, Protocol, Self

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from typing_extensions import override

from fxsurgery.argument_names import named
from fxsurgery.errors import DataError
from fxsurgery.inputs import Inputs, tensors_in
from fxsurgery.ops.operator import Kind
from fxsurgery.program import Program
from fxsurgery.seeding import mix
from fxsurgery.surroundings import plain_surroundings
from fxsurgery.training.batches import Loader, loader_of
from fxsurgery.training.distillation import outputs_of
from fxsurgery.training.objective import Batch, Terms
from fxsurgery.training.recipe import Recipe
from fxsurgery.training.schedules import cosine
from fxsurgery.training.step import Hooks
from fxsurgery.training.synthesis_amount import Amount
from fxsurgery.training.task import Task


class Train(Protocol):
    """Trains a module in place on a task: `fit` with its other arguments bound."""

    def __call__(self, model: nn.Module, task: Task, recipe: Recipe, stage: str, *, hooks: Hooks) -> object:
        """Train in the stage of that name."""


FLOOR = 1 / 20
"""A channel counts as if its variance were this share of its layer's at least: dead ones would outweigh all others."""
EPSILON = 1e-5
"""Added to every variance."""


@dataclass(frozen=True, eq=False)
class Synthetic:
    """Synthetic inputs."""

    train: Inputs
    """All samples as one batch."""
    val: Inputs
    """Held-out samples, from other noise."""
    noise_gap: float
    """How far the batch norms were from their running statistics on the noise; NaN without norms."""
    gap: float
    """How far they are now."""

    @property
    def matched(self) -> bool:
        """Whether the inputs are more than noise."""
        return self.gap < self.noise_gap

    @override
    def __str__(self) -> str:
        """Return a description for users."""
        count = f"{self.train.batch} synthetic inputs and {self.val.batch} held out"
        if not self.matched:
            return f"{count}: plain noise, since no batch norm of the model shows the statistics of its training data"
        return (
            f"{count}, matched to the model's batch norms: their statistics are off by {self.gap:.3g}, "
            f"by {self.noise_gap:.3g} on noise"
        )


@plain_surroundings()
def synthetic_inputs(program: Program, amount: Amount, *, train: Train, seed: int = 0) -> Synthetic:
    """Return inputs like those that `program` was trained on, as far as its batch norms show.

    Args:
        program: the trained model.
        amount: how much; `Amount.affordable(macs)`.
        train: runs a stage of training, with the stage's name.
        seed: of the noise.

    Raises:
        DataError: the program's example inputs have no batch dim, or it has no output that can be learned.
        TrainingError: the statistics are not finite.
    """
    sizes = [min(amount.batch_size, amount.samples - i) for i in range(0, amount.samples, amount.batch_size)]
    stages = [(f"synthesis {i + 1}/{len(sizes)}", size) for i, size in enumerate(sizes)]
    made, gaps = list[Inputs](), list[tuple[float, float]]()
    for number, (stage, size) in enumerate([*stages, ("synthesis, held out", amount.validation)]):
        matching = Matching(program, noise(program, size, mix(seed, number)), amount)
        before = matching.gap()
        if amount.steps and matching.movable():
            train(matching, _steps(), _recipe(amount), stage, hooks=Hooks(objective=matching.objective))
        gaps.append((before, matching.gap()))
        made.append(matching.inputs())
    before, after = (sum(column) / len(gaps) for column in zip(*gaps, strict=True))
    return Synthetic(reduce(Inputs.joined, made[:-1]), made[-1], before, after)


def noise(program: Program, samples: int, seed: int) -> Inputs:
    """Return Gaussian noise and random ids with the structure, types and devices of the program's examples."""
    generator = torch.Generator().manual_seed(seed)
    examples = program.examples
    below = dict(zip(map(id, examples.tensors), _ids_below(program), strict=True))

    def drawn(x: Tensor, dim: int) -> Tensor:
        shape, rows = [samples if d == dim else n for d, n in enumerate(x.shape)], below[id(x)]
        if x.is_floating_point():
            return torch.randn(shape, generator=generator).to(x)
        if rows is not None:
            return torch.randint(rows, shape, generator=generator).to(x)
        return x.index_select(dim, (torch.arange(samples) % x.size(dim)).to(x.device))

    if examples.batch and not examples.is_divisible:
        raise DataError(
            "inputs cannot be made of a model whose inputs hold offsets or lengths of the samples in another; "
            f"give {named('train_data')} and {named('val_data')}"
        )
    return examples.map_batched(drawn).clone()


def _ids_below(program: Program) -> list[int | None]:
    """Return the number of rows of the smallest embedding that reads each tensor of the inputs."""
    inputs = [node for node in program.nodes if node.op == "placeholder"]
    leaves = zip(program.examples.leaves, inputs, strict=True)
    rows = [(leaf, list(_rows(program, node))) for leaf, node in leaves if isinstance(leaf, Tensor)]
    return [min(found, default=None) for _, found in rows]


def _rows(program: Program, node: fx.Node) -> Iterator[int]:
    for user in node.users:
        if user.op == "call_module" and isinstance(module := program.module(user), nn.Embedding):
            yield module.num_embeddings
        elif (operator := program.operator(user)) is not None and operator.kind is Kind.MOVEMENT:
            yield from _rows(program, user)


class Matching(nn.Module):
    """A batch of inputs as parameters; the objective is how far they are from what the batch norms saw.

    The model is no part of it: it is never trained, nor put into train mode, and what is saved of this module is
    the inputs alone.
    """

    def __init__(self, program: Program, start: Inputs, amount: Amount) -> None:
        super().__init__()
        self._start, self._amount = start, amount
        self._model = [program.trainable_copy().eval().requires_grad_(requires_grad=False)]
        self._norms = [m for m in self._model[0].modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
        self._scores = next((o for o in outputs_of(program) if o.classes is not None), None) if self._norms else None
        self._free = [x.is_floating_point() and start.is_batched(x) for x in start.tensors]
        tensors = zip(start.tensors, self._free, strict=True)
        self.moved = nn.ParameterList([x.detach().clone().float() for x, free in tensors if free])

    @override
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move the model too, though it is not a submodule."""
        self._model[0]._apply(fn)  # type: ignore[no-untyped-call]  # noqa: SLF001
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def objective(self, _: nn.Module, batch: Batch) -> tuple[Tensor, Terms]:
        """Return the gap plus the priors; the batch gives only the precision."""
        with batch.precision():
            gap, output = self._run()
            prior = self._prior(output)
        return gap + prior, {"gap": gap, "prior": prior}

    def gap(self) -> float:
        """Return the mean gap of the norms; NaN without any."""
        if not self._norms:
            return float("nan")
        with torch.no_grad():
            return float(self._run()[0])

    def movable(self) -> bool:
        """Whether the norms can be brought nearer by moving the inputs."""
        return bool(self._norms and len(self.moved)) and self._run()[0].requires_grad

    def inputs(self) -> Inputs:
        """Return the inputs as the model takes them."""
        parts = self._parts()
        return self._start.map(lambda _: next(parts).detach())

    def _parts(self) -> Iterator[Tensor]:
        """Return the tensors of the inputs in order, the optimized ones in their original types."""
        moved = iter(self.moved)
        for x, free in zip(self._start.tensors, self._free, strict=True):
            yield next(moved).to(x.dtype) if free else x.to(self._home())

    def _home(self) -> torch.device:
        return next((p.device for p in (*self.moved, *self._model[0].parameters())), torch.device("cpu"))

    def _run(self) -> tuple[Tensor, Any]:
        seen = list[Tensor]()

        def look(norm: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
            seen.append(_gap(norm, next(iter((*args, *kwargs.values())))))

        hooks = [norm.register_forward_pre_hook(look, with_kwargs=True) for norm in self._norms]
        parts = self._parts()
        given = self._start.map(lambda _: next(parts))
        try:
            with self._differentiable():
                output = self._model[0](*given.args, **given.kwargs)
        finally:
            for hook in hooks:
                hook.remove()
        return torch.stack(seen).mean(), output

    def _differentiable(self) -> AbstractContextManager[None]:
        """An RNN of cuDNN has no gradient in eval mode; PyTorch's own has."""
        recurrent = any(isinstance(module, nn.RNNBase) for module in self._model[0].modules())
        return torch.backends.cudnn.flags(enabled=False) if recurrent else nullcontext()

    def _prior(self, output: Any) -> Tensor:  # noqa: ANN401
        """Return the priors that are added to the gap: few classes, rough images."""
        total: Tensor = self.moved[0].new_zeros(())
        if self._scores is not None and self._amount.spread:
            logits = self._scores.logits(dict(tensors_in(output))[self._scores.place])
            shares = logits.softmax(-1).mean(0)
            total = total + self._amount.spread * (shares * shares.clamp_min(1e-8).log()).sum()
        if self._amount.smoothness:
            for x in self.moved:
                for dim in range(2, x.dim()):
                    total = total + self._amount.smoothness * x.diff(dim=dim).square().mean()
        return total


def _gap(norm: nn.Module, x: Tensor) -> Tensor:
    """Return the distance of the statistics of `x` (batch, channels, ...) from the running ones of the norm."""
    mean, variance = norm.get_buffer("running_mean").float(), norm.get_buffer("running_var").float() + EPSILON
    spread, middle = torch.var_mean(x.float(), [0, *range(2, x.dim())], correction=0)
    off = (middle - mean).square() + ((spread + EPSILON).sqrt() - variance.sqrt()).square()
    gap: Tensor = (off / (variance + FLOOR * variance.mean())).mean()
    return gap


def _steps() -> Task:
    """The inputs are the module's own, so a batch is nothing but a step."""
    nothing = torch.zeros(1)
    loader: Loader = loader_of((nothing, nothing), 1, None, "steps")
    return Task(loader, loader)


def _recipe(amount: Amount) -> Recipe:
    def adam(parameters: Any) -> torch.optim.Optimizer:  # noqa: ANN401
        return torch.optim.Adam(parameters, lr=amount.learning_rate, betas=(0.9, 0.99))

    return Recipe(steps=amount.steps, optimizer=adam, schedule=cosine(0.0), validations=0)
