"""`Editor`, the only code that changes a graph."""

import operator
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial

from torch import Tensor, fx, nn
from torch.fx.node import Argument

from fxsurgery.inputs import Inputs
from fxsurgery.lineage import Origin
from fxsurgery.match import Refusal
from fxsurgery.program import Program

_LIBRARIES = ("torch", "fxsurgery", "_operator", "builtins", "math")
"""Packages whose modules and functions hold no batch size except in their arguments."""

Reference = Callable[[Program, Inputs], list[Tensor]]
"""`reference(result, inputs)` returns the outputs that the result must have for these inputs."""


class Editor:
    """A private copy of a program's graph, and the only way to change it.

    `program` is not modified and provides the facts; edits apply to the copy, and accept nodes of either. Each edit is
    counted here, so that a pass cannot misreport whether it changed anything. Tensors are shared with `program` until
    an edit replaces them, and are never written to.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.changes = 0
        self.refusals: list[Refusal] = []
        self.origins: dict[str, Origin] = {}
        """Origin of each parameter of the result that was made from entries of another one."""
        self.reference: Reference | None = None
        self.may_fix_batch = False
        """Whether an edit inserted something that may hold the size of the example batch: an integer of at least 2
        among the arguments of a node, or a module or function of another library."""
        self._draft = program.draft()
        self._dropped = False
        self._rewired = False
        self._twins: dict[str, fx.Node] = {n.name: n for n in self._draft.graph.nodes}

    def replace_module(self, path: str, new: nn.Module) -> None:
        """Replace the module at `path` by `new`, in all its calls."""
        parent, _, leaf = path.rpartition(".")
        self._note_module(new)
        setattr(self._draft.get_submodule(parent), leaf, new.eval() if new.training else new)
        self.changes += 1

    def _note_module(self, module: nn.Module) -> None:
        is_traced = any(isinstance(m, fx.GraphModule) for m in module.modules())
        self.may_fix_batch |= is_traced or not all(_is_known(type(m)) for m in module.modules())

    def _note_numbers(self, *arguments: Argument) -> None:
        def note(value: object) -> None:
            self.may_fix_batch |= isinstance(value, int) and value > 1

        fx.node.map_aggregate(arguments, note)

    def module(self, path: str) -> nn.Module:
        """Return the current module at `path`; do not modify it."""
        return self._draft.get_submodule(path)

    def replace_tensor(self, path: str, new: Tensor) -> None:
        """Replace the parameter or buffer at `path`, which a `get_attr` node reads, by `new`."""
        parent, _, leaf = path.rpartition(".")
        owner = self._draft.get_submodule(parent)
        if leaf in owner._parameters and not isinstance(new, nn.Parameter):  # noqa: SLF001
            new = nn.Parameter(new, requires_grad=owner.get_parameter(leaf).requires_grad)
        setattr(owner, leaf, new)
        self.changes += 1

    def set_argument(self, node: fx.Node, key: int | str, value: Argument) -> None:
        """Set an argument of `node`: a positional one by its index, or a keyword one by its name."""
        twin = self.twin(node)
        self._note_numbers(value)
        value = fx.node.map_arg(value, self.twin)
        if isinstance(key, int):
            twin.update_arg(key, value)
        else:
            twin.update_kwarg(key, value)
        self.changes += 1

    def fix_number(self, node: fx.Node, number: fx.Node, value: int) -> None:
        """Replace a number that the graph computes by a constant, in the arguments of `node`."""
        twin, old = self.twin(node), self.twin(number)
        if old in twin.all_input_nodes:
            swap = partial(_swapped, old=old, value=value)
            twin.args = fx.node.map_arg(twin.args, swap)
            twin.kwargs = fx.node.map_arg(twin.kwargs, swap)
            self._note_numbers(value)
            self.changes += 1

    def scale_number(self, node: fx.Node, number: fx.Node, up: int, down: int) -> fx.Node:
        """Insert `number * up // down` before `node`, and return the new node; `node` does not use it yet."""
        self._note_numbers(up, down)
        with self._draft.graph.inserting_before(self.twin(node)):
            product = self._draft.graph.call_function(operator.mul, (self.twin(number), up))
            scaled = self._draft.graph.call_function(operator.floordiv, (product, down))
        return self._added(scaled)

    def entry(self, node: fx.Node, shape: fx.Node, dim: int) -> fx.Node:
        """Insert `shape[dim]` before `node`, and return the new node; `node` does not use it yet."""
        with self._draft.graph.inserting_before(self.twin(node)):
            return self._added(self._draft.graph.call_function(operator.getitem, (self.twin(shape), dim)))

    def _added(self, node: fx.Node) -> fx.Node:
        self._twins[node.name] = node
        self.changes += 1
        return node

    def retarget(self, node: fx.Node, target: object, args: tuple[Argument, ...]) -> None:
        """Turn `node` into a call of another function with the arguments `args`."""
        twin = self.twin(node)
        self._note_numbers(args)
        self.may_fix_batch |= not _is_known(target)
        self._dropped = True
        twin.op, twin.target, twin.kwargs = "call_function", target, {}  # type: ignore[assignment]
        twin.args = fx.node.map_arg(args, self.twin)
        self.changes += 1

    def insert_call(self, path: str, module: nn.Module, args: tuple[Argument, ...], *, before: fx.Node) -> fx.Node:
        """Insert a call of `module`, stored at `path`, with `args` before `before`, and return the new node."""
        parent, _, leaf = path.rpartition(".")
        self._note_module(module)
        self._note_numbers(args)
        self._draft.add_submodule(path, module.eval()) if parent else setattr(self._draft, leaf, module.eval())
        while parent:
            self._draft.get_submodule(parent).training = False  # a container that is new
            parent = parent.rpartition(".")[0]
        with self._draft.graph.inserting_before(self.twin(before)):
            node = self._draft.graph.call_module(path, fx.node.map_arg(args, self.twin))
        return self._added(node)

    def insert_function(
        self, target: Callable[..., object], args: tuple[Argument, ...], *, before: fx.Node, **named: Argument
    ) -> fx.Node:
        """Insert a call of a function of torch or `operator` with `args` before `before`, and return the new node."""
        self._note_numbers(args, named)
        self.may_fix_batch |= not _is_known(target)
        args, named = fx.node.map_arg(args, self.twin), fx.node.map_arg(named, self.twin)
        with self._draft.graph.inserting_before(self.twin(before)):
            return self._added(self._draft.graph.call_function(target, args, named))

    def new_path(self, stem: str) -> str:
        """Return `stem`, with a number appended if a module or tensor of that name exists."""
        parent, _, leaf = stem.rpartition(".")
        owner: object = self._draft
        for part in parent.split(".") if parent else ():
            owner = getattr(owner, part, None)
        number = 1
        while hasattr(owner, leaf if number == 1 else f"{leaf}_{number}"):
            number += 1
        return stem if number == 1 else f"{stem}_{number}"

    def record_origin(self, name: str, origin: Origin) -> None:
        """Record that parameter `name` of the result was made from entries of a parameter of the program."""
        self.origins[name] = origin

    def replace_uses(self, old: fx.Node, new: fx.Node, readers: Iterable[fx.Node] | None = None) -> None:
        """Make `readers`, or all readers of `old` except `new`, read `new` instead."""
        before, after = self.twin(old), self.twin(new)
        for reader in list(before.users) if readers is None else [self.twin(r) for r in readers]:
            if reader is not after:
                reader.replace_input_with(before, after)
        self.changes += 1

    def rewire(self, node: fx.Node, old: fx.Node, new: fx.Node) -> None:
        """Replace `old` by `new` in the inputs of `node`."""
        self.twin(node).replace_input_with(self.twin(old), self.twin(new))
        self.changes += 1

    def first_input(self, node: fx.Node) -> fx.Node:
        """Return the current first input of `node`; the one in `program` may have been replaced and erased."""
        return self.twin(node).all_input_nodes[0]

    def bypass(self, node: fx.Node) -> None:
        """Remove `node`; its readers read its first input instead."""
        self.twin(node).replace_all_uses_with(self.first_input(node))
        self.erase(node)

    def erase(self, node: fx.Node) -> None:
        """Remove `node`, which has no readers left."""
        self._draft.graph.erase_node(self.twin(node))
        self._dropped = True
        self.changes += 1

    def refuse(self, node: fx.Node | str, reason: str | Refusal) -> None:
        """Record why a site that looked like a match is left alone; the reason may be another refusal."""
        self.refusals.append(Refusal(str(node), str(reason)))

    def decline(self, refusal: Refusal) -> None:
        """Record the refusal of a site."""
        self.refusals.append(refusal)

    def prove_equal_to(self, reference: Reference) -> None:
        """Promise that the outputs of the result equal those of `reference` up to rounding; this is checked."""
        self.reference = reference

    def twin(self, node: fx.Node) -> fx.Node:
        """Return the node of the copy with this name, which the caller may change."""
        self._rewired = True
        return self._twins[node.name]

    def finish(self, by: str) -> Program:
        """Return the edited program, verified; the input program itself if nothing changed."""
        if not self.changes:
            return self.program
        if self._dropped:
            self._draft.delete_all_unused_submodules()
            self._delete_unread()
        self._compile()
        return replace(self.program, graph_module=self._draft, log=(*self.program.log, by))

    def _delete_unread(self) -> None:
        """Delete tensors that a `get_attr` node of the program read and no node reads now."""
        nodes = list(self._draft.graph.nodes)
        read = {str(n.target) for n in nodes if n.op == "get_attr"}
        called = {str(n.target) for n in nodes if n.op == "call_module"}
        parameters = self._draft.named_parameters(remove_duplicate=False)
        there = {name for name, _ in (*parameters, *self._draft.named_buffers(remove_duplicate=False))}
        for path in {str(n.target) for n in self.program.nodes if n.op == "get_attr"} - read:
            if path in there and not any(path.startswith(f"{module}.") for module in called):
                owner, _, leaf = path.rpartition(".")
                delattr(self._draft.get_submodule(owner), leaf)

    def _compile(self) -> None:
        """Recompile the copy; if no node was changed, reuse the compiled code of the program's graph."""
        if self._rewired:
            self._draft.recompile()
        else:
            type(self._draft).forward = type(self.program.graph_module).forward


def _swapped(node: fx.Node, *, old: fx.Node, value: int) -> Argument:
    return value if node is old else node


def _is_known(target: object) -> bool:
    """Return True if a class or function belongs to one of `_LIBRARIES`; tensor methods name no module."""
    return (getattr(target, "__module__", None) or "torch").partition(".")[0] in _LIBRARIES
