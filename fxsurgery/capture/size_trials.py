"""Trial runs of a captured graph with its guards disabled, at sizes that its model accepts or rejects."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from typing_extensions import override

from fxsurgery.capture import reference_runs
from fxsurgery.capture.differences import difference
from fxsurgery.capture.model_copies import ModelCopies, ScratchCopy
from fxsurgery.capture.size_variants import Dim, Variant
from fxsurgery.inputs import Inputs
from fxsurgery.surroundings import without_warnings


@dataclass(frozen=True, eq=False)
class SizeTrial:
    """One run of the graph with its guards disabled."""

    variant: Variant
    """The inputs, and the model's outcome for them."""
    sizes: dict[str, Any]
    """Values of the size nodes, by node name."""
    broken: tuple[str, ...]
    """Names of the guard nodes that do not hold."""
    agrees: bool
    """Whether the graph computed the same as the model."""
    is_rejected: bool = False
    """Whether the model rejects these inputs."""

    @property
    def dims(self) -> tuple[Dim, ...]:
        """The input dims that differ from the example; empty if only the batch size does."""
        return self.variant.dims

    @property
    def is_correct(self) -> bool:
        """Return True if every guard holds and the graph computed the same as the model."""
        return self.agrees and not self.broken


class SizeTrials:
    """Runs a graph module, left unchanged, and compares it with outcomes of its model."""

    def __init__(self, copies: ModelCopies, graph_module: fx.GraphModule) -> None:
        self.scratch = ScratchCopy(copies, graph_module)
        """Copies of the graph module, with nonzero parameters."""

    def run(self, variant: Variant) -> SizeTrial:
        """Run on inputs that the model accepts."""
        run = _Run(self.scratch.copy().train().eval())
        outcome = run.outcome(variant.inputs)
        agrees = outcome is not None and difference(outcome, variant.outcome).excess <= 1
        return SizeTrial(variant, run.sizes, tuple(run.broken), agrees)

    def probe(self, variant: Variant) -> SizeTrial | None:
        """Run on inputs that the model rejects; None if the operations of the graph reject them too."""
        run = _Run(self.scratch.copy().train().eval())
        if run.outcome(variant.inputs) is None:
            return None
        return SizeTrial(variant, run.sizes, tuple(run.broken), agrees=False, is_rejected=True)


class _Run(fx.Interpreter):
    """Runs a graph to its end even if its guards do not hold."""

    def __init__(self, graph_module: nn.Module) -> None:
        super().__init__(graph_module)
        self.extra_traceback = False
        self.sizes: dict[str, Any] = {}
        self.broken: list[str] = []

    def outcome(self, inputs: Inputs) -> reference_runs.ReferenceOutcome | None:
        """Return the outcome; None if an operation fails. A warning is no failure, even where warnings are errors."""
        reference_runs.seed_all()
        try:
            with torch.no_grad(), without_warnings():
                output = self.run(*inputs.clone().leaves, enable_io_processing=False)
            return reference_runs.ReferenceOutcome(reference_runs.named_leaves(self.graph.process_outputs(output)))
        except Exception:  # noqa: BLE001 -- any failure of an operation at another size is the finding
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
