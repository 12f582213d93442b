"""Where the entries of a result's parameters come from, through one pass or several."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from fxsurgery.program import Program


@dataclass(frozen=True, eq=False)
class Origin:
    """Where the entries of a result's parameter come from: what an optimizer knows of them goes with them."""

    name: str
    """The parameter of the program before."""
    index: Mapping[int, Tensor] = field(default_factory=dict)
    """By dim: for each entry of the new parameter, the entry of the old one; -1 for one that is new. Other dims
    are what they were."""


class LineageStep(Protocol):
    """What a pass gave: a `PassResult`."""

    @property
    def program(self) -> Program:
        """The program after it."""

    @property
    def origins(self) -> Mapping[str, Origin]:
        """Of parameters of `program`, in terms of the program before."""


def compose(start: Program, steps: Iterable[LineageStep]) -> dict[str, Origin]:
    """The origins of what several passes, one after the other, made of `start`.

    A parameter that one of them made anew under a name that `start` has gets an index of -1 throughout.
    """
    shapes = {name: p.shape for name, p in _parameters(start.graph_module).items()}
    before, lineage = dict(shapes), dict[str, Origin | None]({name: Origin(name) for name in shapes})
    for step in steps:
        after = _parameters(step.program.graph_module)
        shared = dict[int, list[str]]()
        for name, parameter in after.items():
            shared.setdefault(id(parameter), []).append(name)
        lineage = {
            name: _traced([name, *shared[id(p)]], p.shape, before, lineage, step.origins) for name, p in after.items()
        }
        before = {name: p.shape for name, p in after.items()}
    nothing = {name: Origin(name, _none(before[name])) for name in lineage if name in shapes}
    return {name: origin or nothing[name] for name, origin in lineage.items() if origin or name in nothing}


def _traced(
    names: list[str],
    shape: torch.Size,
    before: Mapping[str, torch.Size],
    lineage: Mapping[str, Origin | None],
    origins: Mapping[str, Origin],
) -> Origin | None:
    """Where a parameter of these names comes from, one pass further back than `origins`."""
    for name in names:
        if name in origins:
            first = lineage.get(origins[name].name)
            return None if first is None else _joined(first, origins[name])
    return lineage[names[0]] if before.get(names[0]) == shape else None


def _joined(first: Origin, second: Origin) -> Origin:
    index = {**first.index, **second.index}
    for dim in first.index.keys() & second.index.keys():
        earlier, later = first.index[dim].cpu(), second.index[dim].cpu()
        index[dim] = torch.where(later < 0, -1, earlier[later.clamp(min=0)])
    return Origin(first.name, index)


def _none(shape: torch.Size) -> dict[int, Tensor]:
    return {dim: torch.full((size,), -1) for dim, size in enumerate(shape)}


def _parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of a model under all their names: a tied one has several."""
    return dict(model.named_parameters(remove_duplicate=False))
