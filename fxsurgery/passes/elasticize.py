"""Turn a program into a supernet with switchable widths, depths and kernel sizes (SparseNAS).

    consumer(x)  ->  consumer(mask(x))     a unit masked at every consumer acts as removed
    x + f(x)     ->  x + switch(f(x))      f(x) or 0
    conv(x)      ->  conv(x, T)            the kernel, or its center times a learned matrix, 1 at the start

`analysis` finds what can be elastic. Nothing is reordered: a mask follows the importance of its units. All sizes start
at their largest, so the outputs do not change, and the weights are the user's.
`fxsurgery.nn.elastic` switches a trainable copy; `extract-subnet` makes a plain network from a configuration.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Self

import numpy as np
import torch
from typing_extensions import override

from fxsurgery.analysis.elastic_kernels import KernelChoice, kernel_choices
from fxsurgery.analysis.elastic_widths import WidthChoice, elastic_groups, residual_streams, width_choices
from fxsurgery.analysis.gating import float_tensor, gate_plan
from fxsurgery.analysis.stages import ResolutionStage, stages
from fxsurgery.analysis.structure import structure
from fxsurgery.calls import checked_construction
from fxsurgery.edit import Editor
from fxsurgery.errors import SpecError
from fxsurgery.nn.elastic import (
    ELASTIC,
    ELASTIC_CONVS,
    BlockSwitch,
    KernelMatrices,
    UnitMask,
    elastic_space,
)
from fxsurgery.ops.union_find import Ids
from fxsurgery.option_types import Range
from fxsurgery.program import Program
from fxsurgery.surgery import Effect, Rewrite, Trains


@checked_construction
@dataclass(frozen=True)
class Elasticize(Rewrite):
    """Elastic widths of channel groups, depths of stages and sizes of kernels, wherever a program has them."""

    name: ClassVar[str] = "elasticize"
    trains: ClassVar[Trains] = Trains.ALIKE
    follows_structure: ClassVar[bool] = True
    widths: tuple[float, ...] = (0.5, 0.75, 1.0)
    """Fractions of its units that a channel group may keep; 1 is always among them."""
    align: Annotated[int, Range(below=2**31)] = 1
    """Widths are multiples of this if the layers allow it."""
    inner_only: bool = False
    """Whether the widths of residual streams stay fixed."""
    depth: bool = True
    shallowest: Annotated[int, Range(below=2**31)] = 1
    """Minimum number of blocks that a stage keeps; with 0, a single block can be removed too."""
    kernel: bool = True

    @classmethod
    @override
    def candidates(cls, program: Program) -> Iterator[Self]:
        if elastic_space(program).size == 1 and any(cls()._choices(program)):  # noqa: SLF001
            yield cls()

    def _choices(
        self, program: Program
    ) -> tuple[tuple[WidthChoice, ...], tuple[ResolutionStage, ...], tuple[KernelChoice, ...]]:
        """Return the dimensions that become elastic.

        Raises:
            SpecError: an option is out of its range.
        """
        if wrong := [share for share in self.widths if not 0 < share <= 1]:
            raise SpecError(
                f"widths={self.widths}: {wrong[0]} is not a fraction above 0 and at most 1; give fractions such as 0.5"
            )
        if self.align < 1 or self.shallowest < 0:
            raise SpecError(
                f"align={self.align}, shallowest={self.shallowest}: they must be at least 1, and at least 0"
            )
        return (
            width_choices(program, self.widths, self.align, inner_only=self.inner_only),
            stages(program, self.shallowest) if self.depth else (),
            kernel_choices(program)[0] if self.kernel else (),
        )

    @override
    def rewrite(self, edit: Editor) -> Effect:
        program = edit.program
        widths, depths, kernels = self._choices(program)
        if elastic_space(program).size > 1:
            edit.refuse("output", "the program is a supernet already")
            return Effect.EXACT
        self._refuse_the_rest(edit, widths)
        _insert_masks(edit, widths)
        for stage in depths:
            _insert_switches(edit, stage, self.shallowest)
        for choice in kernels:
            _insert_kernel(edit, choice)
        if not edit.changes and not edit.refusals:
            edit.refuse("output", "nothing can be elastic: no width, no repeated residual block, no kernel above 3")
        return Effect.EXACT

    def _refuse_the_rest(self, edit: Editor, widths: Sequence[WidthChoice]) -> None:
        """Refuse the widths and kernels that cannot become elastic, with reasons."""
        if any(share < 1 for share in self.widths):
            exact, elastic = set(elastic_groups(edit.program)), {choice.group for choice in widths}
            streams = residual_streams(edit.program) if self.inner_only else frozenset()
            for group in structure(edit.program).groups:
                if group not in exact:
                    edit.refuse(group.name, "no mask can represent its units: a norm runs over them, or no layer mixes")
                elif group not in elastic and streams.isdisjoint(group.units.tolist()):
                    edit.refuse(group.name, f"its {len(group.units)} units allow a single width only")
        if self.kernel:
            for node, reason in kernel_choices(edit.program)[1].items():
                edit.refuse(node, f"its kernel stays fixed: {reason}")


def _insert_masks(edit: Editor, choices: Sequence[WidthChoice]) -> None:
    """Insert a mask before every consumer that reads an elastic unit."""
    number, owner = (np.full(structure(edit.program).size, -1) for _ in range(2))
    for position, choice in enumerate(choices):
        number[choice.order], owner[choice.order] = np.arange(len(choice.order)), position
    count, like = 0, float_tensor(edit.program)
    for site in gate_plan(edit.program).sites:
        met = [choices[n] for n in np.unique(owner[site.ids]) if n >= 0]
        if not met:
            continue
        mask = UnitMask(
            tuple((c.group.name, c.counts) for c in met), torch.from_numpy(_places(site.ids, met)), site.dim
        )
        mask = mask if like is None else mask.to(like.device)
        masked = edit.insert_call(f"{ELASTIC}.mask{count}", mask, (site.source,), before=site.node)
        edit.rewire(site.node, site.source, masked)
        count += 1


def _places(ids: Ids, choices: Sequence[WidthChoice]) -> Ids:
    """Return the rank of each channel's unit among the elastic units at this site, as `UnitMask` takes it."""
    places, start = np.full(len(ids), -1, np.int64), 0
    for choice in choices:
        rank = {int(unit): start + n for n, unit in enumerate(choice.order)}
        places = np.array([rank.get(int(unit), place) for unit, place in zip(ids, places, strict=True)], np.int64)
        start += len(choice.order)
    return places


def _insert_switches(edit: Editor, stage: ResolutionStage, shallowest: int) -> None:
    options = tuple(range(shallowest, len(stage.blocks) + 1))
    for position, block in enumerate(stage.blocks[shallowest:], start=shallowest):
        for residual in block:
            switch = BlockSwitch(stage.name, position, options)
            path = edit.new_path(f"{ELASTIC}.switch_{residual.sum.name}")
            switched = edit.insert_call(path, switch, (residual.branch,), before=residual.sum)
            edit.rewire(residual.sum, residual.branch, switched)


def _insert_kernel(edit: Editor, choice: KernelChoice) -> None:
    first = choice.nodes[0]
    conv = edit.program.module(first)
    kind, weight = ELASTIC_CONVS[type(conv)], conv.get_parameter("weight")
    matrices = KernelMatrices(choice.path, choice.sizes).to(weight.device, weight.dtype)
    matrices.requires_grad_(weight.requires_grad)
    path = edit.new_path(f"{ELASTIC}.kernel_{choice.path.replace('.', '_')}")
    transform = edit.insert_call(path, matrices, (), before=first)
    edit.replace_module(choice.path, kind.of(conv, choice.sizes))  # type: ignore[arg-type]
    for node in choice.nodes:
        edit.set_argument(node, "transform", transform)
