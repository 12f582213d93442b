"""Selection of nodes that are written where they are used, without a name: sizes, and steps of short chains."""

from torch import fx

from fxsurgery.analysis.node_values import NodeValues
from fxsurgery.ops import registry
from fxsurgery.program import Program
from fxsurgery.saving.standalone.call_code import is_operator, is_setitem

MAX_WIDTH = 72
"""Maximum width of a statement before its parts get lines of their own."""
MAX_STEPS = 3
"""Maximum number of steps in one statement."""


def inlined(program: Program, values: NodeValues, skipped: set[fx.Node]) -> set[fx.Node]:
    """Return the nodes to inline; `skipped` are the nodes inside sequences of modules."""
    found, depth = set[fx.Node](), dict[fx.Node, int]()
    for node in program.nodes:
        if node in skipped or node.op not in {"call_function", "call_method", "call_module"}:
            continue
        if _is_number(node, values) or (_is_link(node, values, skipped) and _is_short(node, depth)):
            found.add(node)
    return found


def _is_number(node: fx.Node, values: NodeValues) -> bool:
    """Return True for a size or a number computed from sizes that is used once, or a shape that sizes are read from."""
    if values.is_tensor(node) or is_setitem(node) or node.op == "call_module" or not node.users:
        return False
    if node.target is getattr or (_reads_sizes(node) and (len(node.users) == 1 or len(node.args) == 1)):
        return True
    plain = values.length(node) is None and all(not values.is_tensor(a) for a in node.all_input_nodes)
    return plain and len(node.users) == 1


def _reads_sizes(node: fx.Node) -> bool:
    operator = registry.of(node) if node.op == "call_method" else None
    return operator is not None and operator.extents is not None


def _is_link(node: fx.Node, values: NodeValues, skipped: set[fx.Node]) -> bool:
    """Return True if the only user is the next node, and the node is its first argument."""
    user = next(iter(node.users), None)
    if user is None or len(node.users) > 1 or not values.is_tensor(node) or user in skipped:
        return False
    if user.op == "output" or is_setitem(user) or not user.args or user.args[0] is not node:
        return False
    return node.op != "call_module" and _is_next(node, user, values)


def _is_short(node: fx.Node, depth: dict[fx.Node, int]) -> bool:
    """Return True if a link fits into the statement of its user; `depth` counts the steps of those that do."""
    [user] = node.users
    steps = 1 + max((depth.get(r, 0) for r in node.all_input_nodes), default=0)
    chained = user.op == "call_method" and node.op == "call_method"
    long = len(str(node.args)) + len(str(user.args)) + 16 * steps > MAX_WIDTH
    if long or steps >= MAX_STEPS or not (chained or is_operator(node)) or str(node.target).endswith("_"):
        return False
    depth[node] = steps
    return True


def _is_next(node: fx.Node, user: fx.Node, values: NodeValues) -> bool:
    """Return True if only sizes are read between the two nodes."""
    between = node.next
    while between is not user and (between.op == "get_attr" or _is_number(between, values)):
        between = between.next
    return between is user
