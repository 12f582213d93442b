"""Detection of containers that are plain sequences: each part is called once, directly on the output before."""

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
    """Return the containers that can be written as `nn.Sequential`, by path, outer ones first."""
    calls = dict[str, list[fx.Node]]()
    for node, _ in program.calls(nn.Module):
        calls.setdefault(str(node.target), []).append(node)
    read = {str(n.target) for n in program.nodes if n.op == "get_attr"}
    shared = _shared(program.graph_module)
    found = dict[str, ModuleChain]()
    for path, module in program.graph_module.named_modules():
        names = [name for name, _ in module.named_children()]
        # A sequence of one part is clearer as the part itself, unless an outer sequence calls it.
        is_single = len(names) == 1 and names != ["0"] and not any(outer in found for outer in _enclosing_paths(path))
        blocked = is_single or path in shared or any(r.startswith(f"{path}.") for r in read)
        if path and not blocked and is_tree(module) and (span := _span(path, module, calls)) is not None:
            found[path] = ModuleChain(tuple(span))
    return found


def ordered(module: nn.Module, path: str, used: Collection[str]) -> list[tuple[str, nn.Module]]:
    """Return the children of a module: sorted by number if all names are numbers, else by first use.

    Args:
        module: the module.
        path: its path.
        used: paths of modules and tensors in order of first use.
    """
    parts = [(name, part) for name, part in vars(module)["_modules"].items() if part is not None]
    if all(name.isdigit() for name, _ in parts):
        return sorted(parts, key=lambda entry: int(entry[0]))
    prefixes = [f"{path}.{name}." if path else f"{name}." for name, _ in parts]
    first_uses = {
        prefix: next((i for i, u in enumerate(used) if f"{u}.".startswith(prefix)), len(used)) for prefix in prefixes
    }
    order = sorted(range(len(parts)), key=lambda i: first_uses[prefixes[i]])
    return [parts[i] for i in order]


def is_tree(module: nn.Module) -> bool:
    """Return True if a module has no behavior beyond its registered children and tensors."""
    return type(module) in PLAIN_TREES.values()


def _shared(root: nn.Module) -> set[str]:
    """Return the paths of modules with several paths, and of all modules around them."""
    paths = dict[int, list[str]]()
    for path, module in root.named_modules(remove_duplicate=False):
        paths.setdefault(id(module), []).append(path)
    several = [path for found in paths.values() if len(found) > 1 for path in found]
    return {outer for path in several for outer in _enclosing_paths(path)}


def _enclosing_paths(path: str) -> Iterator[str]:
    while path:
        yield path
        path = path.rpartition(".")[0]


def _span(path: str, module: nn.Module, calls: Mapping[str, list[fx.Node]]) -> list[fx.Node] | None:
    """Return the nodes of a module; None if they are not consecutive."""
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
