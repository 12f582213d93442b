"""Example inputs of any structure: what a model is called with, positional and by name.

The *batch* is dim 0 of the first tensor among them, and of every tensor that is as long there.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


@dataclass(frozen=True, eq=False)
class Inputs:
    """`model(*args, **kwargs)`: tensors nested in tuples, lists and dicts; any other leaf is a constant."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def leaves(self) -> list[Any]:
        """Tensors and constants, in the order of the flattened structure: what the placeholders stand for."""
        return pytree.tree_leaves((self.args, dict(self.kwargs)))

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors among the leaves."""
        return [leaf for leaf in self.leaves if isinstance(leaf, Tensor)]

    @property
    def batch(self) -> int | None:
        """The batch size; `None` where no tensor has a dim."""
        return next((len(x) for x in self.tensors if x.dim()), None)

    def is_batched(self, tensor: Tensor) -> bool:
        """Whether dim 0 of one of the tensors is the batch."""
        return bool(tensor.dim()) and len(tensor) == self.batch

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The same structure with each tensor changed."""
        args, kwargs = pytree.tree_map_only(Tensor, change, (self.args, dict(self.kwargs)))
        return type(self)(args, kwargs)

    def grown(self) -> Self:
        """One sample more: the first one again."""
        return self.map(lambda x: torch.cat([x, x[:1]]) if self.is_batched(x) else x)

    def clone(self) -> Self:
        """The same on memory of its own, for a model that writes to its inputs."""
        return self.map(lambda x: x.detach().clone())
