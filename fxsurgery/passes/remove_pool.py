"""Remove an average or max pool (ECToNAS, appendix A.2).

    pool(x)  ->  x        and, in the dense layers that see positions,        W' = W A

A is the average pool as a matrix, for any windows: w / 4 for each of four positions, more where windows overlap, less
if padding is counted. (The paper copies w to each of the four, which makes the outputs four times too large.)

* Average pool, with only operations that move entries or pass them on (dropout in eval mode) and 1 x 1 convolutions
  before the dense layers: exact.
* A batch norm in between as well: it is the same affine map in eval mode, so the outputs are equal there, and that is
  proven; in train mode its statistics are those of the unpooled map, so the effect is lossy.
* Anything else in between (an activation, a wider convolution, another pool), or a max pool: lossy. Positions are then
  matched by location, and each old one distributes its weight over the new ones for it (`analysis.spatial_maps`).

Refused: adaptive pools, which have no windows, and global pools (over a whole map of more than three positions a side).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import fx
from typing_extensions import override

from fxsurgery.analysis.activations import read_values
from fxsurgery.analysis.blocks import cancels, writes_into
from fxsurgery.analysis.pool_windows import LOCAL, Pool, feature_maps, read_pool
from fxsurgery.analysis.spatial_maps import Map, SpatialAxis
from fxsurgery.calls import checked_construction
from fxsurgery.edit import Editor
from fxsurgery.errors import SpecError
from fxsurgery.match import Match, Refusal
from fxsurgery.ops.operator import Kind
from fxsurgery.program import Program
from fxsurgery.proof import itself
from fxsurgery.rewriting.changes import Change, Consequences
from fxsurgery.rewriting.downstream import follow
from fxsurgery.surgery import Effect, Rewrite


@checked_construction
@dataclass(frozen=True)
class RemovePool(Rewrite):
    """Remove a pool: its readers read its input."""

    name: ClassVar[str] = "remove-pool"

    node: str
    """Name of the node of the pool: a call of a module or of a function."""

    @classmethod
    @override
    def candidates(cls, program: Program) -> Iterator[Self]:
        for node in program.nodes:
            pool = read_pool(program, node)
            if pool is not None and isinstance(_followed(program, node, pool), Consequences):
                yield cls(node.name)

    @override
    def rewrite(self, edit: Editor) -> Effect:
        program, node = edit.program, self._node(edit.program)
        pool = read_pool(program, node)
        if pool is None:
            edit.refuse(node, "an adaptive or global pool has no windows: it gives a fixed number of positions")
            return Effect.LOSSY
        found = _followed(program, node, pool)
        if isinstance(found, Refusal):
            edit.decline(found)
            return Effect.LOSSY
        edit.bypass(node)
        found.apply(edit)
        if found.is_exact and found.uses_statistics:
            edit.prove_equal_to(itself(program))
        return Effect.EXACT if found.is_exact and not found.uses_statistics else Effect.LOSSY

    def _node(self, program: Program) -> fx.Node:
        found = next((n for n in program.nodes if n.name == self.node), None)
        if found is not None and (read_pool(program, found) is not None or _is_global(program, found)):
            return found
        known = ", ".join(n.name for n in program.nodes if read_pool(program, n) is not None)
        raise SpecError(f"{self.node!r} is not a pool; there are: {known or 'none'}")


def _is_global(program: Program, node: fx.Node) -> bool:
    operator = program.operator(node)
    return operator is not None and operator.kind is Kind.POOLING


def _followed(program: Program, node: fx.Node, pool: Pool) -> Match[Consequences]:
    """Return the changes downstream once the readers of a pool read its input, or a refusal."""
    source, shapes = node.args[0] if node.args else None, feature_maps(program)
    if pool.gives_indices or not isinstance(source, fx.Node):
        return Refusal(str(node), "it gives indices as well, or takes its input by name")
    if source.name not in shapes or node.name not in shapes:
        return Refusal(str(node), "its input is not a feature map: (batch, channels, *positions)")
    before, after = shapes[source.name], shapes[node.name]
    if pool.kernel == before[2:] and set(after[2:]) == {1} and max(pool.kernel) > LOCAL:
        return Refusal(str(node), "it is a global pool: one window is the whole map")
    if reader := cancels(program, node, source):
        return Refusal(str(reader), f"both operands would be %{source}, which cancels out")
    if len(source.users) > 1 and any(writes_into(program, reader) is node for reader in node.users):
        return Refusal(str(node), f"a reader writes into it, and would then write into %{source}, which others read")
    shares = [pool.shares(d, size, after[2 + d]) for d, size in enumerate(before[2:])]
    axes = [
        (SpatialAxis().through(pool.kernel[d], pool.stride[d], pool.padding[d], pool.dilation[d]), SpatialAxis())
        for d in range(len(pool.kernel))
    ]
    own = Map(after[1:], before[1:], (None, *(s.T for s in shares)), (None, *axes))
    rows = shares[0].sum(1)
    for share in shares[1:]:
        rows = rows[..., None] * share.sum(1)
    value = read_values(program, {source.name})[source.name]
    constant = bool(torch.allclose(rows, torch.ones_like(rows)))
    return follow(program, Change(node, value, own, is_linear=pool.kind == "average", keeps_constants=constant))
