"""Runs of a captured graph, with its guards switched off, at sizes that its model takes or refuses."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from typing_extensions import override

from fxsurgery.capture import reference_runs
from fxsurgery.capture.differences import difference
from fxsurgery.capture.model_copies import ModelCopies, Scratch
from fxsurgery.capture.size_variants import Dim, Variant
from fxsurgery.inputs import Inputs


@dataclass(frozen=True, eq=False)
class SizeTrial:
    """One run of the graph with its guards switched off."""

    variant: Variant
    """What it ran on."""
    sizes: dict[str, Any]
    """The numbers that were computed, by node."""
    broken: tuple[str, ...]
    """Guards that do not hold, by node."""
    agrees: bool
    """Whether it gave what the model gives."""
    is_refused: bool = False
    """Whether the model refuses these inputs."""

    @property
    def dims(self) -> tuple[Dim, ...]:
        """The dims of the inputs that differ from the example's; none where only the batch does."""
        return self.variant.dims

    @property
    def is_right(self) -> bool:
        """Whether every guard holds and the graph gave what the model gives."""
        return self.agrees and not self.broken


class SizeTrials:
    """Runs a graph module, which stays as it is, beside what its model gave."""

    def __init__(self, copies: ModelCopies, graph_module: fx.GraphModule) -> None:
        self.scratch = Scratch(copies, graph_module)
        """Copies of it, with lively values."""

    def run(self, variant: Variant) -> SizeTrial:
        """A run on inputs that the model takes."""
        run = _Run(self.scratch.copy().train().eval())
        outcome = run.outcome(variant.inputs)
        agrees = outcome is not None and difference(outcome, variant.outcome).excess <= 1
        return SizeTrial(variant, run.sizes, tuple(run.broken), agrees)

    def probe(self, variant: Variant) -> SizeTrial | None:
        """A run on inputs that the model refuses; `None` where the operations of the graph refuse them as well."""
        run = _Run(self.scratch.copy().train().eval())
        if run.outcome(variant.inputs) is None:
            return None
        return SizeTrial(variant, run.sizes, tuple(run.broken), agrees=False, is_refused=True)


class _Run(fx.Interpreter):
    """Runs a graph to its end, whether or not its guards hold."""

    def __init__(self, graph_module: nn.Module) -> None:
        super().__init__(graph_module)
        self.extra_traceback = False
        self.sizes: dict[str, Any] = {}
        self.broken: list[str] = []

    def outcome(self, inputs: Inputs) -> reference_runs.ReferenceOutcome | None:
        """Run the graph; `None` where it does not get to its end."""
        reference_runs.seed_all()
        try:
            with torch.no_grad():
                output = self.run(*inputs.clone().leaves, enable_io_processing=False)
            return reference_runs.ReferenceOutcome(reference_runs.named_leaves(self.graph.process_outputs(output)))
        except Exception:  # noqa: BLE001 -- whatever the operations raise at another size is the finding
            return None

    @override
    def run_node(self, n: fx.Node) -> Any:
        if n.meta.get("guard"):
            condition, expected = self.fetch_args_kwargs_from_env(n)[0]
            if bool(condition) != expected:
                self.broken.append(n.name)
            return None
        value = super().run_node(n)
        if n.meta.get("size"):
            self.sizes[n.name] = value
        return value
