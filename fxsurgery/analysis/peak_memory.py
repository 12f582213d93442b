"""Peak activation memory: the bytes of all tensors that are alive at once while a program runs, weights left out.

With size(s) the bytes of a storage s, first(s) the node that makes it and last(s) the last node that reads any view of
it, in execution order:

    peak = max over nodes t of  sum of size(s) over all s with first(s) <= t <= last(s)

So a node's inputs and its output are alive together, an operation in place or a view takes nothing, an input is freed
after its last use, and outputs stay to the end. This is what a planner that shares one arena needs; what a layer
allocates and frees inside itself is not seen. Counted for one sample; for a program that takes only its example batch,
for that batch.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes
from typing_extensions import override

from fxsurgery.analysis.cached import fact
from fxsurgery.analysis.node_values import run_on_meta
from fxsurgery.inputs import Inputs
from fxsurgery.program import Program


@fact
def peak_activation_bytes(program: Program) -> int:
    """Return the largest number of bytes that activations take at once.

    Example:
        >>> from fxsurgery import capture
        >>> layers = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> peak_activation_bytes(capture(layers.eval(), torch.ones(1, 4)))  # 8 floats into the ReLU, 8 out of it
        64
    """
    examples = program.examples
    inputs = examples.resized(1) if examples.is_resizable else examples
    held = _on_meta(program, inputs) or _for_real(program, inputs)
    return _peak(program.nodes, held)


Held = Mapping[str, Mapping[int, int]]
"""By node: the storages of what it gives, with their bytes."""


def _peak(nodes: tuple[fx.Node, ...], held: Held) -> int:
    place = {node: index for index, node in enumerate(nodes)}
    first, last, sizes = dict[int, int](), dict[int, int](), dict[int, int]()
    for node, index in place.items():
        until = max((place[user] for user in node.users), default=index)
        for storage, size in held.get(node.name, {}).items():
            first.setdefault(storage, index)
            last[storage] = max(last.get(storage, 0), until)
            sizes[storage] = size
    change = [0] * (len(nodes) + 1)
    for storage, size in sizes.items():
        change[first[storage]] += size
        change[last[storage] + 1] -= size
    peak = alive = 0
    for step in change:
        alive += step
        peak = max(peak, alive)
    return peak


def _on_meta(program: Program, inputs: Inputs) -> Held | None:
    """What is held in a run without numbers; `None` if the program needs them."""
    if (found := run_on_meta(program, inputs)) is None or found.meta_module is None:
        return None
    weights = _weights(found.meta_module)
    return {node.name: _held(node, found.by_name[node.name], weights) for node in program.nodes}


def _for_real(program: Program, inputs: Inputs) -> Held:
    run = _Run(program.graph_module)
    device = next((x.device for x in inputs.tensors), torch.device("cpu"))
    with _disable_current_modes(), torch.no_grad(), device:
        run.run(*inputs.clone().leaves, enable_io_processing=False)
    return run.held


class _Run(fx.Interpreter):
    """Notes the storages of what each node gives, and keeps them all, so that no address is used twice."""

    def __init__(self, graph_module: fx.GraphModule) -> None:
        super().__init__(graph_module, garbage_collect_values=False)
        self.extra_traceback = False
        self.held: dict[str, dict[int, int]] = {}
        self._weights = _weights(graph_module)

    @override
    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        self.held[n.name] = _held(n, result, self._weights)
        return result


def _weights(graph_module: fx.GraphModule) -> set[int]:
    """The storages of parameters and buffers."""
    return {key for tensor in (*graph_module.parameters(), *graph_module.buffers()) for key in _storage(tensor)}


def _held(node: fx.Node, value: object, weights: set[int]) -> dict[int, int]:
    """The storages of what a node gives, weights left out."""
    leaves = pytree.tree_leaves(value) if node.op != "output" else ()
    found = {key: size for leaf in leaves if isinstance(leaf, Tensor) for key, size in _storage(leaf).items()}
    return {key: size for key, size in found.items() if key not in weights}


def _storage(tensor: Tensor) -> dict[int, int]:
    """The storage of a tensor with its bytes; of a sparse one, which has none, its values."""
    if tensor.layout != torch.strided:
        return {id(tensor): tensor.values().nbytes}
    storage = tensor.untyped_storage()
    return {storage._cdata: storage.nbytes()}  # noqa: SLF001 -- the identity of a storage; meta ones have no address
