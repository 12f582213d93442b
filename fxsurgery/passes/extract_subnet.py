"""Extract one configuration of a supernet as a plain network (SparseNAS).

    units that a mask silences         are removed, with all tensor slices that belong to them
    x + 0                              x; the branch is removed with its layers
    conv(x, T)                         the conv whose kernel is W T

The result contains no elastic modules, and equals the supernet in that configuration; this is proven on the example
inputs. The same training steps keep them equal, except for a kernel whose matrix is no longer orthonormal: the
supernet updates W, the result W T.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import torch
from torch import fx
from torch.nn.modules.conv import _ConvNd
from typing_extensions import override

from fxsurgery.analysis.blocks import identity_blocks
from fxsurgery.analysis.structure import structure
from fxsurgery.calls import checked_construction
from fxsurgery.edit import Editor
from fxsurgery.lineage import Origin
from fxsurgery.nn.elastic import (
    BlockSwitch,
    ElasticConv,
    KernelMatrices,
    Picks,
    Subnet,
    UnitMask,
    activate,
    center,
    elastic_space,
    is_largest,
)
from fxsurgery.ops.union_find import Ids
from fxsurgery.program import Program
from fxsurgery.proof import itself
from fxsurgery.rewriting.redirection import redirect
from fxsurgery.rewriting.resize import resize
from fxsurgery.surgery import Effect, Rewrite, Trains


@checked_construction
@dataclass(frozen=True)
class ExtractSubnet(Rewrite):
    """Extract a configuration, given by the fields of `Subnet`; dimensions that are not named are at their largest."""

    name: ClassVar[str] = "extract-subnet"
    follows_structure: ClassVar[bool] = True
    trains: ClassVar[Trains] = Trains.ALIKE
    widths: Picks = ()
    depths: Picks = ()
    kernels: Picks = ()

    @classmethod
    @override
    def candidates(cls, program: Program) -> Iterator[Self]:
        """Yield a random configuration, the smallest and the largest."""
        space = elastic_space(program)
        if space.size == 1 or not is_largest(program.graph_module):
            return
        random = space.sample(torch.Generator().manual_seed(0))
        for subnet in dict.fromkeys((random, space.smallest, space.largest)):
            yield cls.of(subnet)

    @classmethod
    def of(cls, subnet: Subnet) -> Self:
        """Return the pass that extracts `subnet`."""
        return cls(subnet.widths, subnet.depths, subnet.kernels)

    @override
    def rewrite(self, edit: Editor) -> Effect:
        program, space = edit.program, elastic_space(edit.program)
        if space.size == 1:
            edit.refuse("output", "the program is not a supernet; apply elasticize first")
            return Effect.EXACT
        if not is_largest(program.graph_module):
            edit.refuse("output", "the supernet does not run at its largest: activate(model, Subnet()) first")
            return Effect.EXACT
        subnet = space.complete(Subnet(self.widths, self.depths, self.kernels))
        model = program.trainable_copy()
        activate(model, subnet)
        sliced = program.with_weights(model)
        if stuck := _stuck(program, sliced):
            edit.refuse(
                stuck, "the units that are off here can no longer be removed: another pass has changed the supernet"
            )
            return Effect.EXACT
        _remove_units(edit, sliced)
        gone = _remove_blocks(edit, sliced)
        _settle_kernels(edit, sliced, gone)
        for node, _ in (*program.calls(UnitMask), *program.calls(BlockSwitch)):
            if node not in gone:
                edit.bypass(node)
        _forget_origins(edit, gone)
        if subnet == space.largest:
            return Effect.EXACT
        edit.prove_equal_to(itself(sliced))
        return Effect.LOSSY


def _stuck(program: Program, sliced: Program) -> str | None:
    """Return a node that masks units that the structure does not allow to remove; `None` if there is none."""
    for node, ids in _silenced(program, sliced):
        if not ids.all():
            return node
    known = {block.branch.name for block in identity_blocks(program)}
    return next((n.name for n, switch in sliced.calls(BlockSwitch) if not switch.is_on and n.name not in known), None)


def _silenced(program: Program, sliced: Program) -> Iterator[tuple[str, Ids]]:
    """Yield each mask node of `sliced` with the units that it masks, 0 for those that cannot be removed."""
    facts = structure(program)
    for node, mask in sliced.calls(UnitMask):
        entering, off = facts.values[node.name], (mask.place >= mask.limit).cpu().numpy()
        ids = facts.along(entering).get(mask.dim % len(entering.shape))
        yield node.name, np.zeros(off.sum(), np.int64) if ids is None else ids[off]


def _remove_units(edit: Editor, sliced: Program) -> None:
    """Remove the units that the masks of `sliced` mask."""
    removed = [ids for _, ids in _silenced(edit.program, sliced)]
    if any(len(ids) for ids in removed):
        facts = structure(edit.program)
        resize(edit, facts, facts.mask(np.unique(np.concatenate(removed))))


def _remove_blocks(edit: Editor, sliced: Program) -> set[fx.Node]:
    """Replace the sum of each block that is off in `sliced` by its shortcut; return the removed nodes."""
    program = edit.program
    off = {node.name for node, switch in sliced.calls(BlockSwitch) if not switch.is_on}
    blocks = [block for block in identity_blocks(program) if block.branch.name in off]
    gone = {node for block in blocks for node in (*block.inner, block.sum)}
    for block in reversed(blocks):  # of two in a row, the later one's shortcut is the earlier one's sum
        redirect(edit, block.sum, block.skip)
    for node in reversed(program.nodes if blocks else ()):
        idle = node.op not in {"placeholder", "output"} and node.users and not edit.twin(node).users
        if idle or node in gone:  # idle is, as a mask or a size may be, what those blocks alone have read
            gone.add(node)
            _erase(edit, node)
    return gone


def _erase(edit: Editor, node: fx.Node) -> None:
    """Erase `node` and its remaining readers: size numbers that `resize` computed for removed nodes."""
    for reader in list(edit.twin(node).users):
        _erase(edit, reader)
    edit.erase(node)


def _settle_kernels(edit: Editor, sliced: Program, gone: set[fx.Node]) -> None:
    """Replace every remaining elastic conv by a plain one of the size in `sliced`."""
    for node, _ in edit.program.calls(ElasticConv):
        if node in gone:
            continue
        path, conv = str(node.target), edit.module(str(node.target))
        if isinstance(conv, ElasticConv):  # the first of its calls
            conv = _plain(edit, path, conv, sliced)
        plain = edit.insert_call(path, conv, (edit.first_input(node),), before=node)
        edit.replace_uses(node, plain)
        edit.erase(node)
    for node, _ in edit.program.calls(KernelMatrices):
        if node not in gone:
            edit.erase(node)


def _plain(edit: Editor, path: str, conv: ElasticConv, sliced: Program) -> _ConvNd:
    """Return the conv at `path`; the optimizer state of a smaller kernel is that of the center."""
    matrices = next(m for _, m in sliced.calls(KernelMatrices) if m.conv == path)
    if matrices.size != matrices.sizes[0]:
        name = f"{path}.weight"
        index = dict(edit.origins[name].index) if name in edit.origins else {}
        for dim, cut in enumerate(center(matrices.sizes[0], matrices.size), start=2):
            index[dim] = torch.arange(cut.start, cut.stop)
        edit.record_origin(name, Origin(name, index))
    with torch.no_grad():
        return conv.plain(matrices())


def _forget_origins(edit: Editor, gone: set[fx.Node]) -> None:
    """Drop the origins of parameters that were removed with their blocks."""
    left = {str(n.target) for n in edit.program.nodes if n not in gone and n.op in {"call_module", "get_attr"}}
    for name in [name for name in edit.origins if not any(f"{name}.".startswith(f"{path}.") for path in left)]:
        del edit.origins[name]
