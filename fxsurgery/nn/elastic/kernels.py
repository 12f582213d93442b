"""Convolutions that can run with the transformed center of their kernel.

    W5 = center(W7) M75,    W3 = center(W5) M53,    M = 1 at the start

Kernels are flattened. All steps together are one matrix T, which `KernelMatrices` computes and `ElasticConv` applies.
"""

import math
from collections.abc import Mapping
from functools import reduce
from itertools import pairwise
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.modules.conv import _ConvNd
from typing_extensions import override

Size = tuple[int, ...]


class KernelMatrices(nn.Module):
    """The learned matrices of one elastic convolution, and its active kernel size."""

    def __init__(self, conv: str, sizes: tuple[Size, ...]) -> None:
        """Create identity matrices.

        Args:
            conv: path of the convolution.
            sizes: kernel sizes, largest first.
        """
        super().__init__()
        self.conv = conv
        self.sizes = sizes
        self.size = sizes[0]
        for smaller in sizes[1:]:
            self.register_parameter(_matrix(smaller), nn.Parameter(torch.eye(math.prod(smaller))))

    @override
    def forward(self) -> Tensor:
        """Return T with W_active = W T, shape (entries of the largest kernel, entries of the active one).

        For the largest kernel, the result is an empty tensor.
        """
        first = self.get_parameter(_matrix(self.sizes[-1]))
        if self.size == self.sizes[0]:
            return first.new_empty(0, 0)
        steps = self.sizes[: self.sizes.index(self.size) + 1]
        start = torch.eye(math.prod(steps[0]), dtype=first.dtype, device=first.device)
        return reduce(self._shrink, pairwise(steps), start)

    def _shrink(self, transform: Tensor, step: tuple[Size, Size]) -> Tensor:
        larger, smaller = step
        cut = transform.reshape(-1, *larger)[(slice(None), *center(larger, smaller))].flatten(1)
        return cut @ self.get_parameter(_matrix(smaller))

    @override
    def extra_repr(self) -> str:
        return f"{self.conv}, sizes={self.sizes}"


def _matrix(size: Size) -> str:
    return f"to_{'x'.join(map(str, size))}"


def center(larger: Size, smaller: Size) -> tuple[slice, ...]:
    """Return the slices of the centered smaller kernel within a larger one."""
    return tuple(slice((a - b) // 2, (a + b) // 2) for a, b in zip(larger, smaller, strict=True))


class ElasticConv(_ConvNd):
    """A convolution that can run with a smaller, transformed kernel; it shares the parameters of the original.

    The result equals that of the full convolution with zeros around the small kernel: padding shrinks with the kernel.
    """

    sizes: tuple[Size, ...]

    @classmethod
    def of(cls, conv: _ConvNd, sizes: tuple[Size, ...]) -> Self:
        """Return an elastic convolution with the parameters of `conv`, which is left unchanged."""
        new = cls.__new__(cls)
        vars(new).update(_state(conv), sizes=sizes)
        return new

    @override
    def forward(self, input: Tensor, transform: Tensor) -> Tensor:
        """Apply the convolution with the kernel W T, or with W if T is empty.

        Args:
            input: (batch, channels, *spatial); the batch dim is optional.
            transform: output of `KernelMatrices`.
        """
        if not transform.numel():
            whole: Tensor = super().forward(input)
            return whole
        size, margins = self._smaller(transform)
        padding: str | tuple[int, ...] | int = _padding(self, margins)
        if self.padding_mode != "zeros":
            input, padding = F.pad(input, _sides(self, margins), mode=self.padding_mode), 0
        convolve = _CONVOLVE[len(size)]
        weight = _transformed(self.weight, transform, size)
        return convolve(input, weight, self.bias, self.stride, padding, self.dilation, self.groups)

    def plain(self, transform: Tensor) -> _ConvNd:
        """Return an equivalent PyTorch convolution, with a new weight if the kernel is smaller.

        Args:
            transform: output of `KernelMatrices`.
        """
        kind = next(k for k in type(self).__mro__ if k in {nn.Conv1d, nn.Conv2d, nn.Conv3d})
        new: _ConvNd = kind.__new__(kind)
        vars(new).update(_state(self))
        del vars(new)["sizes"]
        if transform.numel():
            size, margins = self._smaller(transform)
            new.kernel_size, new.padding = size, _padding(self, margins)
            new._reversed_padding_repeated_twice = _sides(self, margins)  # noqa: SLF001
            weight = _transformed(self.weight.detach(), transform.detach(), size)
            new.weight = nn.Parameter(weight.contiguous(), requires_grad=self.weight.requires_grad)
        return new

    def _smaller(self, transform: Tensor) -> tuple[Size, tuple[int, ...]]:
        """Return the kernel size that `transform` produces, and the reduction of the padding per side."""
        size = next(s for s in self.sizes if math.prod(s) == transform.shape[1])
        return size, margins(self, size)


class ElasticConv1d(ElasticConv, nn.Conv1d):  # type: ignore[misc]
    """`Conv1d` with elastic kernel size."""


class ElasticConv2d(ElasticConv, nn.Conv2d):  # type: ignore[misc]
    """`Conv2d` with elastic kernel size."""


class ElasticConv3d(ElasticConv, nn.Conv3d):  # type: ignore[misc]
    """`Conv3d` with elastic kernel size."""


ELASTIC_CONVS: Mapping[type[nn.Module], type[ElasticConv]] = {
    nn.Conv1d: ElasticConv1d,
    nn.Conv2d: ElasticConv2d,
    nn.Conv3d: ElasticConv3d,
}
"""The elastic class for each convolution class."""

_CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def margins(conv: _ConvNd, size: Size) -> tuple[int, ...]:
    """Return the reduction of the padding per side of each spatial dim for a kernel of `size`."""
    pairs = zip(conv.dilation, conv.kernel_size, size, strict=True)
    return tuple(dilation * (whole - small) // 2 for dilation, whole, small in pairs)


def _padding(conv: _ConvNd, less: tuple[int, ...]) -> str | tuple[int, ...]:
    if isinstance(conv.padding, str):
        return conv.padding  # "same" follows the kernel by itself
    return tuple(pad - margin for pad, margin in zip(conv.padding, less, strict=True))


def _sides(conv: _ConvNd, less: tuple[int, ...]) -> list[int]:
    """Return the padding of each side in the order of `F.pad`: last dim first."""
    both = [margin for margin in reversed(less) for _ in range(2)]
    return [pad - margin for pad, margin in zip(conv._reversed_padding_repeated_twice, both, strict=True)]  # noqa: SLF001


def _transformed(weight: Tensor, transform: Tensor, size: Size) -> Tensor:
    """Return every kernel of `weight`, flattened and multiplied by `transform`, in shape (out, in, *size)."""
    return (weight.flatten(2) @ transform.to(weight.dtype)).reshape(*weight.shape[:2], *size)


def _state(module: nn.Module) -> dict[str, object]:
    """Return the attributes of a module for a copy that shares its tensors."""
    return {name: value.copy() if isinstance(value, dict) else value for name, value in vars(module).items()}
