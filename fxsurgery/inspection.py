"""What of a model surgery can reach, and why the rest stays: `fxsurgery.inspect`."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import fx, nn
from typing_extensions import override

from fxsurgery.analysis.cost import cost, unknown_macs_notes
from fxsurgery.analysis.propagation import LEAF, Propagation
from fxsurgery.analysis.structure import Structure, structure
from fxsurgery.batch_layout import Statement
from fxsurgery.budget import Cost
from fxsurgery.capture import capture, guess_inputs
from fxsurgery.errors import CaptureError, DataError
from fxsurgery.example_inputs import ExampleInputs
from fxsurgery.ops.union_find import Ids, TracedUnionFind
from fxsurgery.option_types import checked
from fxsurgery.printable import lines
from fxsurgery.program import Program
from fxsurgery.rewriting.removable import unremovable, unremovable_notes
from fxsurgery.surroundings import plain_surroundings


@dataclass(frozen=True)
class Width:
    """Units that can be removed one by one, each with everything that lives and dies with it."""

    name: str
    """The layer that produces them first."""
    units: int
    channels: int
    """Channels of that layer that they are: as many as units, or several a unit, as where a unit is a head."""
    producers: tuple[str, ...]
    exact: bool
    """Whether the others compute the same without them; not where a norm or softmax runs over them."""


@dataclass(frozen=True)
class Fixed:
    """A layer whose work cannot shrink."""

    name: str
    macs: float
    """For one sample."""
    reason: str


@dataclass(frozen=True, eq=False)
class Inspection:
    """What surgery can reach of a model."""

    program: Program
    cost: Cost
    """Parameters, and MACs of one sample."""
    editable_macs: float
    """The share of the MACs, 0 to 1, of layers that can lose inputs or outputs."""
    editable_params: float
    """The share of the parameters that some removable channel has a part in."""
    widths: tuple[Width, ...]
    fixed: tuple[Fixed, ...]
    """The layers that cannot shrink, the largest first."""
    notes: tuple[str, ...]
    """Leaf modules with the reason, operations without a rule, checks that could not be made."""

    @override
    def __str__(self) -> str:
        """A page to read."""
        page = [
            f"{self.cost.params:,} parameters, {self.cost.macs:,} MACs for one sample",
            f"editable: {self.editable_macs:.1%} of the MACs, {self.editable_params:.1%} of the parameters",
            f"{len(self.widths)} widths of {sum(w.units for w in self.widths):,} removable units in all:",
        ]
        page += [_line(width) for width in self.widths[:SHOWN]]
        page += [f"  and {len(self.widths) - SHOWN} more"] if len(self.widths) > SHOWN else []
        total = self.cost.macs or 1
        if self.fixed:
            page.append("cannot shrink:")
        page += [f"  {part.name}: {part.macs / total:.1%} of the MACs; {part.reason}" for part in self.fixed[:SHOWN]]
        page += [f"  and {len(self.fixed) - SHOWN} more"] if len(self.fixed) > SHOWN else []
        return lines([*page, *(f"note: {note}" for note in self.notes)])


_NONE: Ids = np.zeros(0, np.int64)

SHOWN = 12
"""Entries of a list that `str` shows."""


@checked(CaptureError, apart=("model", "example_inputs"), example_kwargs=DataError)
@plain_surroundings()
def inspect(
    model: nn.Module,
    example_inputs: ExampleInputs | None = None,
    *,
    example_kwargs: Mapping[str, Any] | None = None,
    leaf_modules: tuple[type[nn.Module], ...] = (),
    batch_dims: Statement = None,
) -> Inspection:
    """Return what surgery can change in `model`, and why the rest stays as it is. The model is left alone.

    Args:
        model: any module, as for `fxsurgery.optimize`.
        example_inputs: what the model is called with: a tensor, a tuple of positional inputs, a dict of inputs by name,
            or a `DataLoader`; arrays of numpy do as well. Inferred from the model by default, if it takes one input; a
            note says what was assumed.
        example_kwargs: inputs by name, beside the others.
        leaf_modules: module types to keep as leaves.
        batch_dims: which dim of the inputs is the batch, as for `fxsurgery.capture`; inferred by default.

    Raises:
        CaptureError: the model cannot be captured as a graph; the message names the line or the module.
        DataError: the example inputs do not fit the model, or cannot be inferred.
    """
    if example_inputs is not None or example_kwargs is not None:
        program = capture(
            model, example_inputs, example_kwargs=example_kwargs, leaf_modules=leaf_modules, batch_dims=batch_dims
        )
        return inspect_program(program)
    inferred, note = guess_inputs(model)
    found = inspect_program(capture(model, inferred, leaf_modules=leaf_modules, batch_dims=batch_dims))
    return replace(found, notes=(note, *found.notes))


@plain_surroundings()
def inspect_program(program: Program) -> Inspection:
    """The same for a captured model."""
    facts, whole = structure(program), cost(program)
    work = [(w, any(ids.any() for ids in w.dims)) for w in facts.work]
    total = sum(w.macs for w, _ in work) or 1.0
    sizes = {name: p.numel() for name, p in program.graph_module.named_parameters()}
    editable = sum(n for name, n in sizes.items() if any(ids.any() for ids in facts.tensors.get(name, {}).values()))
    stuck = dict[str, float]()
    for part, free in work:
        if not free:
            stuck[part.node] = stuck.get(part.node, 0.0) + part.macs
    reasons = _Reasons(program) if stuck else None
    leaves = {part.node for part, _ in work if part.op == LEAF}
    why = {node: "it is a leaf module" if node in leaves else reasons.of(node) for node in stuck if reasons}
    fixed = [Fixed(_name(program, node), macs, why[node]) for node, macs in stuck.items() if macs]
    unknown = tuple(
        f"operation {op!r} (at {', '.join(nodes[:3])}) has no rule: what flows into it keeps its width"
        for op, nodes in facts.unknown.items()
    )
    return Inspection(
        program=program,
        cost=whole,
        editable_macs=sum(w.macs for w, free in work if free) / total,
        editable_params=editable / (sum(sizes.values()) or 1),
        widths=tuple(_widths(program, facts)),
        fixed=tuple(sorted(fixed, key=lambda part: -part.macs)),
        notes=(*program.notes, *unknown, *unknown_macs_notes(program), *unremovable_notes(program)),
    )


def _widths(program: Program, facts: Structure) -> Iterator[Width]:
    nodes = {n.name: n for n in program.nodes}
    group_of = np.full(facts.size, -1)
    for number, group in enumerate(facts.groups):
        group_of[group.units] = number
        if group.name in unremovable(program):
            continue
        own = _tensors_of(facts, group.producers[0], nodes.get(group.producers[0]))
        channels = [int((group_of[ids] == number).sum()) for dims in own for ids in dims.values()]
        exact = not set(group.units.tolist()) & facts.inexact
        units = len(group.units)
        yield Width(group.name, units, max([units, *channels]), group.producers, exact)


def _tensors_of(facts: Structure, producer: str, node: fx.Node | None) -> list[Mapping[int, Ids]]:
    """The units along the dims of the tensors that a producer holds or is told."""
    if node is None:
        return [facts.tensors[producer]]
    if node.op == "call_module":
        return [dims for name, dims in facts.tensors.items() if name.startswith(f"{node.target}.")]
    read = (str(n.target) for n in node.all_input_nodes if n.op == "get_attr")
    return [facts.tensors[name] for name in read if name in facts.tensors]


class _Reasons:
    """Why layers keep their widths: a second analysis, which remembers what froze what."""

    def __init__(self, program: Program) -> None:
        self._program, self._atoms = program, TracedUnionFind()
        self._nodes = {n.name: n for n in program.nodes}
        self._walk = Propagation(program, self._atoms)
        self._walk.walk()

    def of(self, name: str) -> str:
        """Return why the work of a node or leaf module cannot shrink."""
        node = self._nodes.get(name) or next((n for n in self._program.nodes if str(n.target) == name), None)
        if node is None or (node.op == "call_module" and not self._weight(node) and self._has_state(node)):
            return "it is a leaf module"
        weight = self._weight(node)
        if weight is None:
            return "neither of what it multiplies can lose anything"
        return f"outputs kept by {self._cause(weight[0])}, inputs by {self._entering(node, weight[1])}"

    def _has_state(self, node: fx.Node) -> bool:
        return bool(self._program.module(node).state_dict())

    def _weight(self, node: fx.Node) -> tuple[Ids, Ids] | None:
        """The ids along the first two dims of the weight that a node multiplies by."""
        named = [n for n in self._walk.dims if n.startswith(f"{node.target}.")] if node.op == "call_module" else []
        named += [str(n.target) for n in node.all_input_nodes if n.op == "get_attr"]
        state = dict(self._program.graph_module.named_parameters()) | dict(self._program.graph_module.named_buffers())
        known = (self._walk.dims[name] for name in named if name in self._walk.dims and state[name].dim() > 1)
        # A dim of size 1 has no units.
        return next(((dims.get(0, _NONE), dims.get(1, _NONE)) for dims in known), None)

    def _entering(self, node: fx.Node, ids: Ids) -> str:
        """What keeps the inputs of a node: where they were kept before they came here, that."""
        event = self._atoms.cause(ids)
        source = next(iter(node.all_input_nodes), None)
        if event is None or self._walk.state.freezes[event].node != node.name:
            return self._cause(ids)
        while source is not None and source.op != "placeholder":
            if (weight := self._weight(source)) is not None:
                return self._cause(weight[0])
            source = next(iter(source.all_input_nodes), None)
        return "the model's input"

    def _cause(self, ids: Ids) -> str:
        event = self._atoms.cause(ids)
        if event is None:
            return "their size of 1"
        freeze = self._walk.state.freezes[event]
        return freeze.op if freeze.op == "the model's output" else f"{freeze.op} at {_name(self._program, freeze.node)}"


def _name(program: Program, name: str) -> str:
    node: fx.Node | None = next((n for n in program.nodes if n.name == name), None)
    return str(node.target) if node is not None and node.op == "call_module" else name


def _line(width: Width) -> str:
    others = f" with {', '.join(width.producers[1:4])}" if len(width.producers) > 1 else ""
    each, rest = divmod(width.channels, width.units)
    many = f"{width.channels} channels in {width.units} units" if rest else f"{width.units} units of {each} channels"
    size = f"{width.units} channels" if width.channels == width.units else many
    return f"  {width.name}: {size}{others}{'' if width.exact else ' (a norm runs over them)'}"
