"""DNAL: learn which channels stay by gates that harden while they train (Guo et al., Eqs. 1-5; methods 1).

Four stages. *Weights*: the network is trained with the gates off; skipped for a trained model.
*Architecture*: all weights are frozen, only the gate logits s move, norms use batch statistics, and delta
grows from 1 to 1e4, which drives every gate to 0 or 1. *Prune*: the ranking of the gates is cut to the
budget in aligned blocks, and the batch norms are re-estimated. *Fine-tune*.

With a budget the penalty's weight is steered (`fxsurgery.searchers.dnal.budget_controller`); `penalty=` is the paper's
mode, `L0 + lambda * sum(sigmoid(delta * s))` with a fixed lambda (Eq. 4) and no budget.
"""

from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
import torch

from fxsurgery.analysis.cost import TERMS, cost, cost_after
from fxsurgery.analysis.gating import GatePlan, gate_plan
from fxsurgery.analysis.structure import Mask, structure
from fxsurgery.argument_names import assigned, entry, keyword
from fxsurgery.budget import Budget
from fxsurgery.calls import checked_construction
from fxsurgery.errors import BudgetError, StructureError
from fxsurgery.nn.gates import GateVector
from fxsurgery.option_types import Range
from fxsurgery.passes import InsertGates
from fxsurgery.program import Program
from fxsurgery.searchers.common.latency_model import LatencyLimit, hold
from fxsurgery.searchers.common.settings import Epochs, Narrowing
from fxsurgery.searchers.common.width_selection import evenly, select_widths
from fxsurgery.searchers.common.widths import Scores, Space, alignment_note, pruned, space
from fxsurgery.searchers.dnal.budget_controller import BudgetController, Limit
from fxsurgery.searchers.dnal.gate_penalty import GatePenalty
from fxsurgery.searchers.session import SearchOutcome, Session, Stage
from fxsurgery.training import Hooks, Recipe, constant, sgd

UNDECIDED = (0.1, 0.9)


@checked_construction
@dataclass(frozen=True, kw_only=True)
class Dnal(Narrowing):
    """How the search goes.

    Raises:
        SurgeryError: a setting has no meaning.
    """

    penalty: Annotated[float | None, Range(least=0, said=": it would reward open gates; it must be at least 0")] = None
    """The paper's lambda, instead of a budget."""
    random: bool = False
    """The control: rank units at random instead of by gates; nothing else changes."""
    architecture_epochs: Epochs = 5
    """In which the gates are learned, all weights frozen."""


def search(program: Program, budget: Budget | None, config: Dnal, session: Session, *, trained: bool) -> SearchOutcome:
    """Run DNAL on `program`, which is left as it is.

    Raises:
        BudgetError: the budget cannot be reached, or neither or both of budget and `penalty` are given.
        StructureError: no width of the program can change.
        TrainingError: the loss is not finite.
    """
    if (budget is None) == (config.penalty is None):
        raise BudgetError(
            f"dnal takes either {keyword('budget')} or {keyword('settings', 'penalty')} (lambda of the paper); give "
            "one of them"
        )
    found = widths(program, config)
    if budget is not None:
        found.check(budget, session.latency_limit)
    if not trained:
        program = session.trained(program, config, "weights", config.weights_epochs)
        found = widths(program, config)
    before = session.score(program, "original" if trained else "trained")
    scores, learned = _ranked(found, budget, config, session)
    keep, middle = structure(program).mask(np.empty(0, np.int64)), before

    def cut(limit: LatencyLimit | None) -> Program:
        nonlocal keep
        keep = _open(found, scores) if budget is None else select_widths(found, scores, budget, limit)
        return pruned(program, keep)

    def finish(cut: Program, time: int) -> Program:
        nonlocal middle
        again = "" if time == 1 else f", time {time}"
        session.offered.clear()
        smaller = session.recalibrated(cut)
        middle = session.score(smaller, f"pruned{again}")
        session.offer(smaller, middle)
        tuned = session.trained(
            smaller,
            config,
            f"fine-tune{again}",
            config.finetune_epochs,
            start=middle,
            reference=before,
            is_last=True,
        )
        session.offer(tuned, session.score(tuned, f"fine-tuned{again}"))
        return session.best[1]

    verified = hold(session.latency, cut, finish)
    gates = np.empty(0)
    if learned is not None:
        plan, gates = learned
        _note_gates(found, plan, gates, keep, session, budgeted=budget is not None)
    notes = (*session.notes, *alignment_note(found))
    return replace(session.outcome(program, before, middle, notes, tuple(gates.tolist())), latency=verified)


def widths(program: Program, config: Dnal) -> Space:
    """The widths that `search` chooses among."""
    return space(program, align=config.align, inner_only=config.inner_only)


def stages(config: Dnal, session: Session, *, trained: bool) -> list[Stage]:
    """What `search` will train."""
    steps = {
        "weights": 0 if trained else session.steps(config, config.weights_epochs),
        "architecture": 0 if config.random else max(session.steps(config, config.architecture_epochs), 1),
        "fine-tune": session.last_steps(config, config.finetune_epochs),
    }
    return [Stage(name, count, recalibrates=name == "fine-tune") for name, count in steps.items() if count]


def _ranked(
    found: Space, budget: Budget | None, config: Dnal, session: Session
) -> tuple[Scores, tuple[GatePlan, Scores] | None]:
    """A score for each unit; and the gates that it is made of, but for the random control."""
    size = structure(found.program).size
    if config.random:
        if budget is None:
            setting = entry("settings", "random", value=True)
            raise BudgetError(f"dnal with {setting} needs a budget, e.g. {entry('budget', 'macs', 0.5)}")
        return np.random.default_rng(session.seed).random(size), None
    plan, logits, gates = _learn_gates(found, budget, config, session)
    scores = np.zeros(size)
    scores[plan.units] = logits
    return scores, (plan, gates)


def _learn_gates(
    found: Space, budget: Budget | None, config: Dnal, session: Session
) -> tuple[GatePlan, Scores, Scores]:
    """The architecture stage: each unit's logit and gate at its end."""
    plan = gate_plan(found.program)
    gated = InsertGates()(found.program)
    if not gated.changes:
        raise StructureError(
            f"no gates can be inserted: {gated.refusals[0].reason}. {assigned('method', 'prune')} needs none"
        )
    model = gated.program.trainable_copy()
    [vector] = [m for m in model.modules() if isinstance(m, GateVector)]
    vector.mode = "soft"
    movable = torch.from_numpy(np.isin(plan.units, found.units)).to(vector.logits)
    with torch.no_grad():
        vector.logits.masked_fill_(movable == 0, 1e3)
    steps = max(session.steps(config, config.architecture_epochs), 1)
    limits = [] if budget is None else _limits(found, budget, plan, session.latency_limit)
    steering = BudgetController(vector, limits, movable)
    if limits:
        recipe = Recipe(steps=steps, optimizer=sgd(1.0 / steps, momentum=0.9), schedule=constant())
        hooks = Hooks(
            before_step=steering.before_step,
            after_step=steering.after_step,
            state=steering.state,
            restore=steering.restore,
        )
    else:
        recipe = Recipe(steps=steps, optimizer=sgd(0.1, momentum=0.9), schedule=constant())
        objective = GatePenalty(vector, float(config.penalty or 0.0), movable)
        hooks = Hooks(objective=objective, after_step=steering.after_step)
    session.fit(model, recipe, "architecture", parameters=[vector.logits], hooks=hooks)
    with torch.no_grad():
        gates = torch.sigmoid(vector.sharpness * vector.logits).double().cpu().numpy()
    return plan, vector.logits.detach().double().cpu().numpy(), gates


def _limits(found: Space, budget: Budget, plan: GatePlan, latency: LatencyLimit | None) -> list[Limit]:
    """What the gates are steered to.

    Latency is no sum over units: its limit is stood for by the share of the MACs that the network has when its
    widths, taken down in step, meet it.
    """
    program, original = found.program, cost(found.program)
    shares = {name: amount / getattr(original, name) for name, amount in budget.limits(original)}
    if latency is not None:
        even = cost_after(program, select_widths(found, evenly(found), budget, latency))
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


def _note_gates(found: Space, plan: GatePlan, gates: Scores, keep: Mask, session: Session, *, budgeted: bool) -> None:
    free = np.isin(plan.units, found.units)
    low, high = UNDECIDED
    if undecided := int(((gates > low) & (gates < high) & free).sum()):
        session.notes.append(f"{undecided} of {int(free.sum())} gates ended between {low} and {high}, undecided")
    if not budgeted:
        closed = int(((gates < 0.5) & free).sum())
        session.notes.append(f"{closed} of {int(free.sum())} gates closed; a larger penalty closes more")
        return
    flipped = int((((gates > 0.5) != keep[plan.units]) & free).sum())
    session.notes.append(f"the cut to aligned widths within the budget flipped {flipped} of {int(free.sum())} gates")
