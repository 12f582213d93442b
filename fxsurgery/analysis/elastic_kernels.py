"""Convolutions whose kernel can be replaced by its center.

These have odd sides, some of them larger than 3. The padding shrinks with the kernel, so it must be large enough:
then the smaller kernel computes the same as the whole kernel with zeros around its center.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import fx
from torch.nn.modules.conv import _ConvNd

from fxsurgery.analysis.refit import is_parametrized
from fxsurgery.match import Refusal
from fxsurgery.nn.elastic import ELASTIC_CONVS, Size, margins
from fxsurgery.program import Program


@dataclass(frozen=True, eq=False)
class KernelChoice:
    """A convolution, its calls and its possible kernel sizes, largest first."""

    path: str
    nodes: tuple[fx.Node, ...]
    sizes: tuple[Size, ...]


def kernel_choices(program: Program) -> tuple[tuple[KernelChoice, ...], dict[str, str]]:
    """Return the convolutions with elastic kernels, and for the others with a side above 3 the reason, by node."""
    users, found, refused = _users_of_tensors(program), list[KernelChoice](), dict[str, str]()
    calls = dict[str, tuple[_ConvNd, list[fx.Node]]]()
    for node, conv in program.calls(_ConvNd):
        if max(conv.kernel_size) > 3:
            calls.setdefault(str(node.target), (conv, []))[1].append(node)
    for path, (conv, nodes) in calls.items():
        if refusal := _fixed(conv, nodes, users):
            refused[nodes[0].name] = refusal.reason
        elif len(sizes := _sizes(conv)) > 1:
            found.append(KernelChoice(path, tuple(nodes), sizes))
        else:
            refused[nodes[0].name] = "it pads too little for a smaller kernel to see the same places"
    return tuple(found), refused


def _users_of_tensors(program: Program) -> dict[int, int]:
    """Count the names of each parameter, by its id; each read as an attribute counts as another name."""
    counts = dict[int, int]()
    named = dict(program.graph_module.named_parameters(remove_duplicate=False))
    read = [named[str(n.target)] for n in program.nodes if n.op == "get_attr" and str(n.target) in named]
    for parameter in (*named.values(), *read):
        counts[id(parameter)] = counts.get(id(parameter), 0) + 1
    return counts


def _fixed(conv: _ConvNd, nodes: Sequence[fx.Node], users: dict[int, int]) -> Refusal | None:
    """Return why the kernel of a convolution cannot change."""
    if is_parametrized(conv):
        return Refusal(nodes[0].name, "its weight is computed from other tensors")
    if type(conv) not in ELASTIC_CONVS:
        return Refusal(nodes[0].name, f"a {type(conv).__name__} is not known to take the center of its kernel")
    if any(side > 3 and side % 2 == 0 for side in conv.kernel_size):
        return Refusal(nodes[0].name, f"a kernel of {'x'.join(map(str, conv.kernel_size))} has no center")
    if users.get(id(conv.weight), 0) != 1:
        return Refusal(nodes[0].name, "its weight is shared with another layer")
    if any(len(n.args) != 1 or n.kwargs for n in nodes):
        return Refusal(nodes[0].name, "it is called with options")
    return None


def _sizes(conv: _ConvNd) -> tuple[Size, ...]:
    """Return the kernel sizes, largest first: two less on every side above 3, while the padding can shrink."""
    sizes = [tuple(conv.kernel_size)]
    while max(sizes[-1]) > 3:
        smaller = tuple(side - 2 if side > 3 else side for side in sizes[-1])
        pads = [0] * len(smaller) if conv.padding == "valid" else conv.padding
        if not isinstance(pads, str) and any(p < m for p, m in zip(pads, margins(conv, smaller), strict=True)):
            break
        sizes.append(smaller)
    return tuple(sizes)
