"""Which containers are plain sequences: every part called once, one right after the other, each on what came before."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from torch import fx, nn

from fxsurgery.program import Program
from fxsurgery.saving.constructors import PLAIN_TREES


@dataclass(frozen=True)
class ModuleChain:
    """The nodes of a container that is a sequence, in order."""

    nodes: tuple[fx.Node, ...]


def chains(program: Program) -> dict[str, ModuleChain]:
    """The containers that can be an `nn.Sequential`, the outer ones first."""
    calls = dict[str, list[fx.Node]]()
    for node, _ in program.calls(nn.Module):
        calls.setdefault(str(node.target), []).append(node)
    read = {str(n.target) for n in program.nodes if n.op == "get_attr"}
    shared = _shared(program.graph_module)
    found = dict[str, ModuleChain]()
    for path, module in program.graph_module.named_modules():
        names = [name for name, _ in module.named_children()]
        # A sequence of one reads worse than the part under its name, unless it is called as a part of another one.
        alone = len(names) == 1 and names != ["0"] and not any(outer in found for outer in _around(path))
        blocked = alone or path in shared or any(r.startswith(f"{path}.") for r in read)
        if path and not blocked and is_tree(module) and (span := _span(path, module, calls)) is not None:
            found[path] = ModuleChain(tuple(span))
    return found


def ordered(module: nn.Module, path: str, used: Collection[str]) -> list[tuple[str, nn.Module]]:
    """The parts of a module: by number where numbers are their names, else in the order in which they are used.

    Args:
        module: the module.
        path: where it is.
        used: paths of modules and tensors, in the order of their first use.
    """
    parts = [(name, part) for name, part in vars(module)["_modules"].items() if part is not None]
    if all(name.isdigit() for name, _ in parts):
        return sorted(parts, key=lambda entry: int(entry[0]))
    begins = [f"{path}.{name}." if path else f"{name}." for name, _ in parts]
    places = {begin: next((i for i, u in enumerate(used) if f"{u}.".startswith(begin)), len(used)) for begin in begins}
    order = sorted(range(len(parts)), key=lambda i: places[begins[i]])
    return [parts[i] for i in order]


def is_tree(module: nn.Module) -> bool:
    """Whether a module is no more than what is registered with it."""
    return type(module) in PLAIN_TREES.values()


def _shared(root: nn.Module) -> set[str]:
    """The paths of modules that have several, and of what is around them."""
    paths = dict[int, list[str]]()
    for path, module in root.named_modules(remove_duplicate=False):
        paths.setdefault(id(module), []).append(path)
    several = [path for found in paths.values() if len(found) > 1 for path in found]
    return {outer for path in several for outer in _around(path)}


def _around(path: str) -> Iterator[str]:
    while path:
        yield path
        path = path.rpartition(".")[0]


def _span(path: str, module: nn.Module, calls: Mapping[str, list[fx.Node]]) -> list[fx.Node] | None:
    """The nodes of a module; `None` where they are not in a row."""
    if path in calls or not is_tree(module):
        nodes = calls.get(path, [])
        return nodes if len(nodes) == 1 and _is_plain(nodes[0]) else None
    own = vars(module)
    if any(t is not None for t in (*own["_parameters"].values(), *own["_buffers"].values())) or not own["_modules"]:
        return None
    nodes = []
    for name, child in ordered(module, path, calls):
        part = _span(f"{path}.{name}", child, calls)
        if part is None or (nodes and not _follows(nodes[-1], part[0])):
            return None
        nodes += part
    return nodes


def _is_plain(node: fx.Node) -> bool:
    return len(node.args) == 1 and isinstance(node.args[0], fx.Node) and not node.kwargs


def _follows(before: fx.Node, after: fx.Node) -> bool:
    return after.args[0] is before and before.next is after and list(before.users) == [after]
