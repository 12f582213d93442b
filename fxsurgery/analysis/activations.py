"""Activations of a program: values of some of its nodes on the example inputs."""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, fx
from typing_extensions import override

from fxsurgery.program import Program
from fxsurgery.seeding import seeded


def read_values(program: Program, names: Collection[str], *, training: bool = False) -> dict[str, Tensor]:
    """Return copies of the values of these nodes on the example inputs.

    Args:
        program: not changed, in train mode neither.
        names: names of nodes whose values are tensors.
        training: run in train mode: norms use the statistics of the batch, dropout is active with a fixed seed.
    """
    graph_module = _in_training(program) if training else program.graph_module
    return _run(program, _Reader(graph_module, frozenset(names), {})).seen


def read_entering(program: Program, readers: Mapping[str, str]) -> dict[str, Tensor]:
    """Return copies of the tensors that nodes read on the example inputs, at the time when they run.

    Such a tensor differs from the value of its node if a node in between wrote into it.

    Args:
        program: not changed.
        readers: the name of the node whose tensor is read, by the name of the reader.
    """
    return _run(program, _Reader(program.graph_module, frozenset(), readers)).entered


def _in_training(program: Program) -> fx.GraphModule:
    """Return the graph in train mode, with the same parameters and with copied buffers, which a run writes to."""
    model, own = program.draft().train(), dict[int, Tensor]()
    for module in model.modules():
        for name, buffer in module._buffers.items():  # noqa: SLF001 -- a buffer that two modules share stays one
            if buffer is not None:
                module._buffers[name] = own.setdefault(id(buffer), buffer.clone())  # noqa: SLF001
    return model


def _run(program: Program, reader: "_Reader") -> "_Reader":
    device = next((x.device for x in program.examples.tensors), torch.device("cpu"))
    with torch.no_grad(), seeded(0, device):
        reader.run(*program.examples.clone().leaves, enable_io_processing=False)
    return reader


class _Reader(fx.Interpreter):
    """Runs a graph and records the values of some nodes, and the inputs of others."""

    def __init__(self, graph_module: fx.GraphModule, wanted: frozenset[str], readers: Mapping[str, str]) -> None:
        super().__init__(graph_module)
        self._wanted, self._readers = wanted, readers
        self.seen: dict[str, Tensor] = {}
        self.entered: dict[str, Tensor] = {}

    @override
    def run_node(self, n: fx.Node) -> Any:
        """Run a node; a wanted value is copied, as a later node may write into it."""
        if n.name in self._readers:
            source = next(i for i in n.all_input_nodes if i.name == self._readers[n.name])
            self.entered[n.name] = self.env[source].detach().clone()
        result = super().run_node(n)
        if n.name in self._wanted:
            self.seen[n.name] = result.detach().clone()
        return result
