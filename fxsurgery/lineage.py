"""Origins of the entries of a result's parameters, through one or several passes."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from fxsurgery.program import Program


@dataclass(frozen=True, eq=False)
class Origin:
    """Origin of the entries of a result's parameter, so that optimizer state can follow them."""

    name: str
    """Name of the parameter in the program before."""
    index: Mapping[int, Tensor] = field(default_factory=dict)
    """Dim -> for each entry of the new parameter, the index of the old entry; -1 for a new one. Other dims are
    unchanged."""


class LineageStep(Protocol):
    """A `PassResult`, as far as this module needs it."""

    @property
    def program(self) -> Program:
        """The program after the pass."""

    @property
    def origins(self) -> Mapping[str, Origin]:
        """Origins of the parameters of `program` in the program before."""


def compose(start: Program, steps: Iterable[LineageStep]) -> dict[str, Origin]:
    """Return the origins of parameters after several passes, applied one after another to `start`.

    A parameter that a pass created under a name that `start` has gets the index -1 throughout.
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
    """Return the origin of a parameter with these names, one pass further back than `origins`."""
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
    """Return the parameters of a model under all their names; a tied one has several."""
    return dict(model.named_parameters(remove_duplicate=False))
