"""Residual blocks with an identity shortcut, which can be skipped without changing any other layer.

    y = x + f(x)    ->    y = x

`f` is whatever stands between the value x and the sum: convolutions, norms, squeeze-and-excite gates, attention,
layer scale, stochastic depth. It is found backwards from the sum: the nodes that serve nothing but the branch. What
they read from outside must include x; it may include other values (a mask, an embedding) that others read as well.
A projection shortcut is no identity: neither operand of its sum is read by the other.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, fx, nn

from fxsurgery.analysis.cached import cached
from fxsurgery.analysis.node_values import node_values
from fxsurgery.analysis.pointwise import pointwise
from fxsurgery.ops import registry
from fxsurgery.ops.arithmetic import ADD, MUL
from fxsurgery.ops.operator import Kind
from fxsurgery.program import Program


@dataclass(frozen=True, eq=False)
class IdentityBlock:
    """A residual sum `sum = skip + branch`, whose branch is computed from the value of the skip."""

    sum: fx.Node
    skip: fx.Node
    """The shortcut operand: x, or an identity of it such as dropout."""
    branch: fx.Node
    """The other operand: the last of `inner`."""
    inner: tuple[fx.Node, ...]
    """The nodes that only the branch uses, in execution order; at least one has parameters."""
    reads: tuple[fx.Node, ...]
    """The outside nodes that the branch reads: x, and others such as masks, sizes and shared norms."""


@cached
def identity_blocks(program: Program) -> tuple[IdentityBlock, ...]:
    """Return every residual sum with an identity shortcut, in execution order. Blocks may be nested."""
    found = dict[fx.Node, IdentityBlock]()
    for node in program.nodes:
        if (operands := sum_operands(program, node)) is None:
            continue
        first, second = operands
        scaled = node.kwargs.get("alpha", 1) != 1  # the second operand, which is no identity then
        for skip, branch in ((first, second), (second, first))[: 1 if scaled else 2]:
            if node not in found and (block := _block(program, node, skip, branch, found)) is not None:
                found[node] = block
    return tuple(found.values())


def shape_of(program: Program, node: fx.Node) -> tuple[int, ...] | None:
    """Return the shape of a node's value on the example inputs; `None` if it is not a tensor."""
    return node_values(program).shape(node)


def dims_of(program: Program, node: fx.Node) -> tuple[int, ...]:
    """Return the shape of a node's value on the example inputs; empty if it is not a tensor."""
    return shape_of(program, node) or ()


def has_parameters(program: Program, node: fx.Node) -> bool:
    """Return True if `node` is a layer: it calls a module with parameters, or reads a parameter."""
    if node.op == "call_module":
        return any(True for _ in program.module(node).parameters())
    return node.op == "get_attr" and isinstance(program.attribute(str(node.target)), nn.Parameter)


def writes_into(program: Program, node: fx.Node) -> fx.Node | None:
    """Return the node whose value `node` overwrites in place, as `nn.ReLU(inplace=True)` and `x.add_(y)` do."""
    written = registry.overwritten(node, program.module(node) if node.op == "call_module" else None)
    return written if isinstance(written, fx.Node) else None


def sum_operands(program: Program, node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """Return the two nodes that `node` adds; `None` if it is not a plain sum of two nodes."""
    if program.operator(node) is not ADD:
        return None
    first = node.args[0] if node.args else node.kwargs.get("input")
    second = node.args[1] if len(node.args) > 1 else node.kwargs.get("other")
    if not isinstance(first, fx.Node) or not isinstance(second, fx.Node) or first is second:
        return None
    return first, second


def gives_zero(program: Program, node: fx.Node) -> bool:
    """Return True if the value of `node` is 0 for every input, also in train mode."""
    if node.op == "get_attr":
        value = program.attribute(str(node.target))
        return isinstance(value, Tensor) and not value.any()
    inputs = node.all_input_nodes
    module = program.module(node) if node.op == "call_module" else None
    operator = program.operator(node)
    if operator is None:
        return False
    if module is not None and operator.weight is not None and operator.kind in {Kind.CONTRACTION, Kind.NORM}:
        own = [getattr(module, name, None) for name in ("weight", "bias")]
        return isinstance(own[0], Tensor) and not any(t.any() for t in own if isinstance(t, Tensor))
    if operator is MUL:
        return any(gives_zero(program, n) for n in inputs)
    fact = pointwise(program, node)
    keeps = fact is not None and fact.keeps_zero and operator.keeps_zero is not False
    moves = operator.kind is Kind.MOVEMENT and not operator.hides_sizes
    return (keeps or moves) and gives_zero(program, inputs[0])


def cancels(program: Program, node: fx.Node, onto: fx.Node) -> fx.Node | None:
    """Return the reader of `node` that would be constant if it read `onto`, which it reads already, as in `x - x`."""
    for reader in node.users:
        operator = program.operator(reader)
        if operator is not None and operator.cancels and onto in reader.all_input_nodes:
            return reader
    return None


def _block(
    program: Program, node: fx.Node, skip: fx.Node, branch: fx.Node, known: Mapping[fx.Node, IdentityBlock]
) -> IdentityBlock | None:
    if shape_of(program, skip) is None or shape_of(program, skip) != shape_of(program, node):
        return None
    stream = _stream(program, skip, known)
    inner = _serving(program, branch, node, stream)
    reads = tuple(dict.fromkeys(i for n in inner for i in n.all_input_nodes if i not in set(inner)))
    if not stream.intersection(reads) or not any(has_parameters(program, n) for n in inner):
        return None
    if any(writes_into(program, n) in stream for n in inner):
        return None  # the branch changes what the shortcut carries
    return IdentityBlock(node, skip, branch, inner, reads)


def _stream(program: Program, skip: fx.Node, known: Mapping[fx.Node, IdentityBlock]) -> set[fx.Node]:
    """Return the nodes with the value of `skip`: itself, its inputs through identities, earlier shortcuts."""
    stream, node = {skip}, skip
    while True:
        fact = pointwise(program, node)
        if fact is not None and fact.is_identity:
            node = node.all_input_nodes[0]
        elif node in known:
            node = known[node].skip
        else:
            return stream
        stream.add(node)


def _serving(program: Program, branch: fx.Node, reader: fx.Node, stream: set[fx.Node]) -> tuple[fx.Node, ...]:
    """Return the nodes that only `reader` uses, through `branch`; none if `branch` has another reader."""
    order = {n: i for i, n in enumerate(program.nodes)}
    serving, waiting = {reader}, [branch]
    while waiting:
        waiting.sort(key=order.__getitem__)
        node = waiting.pop()  # the latest first: all its readers have been seen
        if node in serving or node in stream or node.op == "placeholder":
            continue
        if (writers := _writers(program, node, serving)) is None:
            continue
        serving |= {node, *writers}
        waiting += [i for n in (node, *writers) for i in n.all_input_nodes]
    return tuple(sorted(serving - {reader}, key=order.__getitem__))


def _writers(program: Program, node: fx.Node, serving: set[fx.Node]) -> set[fx.Node] | None:
    """Return the readers of `node` that only write into it or a view of it; `None` if others than `serving` read it.

    `mask[a:b] = 1` is such a reader: nothing reads its value.
    """
    found, waiting = set[fx.Node](), [user for user in node.users if user not in serving]
    while waiting:
        user = waiting.pop()
        # What nothing reads matters where it writes elsewhere: `B, N, C = x.shape` may leave a size unread.
        elsewhere = not user.users and writes_into(program, user) not in {None, node, *found}
        if user.op == "output" or elsewhere or serving.intersection(user.users):
            return None
        waiting += [n for n in user.users if n not in found]
        found.add(user)
    return found
