"""What every node of a program gives on the example inputs, as meta tensors: shapes without the work."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from typing_extensions import override

from fxsurgery.analysis.cached import fact
from fxsurgery.program import Program


@dataclass(frozen=True, eq=False)
class ShapesRun:
    """A program on meta tensors."""

    graph_module: fx.GraphModule
    """A copy with meta parameters."""
    values: dict[str, Any]
    """By node."""


@fact
def shapes_run(program: Program) -> ShapesRun | None:
    """Run `program` on meta tensors; `None` if it needs numbers, or makes tensors on a device that it names."""
    bare = program.trainable_copy().to("meta")
    bare_inputs = program.examples.map(lambda x: x.to("meta"))
    run = _Run(bare)
    try:
        with torch.no_grad(), torch.device("meta"):
            run.run(*bare_inputs.leaves, enable_io_processing=False)
    except Exception:  # noqa: BLE001 -- the user's modules may raise whatever they like
        return None
    return ShapesRun(bare, run.seen)


class _Run(fx.Interpreter):
    """Keeps what each node gives."""

    def __init__(self, graph_module: fx.GraphModule) -> None:
        super().__init__(graph_module)
        self.extra_traceback = False
        self.seen: dict[str, Any] = {}

    @override
    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.op == "call_method" and isinstance(result, Tensor) and result.device.type != "meta":
            raise RuntimeError(f"%{n} is on {result.device}")
        self.seen[n.name] = result
        return result
