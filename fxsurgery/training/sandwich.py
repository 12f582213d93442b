"""The sandwich rule: a supernet trains several of its sub-networks on each batch (Yu & Huang 2019, Alg. 1).

    dL/dw = sum over S of dL_S/dw,      S = the largest, the smallest, and n drawn at random

Each sub-network runs forward and backward on its own, so no more memory is needed than the largest one takes. The draws
follow from the seed and the number of the step alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from fxsurgery.calls import checked_construction
from fxsurgery.errors import SpecError
from fxsurgery.nn.elastic import ElasticSpace, Subnet, activate, elastic_space
from fxsurgery.option_types import Range, Seed, check_fields
from fxsurgery.seeding import mix
from fxsurgery.training.objective import Batch, Objective, Terms, task_objective


@checked_construction
@dataclass(frozen=True, kw_only=True)
class SandwichObjective:
    """An objective for a supernet, a trainable copy of a program that `elasticize` made.

    The model runs at its largest again after each batch, so that validation scores the whole.

    Raises:
        SpecError: an argument is out of its range.

    Example:
        >>> from fxsurgery.nn.elastic import ElasticSpace
        >>> space = ElasticSpace(widths=(("a", (2, 4, 8)),))
        >>> [dict(s.widths)["a"] for s in SandwichObjective(draws=2).subnets(space, step=0).values()]
        [8, 2, 2, 8]
    """

    draws: Annotated[int, Range(least=0, below=2**31)] = 2
    """Number of sub-networks drawn at random for a step."""
    seed: Seed = 0
    objective: Objective = task_objective
    """Objective of one sub-network; pass another one to learn soft labels or features."""

    def __post_init__(self) -> None:
        check_fields(self, SpecError)

    def subnets(self, space: ElasticSpace, step: int) -> Mapping[str, Subnet]:
        """Return the sub-networks of a step by name, in the order in which they run."""
        generator = torch.Generator().manual_seed(mix(self.seed, step))
        drawn = {f"random {number}": space.sample(generator) for number in range(1, self.draws + 1)}
        return {"largest": space.largest, "smallest": space.smallest, **drawn}

    def __call__(self, model: nn.Module, batch: Batch, /) -> tuple[Tensor, Terms]:
        """Sum the gradients; return the sum of the losses, and each by the name of its sub-network.

        Raises:
            SpecError: the model has no choices to make.
        """
        space = elastic_space(model)
        if space.size == 1:
            raise SpecError(f"the {type(model).__name__} is no supernet; train one that Elasticize() made")
        losses = dict[str, Tensor]()
        try:
            for name, subnet in self.subnets(space, batch.step).items():
                activate(model, subnet)
                loss, _ = self.objective(model, batch.copy())
                if loss.requires_grad:
                    batch.backward(loss)
                losses[name] = loss.detach()
        finally:
            activate(model, space.largest)
        return torch.stack(list(losses.values())).sum(), losses
