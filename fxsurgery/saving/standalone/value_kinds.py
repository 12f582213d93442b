"""Of each node whether it gives a tensor, several things, or a plain number: from one run on the example inputs."""

from typing import Any

import torch
from torch import Tensor, fx
from typing_extensions import override

from fxsurgery.program import Program
from fxsurgery.seeding import seeded


class _Run(fx.Interpreter):
    def __init__(self, program: Program) -> None:
        super().__init__(program.graph_module)
        self.tensors = set[str]()
        self.lengths = dict[str, int]()

    @override
    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.tensors.add(n.name)
        elif isinstance(result, (tuple, list)):
            self.lengths[n.name] = len(result)
        return result


class Kinds:
    """What the nodes of a program give."""

    def __init__(self, program: Program) -> None:
        run = _Run(program)
        inputs = program.examples.clone()
        leaves = inputs.leaves
        with seeded(0, torch.device("cpu")), torch.no_grad():
            for node, leaf in zip([n for n in program.nodes if n.op == "placeholder"], leaves, strict=True):
                run.env[node] = leaf
                if isinstance(leaf, Tensor):
                    run.tensors.add(node.name)
            run.run(initial_env=dict(run.env), enable_io_processing=False)
        self._run = run

    def is_tensor(self, node: object) -> bool:
        """Whether it gives a tensor."""
        return isinstance(node, fx.Node) and node.name in self._run.tensors

    def length(self, node: fx.Node) -> int | None:
        """How many things it gives, for a tuple or list."""
        return self._run.lengths.get(node.name)
