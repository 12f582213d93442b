"""What flows through a program: the values that some of its nodes give on its example inputs."""

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, fx
from typing_extensions import override

from fxsurgery.program import Program
from fxsurgery.seeding import seeded


def read_values(program: Program, names: Collection[str], *, training: bool = False) -> dict[str, Tensor]:
    """What the nodes of these names give on the example inputs, each a copy of its own.

    Args:
        program: it is left as it was, in train mode as well.
        names: of nodes that give tensors.
        training: run in train mode: norms take the statistics of the batch, dropout drops (the same every time).
    """
    graph_module = program.trainable_copy().train() if training else program.graph_module
    reader = _Reader(graph_module, frozenset(names))
    device = next((x.device for x in program.examples.tensors), torch.device("cpu"))
    with torch.no_grad(), seeded(0, device):
        reader.run(*program.examples.clone().leaves, enable_io_processing=False)
    return reader.seen


class _Reader(fx.Interpreter):
    """Runs a graph and keeps what some nodes give."""

    def __init__(self, graph_module: fx.GraphModule, wanted: frozenset[str]) -> None:
        super().__init__(graph_module)
        self._wanted = wanted
        self.seen: dict[str, Tensor] = {}

    @override
    def run_node(self, n: fx.Node) -> Any:
        """Run a node; a wanted value is copied, as a later node may write into it."""
        result = super().run_node(n)
        if n.name in self._wanted:
            self.seen[n.name] = result.detach().clone()
        return result
