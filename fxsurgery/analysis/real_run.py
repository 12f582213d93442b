"""A run on real tensors, for what cannot run on meta tensors: shapes, and the work of leaf modules."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes
from typing_extensions import override

from fxsurgery.analysis.cached import cached
from fxsurgery.analysis.refit import is_resizable
from fxsurgery.analysis.shapes import target_name
from fxsurgery.analysis.work_counter import WorkCounter
from fxsurgery.program import Program


@cached
def real_run(program: Program) -> "RealRun":
    """Run the program on its example inputs, independent of active modes."""
    device = next((x.device for x in program.examples.tensors), torch.device("cpu"))
    run = _Run(program)
    with _disable_current_modes(), torch.no_grad(), device:
        run.run(*program.examples.clone().leaves, enable_io_processing=False)
    return run.found


@dataclass(frozen=True, eq=False)
class RealRun:
    """Findings of one real run, by node."""

    values: dict[str, Any]
    """Value of the node, with meta tensors in place of tensors."""
    macs: dict[str, float]
    """MACs of one sample, by operation."""
    unknown: dict[str, tuple[str, ...]]
    """Operations that could not be counted."""


class _Run(fx.Interpreter):
    """Records the value of each node, and counts the work of each call."""

    def __init__(self, program: Program) -> None:
        super().__init__(program.graph_module)
        self.found = RealRun({}, {}, {})
        self._state = [*program.graph_module.parameters(), *program.graph_module.buffers()]
        self._batch = program.examples.batch or 1

    @override
    def run_node(self, n: fx.Node) -> Any:
        result = self._counted(n) if n.op.startswith("call") else super().run_node(n)
        self.found.values[n.name] = pytree.tree_map_only(Tensor, on_meta, result)
        return result

    def _counted(self, node: fx.Node) -> Any:
        """Run a call and count its work."""
        try:
            with WorkCounter(self._state, self._batch) as counter:
                result = super().run_node(node)
        except Exception:  # noqa: BLE001 -- what does not run while it is watched (control flow that PyTorch compiles)
            self.found.macs[node.name], self.found.unknown[node.name] = 0.0, (target_name(node),)
            return super().run_node(node)
        self.found.macs[node.name], self.found.unknown[node.name] = counter.macs, tuple(counter.unknown)
        return result


def is_user_leaf(module: nn.Module) -> bool:
    """Return True if a called module has state and code of the user: capture could not trace into it."""
    own = not type(module).__module__.startswith(("torch.nn", "torch.ao.nn", "fxsurgery"))
    return own and bool(list(module.state_dict())) and not is_resizable(module)


def on_meta(tensor: Tensor) -> Tensor:
    """Return a meta tensor of the same shape and type; a parameter for a parameter."""
    meta = tensor.detach().to("meta")
    return nn.Parameter(meta, requires_grad=False) if isinstance(tensor, nn.Parameter) else meta
