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
from fxsurgery.analysis.gating import GatePlan
from fxsurgery.analysis.structure import Mask, structure
from fxsurgery.argument_names import assigned, entry, keyword
from fxsurgery.budget import Budget, Metric
from fxsurgery.calls import checked_construction
from fxsurgery.errors import BudgetError, StructureError
from fxsurgery.nn.gates import GateVector
from fxsurgery.option_types import Range
from fxsurgery.passes import InsertGates
from fxsurgery.program import Program
from fxsurgery.searchers.common.latency_model import LatencyLimit, hold
from fxsurgery.searchers.common.reachable import require_reachable
from fxsurgery.searchers.common.settings import Epochs, Narrowing
from fxsurgery.searchers.common.width_constraints import FREE, WidthConstraints
from fxsurgery.searchers.common.width_selection import evenly, select_widths
from fxsurgery.searchers.common.widths import Scores, Space, pruned, space
from fxsurgery.searchers.dnal.budget_controller import BudgetController, Limit
from fxsurgery.searchers.dnal.gate_penalty import GatePenalty
from fxsurgery.searchers.session import SearchOutcome, Session, Stage
from fxsurgery.training import Hooks, Recipe, constant, sgd

UNDECIDED = (0.1, 0.9)


@checked_construction
@dataclass(frozen=True, kw_only=True)
class Dnal(Narrowing):
    """Settings of the `dnal` method.

    Raises:
        SurgeryError: a setting has an invalid value.
    """

    penalty: Annotated[float | None, Range(least=0, said=": it would reward open gates; it must be at least 0")] = None
    """Lambda of the paper, in place of a budget."""
    random: bool = False
    """Rank units at random instead of by gates, as a control; nothing else changes."""
    architecture_epochs: Epochs = 5
    """Epochs in which the gates are learned, with all weights frozen. Their learning rate does not depend on
    `learning_rate`: the gradients are normalized."""


def require_goal(budget: Budget | None, config: Dnal, *, has_ratios: bool = False) -> None:
    """Refuse settings without a goal, or with two; ratios of layers are a goal of their own.

    Raises:
        BudgetError: neither or both of budget and `penalty` are given.
    """
    if (budget is None) == (config.penalty is None) and not has_ratios:
        raise BudgetError(
            f"dnal takes either {keyword('budget')} or {keyword('settings', 'penalty')} (lambda of the paper); give "
            "one of them"
        )


def search(program: Program, budget: Budget | None, config: Dnal, session: Session, *, trained: bool) -> SearchOutcome:
    """Run DNAL on `program`, which is left as it is.

    Raises:
        BudgetError: the budget cannot be reached, or neither or both of budget and `penalty` are given.
        StructureError: no width of the program can change.
        TrainingError: the loss is not finite.
    """
    found = _checked(program, budget, config, session)
    if not trained:
        program = session.trained(program, config, "weights", config.weights_epochs)
        found = widths(program, config, session.constraints)
    before = session.score(program, "original" if trained else "trained")
    scores, learned = _ranked(found, budget, config, session)
    keep, middle = structure(program).mask(np.empty(0, np.int64)), before

    def cut(limit: LatencyLimit | None) -> Program:
        nonlocal keep
        is_penalized = config.penalty is not None
        keep = _open(found, scores) if is_penalized else select_widths(found, scores, budget, limit)
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
        _note_gates(plan, gates, keep, session, is_penalized=config.penalty is not None)
    notes = (*session.notes, *found.notes())
    return replace(session.outcome(program, before, middle, notes, tuple(gates.tolist())), latency=verified)


def _checked(program: Program, budget: Budget | None, config: Dnal, session: Session) -> Space:
    """Return the widths to choose among, if they can meet the budget."""
    require_goal(budget, config, has_ratios=session.constraints.only_targets)
    found = widths(program, config, session.constraints)
    found.require_targets()
    if budget is not None:
        require_reachable(found, budget, session.latency_limit)
    return found


def widths(program: Program, config: Dnal, constraints: WidthConstraints = FREE) -> Space:
    """Return the widths that `search` chooses among."""
    return space(program, align=config.align, inner_only=config.inner_only, constraints=constraints)


def stages(config: Dnal, session: Session, *, trained: bool) -> list[Stage]:
    """Return the stages that `search` will train."""
    steps = {
        "weights": 0 if trained else session.steps(config, config.weights_epochs),
        "architecture": 0 if config.random else max(session.steps(config, config.architecture_epochs), 1),
        "fine-tune": session.last_steps(config, config.finetune_epochs),
    }
    return [Stage(name, count, recalibrates=name == "fine-tune") for name, count in steps.items() if count]


def _ranked(
    found: Space, budget: Budget | None, config: Dnal, session: Session
) -> tuple[Scores, tuple[GatePlan, Scores] | None]:
    """Return a score for each unit, and the gates behind it; `None` for the random control."""
    size = structure(found.program).size
    if config.random:
        if config.penalty is not None:
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
    """Run the architecture stage; return each unit's logit and gate at its end."""
    movable = {choice.group.name for choice in found.choices if choice.counts[-1] < len(choice.group.units)}
    insertion = InsertGates(keep=tuple(g.name for g in structure(found.program).groups if g.name not in movable))
    plan, gated = insertion.plan(found.program), insertion(found.program)
    if not gated.changes:
        raise StructureError(
            f"no gates can be inserted: {gated.refusals[0].reason}. {assigned('method', 'prune')} needs none"
        )
    model = gated.program.trainable_copy()
    [vector] = [m for m in model.modules() if isinstance(m, GateVector)]
    vector.mode = "soft"
    steps = max(session.steps(config, config.architecture_epochs), 1)
    limits = [] if config.penalty is not None else _limits(found, budget, plan, session.latency_limit)
    steering = BudgetController(vector, limits)
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
        objective = GatePenalty(vector, float(config.penalty or 0.0))
        hooks = Hooks(objective=objective, after_step=steering.after_step)
    session.fit(model, recipe, "architecture", parameters=[vector.logits], hooks=hooks)
    with torch.no_grad():
        gates = torch.sigmoid(vector.sharpness * vector.logits).double().cpu().numpy()
    return plan, vector.logits.detach().double().cpu().numpy(), gates


def _limits(found: Space, budget: Budget | None, plan: GatePlan, latency: LatencyLimit | None) -> list[Limit]:
    """Return the shares of the cost that the gates are steered to.

    Latency is no sum over units: its limit is represented by the share of the MACs that the network has when its
    widths, reduced in step, meet it. Without a budget, it is the share at the widths that the user fixed.
    """
    program, original = found.program, cost(found.program)
    limits = () if budget is None else budget.limits(original)
    shares: dict[Metric, float] = {name: amount / getattr(original, name) for name, amount in limits}
    if latency is not None or budget is None:
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


def _note_gates(plan: GatePlan, gates: Scores, keep: Mask, session: Session, *, is_penalized: bool) -> None:
    low, high = UNDECIDED
    if undecided := int(((gates > low) & (gates < high)).sum()):
        session.notes.append(f"{undecided} of {len(gates)} gates ended between {low} and {high}, undecided")
    if is_penalized:
        closed = int((gates < 0.5).sum())
        session.notes.append(f"{closed} of {len(gates)} gates closed; a larger penalty closes more")
        return
    flipped = int(((gates > 0.5) != keep[plan.units]).sum())
    session.notes.append(f"the cut to aligned widths within the budget flipped {flipped} of {len(gates)} gates")
