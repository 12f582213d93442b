"""DNAL: learn which channels stay by gates that harden while they train (Guo et al., Eqs. 1-5; methods 1).

Four stages. *Weights*: the network is trained with the gates off; skipped for a trained model.
*Architecture*: all weights are frozen, only the gate logits s move, norms use batch statistics, and delta
grows from 1 to 1e4, which drives every gate to 0 or 1. *Prune*: the ranking of the gates is cut to the
budget in aligned blocks, and the batch norms are re-estimated. *Fine-tune*.

With a budget the penalty's weight is steered (`fxsurgery.searchers.steering`); `penalty=` is the paper's
mode, `L0 + lambda * sum(sigmoid(delta * s))` with a fixed lambda (Eq. 4) and no budget.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from fxsurgery.analysis.cost import CostTerms, cost, cost_after, mac_terms, param_terms
from fxsurgery.analysis.gating import GatePlan, gate_plan
from fxsurgery.analysis.structure import Mask, structure
from fxsurgery.budget import Budget
from fxsurgery.errors import BudgetError
from fxsurgery.gates import GateVector
from fxsurgery.passes import InsertGates
from fxsurgery.program import Program
from fxsurgery.searchers.steering import Limit, Steering
from fxsurgery.searchers.widths import Measure, Scores, Space, evenly, project, pruning, space
from fxsurgery.training import (
    MAX_STEPS,
    MIN_STEPS,
    Hooks,
    OptimizerFactory,
    Progress,
    Recipe,
    Score,
    Task,
    constant,
    cosine,
    evaluate,
    fit,
    recalibrate,
    sgd,
    steps_for,
)

TERMS: dict[str, Callable[[Program], CostTerms]] = {"macs": mac_terms, "params": param_terms}
UNDECIDED = (0.1, 0.9)


@dataclass(frozen=True, kw_only=True)
class Dnal:
    """How the search goes; the defaults fit a conv net with batch norm on some thousands of images.

    Epochs are turned into steps with bounds, so that four batches of data are seen often enough and a
    million of them are not run through for days: see `fxsurgery.training.steps_for`.
    """

    align: int = 8
    """Widths are multiples of this."""
    inner_only: bool = False
    """Leave residual streams at full width and prune inside the branches alone."""
    penalty: float | None = None
    """The paper's lambda, instead of a budget."""
    random: bool = False
    """The control: rank units at random instead of by gates; nothing else changes."""
    weights_epochs: float = 20
    architecture_epochs: float = 5
    finetune_epochs: float = 15
    fewest_steps: int = MIN_STEPS
    """No stage that has epochs is shorter, however little data there is."""
    most_steps: int = MAX_STEPS
    """No stage is longer."""
    learning_rate: float = 0.05
    """The peak of the weights stage and, as in the paper, of the fine-tune stage."""
    weight_decay: float = 1e-4
    optimizer: OptimizerFactory | None = None
    """Takes parameters; used for the weights and fine-tune stages instead of SGD."""

    def steps(self, task: Task, epochs: float) -> int:
        """Optimiser steps of a stage."""
        return steps_for(task, epochs, min_steps=self.fewest_steps, max_steps=self.most_steps)


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a search found."""

    program: Program
    """The smaller program, fine-tuned."""
    trained: Program
    """The program that was pruned: the one given, or that after the weights stage."""
    before: Score
    """Validation score of `trained`."""
    pruned: Score
    """Validation score right after pruning and re-estimating the batch norms."""
    after: Score
    """Validation score of `program`."""
    notes: tuple[str, ...] = ()
    gates: tuple[float, ...] = ()
    """Each gate at the end of the architecture stage."""


@dataclass(frozen=True, eq=False)
class Session:
    """What every stage of one search shares."""

    task: Task
    seed: int = 0
    progress: Progress = field(default_factory=Progress.quiet)
    device: str | None = None
    """Where to train: the GPU where there is one, unless said."""
    measure: Measure | None = None
    """For budgets of latency."""
    notes: list[str] = field(default_factory=list)

    def score(self, program: Program, what: str) -> Score:
        """The validation score of a program; reported as `what`."""
        score = evaluate(program.graph_module, self.task, device=self.device)
        self.progress.note(f"{what}: validation {self.task.metric_name} {score.metric:.4f}")
        return score

    def fit(
        self,
        model: nn.Module,
        recipe: Recipe,
        stage: str,
        parameters: list[nn.Parameter] | None = None,
        hooks: Hooks | None = None,
    ) -> None:
        """Train `model` in place."""
        fit(
            model, self.task, recipe, seed=self.seed, stage=stage, parameters=parameters, hooks=hooks,
            progress=self.progress, device=self.device,
        )  # fmt: skip


def search(program: Program, budget: Budget | None, config: Dnal, session: Session, *, trained: bool) -> Outcome:
    """Run DNAL on `program`, which is left as it is.

    Raises:
        BudgetError: the budget cannot be reached, or neither or both of budget and `penalty` are given.
        StructureError: no width of the program can change.
        TrainingError: the loss is not finite.
    """
    if (budget is None) == (config.penalty is None):
        raise BudgetError("give either a budget or Dnal(penalty=...), the paper's lambda")
    found = space(program, align=config.align, inner_only=config.inner_only)
    if budget is not None:
        found.check(budget, session.measure)
    if not trained:
        program = _trained(program, config, session, "weights")
        found = space(program, align=config.align, inner_only=config.inner_only)
    before = session.score(program, "original" if trained else "trained")
    keep, gates = _choose(found, budget, config, session)
    pruned = pruning(program, keep)(program).program
    model = pruned.trainable_copy()
    recalibrate(model, session.task, seed=session.seed, device=session.device)
    pruned = pruned.with_weights(model)
    middle = session.score(pruned, "pruned")
    tuned = _trained(pruned, config, session, "fine-tune")
    notes = (*session.notes, *_alignment_note(found))
    return Outcome(tuned, program, before, middle, session.score(tuned, "fine-tuned"), notes, tuple(gates))


def _trained(program: Program, config: Dnal, session: Session, stage: str) -> Program:
    """`program` after the weights stage or the fine-tune stage."""
    tuning = stage == "fine-tune"
    steps = config.steps(session.task, config.finetune_epochs if tuning else config.weights_epochs)
    if not steps:
        return program
    optimizer = config.optimizer or sgd(config.learning_rate, momentum=0.9, weight_decay=config.weight_decay)
    model = program.trainable_copy()
    session.fit(model, Recipe(steps=steps, optimizer=optimizer, schedule=cosine()), stage)
    return program.with_weights(model)


def _choose(found: Space, budget: Budget | None, config: Dnal, session: Session) -> tuple[Mask, list[float]]:
    size = structure(found.program).size
    if config.random:
        if budget is None:
            raise BudgetError("the random control needs a budget")
        scores = np.random.default_rng(session.seed).random(size)
        return project(found, scores, budget, session.measure), []
    plan, logits, gates = _learn_gates(found, budget, config, session)
    scores = np.zeros(size)
    scores[plan.units] = logits
    keep = project(found, scores, budget, session.measure) if budget is not None else _open(found, scores)
    _note_gates(found, plan, gates, keep, session)
    return keep, gates.tolist()


def _learn_gates(
    found: Space, budget: Budget | None, config: Dnal, session: Session
) -> tuple[GatePlan, Scores, Scores]:
    """The architecture stage: each unit's logit and gate at its end."""
    plan = gate_plan(found.program)
    gated = InsertGates()(found.program).program
    model = gated.trainable_copy()
    [vector] = [m for m in model.modules() if isinstance(m, GateVector)]
    vector.mode = "soft"
    movable = torch.from_numpy(np.isin(plan.units, found.units)).to(vector.logits)
    with torch.no_grad():
        vector.logits.masked_fill_(movable == 0, 1e3)
    steps = max(config.steps(session.task, config.architecture_epochs), 1)
    limits = [] if budget is None else _limits(found, budget, plan, session.measure)
    steering = Steering(vector, limits, movable)
    if limits:
        recipe = Recipe(steps=steps, optimizer=sgd(1.0 / steps, momentum=0.9), schedule=constant())
        hooks = Hooks(before_step=steering.before_step, after_step=steering.after_step)
    else:
        weight = float(config.penalty or 0.0)

        def penalty() -> torch.Tensor:
            gates = torch.sigmoid(vector.sharpness * vector.logits)
            return weight * (gates * movable).sum()

        recipe = Recipe(steps=steps, optimizer=sgd(0.1, momentum=0.9), schedule=constant())
        hooks = Hooks(penalty=penalty, after_step=steering.after_step)
    session.fit(model, recipe, "architecture", [vector.logits], hooks)
    with torch.no_grad():
        gates = torch.sigmoid(vector.sharpness * vector.logits).double().cpu().numpy()
    return plan, vector.logits.detach().double().cpu().numpy(), gates


def _limits(found: Space, budget: Budget, plan: GatePlan, measure: Measure | None) -> list[Limit]:
    """What the gates are steered to.

    Latency is no sum over units: its limit is stood for by the share of the MACs that the network has when its
    widths, taken down in step, meet it.
    """
    program, original = found.program, cost(found.program)
    shares = {name: amount / getattr(original, name) for name, amount in budget.limits(original)}
    if budget.latency_ms is not None:
        even = cost_after(program, project(found, evenly(found), budget, measure))
        shares["macs"] = min(shares.get("macs", 1.0), even.macs / original.macs)
    return [Limit(TERMS[name](program).expected(plan), share) for name, share in shares.items()]


def _open(found: Space, scores: Scores) -> Mask:
    """Keep the open gates of each group, up to the next width that it may have."""
    removed = list[int]()
    for choice in found.choices:
        ranked = choice.group.units[np.argsort(-scores[choice.group.units], kind="stable")]
        wanted = int((scores[ranked] > 0).sum())
        count = min((c for c in choice.counts if c >= wanted), default=choice.counts[0])
        removed += ranked[count:].tolist()
    return structure(found.program).mask(np.asarray(removed, np.int64))


def _note_gates(found: Space, plan: GatePlan, gates: Scores, keep: Mask, session: Session) -> None:
    free = np.isin(plan.units, found.units)
    low, high = UNDECIDED
    if undecided := int(((gates > low) & (gates < high) & free).sum()):
        session.notes.append(f"{undecided} of {int(free.sum())} gates ended between {low} and {high}, undecided")
    flipped = int((((gates > 0.5) != keep[plan.units]) & free).sum())
    session.notes.append(f"the cut to aligned widths within the budget flipped {flipped} of {int(free.sum())} gates")


def _alignment_note(found: Space) -> tuple[str, ...]:
    if not found.unaligned:
        return ()
    shown = ", ".join(found.unaligned[:3])
    return (f"widths of {len(found.unaligned)} groups cannot be kept multiples of {found.align}: {shown}",)
