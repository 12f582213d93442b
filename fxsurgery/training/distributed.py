"""Data-parallel training: each process takes its rows of every batch, and all take the same step.

With n_r of a batch's N rows in process r, and L_r the mean loss over these, the loss of the batch is

    L = sum_r (n_r / N) * L_r,      so      dL/dw = sum_r d((n_r / N) * L_r)/dw:

what is learned is what one process learns on the whole batch, up to rounding, whether or not the rows divide
evenly. Of a classification loss that leaves targets out, n_r and N are the targets that count. Gradients are summed
once a step, after the backward pass. A process that is left without a row goes through the first one with weight 0.
Batch norms take the moments of all rows (Ioffe & Szegedy 2015, Alg. 1), in place of those of their process.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from typing_extensions import override

from fxsurgery.batch_layout import target_sizes
from fxsurgery.errors import DataError
from fxsurgery.inputs import Inputs
from fxsurgery.training.batches import describe, describe_inputs

T = TypeVar("T", bound=Tensor)


@dataclass(frozen=True)
class Shard:
    """The part of a batch that one process takes."""

    start: int
    stop: int
    weight: float
    """n_r / N; 0 for a row that is only run through."""

    @property
    def rows(self) -> slice:
        """The rows of the process in the whole batch."""
        return slice(self.start, self.stop)


@dataclass(frozen=True)
class BatchSharding:
    """Position of this process among all that train together."""

    rank: int = 0
    world: int = 1

    def share(self, samples: int) -> Shard:
        """Return consecutive rows; if they do not divide evenly, the first processes take one more: 7 = 4 + 3."""
        each, more = divmod(samples, self.world)
        start = self.rank * each + min(self.rank, more)
        stop = start + each + (self.rank < more)
        return Shard(start, stop, (stop - start) / max(samples, 1)) if stop > start else Shard(0, 1, 0.0)

    def part(self, share: Shard, counted: float | None, device: torch.device) -> float:
        """Return the weight of the mean loss over the rows of a process in the loss of the batch.

        Args:
            share: the rows.
            counted: how many targets among them count, where the loss leaves some out.
            device: where processes meet.
        """
        if self.world == 1 or counted is None:
            return share.weight
        mine = counted if share.weight else 0.0
        whole = float(self.total(torch.tensor(mine, dtype=torch.float64, device=device)))
        return mine / whole if whole else 0.0

    def norms(self, share: Shard) -> AbstractContextManager[object]:
        """Batch norms take the moments of all processes' rows within the block."""
        return nullcontext() if self.world == 1 else _WholeBatchNorms(counts=share.weight > 0)

    def total(self, value: Tensor) -> Tensor:
        """Return the sum over the processes."""
        return value if self.world == 1 else _summed(value)

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Give every process the sum of the gradients; a parameter without one in any process keeps none."""
        if self.world == 1:
            return
        for same in _by_kind(parameters):
            _sum_gradients(same)

    def agree(self, tensors: Iterable[Tensor]) -> None:
        """Give every process the first one's values, in place."""
        if self.world == 1:
            return
        for same in _by_kind(tensors):
            flat = _together(same)
            torch.distributed.broadcast(flat, src=0)
            with torch.no_grad():
                for tensor, value in zip(same, _apart(flat, same), strict=True):
                    tensor.copy_(value)

    def gathered(self, value: Any) -> list[Any]:  # noqa: ANN401
        """Return the values of all processes in order of rank."""
        if self.world == 1:
            return [value]
        found: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(found, value)
        return found


def _by_kind(tensors: Iterable[T]) -> Iterable[list[T]]:
    """Group the tensors that can be sent together."""
    kinds = dict[tuple[torch.device, torch.dtype], list[T]]()
    for tensor in tensors:
        kinds.setdefault((tensor.device, tensor.dtype), []).append(tensor)
    return kinds.values()


def _summed(value: Tensor) -> Tensor:
    total = value.detach().clone(memory_format=torch.contiguous_format)
    torch.distributed.all_reduce(total)
    return total


def _sum_gradients(parameters: Sequence[nn.Parameter]) -> None:
    there = parameters[0].new_tensor([p.grad is not None for p in parameters])
    parts = [torch.zeros_like(p) if p.grad is None else p.grad.to_dense() for p in parameters]
    *sums, flags = _apart(_summed(_together([*parts, there])), [*parts, there])
    for parameter, total, flag in zip(parameters, sums, flags.tolist(), strict=True):
        if flag:
            parameter.grad = total.clone()


def _together(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def _apart(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    parts = torch.split(flat, [tensor.numel() for tensor in like])
    return [part.view(tensor.shape) for part, tensor in zip(parts, like, strict=True)]


def rows_of(inputs: Inputs, target: Any, share: Shard) -> tuple[Inputs, Any]:  # noqa: ANN401
    """Return a process's rows of inputs and target; tensors that are not as long as the batch stay whole.

    Raises:
        DataError: the samples have no rows of their own.
    """
    _require_rows(inputs, target)
    size, mine = inputs.batch, inputs.rows(share.start, share.stop)
    own = {id(x) for x in mine.tensors}

    def is_own(value: object) -> bool:
        return id(value) in own

    def cut(value: Any) -> Any:  # noqa: ANN401
        if is_own(value):
            return value  # cut already
        if isinstance(value, Tensor | np.ndarray):
            return value[share.rows] if value.ndim and len(value) == size else value
        if isinstance(value, Mapping):
            return {key: cut(part) for key, part in value.items()}
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*map(cut, value))
        if isinstance(value, tuple | list):
            listed = len(value) == size and not any(_is_batched(part, size) or is_own(part) for part in value)
            return value[share.rows] if listed else type(value)(map(cut, value))
        return value

    return type(inputs)(cut(mine.args), cut(mine.kwargs), inputs.dims), cut(target)


def _require_rows(inputs: Inputs, target: object) -> None:
    """Refuse a batch whose parts would not be of the same samples.

    Raises:
        DataError: offsets or lengths count out the rows of an input, or the target is not as long as the batch.
    """
    hint = "train in one process, or pad the samples to rows of their own; batch_dims= of the Task says which dim it is"
    if inputs.batch and not inputs.is_divisible:
        raise DataError(
            f"a batch cannot be shared by processes: in the inputs {describe_inputs(inputs)} the rows of one tensor "
            f"are counted out by the offsets or lengths in another; {hint}"
        )
    sizes = target_sizes(target)
    if sizes and inputs.batch not in sizes:
        raise DataError(
            f"a batch cannot be shared by processes: the target {describe(target)} is not as long as the batch of "
            f"{inputs.batch}, inputs {describe_inputs(inputs)}; {hint}"
        )


def _is_batched(value: object, size: int | None) -> bool:
    return isinstance(value, Tensor | np.ndarray) and bool(value.ndim) and len(value) == size


class _Sum(torch.autograd.Function):
    """The sum over the processes, and of its gradient."""

    @staticmethod
    @override
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return _summed(value)

    @staticmethod
    @override
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _summed(gradient)


class _WholeBatchNorms(TorchFunctionMode):
    """Every batch norm in train mode takes its moments over the rows of all processes."""

    def __init__(self, *, counts: bool) -> None:
        super().__init__()
        self.counts = counts

    @override
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is functional.batch_norm:
            return self._batch_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _batch_norm(  # noqa: PLR0913, PLR0917 -- as of torch.nn.functional.batch_norm
        self,
        x: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,  # noqa: FBT001, FBT002
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        if not training:
            return functional.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        mean, variance, count = self._moments(wide)
        if running_mean is not None and running_var is not None:
            with torch.no_grad():
                running_mean.lerp_(mean.to(running_mean), momentum)
                running_var.lerp_((variance * count / (count - 1)).to(running_var), momentum)
        shape = [1, -1, *[1] * (x.dim() - 2)]
        scale = (variance + eps).rsqrt() if weight is None else (variance + eps).rsqrt() * weight
        out = (wide - mean.view(shape)) * scale.view(shape)
        return (out if bias is None else out + bias.view(shape)).to(x.dtype)

    def _moments(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return mean, variance and number of values per channel."""
        dims = [0, *range(2, x.dim())]
        here = x.new_tensor([x.numel() / x.shape[1]])
        sums = _all([x.sum(dims), here], counts=self.counts)
        count = sums[-1].detach()
        if x.numel() <= x.shape[1] and count <= 1:
            raise ValueError(f"Expected more than 1 value per channel when training, got input size {tuple(x.shape)}")
        mean = sums[:-1] / count
        squares = (x - mean.view([1, -1, *[1] * (x.dim() - 2)])).square().sum(dims)
        return mean, _all([squares], counts=self.counts) / count, count


def _all(parts: list[Tensor], *, counts: bool) -> Tensor:
    summed: Tensor = _Sum.apply(torch.cat(parts) * float(counts))
    return summed
