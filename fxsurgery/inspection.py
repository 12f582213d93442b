"""Which parts of a model can shrink, and why the others cannot: `fxsurgery.inspect`."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import fx, nn
from typing_extensions import override

from fxsurgery.analysis.cost import cost, unknown_macs_notes, unknown_operation_notes
from fxsurgery.analysis.frozen_reasons import KEPT, FrozenReasons
from fxsurgery.analysis.layer_paths import layer_name
from fxsurgery.analysis.layer_widths import producer_names
from fxsurgery.analysis.propagation import LEAF
from fxsurgery.analysis.structure import Structure, structure
from fxsurgery.batch_layout import Statement
from fxsurgery.budget import Cost
from fxsurgery.capture import capture, guess_inputs
from fxsurgery.display import Figure, Html, bar, card, listing, table
from fxsurgery.display.html import escaped
from fxsurgery.errors import CaptureError, DataError, SurgeryError
from fxsurgery.example_inputs import ExampleInputs
from fxsurgery.ops.propagation_state import Work
from fxsurgery.ops.union_find import Ids
from fxsurgery.option_types import checked
from fxsurgery.printable import lines, printable
from fxsurgery.program import Program
from fxsurgery.report.figures import chosen, macs_of_layers, units_of_widths
from fxsurgery.rewriting.removable import unremovable, unremovable_notes
from fxsurgery.surroundings import plain_surroundings


@dataclass(frozen=True)
class Width:
    """A width of the model, whose units can be removed one by one, each with everything that depends on it."""

    name: str
    """Path of the first layer that produces the units; with `#2` and so on if it has several widths."""
    units: int
    """Number of units that can be removed."""
    channels: int
    """Number of channels of that layer: one or several a unit, as where a unit is an attention head."""
    producers: tuple[str, ...]
    """Paths of all layers that produce the units; `keep=` and `ratios=` take them, and `name`."""
    exact: bool
    """Whether the other units compute the same without a removed one; not where a norm or softmax runs over them."""


@dataclass(frozen=True)
class Fixed:
    """A layer that cannot shrink."""

    name: str
    macs: float
    """Multiply-accumulates for one sample."""
    reason: str
    """Reason why its outputs and inputs stay."""


@dataclass(frozen=True, eq=False)
class Inspection:
    """Which parts of a model can shrink. `print` shows a page, a notebook shows tables.

    Example:
        >>> import torch
        >>> found = inspect(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.ones(1, 4))
        >>> found
        <Inspection of Sequential: 100.0% of 48 MACs editable, 1 width of 8 removable units in all>
        >>> found.plot("widths")
        <Figure 'Removable units': shown by a notebook; .save('figure.svg') writes it>
    """

    program: Program
    cost: Cost
    """Number of parameters, and MACs of one sample."""
    editable_macs: float
    """Fraction of the MACs in layers that can lose inputs or outputs, 0 to 1."""
    editable_params: float
    """Fraction of the parameters that belong to some removable channel, 0 to 1."""
    widths: tuple[Width, ...]
    fixed: tuple[Fixed, ...]
    """Layers that cannot shrink, the largest first."""
    notes: tuple[str, ...]
    """Leaf modules with the reason, operations without a rule, checks that were impossible."""

    @override
    def __repr__(self) -> str:
        editable = f"{self.editable_macs:.1%} of {self.cost.macs:,} MACs editable"
        return printable(f"<Inspection of {self.program.name}: {editable}, {_units(self.widths)}>")

    def _repr_html_(self) -> str:
        share = f"{self.cost.params:,} parameters, {self.editable_params:.1%} editable"
        most = max((width.units for width in self.widths), default=1)
        widths = [
            (width.name, bar(width.units / most, _size(width)), "" if width.exact else "a norm runs over them")
            for width in self.widths[:SHOWN]
        ]
        total = self.cost.macs or 1
        fixed = [(part.name, f"{part.macs / total:.1%}", Html(escaped(part.reason))) for part in self.fixed[:SHOWN]]
        return card(
            f"Inspection of {self.program.name}",
            f"{self.cost.macs:,} MACs for one sample, {self.editable_macs:.1%} editable; {share}",
            table((_units(self.widths), "channels", ""), widths) if widths else "",
            _more(self.widths),
            table(("cannot shrink", "share of the MACs", "reason"), fixed) if fixed else "",
            _more(self.fixed),
            listing("notes", self.notes),
            "print(inspection) for the page; inspection.plot('macs'), inspection.plot('widths')",
        )

    @checked(SurgeryError)
    @plain_surroundings()
    def plot(self, name: str = "macs") -> Figure:
        """Return a picture, which a notebook shows and `.save("picture.svg")` writes.

        Args:
            name: `"macs"` (MACs of each layer, and which can shrink) or `"widths"` (removable units of each width).

        Raises:
            SurgeryError: there is no such picture; the message lists those that there are.
        """
        figures = {
            "macs": lambda: macs_of_layers(self.program),
            "widths": lambda: units_of_widths({width.name: width.units for width in self.widths}),
        }
        return figures[chosen(name, figures)]()

    @override
    def __str__(self) -> str:
        """Return a page to read."""
        page = [
            f"{self.cost.params:,} parameters, {self.cost.macs:,} MACs for one sample",
            f"editable: {self.editable_macs:.1%} of the MACs, {self.editable_params:.1%} of the parameters",
            f"{_units(self.widths)}:",
        ]
        page += [_line(width) for width in self.widths[:SHOWN]]
        page += [f"  and {len(self.widths) - SHOWN} more"] if len(self.widths) > SHOWN else []
        total = self.cost.macs or 1
        if self.fixed:
            page.append("cannot shrink:")
        page += [f"  {part.name}: {part.macs / total:.1%} of the MACs; {part.reason}" for part in self.fixed[:SHOWN]]
        page += [f"  and {len(self.fixed) - SHOWN} more"] if len(self.fixed) > SHOWN else []
        return lines([*page, *(f"note: {note}" for note in self.notes)])


SHOWN = 12
"""Number of entries of each list that is shown."""
NAMED = 6
"""Number of layers that are named for each width."""


@checked(CaptureError, apart=("example_inputs",), example_kwargs=DataError)
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
    """Return what surgery can change in a captured model, and why the rest stays as it is."""
    facts = structure(program)
    work = [(w, any(ids.any() for ids in w.dims)) for w in facts.work]
    total = sum(w.macs for w, _ in work) or 1.0
    sizes = {name: p.numel() for name, p in program.graph_module.named_parameters()}
    editable = sum(n for name, n in sizes.items() if any(ids.any() for ids in facts.tensors.get(name, {}).values()))
    fixed = _fixed(program, [part for part, free in work if not free and part.macs])
    return Inspection(
        program=program,
        cost=cost(program),
        editable_macs=sum(w.macs for w, free in work if free) / total,
        editable_params=editable / (sum(sizes.values()) or 1),
        widths=tuple(_widths(program, facts)),
        fixed=tuple(sorted(fixed, key=lambda part: -part.macs)),
        notes=(
            *program.notes,
            *unknown_operation_notes(program),
            *unknown_macs_notes(program),
            *unremovable_notes(program),
        ),
    )


def _fixed(program: Program, work: Sequence[Work]) -> list[Fixed]:
    """Return the layers that do the work that cannot shrink; the MACs of one layer are added up by reason."""
    reasons = FrozenReasons(program) if work else None
    macs = dict[tuple[str, str], float]()
    for part in work:
        reason = KEPT if part.op == LEAF or reasons is None else reasons.of(part.node)
        key = layer_name(program, part.node), reason
        macs[key] = macs.get(key, 0.0) + part.macs
    return [Fixed(name, number, reason) for (name, reason), number in macs.items()]


def _widths(program: Program, facts: Structure) -> Iterator[Width]:
    nodes = {n.name: n for n in program.nodes}
    group_of = np.full(facts.size, -1)
    recurrent = {node.name for node, _ in program.calls(nn.RNNBase)}
    for number, group in enumerate(facts.groups):
        group_of[group.units] = number
        if group.name in unremovable(program):
            continue
        own = _tensors_of(facts, group.producers[0], nodes.get(group.producers[0]))
        # The weights of a recurrent layer hold several rows for each of its channels: one for each of its gates.
        has_gates = group.producers[0] in recurrent
        channels = [] if has_gates else [int((group_of[ids] == number).sum()) for dims in own for ids in dims.values()]
        exact = not set(group.units.tolist()) & facts.inexact
        units = len(group.units)
        yield Width(group.name, units, max([units, *channels]), producer_names(program, group), exact)


def _tensors_of(facts: Structure, producer: str, node: fx.Node | None) -> list[Mapping[int, Ids]]:
    """Return the units along the dims of the tensors that a producer holds or reads."""
    if node is None:
        return [facts.tensors[producer]]
    if node.op == "call_module":
        return [dims for name, dims in facts.tensors.items() if name.startswith(f"{node.target}.")]
    read = (str(n.target) for n in node.all_input_nodes if n.op == "get_attr")
    return [facts.tensors[name] for name in read if name in facts.tensors]


def _line(width: Width) -> str:
    others = [name for name in width.producers if name != width.name]
    more = f" and {len(others) - NAMED} more" if len(others) > NAMED else ""
    shared = f" with {', '.join(others[:NAMED])}{more}" if others else ""
    return f"  {width.name}: {_size(width)}{shared}{'' if width.exact else ' (a norm runs over them)'}"


def _size(width: Width) -> str:
    each, rest = divmod(width.channels, width.units)
    if width.channels == width.units:
        return f"{width.units} channels"
    return f"{width.channels} channels in {width.units} units" if rest else f"{width.units} units of {each} channels"


def _units(widths: tuple[Width, ...]) -> str:
    total = sum(width.units for width in widths)
    return f"{len(widths)} width{'' if len(widths) == 1 else 's'} of {total:,} removable units in all"


def _more(entries: Sequence[object]) -> str:
    return f"and {len(entries) - SHOWN} more" if len(entries) > SHOWN else ""
