"""What stands in the graph of a supernet: units, blocks and kernels that can be switched off (SparseNAS, section 4).

    width    `UnitMask`      x * [place < limit]     at the input of each mixing consumer, as gates are
    depth    `BlockSwitch`   x + f(x)  or  x + 0     on the branch of a residual block
    kernel   `ElasticConv`   the centre of its weight W, times a learned matrix:
                             W5 = centre(W7) M75 (25 x 25),  W3 = centre(W5) M53 (9 x 9),  M = 1 at the start

A `Subnet` says which are on, and `activate` makes it so; all begin at their largest, where the supernet computes
what the program before did. Each module knows the choices that it takes part in, so a supernet needs no register.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.modules.conv import _ConvNd
from typing_extensions import override

from fxsurgery.errors import SpecError
from fxsurgery.program import Program

ELASTIC = "fxsurgery_elastic"
"""Where these modules are kept in the model; the convs stay where they were."""

Picks = tuple[tuple[str, int], ...]
"""By name of a choice, the option that is picked."""
Choices = tuple[tuple[str, tuple[int, ...]], ...]
"""By name of a choice, its options, smallest first."""


@dataclass(frozen=True)
class Subnet:
    """A configuration of a supernet: literals only, so that it can be the field of a pass or a line in a journal."""

    widths: Picks = ()
    """By channel group, how many units it keeps: the most important ones."""
    depths: Picks = ()
    """By stage, how many of its blocks it keeps: the first ones."""
    kernels: Picks = ()
    """By conv, the size of its kernel: the largest side of one that is not square."""


@dataclass(frozen=True)
class ElasticSpace:
    """Every choice of a supernet."""

    widths: Choices = ()
    depths: Choices = ()
    kernels: Choices = ()

    @property
    def size(self) -> int:
        """The number of configurations; those that differ in blocks that are off alone are counted as well."""
        return math.prod(len(options) for _, options in (*self.widths, *self.depths, *self.kernels))

    @property
    def largest(self) -> Subnet:
        """The program before, and what a supernet starts at."""
        return self._each(lambda options: options[-1])

    @property
    def smallest(self) -> Subnet:
        """Every choice at its least."""
        return self._each(lambda options: options[0])

    def sample(self, generator: torch.Generator) -> Subnet:
        """A configuration drawn uniformly: each choice on its own."""
        return self._each(lambda options: options[int(torch.randint(len(options), (), generator=generator))])

    def complete(self, subnet: Subnet) -> Subnet:
        """`subnet` with the choices that it does not name at their largest, in the order of this space.

        Raises:
            SpecError: it names a choice or an option that there is not.
        """
        largest = self.largest
        return Subnet(
            _completed("width", self.widths, largest.widths, subnet.widths),
            _completed("depth", self.depths, largest.depths, subnet.depths),
            _completed("kernel", self.kernels, largest.kernels, subnet.kernels),
        )

    def _each(self, pick: Callable[[tuple[int, ...]], int]) -> Subnet:
        kinds = [tuple((name, pick(options)) for name, options in k) for k in (self.widths, self.depths, self.kernels)]
        return Subnet(*kinds)


def _completed(kind: str, choices: Choices, largest: Picks, picks: Picks) -> Picks:
    known = dict(choices)
    for name, option in picks:
        if name not in known:
            raise SpecError(f"no elastic {kind} is named {name!r}; there are: {', '.join(known) or 'none'}")
        if option not in known[name]:
            raise SpecError(f"{name} cannot take a {kind} of {option}; it takes {', '.join(map(str, known[name]))}")
    return tuple({**dict(largest), **dict(picks)}.items())


class UnitMask(nn.Module):
    """Silence the units that are beyond the active widths, along one dim.

    The units of the groups of this site are numbered on from group to group, by importance in each. The two
    buffers run along the channels, so that they are pruned with them.
    """

    place: Tensor
    """(channels,) the number of each channel's unit; -1 for what is always on."""
    limit: Tensor
    """(channels,) a channel is on while its `place` is below this."""

    def __init__(self, groups: Choices, place: Tensor, dim: int) -> None:
        super().__init__()
        self.groups = groups
        self.dim = dim
        limit = torch.full_like(place, sum(options[-1] for _, options in groups))
        # Not persistent: a module with state of its own would hide its channels from the structure analysis.
        self.register_buffer("place", place, persistent=False)
        self.register_buffer("limit", limit, persistent=False)

    def set_widths(self, widths: Mapping[str, int]) -> None:
        """Keep the first `widths[group]` units of each group."""
        limit, start = self.limit.clone(), 0
        for group, options in self.groups:
            own = (self.place >= start) & (self.place < start + options[-1])
            limit[own] = start + widths[group]
            start += options[-1]
        self.limit = limit

    @override
    def forward(self, x: Tensor) -> Tensor:
        """`x` with the channels that are off at 0."""
        keep = (self.place < self.limit).to(x.dtype)
        for _ in range(x.dim() - self.dim % x.dim() - 1):
            keep = keep.unsqueeze(-1)
        return x * keep

    @override
    def extra_repr(self) -> str:
        return f"{', '.join(name for name, _ in self.groups)}, dim={self.dim}"


class BlockSwitch(nn.Module):
    """Give on what a residual branch computes, or 0: then the block is the identity."""

    def __init__(self, stage: str, position: int, options: tuple[int, ...]) -> None:
        super().__init__()
        self.stage = stage
        self.position = position
        """Of the block in its stage, from 0."""
        self.options = options
        self.is_on = True

    @override
    def forward(self, x: Tensor) -> Tensor:
        """`x`, or a 0 that is added to anything; no gradient reaches a branch that is off."""
        return x if self.is_on else x.new_zeros(())

    @override
    def extra_repr(self) -> str:
        return f"{self.stage}, position={self.position}"


Size = tuple[int, ...]


class KernelMatrices(nn.Module):
    """The learned matrices of one elastic conv, and the kernel size that is active."""

    def __init__(self, conv: str, sizes: tuple[Size, ...]) -> None:
        """The matrices of the conv at path `conv`, whose kernels take `sizes`, the largest first."""
        super().__init__()
        self.conv = conv
        self.sizes = sizes
        self.size = sizes[0]
        for smaller in sizes[1:]:
            self.register_parameter(_matrix(smaller), nn.Parameter(torch.eye(math.prod(smaller))))

    @override
    def forward(self) -> Tensor:
        """(places of the largest kernel, places of the active one): W_active = W T; empty at the largest."""
        first = self.get_parameter(_matrix(self.sizes[-1]))
        if self.size == self.sizes[0]:
            return first.new_empty(0, 0)
        steps = self.sizes[: self.sizes.index(self.size) + 1]
        start = torch.eye(math.prod(steps[0]), dtype=first.dtype, device=first.device)
        return reduce(self._shrink, pairwise(steps), start)

    def _shrink(self, transform: Tensor, step: tuple[Size, Size]) -> Tensor:
        larger, smaller = step
        return transform[:, centre(larger, smaller).to(transform.device)] @ self.get_parameter(_matrix(smaller))

    @override
    def extra_repr(self) -> str:
        return f"{self.conv}, sizes={self.sizes}"


def _matrix(size: Size) -> str:
    return f"to_{'x'.join(map(str, size))}"


def centre(larger: Size, smaller: Size) -> Tensor:
    """Which places of a flattened kernel are those of the smaller one in its middle."""
    places = torch.arange(math.prod(larger)).reshape(larger)
    cut = tuple(slice((a - b) // 2, (a - b) // 2 + b) for a, b in zip(larger, smaller, strict=True))
    return places[cut].flatten()


class ElasticConv(_ConvNd):
    """A conv that can run on a transformed, smaller kernel; its parameters are those of the conv it replaces.

    It computes what the whole conv would with zeros around the small kernel: padding shrinks with it.
    """

    sizes: tuple[Size, ...]

    @classmethod
    def of(cls, conv: _ConvNd, sizes: tuple[Size, ...]) -> Self:
        """An elastic conv on the parameters of `conv`, which is left alone."""
        new = cls.__new__(cls)
        vars(new).update(_state(conv), sizes=sizes)
        return new

    @override
    def forward(self, input: Tensor, transform: Tensor) -> Tensor:
        """The conv with the kernel W T; with its own where T is empty.

        Args:
            input: (batch, channels, *places), the batch being optional.
            transform: of `KernelMatrices`.
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
        """The conv of PyTorch that computes the same, on a kernel of its own where that is smaller."""
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
        """The kernel size that `transform` makes, and by how much less each side is padded then."""
        size = next(s for s in self.sizes if math.prod(s) == transform.shape[1])
        return size, margins(self, size)


class ElasticConv1d(ElasticConv, nn.Conv1d):  # type: ignore[misc]
    """`Conv1d` of elastic kernel size."""


class ElasticConv2d(ElasticConv, nn.Conv2d):  # type: ignore[misc]
    """`Conv2d` of elastic kernel size."""


class ElasticConv3d(ElasticConv, nn.Conv3d):  # type: ignore[misc]
    """`Conv3d` of elastic kernel size."""


ELASTIC_CONVS: Mapping[type[nn.Module], type[ElasticConv]] = {
    nn.Conv1d: ElasticConv1d,
    nn.Conv2d: ElasticConv2d,
    nn.Conv3d: ElasticConv3d,
}
"""By kind of conv, what makes its kernel elastic."""

_CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def margins(conv: _ConvNd, size: Size) -> tuple[int, ...]:
    """By how much less each side of the input is padded under a kernel of `size`."""
    pairs = zip(conv.dilation, conv.kernel_size, size, strict=True)
    return tuple(dilation * (whole - small) // 2 for dilation, whole, small in pairs)


def _padding(conv: _ConvNd, less: tuple[int, ...]) -> str | tuple[int, ...]:
    if isinstance(conv.padding, str):
        return conv.padding  # "same" follows the kernel by itself
    return tuple(pad - margin for pad, margin in zip(conv.padding, less, strict=True))


def _sides(conv: _ConvNd, less: tuple[int, ...]) -> list[int]:
    """The padding of each side, as `F.pad` takes it: from the last dim to the first."""
    both = [margin for margin in reversed(less) for _ in range(2)]
    return [pad - margin for pad, margin in zip(conv._reversed_padding_repeated_twice, both, strict=True)]  # noqa: SLF001


def _transformed(weight: Tensor, transform: Tensor, size: Size) -> Tensor:
    """(out, in, *size): every kernel of `weight`, flattened, times `transform`."""
    return (weight.flatten(2) @ transform.to(weight.dtype)).reshape(*weight.shape[:2], *size)


def _state(module: nn.Module) -> dict[str, object]:
    """The attributes of a module, for a twin that shares its tensors."""
    return {name: value.copy() if isinstance(value, dict) else value for name, value in vars(module).items()}


def elastic_space(supernet: Program | nn.Module) -> ElasticSpace:
    """The choices that a supernet has, in the order in which they were made; none for any other program."""
    root = supernet.graph_module if isinstance(supernet, Program) else supernet
    widths, depths, kernels = dict[str, tuple[int, ...]](), dict[str, tuple[int, ...]](), dict[str, tuple[int, ...]]()
    for module in root.modules():
        if isinstance(module, UnitMask):
            widths.update(module.groups)
        elif isinstance(module, BlockSwitch):
            depths[module.stage] = module.options
        elif isinstance(module, KernelMatrices):
            kernels[module.conv] = tuple(max(size) for size in reversed(module.sizes))
    return ElasticSpace(*(tuple(found.items()) for found in (widths, depths, kernels)))


def is_whole(supernet: nn.Module) -> bool:
    """Whether a supernet runs in its largest configuration, the one in which its structure can be analysed."""
    for module in supernet.modules():
        if isinstance(module, UnitMask) and not bool((module.place < module.limit).all()):
            return False
        if isinstance(module, BlockSwitch) and not module.is_on:
            return False
        if isinstance(module, KernelMatrices) and module.size != module.sizes[0]:
            return False
    return True


def activate(supernet: nn.Module, subnet: Subnet) -> None:
    """Make `supernet`, a trainable copy of a program that `elasticise` made, run as `subnet` from now on.

    No tensor is written to. What `subnet` does not name is at its largest.

    Raises:
        SpecError: `subnet` names what the supernet does not have.
    """
    full = elastic_space(supernet).complete(subnet)
    widths, depths, kernels = dict(full.widths), dict(full.depths), dict(full.kernels)
    for module in supernet.modules():
        if isinstance(module, UnitMask):
            module.set_widths(widths)
        elif isinstance(module, BlockSwitch):
            module.is_on = module.position < depths[module.stage]
        elif isinstance(module, KernelMatrices):
            module.size = next(size for size in module.sizes if max(size) == kernels[module.conv])
