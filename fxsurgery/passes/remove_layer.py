"""Remove a layer: a dense layer, a convolution cell, or a residual block whose shortcut is the identity.

* Dense (ECToNAS, appendix A.1). Two linear layers with nothing but pointwise functions between become one, without
  those: `W = W2 W1`, `b = W2 b1 + b2` (rows are outputs; in the paper `W1 W2`). Exact with only identities in between;
  otherwise it equals the program without the activations, which is proven on the example inputs. A dropout in between
  is an identity in eval mode only, so it makes the result lossy.
* Cell: a linear layer or convolution with the pool, norm, activation and dropout after it. If its output has the
  shape of its input, its readers read the input. If not, they absorb the affine map of the cell
  `A x + a` (`analysis.cells`) into their weights, `W'[o, c] = sum_j W[o, j] A[j, c]`, biases `b' = b + W a`, and dense
  layers downstream get weights for the new positions (`rewriting.downstream`). Two kernels do not become one of size
  k1 + k2 - 1, which would cost more than the removed cell: A sums over the taps. Lossy, except for a bare point
  convolution (1 x 1) that dense layers read. A pool is removed with its cell, and so is its change of size.
* Block: `x + f(x)` becomes x, and f is removed. Exact if f gives 0, as in a block whose last norm starts at weight 0
  and bias 0; otherwise lossy.

A module that other nodes call is kept for them. A layer is not removed if the program returns its output, or if an
input or every parameter would become unused, or a value would be subtracted from itself.
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Self

from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from typing_extensions import override

from fxsurgery.analysis.activations import read_values
from fxsurgery.analysis.blocks import (
    IdentityBlock,
    cancels,
    gives_zero,
    has_parameters,
    identity_blocks,
    shape_of,
    sum_operands,
)
from fxsurgery.analysis.cells import (
    Cell,
    affine,
    following_norm,
    has_offset,
    is_global_pool,
    is_matrix,
    map_past,
    passes_constants,
    read_cell,
)
from fxsurgery.analysis.naming import node_named
from fxsurgery.analysis.refit import refit
from fxsurgery.analysis.shared_modules import fixed
from fxsurgery.calls import checked_construction
from fxsurgery.edit import Editor
from fxsurgery.match import Match, Refusal
from fxsurgery.program import Program
from fxsurgery.proof import itself
from fxsurgery.rewriting.changes import Change, Consequences
from fxsurgery.rewriting.downstream import can_follow, follow
from fxsurgery.rewriting.redirection import redirect
from fxsurgery.surgery import Effect, Rewrite, Trains

Plan = Callable[[Editor], Effect]
"""Makes the edits of a removal."""


@checked_construction
@dataclass(frozen=True)
class RemoveLayer(Rewrite):
    """Remove the layer or the residual block at a node."""

    name: ClassVar[str] = "remove-layer"
    trains: ClassVar[Trains] = Trains.ON

    layer: str
    """Name of the node that calls the linear layer or convolution, or of the sum of the block."""

    @classmethod
    @override
    def candidates(cls, program: Program, among: Collection[str] | None = None) -> Iterator[Self]:
        """Yield the removal of every layer and block for which it is possible.

        Args:
            program: the program to change.
            among: the nodes to try, since each trial takes time; all by default.
        """
        for node in program.nodes:
            if (among is not None and node.name not in among) or not _is_place(program, node):
                continue
            if not isinstance(_plan(program, node, only_try=True), Refusal):
                yield cls(node.name)

    def removes(self, program: Program) -> frozenset[fx.Node]:
        """Return the nodes that are removed together with the layer or block."""
        node = node_named(program, self.layer, lambda: (), "layers and sums")
        if (cell := read_cell(program, node)) is not None:
            return frozenset({node, *cell.tail})
        block = next((b for b in identity_blocks(program) if b.sum is node), None)
        return frozenset({node} if block is None else {node, *block.inner})

    @override
    def rewrite(self, edit: Editor) -> Effect:
        program = edit.program
        places = (n.name for n in program.nodes if _is_place(program, n))
        plan = _plan(program, node_named(program, self.layer, lambda: places, "layers and sums"))
        if isinstance(plan, Refusal):
            edit.decline(plan)
            return Effect.EXACT
        return plan(edit)


def _is_place(program: Program, node: fx.Node) -> bool:
    return read_cell(program, node) is not None or sum_operands(program, node) is not None


def _plan(program: Program, node: fx.Node, *, only_try: bool = False) -> Match[Plan]:
    """Return the edits that remove the layer at `node`, or a refusal; `only_try`: only check whether there are any."""
    if (cell := read_cell(program, node)) is not None:
        if any(user.op == "output" for user in cell.end.users) or not cell.end.users:
            return Refusal(node.name, "the program returns its output")
        return _cuts(program, cell.end, {node, *cell.tail}, cell.source) or _cell_plan(program, cell, only_try)
    if sum_operands(program, node) is None:
        return Refusal(node.name, "it is neither a call of a linear layer or convolution nor a sum")
    block = next((b for b in identity_blocks(program) if b.sum is node), None)
    if block is None:
        return Refusal(node.name, "no operand of this sum is computed from the other alone: no identity shortcut")
    return _cuts(program, node, {node, *block.inner}, block.skip) or (lambda edit: _remove_block(edit, block))


def _cuts(program: Program, end: fx.Node, gone: set[fx.Node], onto: fx.Node) -> Refusal | None:
    """Return a refusal if the program is broken without `gone`, once the readers of `end` read `onto`."""
    if reader := cancels(program, end, onto):
        return Refusal(reader.name, f"both operands would be %{onto}, which cancels out")
    (output,) = (n for n in program.nodes if n.op == "output")

    def needed(without: set[fx.Node]) -> set[fx.Node]:
        found, waiting = set[fx.Node](), [output]
        while waiting:
            read = waiting.pop()
            read = onto if read in without else read
            if read not in found:
                found.add(read)
                waiting += read.all_input_nodes
        return found

    before, after = needed(set()), needed(gone)
    if lost := [n for n in program.nodes if n.op == "placeholder" and n in before - after]:
        return Refusal(end.name, f"the output would no longer depend on the input %{lost[0]}")
    if not any(has_parameters(program, n) for n in after):
        return Refusal(end.name, "no parameter would be left")
    return None


def _remove_block(edit: Editor, block: IdentityBlock) -> Effect:
    is_zero = gives_zero(edit.program, block.branch)
    redirect(edit, block.sum, block.skip)
    _erase(edit, [*block.inner, block.sum])
    return Effect.EXACT if is_zero else Effect.LOSSY


def _merge(edit: Editor, cell: Cell, reader: fx.Node) -> Effect:
    """Merge two linear layers into one, at the place of the second."""
    program, path = edit.program, str(reader.target)
    second = program.module(reader)
    weight = second.get_parameter("weight").detach()
    matrix, offset = affine(program, cell)
    edit.replace_module(path, refit(second, {"weight": (weight.double() @ matrix).to(weight.dtype)}))
    if has_offset(program, cell):
        _shift(edit, reader, weight.double() @ offset)
    redirect(edit, cell.end, cell.source)
    _erase(edit, [cell.node, *cell.tail])
    return _merged_effect(edit, cell)


def _merged_effect(edit: Editor, cell: Cell) -> Effect:
    """Return EXACT if only identities are in between; else prove equality with the linear program, if possible."""
    program = edit.program
    if is_matrix(program, cell):
        return Effect.EXACT
    modules = {n: program.module(n) for n in cell.tail if n.op == "call_module"}
    norms = {n for n, module in modules.items() if module.state_dict() and not isinstance(module, nn.PReLU)}
    if all(isinstance(modules[n], _BatchNorm) and modules[n].track_running_stats for n in norms):
        linear = Editor(program)
        for node in cell.tail:
            if node not in norms:
                linear.bypass(node)
        edit.prove_equal_to(itself(linear.finish("without activations")))
    return Effect.LOSSY


def _shift(edit: Editor, node: fx.Node, offset: Tensor) -> None:
    """Add `offset`, (out,), to the output of the layer at `node`: in its bias, or in the batch norm that reads it."""
    path = str(node.target)
    module = edit.module(path)
    weight, bias = module.get_parameter("weight"), getattr(module, "bias", None)
    norm = following_norm(edit.program, node) if bias is None else None
    if norm is not None:
        own = edit.module(str(norm.target))
        mean = own.get_buffer("running_mean")
        edit.replace_module(str(norm.target), refit(own, {"running_mean": (mean.double() - offset).to(mean.dtype)}))
        return
    new = refit(module, {})
    old = 0.0 if bias is None else bias.detach().double()
    new.bias = nn.Parameter((old + offset).to(weight.dtype), (weight if bias is None else bias).requires_grad)
    edit.replace_module(path, new)


def _cell_plan(program: Program, cell: Cell, only_try: bool) -> Match[Plan]:  # noqa: FBT001
    reader, same = next(iter(cell.end.users)), shape_of(program, cell.source) == shape_of(program, cell.end)
    is_dense = reader.op == "call_module" and isinstance(program.module(reader), nn.Linear)
    if isinstance(cell.layer, nn.Linear) and is_dense and len(cell.end.users) == 1:
        if (refusal := fixed(program, str(reader.target))) is None:
            return lambda edit: _merge(edit, cell, reader)
        if not same:
            return Refusal(reader.name, refusal.reason)
    if same:
        return lambda edit: _bypass(edit, cell, Consequences(is_exact=False))
    found = _follow(program, cell, only_try)
    return found if isinstance(found, Refusal) else lambda edit: _bypass(edit, cell, found)


def _follow(program: Program, cell: Cell, only_try: bool) -> Match[Consequences]:  # noqa: FBT001
    """Return the changes by which the readers of the cell can read its source, which has another shape."""
    before, after = shape_of(program, cell.end), shape_of(program, cell.source)
    dims = cell.layer.weight.dim() if isinstance(cell.layer, _ConvNd) else len(before or ())
    if before is None or after is None or not len(before) == len(after) == dims or dims < 2:
        return Refusal(cell.node.name, "its input and output are not maps with the same number of dims")
    change = partial(_change, program, cell, before, after)
    if only_try:
        can = can_follow(program, cell.source, change)
        return Consequences() if can else Refusal(cell.node.name, "its readers cannot take its input")
    value = read_values(program, {cell.source.name})[cell.source.name]
    return follow(program, change(value))


def _change(program: Program, cell: Cell, before: tuple[int, ...], after: tuple[int, ...], value: Tensor) -> Change:
    """Return the change to reading `value`, the source of a cell; past a global pool, its mean."""
    at, dims = cell.end, len(before)
    reader = next(iter(at.users))
    if len(at.users) == 1 and isinstance(cell.layer, _ConvNd) and is_global_pool(program, reader):
        at, kept = reader, len(shape_of(program, reader) or ()) > 2
        value = value.mean(tuple(range(2, dims)), keepdim=kept)
        before, after = (shape[:2] + (1,) * (dims - 2 if kept else 0) for shape in (before, after))
    own = map_past(program, cell, before, after)
    return Change(at, value, own, is_linear=is_matrix(program, cell), keeps_constants=False)


def _bypass(edit: Editor, cell: Cell, found: Consequences) -> Effect:
    program = edit.program
    found.apply(edit)
    _, offset = affine(program, cell)
    taking = [n for n in program.nodes if n.op == "call_module" and str(n.target) in found.modules]
    all_shifted = not found.tensors
    for node in taking if has_offset(program, cell) else ():
        if not passes_constants(program, node, cell.end):
            all_shifted = False
            continue
        weight = program.module(node).get_parameter("weight").detach().double()
        by_channel = weight.reshape(len(weight), len(offset), -1).sum(2)
        _shift(edit, node, by_channel @ offset)
    redirect(edit, cell.end, cell.source)
    _erase(edit, [cell.node, *cell.tail])
    return Effect.EXACT if found.is_exact and all_shifted else Effect.LOSSY


def _erase(edit: Editor, nodes: list[fx.Node]) -> None:
    """Erase `nodes`, given in execution order, and the attributes that only they read."""
    for node in reversed(nodes):
        edit.erase(node)
        for read in node.all_input_nodes:
            if read.op == "get_attr" and read not in nodes and not edit.twin(read).users:
                edit.erase(read)
