"""Values of the nodes of a program on the example inputs: whether they are tensors, their shapes and dtypes.

A run on meta tensors finds them without the computation. A program that needs numbers, or makes tensors on a device
that it names, is run on real tensors (`real_run`), and the values of its nodes are kept as meta tensors.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree
from typing_extensions import override

from fxsurgery.analysis.cached import cached
from fxsurgery.analysis.real_run import real_run
from fxsurgery.inputs import Inputs
from fxsurgery.program import Program


@dataclass(frozen=True, eq=False)
class NodeValues:
    """Values of the nodes of a program."""

    by_name: Mapping[str, Any]
    """Meta tensors in place of tensors, in the structure of the node's value; numbers are kept."""
    meta_module: fx.GraphModule | None
    """The graph on meta parameters; `None` if it cannot run on them."""

    def is_tensor(self, node: object) -> bool:
        """Return True if the value of `node` is a tensor."""
        return isinstance(node, fx.Node) and isinstance(self.by_name.get(node.name), Tensor)

    def length(self, node: fx.Node) -> int | None:
        """Return the length of the value of `node`; `None` if it is not a tuple or list."""
        value = self.by_name.get(node.name)
        return len(value) if isinstance(value, (tuple, list)) else None

    def shape(self, node: fx.Node) -> tuple[int, ...] | None:
        """Return the shape of the value of `node`; `None` if it is not a tensor."""
        value = self.by_name.get(node.name)
        return tuple(value.shape) if isinstance(value, Tensor) else None


@cached
def node_values(program: Program) -> NodeValues:
    """Return the value of each node of `program` on the example inputs."""
    return run_on_meta(program, program.examples) or NodeValues(real_run(program).values, None)


def run_on_meta(program: Program, inputs: Inputs) -> NodeValues | None:
    """Return the value of each node on `inputs`, from a run on meta tensors; `None` if the program needs numbers."""
    bare = _without_numbers(program)
    run = _Run(bare)
    try:
        with torch.no_grad(), torch.device("meta"):
            run.run(*inputs.map(lambda x: x.to("meta")).leaves, enable_io_processing=False)
    except Exception:  # noqa: BLE001 -- the user's modules may raise whatever they like; a real run follows
        return None
    return NodeValues(run.seen, bare)


def _without_numbers(program: Program) -> fx.GraphModule:
    """Return the graph on meta parameters and buffers; tied ones stay tied, and the program is not changed."""
    bare, known = program.draft(), dict[int, Tensor]()
    for module in bare.modules():
        for kind in (module._parameters, module._buffers):  # noqa: SLF001
            for name, tensor in list(kind.items()):
                if tensor is not None:
                    setattr(module, name, known.setdefault(id(tensor), _meta(tensor)))
    return bare


def _meta(tensor: Tensor) -> Tensor:
    meta = tensor.detach().to("meta")
    return nn.Parameter(meta, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else meta


class _Run(fx.Interpreter):
    """Records the value of each node."""

    def __init__(self, graph_module: fx.GraphModule) -> None:
        super().__init__(graph_module)
        self.extra_traceback = False
        self.seen: dict[str, Any] = {}

    @override
    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.op == "call_method" and isinstance(result, Tensor) and result.device.type != "meta":
            raise RuntimeError(f"%{n} is on {result.device}")
        # An operation that works in place may give it another shape later.
        self.seen[n.name] = pytree.tree_map_only(Tensor, Tensor.detach, result)
        return result
