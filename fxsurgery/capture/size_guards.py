"""The sizes that a captured graph holds for, settled by running it beside the model at sizes that the model takes.

    a size that is the same in every run        becomes a constant of the graph;
    a guard of constants                        is dropped;
    an exact guard that another size breaks     fixes the dims of the inputs that were changed;
    a branch guard                              stays, with a message;
    a text guard                                is exact where the graph is wrong for no other reason, else dropped;
    a difference that no guard catches          fixes the dims of the inputs that were changed;
    one that a joint change does not show       ties them: ids and their mask are as long as each other.

    a size that the model refuses               is one at which the graph may not compute either.

Fixed and tied dims are checked before anything is computed: one error names the input, the size and the remedy.
"""

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from fxsurgery.capture.size_tape import ASSERT
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
class Settled:
    """What a graph was made to hold for."""

    notes: tuple[str, ...] = ()
    """Which sizes are fixed and refused, and why."""
    refused: tuple[Variant, ...] = ()
    """Inputs that the model takes and the graph refuses, since a branch goes another way for them."""
    is_right: bool = True
    """Whether the graph computes what the model does on the example inputs; else nothing was settled."""


def settle_sizes(
    graph_module: fx.GraphModule,
    names: list[str],
    trials: Sequence[SizeTrial],
    probes: Sequence[SizeTrial] = (),
    *,
    is_traced: bool = True,
) -> Settled:
    """Make a graph right, or refuse, at every size that its model takes.

    Args:
        graph_module: changed in place.
        names: what the user calls each leaf of the inputs, as `leaf_names` gives them.
        trials: runs on the example inputs, then on inputs of other sizes, which the model takes.
        probes: runs on inputs of other sizes, which the model refuses; none where it takes some along the same dims.
        is_traced: whether the graph tells what forward does with sizes; else it may hold for the example's alone.
    """
    example, *others = trials
    settled = _Settlement(graph_module.graph, names, example.variant.inputs, [*trials, *probes])
    if not example.agrees:
        settled.drop_guards()
        graph_module.recompile()
        return Settled(is_right=False)
    settled.fold()
    settled.tie()
    settled.settle_texts()
    settled.drop_harmless()
    notes = tuple(settled.fix("" if is_traced else "its sizes cannot be followed through forward"))
    branches = {node.name for node in settled.guards("branch")}
    missed = [trial.variant for trial in others if branches & set(trial.broken) and trial.dims]
    notes = (*notes, *settled.word_branches())
    settled.clean()
    graph_module.graph.lint()
    graph_module.recompile()
    return Settled(notes, tuple(missed))


@dataclass
class _Settlement:
    graph: fx.Graph
    names: list[str]
    """What the user calls each leaf of the inputs."""
    inputs: Inputs
    trials: list[SizeTrial]
    """The example's first."""
    fixed: dict[Dim, str] = field(default_factory=dict)
    """The dims of the inputs that may have one size alone, and why."""

    def guards(self, kind: str) -> Iterator[fx.Node]:
        """The guards of a kind."""
        yield from [n for n in self.graph.nodes if n.meta.get("guard") == kind]

    def drop_guards(self) -> None:
        """Leave the graph without guards, for checks that tell what else is wrong with it."""
        for kind in ("exact", "branch", "text"):
            for node in self.guards(kind):
                self.graph.erase_node(node)

    def fold(self) -> None:
        """Write the sizes that never change into the graph, and drop the guards that ask for nothing else."""
        for node in list(self.graph.nodes):
            if node.meta.get("size") and self._is_constant(node):
                _put_in_place(node, self.trials[0].sizes[node.name])
            elif node.meta.get("guard") and not isinstance(node.args[0], fx.Node):
                self.graph.erase_node(node)

    def _is_constant(self, node: fx.Node) -> bool:
        if all(n.meta.get("size") for n in node.all_input_nodes):
            return not node.all_input_nodes  # computed from constants alone
        values = [trial.sizes[node.name] for trial in self.trials if node.name in trial.sizes]
        return all(value == values[0] for value in values)

    def tie(self) -> None:
        """Tie dims for which the graph is right where all of them change, and wrong where one does."""
        exact = {node.name for node in self.guards("exact")}

        def is_wrong(trial: SizeTrial) -> bool:
            return bool(exact & set(trial.broken)) or (not trial.agrees and not trial.broken)

        joint = {t.dims: not is_wrong(t) for t in self.trials if len(t.dims) > 1 and t.agrees}
        apart = {t.dims[0] for t in self.trials if len(t.dims) == 1 and is_wrong(t)}
        for dims in [dims for dims, right in joint.items() if right and apart & set(dims)]:
            self.trials = [t for t in self.trials if not (set(t.dims) & set(dims) and t.dims != dims)]
            self._insert_tie(dims)

    def _insert_tie(self, dims: tuple[Dim, ...]) -> None:
        (leaf, dim), *others = dims
        for other_leaf, other_dim in others:
            message = (
                f"`{self.names[other_leaf]}` along dim {other_dim} must have the size of `{self.names[leaf]}` "
                f"along dim {dim}, as at capture: the graph is right for no other"
            )
            self._insert_check((other_leaf, other_dim), (leaf, dim), message)

    def settle_texts(self) -> None:
        """Make the text guards exact that alone can tell why the graph is wrong, and drop the others.

        A text may be the key of a table, or a message that nobody reads.
        """
        texts = {node.name: node for node in self.guards("text")}
        wrong = [set(trial.broken) for trial in self.trials if not trial.agrees and trial.broken]
        telling = set[str]().union(*(broken for broken in wrong if broken <= texts.keys()))
        for name, node in texts.items():
            if name in telling:
                node.meta["guard"] = "exact"
            else:
                self.graph.erase_node(node)

    def drop_harmless(self) -> None:
        """Drop the guards that only sizes break at which the graph is right all the same.

        Those are other batch sizes, of which a few are tried as ever; the size 1 where it is the only one; and
        sizes with another remainder, where two or more of them are right: "pad if it is no multiple".
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

    def fix(self, every: str) -> Iterator[str]:
        """Fix the dims for which an exact guard, or the comparison with the model, finds one right size alone.

        Args:
            every: why all dims of which the model takes other sizes are fixed; empty where they are not.
        """
        for node in self.guards("exact"):
            broken = [trial for trial in self.trials if node.name in trial.broken and trial.dims]
            if broken:
                self._fix(broken, f"forward computes with this very number{_at(node)}")
                self.graph.erase_node(node)
        unguarded = [t for t in self.trials if not t.agrees and t.dims and not t.broken]
        self._fix([t for t in unguarded if not t.is_refused], "the graph is right for no other")
        self._fix([t for t in unguarded if t.is_refused], "the model took no other that was tried")
        if every:
            self.fixed = dict.fromkeys((dim for trial in self.trials for dim in trial.dims), every) | self.fixed
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

    def _insert_check(self, at: Dim, wanted: int | Dim, message: str) -> None:
        inputs = [n for n in self.graph.nodes if n.op == "placeholder"]
        checked = [n for n in self.graph.nodes if n.meta.get("input_check")]
        with self.graph.inserting_before((checked or inputs)[-1].next):
            size = wanted if isinstance(wanted, int) else self._size_of(inputs, wanted)
            same = self.graph.call_function(operator.eq, (self._size_of(inputs, at), size))
            check = self.graph.call_function(ASSERT, (same, f"{message}; {REMEDY}"))
            check.meta["input_check"] = True

    def _size_of(self, inputs: list[fx.Node], at: Dim) -> fx.Node:
        leaf, dim = at
        return self.graph.call_method("size", (inputs[leaf], dim))

    def word_branches(self) -> Iterator[str]:
        """Give each guard that is left a message, in place of what it expects."""
        shapes = ", ".join(
            f"`{name}` {tuple(leaf.shape)}"
            for name, leaf in zip(self.names, self.inputs.leaves, strict=True)
            if isinstance(leaf, torch.Tensor)
        )
        told = dict[str, None]()
        for node in [*self.guards("exact"), *self.guards("branch")]:
            condition, expected = node.args
            if not expected:
                assert isinstance(condition, fx.Node)
                with self.graph.inserting_before(node):
                    condition = self.graph.call_function(OPPOSITE[condition.target], condition.args)
            what = f"forward decides by a size{_at(node)}, and the graph holds where it decides as for {shapes}"
            node.args = (condition, f"{what}; {REMEDY}")
            del node.meta["guard"]
            taken = [t for t in self.trials if not t.is_refused and not set(t.dims) & self.fixed.keys()]
            if any(node.name in trial.broken for trial in taken):
                told[what] = None
        yield from told

    def clean(self) -> None:
        """Leave out the numbers that nothing uses."""
        for node in reversed(list(self.graph.nodes)):
            if node.meta.pop("size", False) and not node.users:
                self.graph.erase_node(node)


def _put_in_place(node: fx.Node, value: object) -> None:
    """Let a value take the place of a node."""

    def put(given: fx.Node) -> object:
        return value if given is node else given

    for user in list(node.users):
        user.args, user.kwargs = fx.node.map_arg((user.args, user.kwargs), put)  # type: ignore[arg-type]
    node.graph.erase_node(node)


def _broken_by(condition: fx.Node, expected: object) -> set[int]:
    """The sizes of 0, 1 and 2 that break a guard, where it compares one size of a tensor with a number up to 2."""
    size, limit = condition.args
    if not isinstance(size, fx.Node) or size.op != "call_method" or not isinstance(limit, int) or limit > 2:
        return set()
    compare: Any = condition.target
    broken = {n for n in (0, 1, 2) if bool(compare(n, limit)) != expected}
    return broken if bool(compare(3, limit)) == expected else set()


def _is_remainder(condition: fx.Node) -> bool:
    """Whether a guard compares the remainder of a division by a constant with 0."""
    value, limit = condition.args
    if not isinstance(value, fx.Node) or limit != 0 or condition.target not in {operator.eq, operator.ne}:
        return False
    return value.target is operator.mod and not isinstance(value.args[1], fx.Node)


def _at(node: fx.Node) -> str:
    place, _, source = str(node.meta.get("line", "")).partition(": ")
    file = place.replace("\\", "/").rpartition("/")[-1]
    return f" ({file}: {source})" if source else f" ({file})" if file else ""


def leaf_names(model: nn.Module, inputs: Inputs) -> list[str]:
    """What the user calls each leaf of the inputs: `x`, `batch['mask']`."""
    top = inputs.names(model.forward)
    names = list[str]()
    for name, value in zip(top, (*inputs.args, *inputs.kwargs.values()), strict=True):
        names += [f"{name}{pytree.keystr(path)}" for path, _ in pytree.tree_flatten_with_path(value)[0]]
    return names
