"""Resolution of the sizes for which a captured graph holds, by running it next to the model at several sizes.

    a size that is the same in every run        becomes a constant of the graph;
    a guard of constants                        is dropped;
    an exact guard that another size breaks     fixes the input dims that were changed;
    a branch guard                              stays, with an error message;
    a text guard                                is exact if nothing else explains a wrong result, else dropped;
    a wrong result that no guard explains       fixes the input dims that were changed;
    a wrong result only if dims change alone    ties them: ids and their mask must have the same length;
    a size that the model rejects               need not work in the graph either.

Fixed and tied dims are checked before anything is computed: one error names the input, the size and the remedy.
"""

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from fxsurgery.capture.input_checks import before_computation, check
from fxsurgery.capture.size_trials import SizeTrial
from fxsurgery.capture.size_variants import Dim, Variant
from fxsurgery.inputs import Inputs

REMEDY = "pad or crop the inputs, or capture the model at the size that you need"
OPPOSITE: dict[Any, Any] = {
    operator.eq: operator.ne,
    operator.ne: operator.eq,
    operator.lt: operator.ge,
    operator.ge: operator.lt,
    operator.gt: operator.le,
    operator.le: operator.gt,
}


@dataclass(frozen=True)
class ResolvedSizes:
    """The sizes for which a graph holds after its guards were resolved."""

    notes: tuple[str, ...] = ()
    """Messages about fixed dims and remaining branch guards."""
    rejected: tuple[Variant, ...] = ()
    """Inputs that the model accepts and the graph rejects, since a branch is taken differently for them."""
    is_correct: bool = True
    """Whether the graph agrees with the model on the example inputs; if not, nothing was resolved."""


def resolve_sizes(
    graph_module: fx.GraphModule,
    names: list[str],
    trials: Sequence[SizeTrial],
    probes: Sequence[SizeTrial] = (),
    *,
    is_traced: bool = True,
) -> ResolvedSizes:
    """Make a graph compute the right result, or raise, at every size that its model accepts.

    Args:
        graph_module: changed in place.
        names: the user's name of each input leaf, as returned by `leaf_names`.
        trials: runs on the example inputs, followed by runs on inputs of other sizes that the model accepts.
        probes: runs on inputs of other sizes that the model rejects, for dims along which it accepts no other size.
        is_traced: whether the graph contains size computations; otherwise it may hold for the example sizes only.

    Returns:
        The resolved sizes, with the messages to add to the notes.
    """
    example, *others = trials
    resolver = _GuardResolver(graph_module.graph, names, example.variant.inputs, [*trials, *probes])
    if not example.agrees:
        resolver.drop_guards()
        graph_module.recompile()
        return ResolvedSizes(is_correct=False)
    resolver.fold_constants()
    resolver.tie_dims()
    resolver.resolve_text_guards()
    resolver.drop_harmless_guards()
    notes = tuple(resolver.fix_dims("" if is_traced else "its sizes cannot be traced through forward"))
    branches = {node.name for node in resolver.guards("branch")}
    missed = [trial.variant for trial in others if branches & set(trial.broken) and trial.dims]
    notes = (*notes, *resolver.finalize_branch_guards())
    resolver.remove_unused_sizes()
    graph_module.graph.lint()
    graph_module.recompile()
    return ResolvedSizes(notes, tuple(missed))


@dataclass
class _GuardResolver:
    graph: fx.Graph
    names: list[str]
    """The user's name of each input leaf."""
    inputs: Inputs
    trials: list[SizeTrial]
    """The trial on the example inputs comes first."""
    fixed: dict[Dim, str] = field(default_factory=dict)
    """Input dims that must keep their size, and why."""

    def guards(self, kind: str) -> Iterator[fx.Node]:
        """Yield the guards of a kind: "exact", "branch" or "text"."""
        yield from [n for n in self.graph.nodes if n.meta.get("guard") == kind]

    def drop_guards(self) -> None:
        """Remove all guards, so that the checks find out what else is wrong with the graph."""
        for kind in ("exact", "branch", "text"):
            for node in self.guards(kind):
                self.graph.erase_node(node)

    def fold_constants(self) -> None:
        """Replace sizes that never change by constants, and drop guards that depend on nothing else."""
        for node in list(self.graph.nodes):
            if node.meta.get("size") and self._is_constant(node):
                _replace_by_constant(node, self.trials[0].sizes[node.name])
            elif node.meta.get("guard") and not isinstance(node.args[0], fx.Node):
                self.graph.erase_node(node)

    def _is_constant(self, node: fx.Node) -> bool:
        if all(n.meta.get("size") for n in node.all_input_nodes):
            return not node.all_input_nodes  # computed from constants alone
        values = [trial.sizes[node.name] for trial in self.trials if node.name in trial.sizes]
        return all(value == values[0] for value in values)

    def tie_dims(self) -> None:
        """Tie dims if the graph is right when all of them change together and wrong when one changes alone."""
        exact = {node.name for node in self.guards("exact")}

        def is_incorrect(trial: SizeTrial) -> bool:
            return bool(exact & set(trial.broken)) or (not trial.agrees and not trial.broken)

        joint = {t.dims: not is_incorrect(t) for t in self.trials if len(t.dims) > 1 and t.agrees}
        apart = {t.dims[0] for t in self.trials if len(t.dims) == 1 and is_incorrect(t)}
        for dims in [dims for dims, right in joint.items() if right and apart & set(dims)]:
            self.trials = [t for t in self.trials if not (set(t.dims) & set(dims) and t.dims != dims)]
            self._insert_tie(dims)

    def _insert_tie(self, dims: tuple[Dim, ...]) -> None:
        (leaf, dim), *others = dims
        for other_leaf, other_dim in others:
            message = (
                f"`{self.names[other_leaf]}` must have the same size along dim {other_dim} as `{self.names[leaf]}` "
                f"along dim {dim}, as at capture: the graph is wrong for different sizes"
            )
            self._insert_check((other_leaf, other_dim), (leaf, dim), message)

    def resolve_text_guards(self) -> None:
        """Make text guards exact if only they can explain a wrong result; drop the others.

        A text may be the key of a table, or just a message.
        """
        texts = {node.name: node for node in self.guards("text")}
        wrong = [set(trial.broken) for trial in self.trials if not trial.agrees and trial.broken]
        decisive = set[str]().union(*(broken for broken in wrong if broken <= texts.keys()))
        for name, node in texts.items():
            if name in decisive:
                node.meta["guard"] = "exact"
            else:
                self.graph.erase_node(node)

    def drop_harmless_guards(self) -> None:
        """Drop guards that are broken only by sizes for which the graph is right.

        These are other batch sizes, a few of which are always tried; size 1, if it is the only one; and sizes with
        another remainder, if at least two of them are right, as with "pad if it is not a multiple".
        """
        seen = set[tuple[Any, ...]]()
        for node in [*self.guards("exact"), *self.guards("branch")]:
            broken = [trial for trial in self.trials if node.name in trial.broken]
            condition = node.args[0]
            assert isinstance(condition, fx.Node)
            key = (condition.target, condition.args, node.args[1])
            right = bool(broken) and all(trial.agrees for trial in broken)
            small = _broken_by(condition, node.args[1])
            several = len(broken) > 1 and _is_remainder(condition)
            tried = right and (not any(t.dims for t in broken) or small - {0} == {1} or several)
            if tried or key in seen or small == {0}:
                self.graph.erase_node(node)
            seen.add(key)

    def fix_dims(self, reason_for_all: str) -> Iterator[str]:
        """Fix the dims for which an exact guard or the comparison with the model leaves only one right size.

        Args:
            reason_for_all: why to fix every dim along which the model accepts other sizes; empty to fix only those.

        Yields:
            One message per fixed dim.
        """
        for node in self.guards("exact"):
            broken = [trial for trial in self.trials if node.name in trial.broken and trial.dims]
            if broken:
                self._fix(broken, f"forward uses this size as a Python number{_location(node)}")
                self.graph.erase_node(node)
        unguarded = [t for t in self.trials if not t.agrees and t.dims and not t.broken]
        self._fix([t for t in unguarded if not t.is_rejected], "the graph is wrong for any other size")
        self._fix([t for t in unguarded if t.is_rejected], "the model accepted no other size that was tried")
        if reason_for_all:
            self.fixed = (
                dict.fromkeys((dim for trial in self.trials for dim in trial.dims), reason_for_all) | self.fixed
            )
        for (leaf, dim), why in self.fixed.items():
            yield self._check(leaf, dim, why)

    def _fix(self, broken: list[SizeTrial], why: str) -> None:
        for trial in sorted(broken, key=lambda t: len(t.dims)):
            if not set(trial.dims) & self.fixed.keys():
                self.fixed |= dict.fromkeys(trial.dims, why)

    def _check(self, leaf: int, dim: int, why: str) -> str:
        size = self.inputs.leaves[leaf].shape[dim]
        message = f"`{self.names[leaf]}` must have size {size} along dim {dim}, as at capture: {why}"
        self._insert_check((leaf, dim), size, message)
        return message

    def _insert_check(self, at: Dim, expected: int | Dim, message: str) -> None:
        inputs = [n for n in self.graph.nodes if n.op == "placeholder"]
        with before_computation(self.graph):
            size = expected if isinstance(expected, int) else self._size_of(inputs, expected)
            same = self.graph.call_function(operator.eq, (self._size_of(inputs, at), size))
            check(self.graph, same, f"{message}; {REMEDY}")

    def _size_of(self, inputs: list[fx.Node], at: Dim) -> fx.Node:
        leaf, dim = at
        return self.graph.call_method("size", (inputs[leaf], dim))

    def finalize_branch_guards(self) -> Iterator[str]:
        """Replace the expected value of each remaining guard by an error message, and yield the messages to note."""
        shapes = ", ".join(
            f"`{name}` {tuple(leaf.shape)}"
            for name, leaf in zip(self.names, self.inputs.leaves, strict=True)
            if isinstance(leaf, torch.Tensor)
        )
        messages = dict[str, None]()
        for node in [*self.guards("exact"), *self.guards("branch")]:
            condition, expected = node.args
            if not expected:
                assert isinstance(condition, fx.Node)
                with self.graph.inserting_before(node):
                    condition = self.graph.call_function(OPPOSITE[condition.target], condition.args)
            what = (
                f"forward branches on a size{_location(node)}, and the graph holds only for sizes that take the same "
                f"branch as {shapes}"
            )
            node.args = (condition, f"{what}; {REMEDY}")
            del node.meta["guard"]
            taken = [t for t in self.trials if not t.is_rejected and not set(t.dims) & self.fixed.keys()]
            if any(node.name in trial.broken for trial in taken):
                messages[what] = None
        yield from messages

    def remove_unused_sizes(self) -> None:
        """Remove size computations that nothing uses."""
        for node in reversed(list(self.graph.nodes)):
            if node.meta.pop("size", False) and not node.users:
                self.graph.erase_node(node)


def _replace_by_constant(node: fx.Node, value: object) -> None:
    """Replace a node by a constant in all its users, and erase it."""

    def substitute(operand: fx.Node) -> object:
        return value if operand is node else operand

    for user in list(node.users):
        user.args, user.kwargs = fx.node.map_arg((user.args, user.kwargs), substitute)  # type: ignore[arg-type]
    node.graph.erase_node(node)


def _broken_by(condition: fx.Node, expected: object) -> set[int]:
    """Return which of the sizes 0, 1 and 2 break a guard that compares a tensor size with a number up to 2."""
    size, limit = condition.args
    if not isinstance(size, fx.Node) or size.op != "call_method" or not isinstance(limit, int) or limit > 2:
        return set()
    compare: Any = condition.target
    broken = {n for n in (0, 1, 2) if bool(compare(n, limit)) != expected}
    return broken if bool(compare(3, limit)) == expected else set()


def _is_remainder(condition: fx.Node) -> bool:
    """Return True if a guard compares a remainder modulo a constant with 0."""
    value, limit = condition.args
    if not isinstance(value, fx.Node) or limit != 0 or condition.target not in {operator.eq, operator.ne}:
        return False
    return value.target is operator.mod and not isinstance(value.args[1], fx.Node)


def _location(node: fx.Node) -> str:
    place, _, source = str(node.meta.get("line", "")).partition(": ")
    file = place.replace("\\", "/").rpartition("/")[-1]
    return f" ({file}: {source})" if source else f" ({file})" if file else ""
