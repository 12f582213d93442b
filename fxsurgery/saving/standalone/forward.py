"""Statements of a generated forward, with names that a person would choose and one operation per line.

Values that are read immediately (a parameter, a size, a step in a chain of methods) are inlined where they are used.
Every other node is an assignment. A value that ends with its use passes on its name, so that the trunk of a network
stays `x`.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx
from torch.fx.graph import _PyTreeCodeGen
from torch.nn import functional as F  # noqa: N812 -- as everywhere in torch

from fxsurgery.analysis.node_values import node_values
from fxsurgery.ops import registry
from fxsurgery.ops.operator import Kind
from fxsurgery.program import Program
from fxsurgery.saving.output_structure import plain_output
from fxsurgery.saving.standalone.call_code import arguments, call, is_operator, is_setitem
from fxsurgery.saving.standalone.chains import ModuleChain
from fxsurgery.saving.standalone.dead import dead_nodes
from fxsurgery.saving.standalone.identifiers import Names, variable_name
from fxsurgery.saving.standalone.inlining import inlined
from fxsurgery.saving.standalone.literals import Code, Show, index, to_code
from fxsurgery.saving.standalone.signature import RESERVED, ForwardArgument, placeholders
from fxsurgery.saving.standalone.tree import Tree


@dataclass
class Statement:
    """One statement of forward."""

    node: fx.Node
    names: tuple[str, ...]
    """The assigned names; empty for a statement without a result."""
    code: str
    section: str


class Forward:
    """Generates the body of forward."""

    def __init__(
        self, program: Program, tree: Tree, chains: Mapping[str, ModuleChain], arguments: list[ForwardArgument]
    ) -> None:
        self._program, self._tree, self._values = program, tree, node_values(program)
        self._placeholder_code = placeholders(program, arguments)
        self._arguments = arguments
        self._skipped, self._heads = _in_chains(chains)
        self._dead_nodes = dead_nodes(program)
        self._inline = inlined(program, self._values, self._skipped)
        self._unpacked = self._unpackings()
        self._aliases, self._section_now = self._section_aliases(), ""
        self.uses = set[str]()

    def statements(self) -> Iterator[Statement]:
        """Yield the statements; the last one returns."""
        steps = [n for n in self._program.nodes if self._is_statement(n)]
        last = {r: i for i, n in enumerate(steps) for r in self._reads(n)}
        names = Names(last)
        self._name_arguments(names)
        section = ""
        for position, node in enumerate(steps):
            if node.op == "output":
                yield Statement(node, (), f"return {self._returned(node, names)}", section)
                return
            before, section = section, self._section(node, section)
            self._section_now = section if section in self._aliases else ""
            if section != before and self._section_now:
                alias = self._aliases[section]
                yield Statement(node, (alias,), f"{alias} = {self._tree.access(section)}", section)
            statement = self._statement(node, position, names, section)
            if len(statement.names) == 1 and position == len(steps) - 2 and steps[-1].args[0] in {node, (node,)}:
                code = statement.code.removeprefix(f"{statement.names[0]} = ")
                yield Statement(node, (), f"return {code}", section)
                return
            yield statement

    def returns_tensor(self) -> bool:
        """Return True if forward returns a single tensor."""
        [output] = [n for n in self._program.nodes if n.op == "output"]
        codegen = self._program.graph_module.graph._codegen  # noqa: SLF001 -- how the outputs are put together
        simple = not isinstance(codegen, _PyTreeCodeGen) or (
            codegen.pytree_info.out_spec is not None and codegen.pytree_info.out_spec.is_leaf()
        )
        value = output.args[0]
        value = value[0] if isinstance(value, (tuple, list)) and len(value) == 1 and simple else value
        return simple and self._values.is_tensor(value)

    def _statement(self, node: fx.Node, position: int, names: Names, section: str) -> Statement:
        if is_setitem(node):
            value = self._code(node.args[2], names)
            return Statement(node, (), f"{self._indexed(node, names)} = {value.text}", section)
        code = self._code(node, names, itself=True)
        if not node.users and node not in self._unpacked:
            return Statement(node, (), code.text, section)
        if node in self._unpacked:
            parts = self._unpacked[node]
            assigned = [names.assign(p, self._hint(p), position, []) if p is not None else "_" for p in parts]
            return Statement(node, tuple(assigned), f"{', '.join(assigned)} = {code.text}", section)
        name = names.assign(node, self._hint(node), position, self._reusable_names(node))
        return Statement(node, (name,), f"{name} = {code.text}", section)

    def _reusable_names(self, node: fx.Node) -> list[fx.Node]:
        """Return the nodes whose name the result may take over, since it is a later stage of the same value."""
        source = self._heads[node][1] if node in self._heads else node
        if not self._values.is_tensor(node) or not source.args:
            return []
        first = source.args[0]
        if isinstance(first, fx.Node) and not is_operator(source):
            reads = self._reads(first) if first in self._inline else [first]
        else:
            reads = self._reads(node)
        return [r for r in reads if self._values.is_tensor(r)]

    def _indexed(self, node: fx.Node, names: Names) -> str:
        return f"{self._code(node.args[0], names).within(20)}[{index(node.args[1], self._special(names))}]"

    def _special(self, names: Names) -> Show:
        return lambda value: self._node_code(value, names) if isinstance(value, fx.Node) else None

    def _code(self, value: Any, names: Names, *, itself: bool = False) -> Code:  # noqa: ANN401 -- any argument
        if itself:
            return self._called(value, names)
        return to_code(value, self._special(names))

    def _node_code(self, node: fx.Node, names: Names) -> Code:
        if node.op == "placeholder":
            return Code(names.of.get(node, self._placeholder_code[node]))
        if node.op == "get_attr":
            return Code(self._attribute(str(node.target)))
        return self._called(node, names) if node in self._inline else Code(names.of[node])

    def _called(self, node: fx.Node, names: Names) -> Code:
        special = self._special(names)
        if node.op == "call_module":
            path, source = self._heads.get(node, (str(node.target), node))
            return Code(f"{self._access(path)}({arguments(source.args, source.kwargs, special)})")
        found = call(node, special, tensors=bool(node.args) and self._values.is_tensor(node.args[0]))
        for word in ("operator.", "math.", "F."):
            if found.text.startswith(word) or f" {word}" in found.text or f"({word}" in found.text:
                self.uses.add(word[:-1])
        return found

    def _attribute(self, path: str) -> str:
        return "self.training" if path.rpartition(".")[2] == "training" else self._access(path)

    def _access(self, path: str) -> str:
        """Return the code for a module or tensor, using the short name of the current section."""
        if self._section_now and path.startswith(f"{self._section_now}."):
            whole = self._tree.access(self._section_now)
            return self._aliases[self._section_now] + self._tree.access(path).removeprefix(whole)
        return self._tree.access(path)

    def _section_aliases(self) -> dict[str, str]:
        """Return the short names of sections that are referred to more than once, by path."""
        found, taken = dict[str, str](), {a.name for a in self._arguments} | RESERVED | {"x"}
        calls = [n for n in self._program.nodes if n.op == "call_module" and n not in self._skipped]
        paths = {self._heads.get(n, (str(n.target), n))[0] for n in calls}
        for section in dict.fromkeys(self._section(n, "") for n in calls):
            inside = [p for p in paths if p.startswith(f"{section}.")]
            if section and len(inside) > 1:
                word = next((w for w in reversed(section.split(".")) if not w.isdigit()), "block")
                name = variable_name(word[:-1] if word.endswith("s") and len(word) > 3 else word)
                name = "block" if name[-1].isdigit() or name == "feature" else name
                found[section] = f"{name}_" if name in taken else name
        return found

    def _is_statement(self, node: fx.Node) -> bool:
        if node.op in {"placeholder", "get_attr"} or node in self._skipped | self._inline | self._dead_nodes:
            return False
        parent = node.args[0] if node.args else None
        return not (isinstance(parent, fx.Node) and parent in self._unpacked and node in self._unpacked[parent])

    def _reads(self, node: fx.Node) -> list[fx.Node]:
        """Return the named nodes that the statement of `node` reads."""
        source = self._heads[node][1] if node in self._heads else node
        found = list[fx.Node]()
        for read in source.all_input_nodes:
            found += self._reads(read) if read in self._inline else [read]
        return [n for n in found if n.op != "get_attr"]

    def _unpackings(self) -> dict[fx.Node, list[fx.Node | None]]:
        """Return nodes with several results that are all read by position, and the nodes that read them."""
        found = dict[fx.Node, list[fx.Node | None]]()
        for node in self._program.nodes:
            length = self._values.length(node)
            if node in self._inline or not length or length > 8 or node.op in {"placeholder", "get_attr", "output"}:
                continue
            if any(node in parts for parts in found.values()):
                continue  # it already has a name, and its parts are read by position
            parts: list[fx.Node | None] = [None] * length
            for user in node.users:
                position = user.args[1] if _takes_item(user, node) else None
                if not isinstance(position, int) or not -length <= position < length or parts[position] is not None:
                    break
                parts[position] = user
            else:
                if length > 1 and any(parts) and user not in self._inline:
                    found[node] = parts
                    self._inline -= {p for p in parts if p is not None}
        return found

    def _name_arguments(self, names: Names) -> None:
        for argument in self._arguments:
            names.age[argument.name] = -1
            if len(argument.name) <= 2:
                names.trunks.add(argument.name)
        names.reserved |= set(self._aliases.values())
        for node, place in self._placeholder_code.items():
            if place.isidentifier():
                names.of[node] = place
            else:
                names.reserved.add(re.split(r"\W", place, maxsplit=1)[0])

    def _hint(self, node: fx.Node) -> str:
        if node.op in {"placeholder", "get_attr"}:
            return variable_name(self._placeholder_code.get(node) or str(node.target).rpartition(".")[2])
        if node.op == "call_module":
            path = self._heads.get(node, (str(node.target), node))[0]
            words = [w for w in path.split(".") if not w.isdigit()]
            operator = self._program.operator(node)
            mixes = operator is not None and operator.kind in {Kind.CONTRACTION, Kind.RECURRENT, Kind.LOOKUP}
            return ("=" if mixes else "") + variable_name(words[-1] if words else "x")
        if node.target is F.scaled_dot_product_attention:
            return "=attention"
        if node.op == "call_function" and node.name.startswith("getitem") and isinstance(node.args[0], fx.Node):
            name = self._part_hint(node.args[0], node.args[1])
        elif _keeps_values(node) and isinstance(node.args[0], fx.Node):
            name = self._hint(node.args[0]).removeprefix("=") or node.name
        else:
            name = re.sub(r"_?\d+$", "", node.name)
        return variable_name(name)

    def _part_hint(self, whole: fx.Node, position: object) -> str:
        if whole.target is getattr or whole.target == "size":
            if position == 0:
                return "batch"
            return f"size{position}" if isinstance(position, int) and position > 0 else "size"
        return "part" if whole.op == "placeholder" else self._hint(whole).removeprefix("=")

    def _section(self, node: fx.Node, before: str) -> str:
        """Return the part of the model that a node belongs to: its path up to the first number.

        A module that is called as a whole needs no heading.
        """
        if node.op == "call_module":
            path = self._heads.get(node, (str(node.target), node))[0]
        else:
            path = str(node.meta.get("inside") or "")
            if not path:
                return before
        parts = path.split(".")
        end = next((i + 1 for i, p in enumerate(parts) if p.isdigit()), 0)
        if node.op == "call_module" and end == len(parts):
            return ""
        return ".".join(parts[:end]) if re.fullmatch(r"[\w.]+", path) else ""

    def _returned(self, node: fx.Node, names: Names) -> str:
        value: Any = node.args[0]
        codegen = self._program.graph_module.graph._codegen  # noqa: SLF001 -- how the outputs are put together
        if isinstance(codegen, _PyTreeCodeGen) and codegen.pytree_info.out_spec is not None:
            leaves = list(value) if isinstance(value, (tuple, list)) else [value]
            value = plain_output(codegen.pytree_info.out_spec, iter(leaves))
        if isinstance(value, tuple) and len(value) > 1:
            return ", ".join(self._code(v, names).text for v in value)
        return self._code(value, names).text


def _takes_item(user: fx.Node, node: fx.Node) -> bool:
    return user.op == "call_function" and user.name.startswith("getitem") and user.args[0] is node


def _in_chains(chains: Mapping[str, ModuleChain]) -> tuple[set[fx.Node], dict[fx.Node, tuple[str, fx.Node]]]:
    """Return the nodes that sequences contain, and for the last node of each its path and first node."""
    skipped, heads = set[fx.Node](), dict[fx.Node, tuple[str, fx.Node]]()
    for path, chain in chains.items():
        if chain.nodes[-1] in heads or chain.nodes[-1] in skipped:
            continue
        heads[chain.nodes[-1]] = (path, chain.nodes[0])
        skipped |= set(chain.nodes[:-1])
    return skipped, heads


def _keeps_values(node: fx.Node) -> bool:
    """Return True if a method returns the same values in another layout."""
    operator = registry.of(node) if node.op == "call_method" else None
    return operator is not None and operator.kind is Kind.MOVEMENT and not operator.picks
