"""Insert a 2 x 2 pool of stride 2 after a feature map (ECToNAS, appendix A.2).

    x  ->  pool(x)        and, in the dense layers that see positions,        W'[o, c, q] = sum_{p in q} W[o, c, p]

Convolutions and everything else that takes a map of any size keep their weights. The first dense layers downstream
have one weight per position; each new position represents the old ones nearest to it, through any strides and borders
in between (`analysis.spatial_maps`), and takes the *sum* of their weights, so that the pooled map only loses detail.
The result on x is that of the original program on x with each window replaced by its mean, if only flattening is in
between. For a max pool the sum is the default as well.

Ablations: `weights="random"` keeps a random one of each window; `"mean"` and `"maximum"` are those of the published
code under an average and a max pool, the latter by signed weight; `"largest"` is by magnitude. The effect is always
lossy. If no dense layer sees positions, as before a global mean, no weight changes.

Odd sizes: with `ceil`, the last window is smaller (TensorFlow's "same"); without it, no window covers the last row
and column, whose weights the neighboring window takes over (see `analysis.spatial_maps`).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal, Self

from torch import Tensor, fx
from typing_extensions import override

from fxsurgery.analysis.activations import read_values
from fxsurgery.analysis.naming import node_named
from fxsurgery.analysis.pool_windows import block_ends, feature_maps, halved, readable, spread, too_small
from fxsurgery.analysis.spatial_maps import Choice, Take
from fxsurgery.calls import checked_construction
from fxsurgery.edit import Editor
from fxsurgery.match import Match, Refusal
from fxsurgery.ops.layers import AVERAGE_POOL, MAX_POOL
from fxsurgery.option_types import Seed
from fxsurgery.program import Program
from fxsurgery.rewriting.changes import Change, Consequences
from fxsurgery.rewriting.downstream import can_follow, follow
from fxsurgery.surgery import Effect, Rewrite

MOST = 4
"""Number of places for candidates."""


@checked_construction
@dataclass(frozen=True)
class AddPool(Rewrite):
    """Pool a feature map, and adapt the dense layers after it to fewer positions."""

    name: ClassVar[str] = "add-pool"

    after: str
    """Name of the node that gives the map: (batch, channels, *positions)."""
    kind: Literal["average", "max"] = "average"
    ceil: bool = False
    """Whether an odd last row and column gets a window of its own."""
    weights: Choice = "structured"
    """How a dense layer combines the weights of a window."""
    seed: Seed = 0
    """Seed of the choice of random weights."""

    @classmethod
    @override
    def candidates(cls, program: Program) -> Iterator[Self]:
        """Yield both kinds of pool after the blocks of convolutions, at a few evenly spread places."""
        maps, found = feature_maps(program), list[fx.Node]()
        for node in spread(list(block_ends(program)), 3 * MOST):
            move = cls(node.name, ceil=any(n % 2 for n in maps[node.name][2:]))
            if not too_small(program, node) and can_follow(program, node, partial(move._change, node)):
                found.append(node)
        for node in spread(found, MOST):
            ceil = any(n % 2 for n in maps[node.name][2:])
            yield cls(node.name, "average", ceil)
            yield cls(node.name, "max", ceil)

    @override
    def rewrite(self, edit: Editor) -> Effect:
        program, node = edit.program, self._node(edit.program)
        if refusal := readable(program, node) or too_small(program, node):
            edit.decline(refusal)
            return Effect.LOSSY
        found = self._follow(program, node)
        if isinstance(found, Refusal):
            edit.decline(found)
            return Effect.LOSSY
        shape = feature_maps(program)[node.name]
        stem = f"{node.target if node.op == 'call_module' else node.name}_pool"
        pool = (AVERAGE_POOL if self.kind == "average" else MAX_POOL)[len(shape)](2, ceil_mode=self.ceil)
        first = next(n for n in program.nodes if n in node.users)
        edit.replace_uses(node, edit.insert_call(edit.new_path(stem), pool, (node,), before=first))
        found.apply(edit)
        return Effect.LOSSY

    def _node(self, program: Program) -> fx.Node:
        return node_named(program, self.after, lambda: feature_maps(program), "feature maps")

    def _follow(self, program: Program, node: fx.Node) -> Match[Consequences]:
        value = read_values(program, {node.name})[node.name]
        return follow(program, self._change(node, value), Take(self.weights, self.seed))

    def _change(self, node: fx.Node, value: Tensor) -> Change:
        pool = (AVERAGE_POOL if self.kind == "average" else MAX_POOL)[value.dim()](2, ceil_mode=self.ceil)
        pooled = pool(value)
        return Change(node, pooled, halved(value.shape, pooled.shape))
