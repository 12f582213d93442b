"""Steer the gates of DNAL's architecture stage to a budget.

Stage 2 minimizes `L0 + lambda * E[cost]` over the gate logits s alone, while delta grows from 1 to 1e4. The
penalty is the expected cost under the gates, bilinear in neighboring soft widths. What lambda does depends
on the loss, the number of steps and the network, so it is not a setting: here

    ds = delta * g * (1 - g) * [ (dL0/dg) / n_L  +  kappa * (dE/dg) / n_E ],      g = sigmoid(delta * s)

with n the running mean magnitude of each gradient, so kappa is lambda in units of the loss, and a
proportional-integral controller moves kappa until the expected cost follows a path from where it starts
(1/4 of the MACs, with every gate at 1/2) to the budget. The path ends where delta is near 60; from about
100 on the gates are saturated and kappa has no grip. Kappa may be negative: a network of half-open gates
is *below* most budgets and must be paid to grow.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fxsurgery.analysis.cost import ExpectedCost
from fxsurgery.nn.gates import GateVector
from fxsurgery.training import StepInfo

DELTA_END = 1e4
PATH_END = 0.45
"""Fraction of the stage after which the expected cost must be on target."""
PROPORTIONAL, INTEGRAL, LARGEST = 20.0, 1.0, 30.0


@dataclass(frozen=True)
class Limit:
    """One limit of a budget: the expected cost, and its maximum as a fraction of the original."""

    expected: ExpectedCost
    share: float


@dataclass
class BudgetController:
    """Hooks for the training loop; holds the controller's state."""

    vector: GateVector
    limits: Sequence[Limit]
    kappa: float = 0.0
    trace: list[tuple[float, float, float]] = field(default_factory=list)
    """(delta, expected share over its limit, kappa) at each step."""
    _integral: float = 0.0
    _loss_scale: float = 0.0
    _start: float | None = None

    def before_step(self, info: StepInfo) -> None:
        """Turn the loss's gradient into the steered one."""
        logits = self.vector.logits
        if logits.grad is None:
            return
        gates = torch.sigmoid(self.vector.sharpness * logits.detach())
        slope = self.vector.sharpness * gates * (1 - gates)
        loss_gradient = logits.grad / slope.clamp_min(1e-6)
        alive = slope > 1e-3
        if alive.any():
            scale = float(loss_gradient[alive].abs().mean())
            self._loss_scale = scale if not self._loss_scale else 0.9 * self._loss_scale + 0.1 * scale
        pull = self._pull(gates, info.step / max(info.steps, 1))
        steered = slope * (loss_gradient / max(self._loss_scale, 1e-12) + self.kappa * pull)
        logits.grad = torch.where(alive, steered, torch.zeros_like(steered))

    def after_step(self, info: StepInfo) -> None:
        """Sharpen: delta grows exponentially, 1 to 1e4 over the stage (Algorithm 1)."""
        with torch.no_grad():
            self.vector.sharpness.fill_(DELTA_END ** ((info.step + 1) / max(info.steps, 1)))

    def state(self) -> dict[str, Any]:
        """Return the controller state as plain data, for a snapshot."""
        return {
            "kappa": self.kappa,
            "integral": self._integral,
            "loss_scale": self._loss_scale,
            "start": self._start,
            "trace": list(self.trace),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore the state of a snapshot."""
        self.kappa, self._integral = state["kappa"], state["integral"]
        self._loss_scale, self._start = state["loss_scale"], state["start"]
        self.trace = [tuple(point) for point in state["trace"]]

    def _pull(self, gates: Tensor, progress: float) -> Tensor:
        """Return the normalized gradient of the limit that is closest to being exceeded, and update kappa."""
        leaf = torch.cat([gates.new_ones(1), gates]).requires_grad_()
        with torch.enable_grad():
            shares = [(limit.expected(leaf), limit.share) for limit in self.limits]
            share, target = max(shares, key=lambda pair: float(pair[0].detach()) / pair[1])
            [gradient] = torch.autograd.grad(share, leaf)
        ratio = float(share.detach()) / target
        self._start = ratio if self._start is None else self._start
        path = min(1.0, progress / PATH_END)
        error = ratio - (self._start + (1.0 - self._start) * path)
        self._integral = max(-LARGEST, min(LARGEST, self._integral + INTEGRAL * error))
        self.kappa = max(-LARGEST, min(LARGEST, self._integral + PROPORTIONAL * error))
        self.trace.append((float(self.vector.sharpness), ratio, self.kappa))
        pull = gradient[1:]
        return pull / pull.abs().mean().clamp_min(1e-12)
