"""Peak activation memory: the bytes of all tensors that are alive at once while a program runs, without weights.

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

from fxsurgery.analysis.cached import cached
from fxsurgery.analysis.node_values import run_on_meta
from fxsurgery.inputs import Inputs
from fxsurgery.program import Program


@cached
def peak_activation_bytes(program: Program) -> int:
    """Return the largest number of bytes of activations that are alive at once.

    Example:
        >>> from fxsurgery import capture
        >>> layers = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> peak_activation_bytes(capture(layers.eval(), torch.ones(1, 4)))  # 8 floats into the ReLU, 8 out of it
        64
    """
    examples = program.examples
    inputs = examples.resized(1) if examples.is_resizable else examples
    run = run_on_meta(program, inputs)
    if run is not None and run.meta_module is not None:
        return _peak(program.nodes, _held(run.meta_module, run.by_name))
    return _peak(program.nodes, _held(program.graph_module, _real_values(program, inputs)))


Held = Mapping[str, Mapping[int, int]]
"""The storages of each node's value, with their sizes in bytes."""


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


def _held(module: fx.GraphModule, values: Mapping[str, Any]) -> Held:
    """Return the storages of each node's value, without those of the weights of `module`."""
    weights = {key for tensor in (*module.parameters(), *module.buffers()) for key in _storage(tensor)}
    found = dict[str, dict[int, int]]()
    for name, value in values.items():
        found[name] = {}
        for leaf in pytree.tree_leaves(value):
            if isinstance(leaf, Tensor):
                found[name] |= {key: size for key, size in _storage(leaf).items() if key not in weights}
    return found


def _real_values(program: Program, inputs: Inputs) -> Mapping[str, Any]:
    """Return each node's value from a run with numbers; all are kept, so that no storage is reused."""
    run = fx.Interpreter(program.graph_module, garbage_collect_values=False)
    device = next((x.device for x in inputs.tensors), torch.device("cpu"))
    with _disable_current_modes(), torch.no_grad(), device:
        run.run(*inputs.clone().leaves, enable_io_processing=False)
    return {node.name: value for node, value in run.env.items()}


def _storage(tensor: Tensor) -> dict[int, int]:
    """Return the storage of a tensor and its bytes; a sparse tensor, which has none, counts as a dense one."""
    if tensor.layout != torch.strided:
        return {id(tensor): tensor.numel() * tensor.element_size()}
    storage = tensor.untyped_storage()
    return {storage._cdata: storage.nbytes()}  # noqa: SLF001 -- the identity of a storage; meta ones have no address
