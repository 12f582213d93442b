"""The cost of a program: parameters and multiply-accumulates, in full and as a function of the remaining units.

Both are sums of terms, each a constant times the surviving shares of the dims it runs over (out
channels, in channels), so one expression serves three uses: the count of a program, the count after a removal (a 0/1
gate a unit) and the differentiable expected cost under soft gates (DNAL).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fxsurgery.analysis.cached import cached
from fxsurgery.analysis.gating import GatePlan
from fxsurgery.analysis.layer_paths import layer_name
from fxsurgery.analysis.peak_memory import peak_activation_bytes
from fxsurgery.analysis.structure import Mask, structure
from fxsurgery.budget import Budget, Cost, Metric
from fxsurgery.ops.union_find import Ids
from fxsurgery.program import Program


@dataclass(frozen=True, eq=False)
class CostTerms:
    """The sum over terms t of `amounts[t]` times the share of each of `dims[t]`; a share is a mean gate."""

    amounts: tuple[float, ...]
    dims: tuple[tuple[Ids, ...], ...]

    def total(self, keep: Mask) -> int:
        """Return the exact amount that remains of the original."""
        shares = ([float(keep[ids].mean()) for ids in dims] for dims in self.dims)
        return round(sum(a * _product(s) for a, s in zip(self.amounts, shares, strict=True)))

    def expected(self, plan: GatePlan) -> "ExpectedCost":
        """Return the differentiable form, as a function of the gate vector of `plan`."""
        return ExpectedCost(self, plan)


class ExpectedCost:
    """The expected fraction of the original cost under independent gates, one per unit."""

    def __init__(self, terms: CostTerms, plan: GatePlan) -> None:
        slots = dict[bytes, int]()
        distinct = list[Ids]()
        pairs = [[_slot(ids, slots, distinct) for ids in dims] for dims in terms.dims]
        lengths = torch.tensor([len(ids) for ids in distinct])
        index = [plan.index(ids) for ids in distinct] or [torch.zeros(0, dtype=torch.long)]
        self._index = torch.cat(index)
        self._slot = torch.repeat_interleave(torch.arange(len(distinct)), lengths)
        self._lengths = lengths.float()
        whole = len(distinct)
        most = max((len(p) for p in pairs), default=0)
        self._factors = torch.tensor([p + [whole] * (most - len(p)) for p in pairs])
        amounts = torch.tensor(terms.amounts, dtype=torch.float64)
        self._weights = (amounts / amounts.sum()).float()

    def __call__(self, gates: Tensor) -> Tensor:
        """Return the expected fraction, a scalar.

        Args:
            gates: (1 + units,) the gate vector; entry 0, for all ungated units, is 1.
        """
        if self._index.device != gates.device:
            self._move(gates.device)
        sums = torch.zeros_like(self._lengths).index_add(0, self._slot, gates[self._index].float())
        shares = torch.cat([sums / self._lengths, sums.new_ones(1)])
        return (self._weights * shares[self._factors].prod(dim=1)).sum()

    def _move(self, device: torch.device) -> None:
        for name, value in list(vars(self).items()):
            setattr(self, name, value.to(device))


@cached
def mac_terms(program: Program) -> CostTerms:
    """Return the MACs of one sample, by operation."""
    facts = structure(program)
    return CostTerms(tuple(w.macs for w in facts.work), tuple(w.dims for w in facts.work))


@cached
def param_terms(program: Program) -> CostTerms:
    """Return the parameters, by tensor; buffers are not counted."""
    facts = structure(program)
    entries = [(float(p.numel()), tuple(facts.tensors.get(name, {}).values())) for name, p in _parameters(program)]
    return CostTerms(tuple(a for a, _ in entries), tuple(d for _, d in entries))


@cached
def cost(program: Program) -> Cost:
    """Return parameters and MACs of `program`, for one sample of its example inputs."""
    facts = structure(program)
    return Cost(
        params=sum(p.numel() for _, p in _parameters(program)),
        macs=round(sum(w.macs for w in facts.work)),
        uncounted=facts.uncounted,
        unknown_macs=tuple(facts.unknown_macs),
    )


def cost_after(program: Program, keep: Mask) -> Cost:
    """Return the cost when only the ids of `keep` remain; no program is built."""
    facts = structure(program)
    return Cost(
        params=param_terms(program).total(keep),
        macs=mac_terms(program).total(keep),
        uncounted=facts.uncounted,
        unknown_macs=tuple(facts.unknown_macs),
    )


TERMS: Mapping[Metric, Callable[[Program], CostTerms]] = {"macs": mac_terms, "params": param_terms}
"""Metrics that are sums over units, so they are known after a removal or under gates without building the program."""

COUNTERS: Mapping[Metric, Callable[[Program], int]] = {
    "params": lambda program: cost(program).params,
    "macs": lambda program: cost(program).macs,
    "peak_activation_bytes": peak_activation_bytes,
}
"""Metrics that are counted; the others are measured."""


def unknown_macs_notes(program: Program, budget: Budget | None = None) -> tuple[str, ...]:
    """Return a note for each operation whose MACs are unknown, and one if `budget` limits the MACs."""
    facts = structure(program)
    notes = [
        f"the MACs of {op} (at {_listed([layer_name(program, node) for node in nodes])}) are not counted: it has no "
        "counting rule"
        for op, nodes in facts.unknown_macs.items()
    ]
    if notes and budget is not None and budget.macs is not None:
        notes.append(f"the budget in MACs is checked without the MACs of {_listed(list(facts.unknown_macs))}")
    return tuple(notes)


def unknown_operation_notes(program: Program) -> tuple[str, ...]:
    """Return a note for each operation that the structure analysis has no rule for."""
    return tuple(
        f"operation {op!r} (at {_listed([layer_name(program, node) for node in nodes])}) has no rule: its inputs keep "
        "their width"
        for op, nodes in structure(program).unknown.items()
    )


def _listed(names: list[str]) -> str:
    """Return the first three names, as text."""
    distinct = list(dict.fromkeys(names))
    return ", ".join(distinct[:3]) + (f" and {len(distinct) - 3} more" if distinct[3:] else "")


def _parameters(program: Program) -> Iterator[tuple[str, nn.Parameter]]:
    yield from program.graph_module.named_parameters()


def _product(shares: list[float]) -> float:
    result = 1.0
    for share in shares:
        result *= share
    return result


def _slot(ids: Ids, known: dict[bytes, int], distinct: list[Ids]) -> int:
    key = ids.tobytes()
    if key not in known:
        known[key] = len(distinct)
        distinct.append(ids)
    return known[key]
