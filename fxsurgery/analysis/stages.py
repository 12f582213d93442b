"""Stages: consecutive identity-skip blocks `x + f(x)` of the same operations.

If sums of several kinds alternate, as attention and feed-forward parts do, a block is one round of them. Each block can
be skipped without changing another layer; a smaller depth keeps the first blocks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import fx

from fxsurgery.analysis.blocks import IdentityBlock, identity_blocks, writes_into
from fxsurgery.analysis.pointwise import pointwise
from fxsurgery.analysis.shapes import target_name
from fxsurgery.ops.operator import Kind
from fxsurgery.program import Program

LONGEST_ROUND = 8
"""Maximum number of sums in one block of a stage; Swin's blocks have four."""


@dataclass(frozen=True, eq=False)
class ResolutionStage:
    """Blocks, each of one or more residual sums, of which the first ones are kept at a smaller depth."""

    name: str
    """The first layer of the first block, by its name in the user's model."""
    blocks: tuple[tuple[IdentityBlock, ...], ...]


def stages(program: Program, shallowest: int = 1) -> tuple[ResolutionStage, ...]:
    """Return the stages of more than `shallowest` blocks, in execution order."""
    found = list[ResolutionStage]()
    for chain in _chains(program):
        kinds, start = [_kind(program, block) for block in chain], 0
        while start < len(chain):
            width, times = _longest_repeat(kinds[start:])
            if times > shallowest:
                own = chain[start : start + width * times]
                rounds = [tuple(own[n : n + width]) for n in range(0, len(own), width)]
                found.append(ResolutionStage(_first_layer(program, own[0]), tuple(rounds)))
            start += width * times
    return tuple(found)


def _longest_repeat(kinds: Sequence[object]) -> tuple[int, int]:
    """Return the length and number of repeats of the initial round that reaches furthest, the shortest of several."""
    best = (1, 1)
    for width in range(1, min(LONGEST_ROUND, len(kinds)) + 1):
        times = 1
        while list(kinds[times * width : (times + 1) * width]) == list(kinds[:width]):
            times += 1
        if times > 1 and width * times > best[0] * best[1]:
            best = (width, times)
    return best


def _chains(program: Program) -> list[list[IdentityBlock]]:
    """Return the chains of consecutive blocks that can be skipped."""
    chains, last = list[list[IdentityBlock]](), dict[fx.Node, list[IdentityBlock]]()
    for block in identity_blocks(program):
        if _writes_outside(program, block):
            continue
        chain = last.pop(_origin(program, block.skip, last), None)
        if chain is None:
            chains.append(chain := [])
        chain.append(block)
        last[block.sum] = chain
    return chains


def _writes_outside(program: Program, block: IdentityBlock) -> bool:
    written = [writes_into(program, node) for node in block.inner]
    return any(target is not None and target not in block.inner for target in written)


def _origin(program: Program, node: fx.Node, sums: dict[fx.Node, list[IdentityBlock]]) -> fx.Node:
    """Return the sum that a value derives from by activations, norms and reshapes; else the first of these."""
    while node not in sums and node.args and isinstance(source := node.args[0], fx.Node):
        operator = program.operator(node)
        is_norm = operator is not None and operator.kind is Kind.NORM
        is_move = operator is not None and operator.kind is Kind.MOVEMENT and not operator.picks
        if not is_norm and not is_move and pointwise(program, node) is None:
            break
        node = source
    return node


def _kind(program: Program, block: IdentityBlock) -> tuple[str, ...]:
    """Return the operations of a branch, without sizes."""
    return tuple(
        type(program.module(n)).__name__ if n.op == "call_module" else n.op if n.op == "get_attr" else target_name(n)
        for n in block.inner
    )


def _first_layer(program: Program, block: IdentityBlock) -> str:
    layers = (n for n in block.inner if n.op == "call_module" and any(True for _ in program.module(n).parameters()))
    return next((str(n.target) for n in layers), block.sum.name)
