"""The operations of ECToNAS on any program: the moves that each one allows, and how a move is applied.

    identity      the network continues training
    add-dense     `deepen` behind the activation of a linear layer       remove-dense     `remove-layer`
    add-units     `widen`                                                remove-units     `svd-shrink`, `prune-channels`
    add-cell      `add-conv-cell`, one move per kind of pool   remove-cell      `remove-layer`, blocks as well
    add-channels  `widen`                                                remove-channels  `prune-channels`

Channels are outputs of convolutions, units those of linear and recurrent layers. A width is that of a channel group,
so all layers that share it change together: a residual stream, a concatenation, the heads of attention. Units that a
single layer reads are removed along singular vectors, all others by importance.

Recuperation is the number of epochs that a child trains before it is compared (the published constants).
"""

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, TypeAlias

import numpy as np
from torch import Tensor, nn

from fxsurgery.analysis.importance import norm_scales
from fxsurgery.analysis.layer_paths import layers_of
from fxsurgery.analysis.pool_windows import is_convolution
from fxsurgery.analysis.structure import structure
from fxsurgery.errors import PassCrashedError, SurgeryError
from fxsurgery.kept_outputs import sample_outputs
from fxsurgery.match import Match, Refusal
from fxsurgery.option_types import MOST_UNITS, Fraction, Range, check_fields
from fxsurgery.passes import AddConvCell, Deepen, PruneChannels, RemoveLayer, SvdShrink, Widen
from fxsurgery.program import Program
from fxsurgery.rewriting.single_channel import single_channel_layers
from fxsurgery.searchers.common.width_constraints import FREE, WidthConstraints
from fxsurgery.surgery import Pass

MOST_WORK = 2**33
"""Maximum number of multiplications of a singular value decomposition: about one or two seconds."""


Units: TypeAlias = Annotated[int, Range(least=1, most=MOST_UNITS)]


@dataclass(frozen=True, kw_only=True)
class Amounts:
    """Size of one move, and number of moves.

    Raises:
        SurgeryError: a number has no meaning.
    """

    channels: Units = 3
    """Channels that a move adds or removes, at least; more if `share` of the width is more."""
    units: Units = 2
    """Units that a move adds or removes, at least."""
    share: Fraction = 0.1
    places: Annotated[int, Range(least=1, most=10_000)] = 8
    """Maximum number of places for each operation; drawn at random if there are more."""

    def __post_init__(self) -> None:
        check_fields(self, SurgeryError)

    def step(self, least: int, width: int) -> int:
        """Return the number of units by which a width changes."""
        return max(least, int(self.share * width))


Finder = Callable[[Program, Amounts, int], Iterator[tuple[str, Pass]]]
"""Yields the moves of an operation, each with its place."""


@dataclass(frozen=True)
class Operation:
    """A kind of change to a parent network."""

    recuperation: float
    """Number of epochs that a child trains before its first match."""
    find: Finder


def moves(
    program: Program,
    operation: str,
    amounts: Amounts | None = None,
    seed: int = 0,
    constraints: WidthConstraints = FREE,
) -> list[Pass]:
    """Return the moves that an operation allows, in the order of their places; none for the identity.

    Args:
        program: the parent.
        operation: one of `OPERATIONS`.
        amounts: the size of a move and the maximum number of places.
        seed: seed of the draw of places, and of the passes that draw weights.
        constraints: the layers that no move may change or remove.

    Raises:
        SurgeryError: there is no operation of that name.
    """
    if operation not in OPERATIONS:
        raise SurgeryError(f"no operation is named {operation!r}; there are: {', '.join(OPERATIONS)}")
    amounts = amounts or Amounts()
    found = list(OPERATIONS[operation].find(program, amounts, seed))
    if constraints.keep:
        kept = Kept.of(program, constraints)
        found = [(place, move) for place, move in found if not kept.is_changed_by(move, place)]
    places = list(dict.fromkeys(place for place, _ in found))
    if len(places) > amounts.places:
        places = random.Random(f"{operation} {seed}").sample(places, amounts.places)
    return [move for place, move in found if place in places]


@dataclass(frozen=True, eq=False)
class Kept:
    """The layers of a program that no move may change or remove."""

    program: Program
    widths: frozenset[str]
    """The names of their widths: channel groups, and layers of a single channel."""
    nodes: frozenset[str]
    """The nodes that call them."""

    @classmethod
    def of(cls, program: Program, constraints: WidthConstraints) -> "Kept":
        """Return what `constraints` keep of a program."""
        layers = set(constraints.kept)
        nodes = (node.name for node in program.nodes if not layers.isdisjoint(layers_of(node)))
        return cls(program, constraints.kept_groups(program) | layers, frozenset(nodes))

    def is_changed_by(self, move: Pass, place: str) -> bool:
        """Return True if a move changes the width of a kept layer, or removes it.

        Args:
            move: the pass.
            place: of a move that changes a width, the name of that width.
        """
        if isinstance(move, RemoveLayer):
            return not self.nodes.isdisjoint(node.name for node in move.removes(self.program))
        return isinstance(move, Widen | PruneChannels | SvdShrink) and place in self.widths


def apply_move(program: Program, move: Pass) -> Match[Program]:
    """Apply a move; a refusal gives a reason without names and numbers, so that reasons can be counted.

    Raises:
        PassCrashedError: a bug of the pass.
    """
    try:
        result = move(program)
    except PassCrashedError:
        raise
    except SurgeryError as error:
        return Refusal(str(move), _countable(str(error).replace(str(move), "the pass")))
    if not result.changes:
        first = next(iter(result.refusals), Refusal(str(move), "nothing would change"))
        return Refusal(first.node, _countable(first.reason))
    return _degenerate(program, result.program) or result.program


def _degenerate(parent: Program, child: Program) -> Refusal | None:
    """Return why a network is not a candidate; `None` if it is one."""
    inherited = {id(t) for t in parent.graph_module.state_dict(keep_vars=True).values()}
    state = child.graph_module.state_dict(keep_vars=True)
    if not all(map(_is_finite, (t for t in state.values() if id(t) not in inherited))):
        return Refusal("output", "a weight is not finite")
    if not all(map(_is_finite, sample_outputs(child))):
        return Refusal("output", "an output is not finite")
    if not any(p.requires_grad for p in child.graph_module.parameters()):
        return Refusal("output", "nothing is left to train")
    return None


def _is_finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(tensor.isfinite().all())


def _countable(reason: str) -> str:
    """Return a reason without what differs by place: names, numbers, and text after a colon or a bracket."""
    short = re.split(r"[:;(\n]", reason)[0].strip()
    short = re.sub(r"%[\w.]+|'[^']*'", "a node", short)
    return re.sub(r"[\w.]*\w", lambda word: _general(word[0]), short)


def _general(word: str) -> str:
    """Return `n` for a number and `a layer` for a word that looks like the name of a layer."""
    if word.replace(".", "").isdigit():
        return "n"
    return "a layer" if any(c.isdigit() or c in "._" for c in word) else word


def _add_dense(program: Program, amounts: Amounts, seed: int) -> Iterator[tuple[str, Pass]]:
    del amounts, seed
    for move in Deepen.candidates(program):
        if move.is_dense(program):
            yield move.after, move


def _add_cell(program: Program, amounts: Amounts, seed: int) -> Iterator[tuple[str, Pass]]:
    for move in AddConvCell.candidates(program, 3 * amounts.places):  # fast to check, but not at hundreds of places
        if move.kind != "none":
            yield move.after, replace(move, seed=seed)


def _remove(program: Program, amounts: Amounts, seed: int, *, dense: bool) -> Iterator[tuple[str, Pass]]:
    del amounts, seed
    linear = {node.name for node, _ in program.calls(nn.Linear)}
    wanted = {node.name for node in program.nodes if (node.name in linear) is dense}
    for move in RemoveLayer.candidates(program, wanted):
        yield move.layer, move


def _widen(program: Program, amounts: Amounts, seed: int, *, channels: bool) -> Iterator[tuple[str, Pass]]:
    step = partial(amounts.step, amounts.channels if channels else amounts.units)
    for move in Widen.candidates(program, step, _widths(program, channels=channels), seed):
        ((name, _),) = move.add
        yield name, move


def _narrow(program: Program, amounts: Amounts, seed: int, *, channels: bool) -> Iterator[tuple[str, Pass]]:
    del seed
    step = partial(amounts.step, amounts.channels if channels else amounts.units)
    wanted = _widths(program, channels=channels)
    merged = {} if channels else _merging(program, step)
    for move in PruneChannels.candidates(program, step):
        ((name, _),) = move.drop
        if name in wanted:
            yield name, merged.get(name) or _folding(program, move)


def _merging(program: Program, step: Callable[[int], int]) -> dict[str, SvdShrink]:
    """Return the move along singular vectors of each channel group whose size it meets and that is fast to compute."""
    groups = {g.name: len(g.units) for g in structure(program).groups if len(g.producers) == 1}
    found = dict[str, SvdShrink]()
    for move in SvdShrink.candidates(program, step):
        width, weight = (
            groups.get(move.layer, 0),
            program.graph_module.get_submodule(move.layer).get_parameter("weight"),
        )
        rows, columns = weight.flatten(1).shape
        if move.units == max(1, width - step(width)) and rows * columns * min(rows, columns) <= MOST_WORK:
            found[move.layer] = move
    return found


def _folding(program: Program, move: PruneChannels) -> PruneChannels:
    """Return the move that folds the constants of channels that norms scale into the biases of their readers, if any.

    Readers without a bias are left alone: a new bias before a batch norm would be a parameter without effect.
    """
    ((name, positions),) = move.drop
    gone = structure(program).named(name).units[list(positions)]
    if not np.isfinite(norm_scales(program)[gone]).all():
        return move
    readers = {c.node for c in structure(program).contractions if np.isin(gone, c.ids).any()}
    called = [program.module(n) for n in program.nodes if n.name in readers and n.op == "call_module"]
    has_biases = len(called) == len(readers) and all(getattr(m, "bias", None) is not None for m in called)
    return replace(move, leaves="constant") if has_biases else move


def _widths(program: Program, *, channels: bool) -> set[str]:
    """Return the names of the widths that convolutions produce, or of the other ones."""
    convolutions = {node.name for node in program.nodes if is_convolution(program, node)}
    found = {g.name: set(g.producers) for g in structure(program).groups}
    found |= {path: {node.name} for path, node in single_channel_layers(program).items()}
    return {name for name, producers in found.items() if bool(convolutions & producers) is channels}


def _nothing(program: Program, amounts: Amounts, seed: int) -> Iterator[tuple[str, Pass]]:
    del program, amounts, seed
    yield from ()


OPERATIONS: dict[str, Operation] = {
    "identity": Operation(0.1, _nothing),
    "add-dense": Operation(0.1, _add_dense),
    "remove-dense": Operation(1.0, partial(_remove, dense=True)),
    "add-units": Operation(0.1, partial(_widen, channels=False)),
    "remove-units": Operation(1.0, partial(_narrow, channels=False)),
    "add-cell": Operation(0.25, _add_cell),
    "remove-cell": Operation(1.0, partial(_remove, dense=False)),
    "add-channels": Operation(0.1, partial(_widen, channels=True)),
    "remove-channels": Operation(1.0, partial(_narrow, channels=True)),
}
"""The operations by name. The identity has no moves: the parent itself continues training."""
