"""Why no width of a program can change, for a message."""

from fxsurgery.analysis.cost import cost
from fxsurgery.analysis.elastic_widths import elastic_groups
from fxsurgery.analysis.layer_paths import layer_name
from fxsurgery.analysis.structure import structure
from fxsurgery.argument_names import assigned
from fxsurgery.program import Program
from fxsurgery.rewriting.removable import unremovable, unremovable_notes

NO_GATE = (
    "no gate can represent its channels: a norm or softmax runs over them, a recurrent layer feeds them back to "
    "itself, or something other than a convolution, linear or recurrent layer reads them"
)


def why_nothing(program: Program, align: int, *, exact: bool) -> str:
    """Return the reason for which no width can change, and a remedy.

    Args:
        program: the captured model.
        align: widths must be multiples of this.
        exact: whether only units that a gate can represent may be removed.
    """
    facts, failures = structure(program), unremovable(program)
    free = [g for g in (elastic_groups(program) if exact else facts.groups) if g.name not in failures]
    if len(facts.groups) > len(failures) and not free:
        names = ", ".join(g.name for g in facts.groups[:5])
        return (
            f"no channel of {names} can be removed, since {NO_GATE}. Use {assigned('method', 'prune')}, which can "
            "remove them"
        )
    if free:
        narrow = ", ".join(f"{g.name} ({len(g.units)})" for g in free[:5])
        return f"no channel can be removed in multiples of {align}: {narrow}. Pass a smaller align"
    if failures:
        return f"no channel can be removed: {'; '.join(unremovable_notes(program))}. Take sizes in forward from x.shape"
    return _what_holds(program)


def _what_holds(program: Program) -> str:
    """Return the operations that need all channels, the largest first."""
    tally = dict[str, int]()
    for freeze in structure(program).freezes:
        holder = f"{freeze.op} at {layer_name(program, freeze.node)}"
        tally[holder] = tally.get(holder, 0) + freeze.count
    worst = sorted(tally, key=lambda k: -tally[k])[:3]
    if not worst:
        what = "has no parameters" if not cost(program).params else "has no layer of PyTorch's with channels"
        return f"no channel can be removed: the model {what}; pass one with convolutions or linear layers of torch.nn"
    return (
        "no channel can be removed: "
        + "; ".join(f"{tally[k]} are held by {k}" for k in worst)
        + ". Rewrite these in forward, or pass another model"
    )
