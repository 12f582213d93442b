"""Size attributes of layers besides their tensors: one function per kind, referenced by the declarations."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor, nn


@dataclass(frozen=True)
class Sizes:
    """Changed sizes of a module that its tensors do not determine; None for an unchanged one."""

    groups: int | None = None
    channels: int | None = None
    normalized: tuple[int, ...] | None = None
    unflattened: tuple[int, ...] | None = None
    rows: Tensor | None = None
    """Indices of the remaining rows of a weight-normalized weight."""

    def __bool__(self) -> bool:
        return any(size is not None for size in (self.groups, self.channels, self.normalized, self.unflattened))


SizeAttributes: TypeAlias = Callable[[Any, Sizes], Mapping[str, object]]
"""Returns the size attributes of a module by name, given its current tensors and the changed sizes."""


def linear(module: nn.Linear, sizes: Sizes) -> Mapping[str, object]:
    """Return the numbers of features of a linear layer."""
    del sizes
    return {"out_features": module.weight.shape[0], "in_features": module.weight.shape[1]}


def convolution(module: Any, sizes: Sizes) -> Mapping[str, object]:  # noqa: ANN401 -- any convolution
    """Return the channels and groups of a convolution."""
    groups = sizes.groups or module.groups
    first, second = module.weight.shape[:2]
    return {"groups": groups, "in_channels": second * groups, "out_channels": first}


def transposed_convolution(module: Any, sizes: Sizes) -> Mapping[str, object]:  # noqa: ANN401 -- any of them
    """Return the channels and groups of a transposed convolution."""
    groups = sizes.groups or module.groups
    first, second = module.weight.shape[:2]
    return {"groups": groups, "in_channels": first, "out_channels": second * groups}


def statistics(module: Any, sizes: Sizes) -> Mapping[str, object]:  # noqa: ANN401 -- batch or instance norm
    """Return the channels of a norm with per-channel statistics."""
    return {"num_features": sizes.channels or module.num_features}


def group_norm(module: nn.GroupNorm, sizes: Sizes) -> Mapping[str, object]:
    """Return the channels and groups of a group norm."""
    return {"num_groups": sizes.groups or module.num_groups, "num_channels": sizes.channels or module.num_channels}


def trailing_norm(module: Any, sizes: Sizes) -> Mapping[str, object]:  # noqa: ANN401 -- layer or RMS norm
    """Return the normalized shape of a norm over trailing dims."""
    return {"normalized_shape": sizes.normalized or module.normalized_shape}


def unflatten(module: nn.Unflatten, sizes: Sizes) -> Mapping[str, object]:
    """Return the sizes that a dim is split into."""
    return {"unflattened_size": sizes.unflattened or module.unflattened_size}


def prelu(module: nn.PReLU, sizes: Sizes) -> Mapping[str, object]:
    """Return the number of slopes."""
    del sizes
    return {"num_parameters": module.weight.numel()}


def embedding(module: Any, sizes: Sizes) -> Mapping[str, object]:  # noqa: ANN401 -- an embedding or a bag of them
    """Return the width of an embedding."""
    del sizes
    return {"embedding_dim": module.weight.shape[1]}


def cell(module: Any, sizes: Sizes) -> Mapping[str, object]:  # noqa: ANN401 -- any recurrent cell
    """Return the sizes of a recurrent cell."""
    del sizes
    return {"input_size": module.weight_ih.shape[1], "hidden_size": module.weight_hh.shape[1]}


def recurrent(module: nn.RNNBase, sizes: Sizes) -> Mapping[str, object]:
    """Return the sizes of a recurrent layer, including its projection."""
    del sizes
    inner, outer = module.get_parameter("weight_ih_l0"), module.get_parameter("weight_hh_l0")
    projected = getattr(module, "proj_size", 0) > 0
    hidden = module.get_parameter("weight_hr_l0").shape[1] if projected else outer.shape[1]
    return {
        "input_size": inner.shape[1],
        "hidden_size": hidden,
        "proj_size": outer.shape[1] if projected else 0,
    }
