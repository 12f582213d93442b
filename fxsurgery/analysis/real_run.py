"""A run on real tensors, for what cannot run on meta tensors: shapes, and the work of modules kept whole."""

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.flop_counter import FlopCounterMode
from typing_extensions import override

from fxsurgery.analysis.refit import is_resizable
from fxsurgery.program import Program


def run_for_real(program: Program) -> "RealRun":
    """Run the program on its example inputs, whatever modes are on."""
    device = next((x.device for x in program.examples.tensors), torch.device("cpu"))
    run = RealRun(program.graph_module)
    with _disable_current_modes(), torch.no_grad(), device:
        run.run(*program.examples.clone().leaves, enable_io_processing=False)
    return run


class RealRun(fx.Interpreter):
    """One real run, of which the shapes are kept, and the work of the modules that capture kept whole."""

    def __init__(self, graph_module: fx.GraphModule) -> None:
        super().__init__(graph_module)
        self.metas: dict[str, Any] = {}
        self.macs: dict[str, float] = {}
        """Of the modules that were kept whole."""

    @override
    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        self.metas[n.name] = pytree.tree_map_only(Tensor, on_meta, result)
        return result

    @override
    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        module = self.fetch_attr(target)
        if not is_kept_whole(module):
            return super().call_module(target, args, kwargs)
        with FlopCounterMode(display=False) as counter:
            result = super().call_module(target, args, kwargs)
        self.macs[target] = counter.get_total_flops() / 2
        return result


def is_kept_whole(module: nn.Module) -> bool:
    """Whether a called module has state and code of the user's own: capture could not look into it."""
    own = not type(module).__module__.startswith(("torch.nn", "torch.ao.nn", "fxsurgery"))
    return own and bool(list(module.state_dict())) and not is_resizable(module)


def on_meta(tensor: Tensor) -> Tensor:
    """A meta tensor of the same shape and type; of a parameter, a parameter."""
    meta = tensor.detach().to("meta")
    return nn.Parameter(meta, requires_grad=False) if isinstance(tensor, nn.Parameter) else meta
