"""The baseline: rank the channels of a trained network by a simple importance, cut to the budget, fine-tune.

It shares everything with the learned methods, so that they can be compared: the passes, the cut to aligned widths
within the budget (`fxsurgery.searchers.common.widths`), the estimate of the batch norms, the training loop and the
choice on validation data. The importances are those of `fxsurgery.analysis.importance`.

In one shot, or in n rounds: with c the cost of the network and b what it may cost, round k cuts to c (b / c)^(k / n),
so that each takes the same share of what is left. Between the rounds the network is trained; then its structure is
analyzed and its channels are ranked anew.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Literal, TypeAlias, get_args

import numpy as np
import torch

from fxsurgery.analysis.cost import cost
from fxsurgery.analysis.importance import bn_gamma, magnitude, over_their_mean, taylor
from fxsurgery.analysis.structure import structure
from fxsurgery.argument_names import assigned, entry, named
from fxsurgery.budget import Budget
from fxsurgery.calls import checked_construction
from fxsurgery.errors import BudgetError, StructureError, TrainingError
from fxsurgery.option_types import Count, Range
from fxsurgery.program import Program
from fxsurgery.searchers.common.latency_model import LatencyLimit, hold
from fxsurgery.searchers.common.reachable import require_reachable
from fxsurgery.searchers.common.settings import Narrowing
from fxsurgery.searchers.common.width_constraints import FREE, WidthConstraints
from fxsurgery.searchers.common.width_selection import evenly, select_widths
from fxsurgery.searchers.common.widths import Restriction, Scores, Space, pruned, space
from fxsurgery.searchers.session import SearchOutcome, Session, Stage
from fxsurgery.training import Hooks, Recipe, StepInfo, constant, sgd

Importance: TypeAlias = Literal["magnitude", "bn-gamma", "taylor", "random"]
IMPORTANCES: tuple[str, ...] = get_args(Importance)
SUMS = "fxsurgery_taylor"
"""The buffer in which a copy of the model adds up each unit's Taylor importance, so that snapshots have it."""


@checked_construction
@dataclass(frozen=True, kw_only=True)
class Prune(Narrowing):
    """Settings of the `prune` method.

    Raises:
        SurgeryError: a setting has an invalid value.
    """

    importance: Importance = "magnitude"
    """Importance that ranks the units: `magnitude`, `bn-gamma`, `taylor` or `random`."""
    rounds: Annotated[int, Range(least=1, most=1000)] = 1
    """Number of rounds in which the budget is approached; 1 is one-shot."""
    between: Annotated[
        float, Range(least=0, most=1, said=" is a share of the fine-tuning epochs: it must be from 0 to 1")
    ] = 0.5
    """Fraction of `finetune_epochs` spent between the rounds, evenly; the rest follows the last round."""
    scope: Literal["global", "local"] = "global"
    """Rank the units of all groups against each other, or take the same fraction of each group."""
    normalize: bool = True
    """With `scope="global"`, divide the importance by its mean in the group: see `fxsurgery.analysis.importance`."""
    order: Annotated[float, Range(above=0)] = 1.0
    """Exponent of |w| in the magnitude importance."""
    taylor_batches: Count = 50
    """Number of training batches whose gradients make up the Taylor importance."""


def search(program: Program, budget: Budget | None, config: Prune, session: Session, *, trained: bool) -> SearchOutcome:
    """Prune `program`, which is left as it is.

    Raises:
        BudgetError: there is no budget, or it cannot be reached.
        StructureError: no width of the program can change, or it has no batch norm to rank by.
        TrainingError: the loss is not finite.
    """
    if budget is None and not session.constraints.targets:
        raise BudgetError(f"{assigned('method', 'prune')} needs a budget, e.g. {entry('budget', 'macs', 0.5)}")
    found = widths(program, config, session.constraints)
    found.require_targets()
    if budget is not None:
        require_reachable(found, budget, session.latency_limit)
    if not trained:
        program = session.trained(program, config, "weights", config.weights_epochs)
    before = middle = session.score(program, "original" if trained else "trained")
    current, notes = program, (*found.notes(), *_left_out(found, config))
    *approach, last = _approach(program, budget, config, session)
    for number, goal in enumerate(approach, 1):
        smaller = session.recalibrated(_cutter(current, goal, config, session, number)(goal.latency))
        middle = session.score(smaller, _named("pruned", number, config))
        current = session.trained(
            smaller, config, _named("fine-tune", number, config), _epochs(number, config), start=middle,
            reference=before,
        )  # fmt: skip
        session.score(current, _named("fine-tuned", number, config))

    def finish(cut: Program, time: int) -> Program:
        nonlocal middle
        again = "" if time == 1 else f", time {time}"
        session.offered.clear()
        smaller = session.recalibrated(cut)
        middle = session.score(smaller, _named("pruned", config.rounds, config) + again)
        epochs = _epochs(config.rounds, config)
        stage = _named("fine-tune", config.rounds, config) + again
        tuned = session.trained(smaller, config, stage, epochs, start=middle, reference=before, is_last=True)
        after = session.score(tuned, _named("fine-tuned", config.rounds, config) + again)
        session.offer(smaller, middle)
        session.offer(tuned, after)
        return session.best[1]

    verified = hold(session.latency, _cutter(current, last, config, session, config.rounds), finish)
    return replace(session.outcome(program, before, middle, (*session.notes, *notes)), latency=verified)


def widths(program: Program, config: Prune, constraints: WidthConstraints = FREE) -> Space:
    """Return the widths that `search` chooses among: all that can change; for BN-gamma, those that a batch norm scales.

    Raises:
        StructureError: there is none.
    """
    found = _all_widths(program, config, constraints)
    if config.importance != "bn-gamma":
        return found
    gammas = bn_gamma(program)
    names = ", ".join(c.group.name for c in found.choices[:3])
    scaled = Restriction(lambda g: bool(np.isfinite(gammas[g.units]).all()), "no batch norm scales its channels")
    if not (restricted := found.restricted(scaled)).choices:
        setting = entry("settings", "importance", "magnitude")
        raise StructureError(f"no batch norm scales the channels of {names}; pass {setting} or 'taylor'")
    return restricted


def _all_widths(program: Program, config: Prune, constraints: WidthConstraints) -> Space:
    """Return the widths that can change at all."""
    return space(program, align=config.align, inner_only=config.inner_only, exact=False, constraints=constraints)


def stages(config: Prune, session: Session, *, trained: bool) -> list[Stage]:
    """Return the stages that `search` will train."""
    plan = [("weights", 0 if trained else session.steps(config, config.weights_epochs))]
    for number in range(1, config.rounds + 1):
        if config.importance == "taylor":
            plan.append((_named("importance", number, config), config.taylor_batches))
        steps = session.last_steps if number == config.rounds else session.steps
        plan.append((_named("fine-tune", number, config), steps(config, _epochs(number, config))))
    return [Stage(name, steps, recalibrates=name.startswith("fine-tune")) for name, steps in plan if steps]


def needs_data(config: Prune) -> str | None:
    """Return why these settings need the user's data; `None` if they do not."""
    if config.importance != "taylor":
        return None
    return (
        "Taylor importance is made of the gradients of your loss, and a model that learns from its own outputs has "
        f"none at first: give {named('train_data')} and {named('val_data')}, or pass "
        f"{entry('settings', 'importance', 'magnitude')}"
    )


def _named(what: str, number: int, config: Prune) -> str:
    return what if config.rounds == 1 else f"{what}, round {number} of {config.rounds}"


def _epochs(number: int, config: Prune) -> float:
    """Return the epochs of fine-tuning after a round."""
    if config.rounds == 1:
        return config.finetune_epochs
    share = 1 - config.between if number == config.rounds else config.between / (config.rounds - 1)
    return share * config.finetune_epochs


@dataclass(frozen=True, eq=False)
class _Goal:
    """Absolute limits of one round."""

    budget: Budget | None
    latency: LatencyLimit | None
    constraints: WidthConstraints


def _approach(program: Program, budget: Budget | None, config: Prune, session: Session) -> Iterator[_Goal]:
    """Yield the limits of each round."""
    original, limit = cost(program), session.latency_limit
    for number in range(1, config.rounds + 1):
        share = number / config.rounds
        constraints = session.constraints if number == 1 else session.constraints.reached()
        if budget is None:
            yield _Goal(None, None, constraints)
            continue
        counted = {
            name: math.floor(_between(getattr(original, name), amount, share))
            for name, amount in budget.limits(original)
        }
        latency = limit
        if limit is not None and session.latency is not None:
            latency = replace(limit, limit_ms=_between(session.latency.original_ms, limit.limit_ms, share))
        yield _Goal(Budget(**counted, latency_ms=budget.latency_ms), latency, constraints)


def _between(whole: float, wanted: float, share: float) -> float:
    """Return the point at a fraction of the way between two amounts, on a geometric scale."""
    return wanted if share == 1 or wanted >= whole else whole * (wanted / whole) ** share


def _cutter(
    program: Program, goal: _Goal, config: Prune, session: Session, number: int
) -> Callable[[LatencyLimit | None], Program]:
    """Return the function that cuts the program to a goal and a latency; its units are ranked once."""
    ranks = list[Scores]()

    def cut(latency: LatencyLimit | None) -> Program:
        try:
            ranks[:] = ranks or [_scores(program, config, session, number)]
            return _cut(program, replace(goal, latency=latency), config, ranks[0])
        except (StructureError, BudgetError) as error:
            if number == 1:
                raise
            raise BudgetError(
                f"what round {number - 1} left cannot be cut as far: {error}. Pass {entry('settings', 'rounds', 1)}"
            ) from error

    return cut


def _cut(program: Program, goal: _Goal, config: Prune, scores: Scores) -> Program:
    """Return the program pruned to a goal."""
    if not goal.constraints.targets and _within(program, goal):
        return program
    found = widths(program, config, goal.constraints)
    _require_finite(found, scores, config)
    if config.scope == "local":
        scores = evenly(found, scores)
    elif config.normalize:
        scores = over_their_mean(scores, [c.group for c in found.choices])
    return pruned(program, select_widths(found, scores, goal.budget, goal.latency))


def _within(program: Program, goal: _Goal) -> bool:
    now = cost(program)
    holds = goal.budget is None or goal.budget.holds(now, now)
    return holds and (goal.latency is None or goal.latency.holds(program))


def _scores(program: Program, config: Prune, session: Session, number: int) -> Scores:
    if config.importance == "magnitude":
        return magnitude(program, config.order)
    if config.importance == "bn-gamma":
        return bn_gamma(program)
    if config.importance == "taylor":
        return _taylor(program, config, session, number)
    return np.random.default_rng((session.seed, number)).random(structure(program).size)


def _require_finite(found: Space, scores: Scores, config: Prune) -> None:
    """Refuse a ranking by importances that are not finite."""
    if wrong := [c.group.name for c in found.choices if not np.isfinite(scores[c.group.units]).all()]:
        raise TrainingError(
            f"the {config.importance} importance of the channels of {', '.join(wrong[:3])} is not finite: do gradients "
            "or powers of the weights overflow? Take another importance, or a lower order"
        )


def _taylor(program: Program, config: Prune, session: Session, number: int) -> Scores:
    """Return the importance, summed over batches by a copy that trains at a learning rate of 0."""
    model = program.trainable_copy()
    model.register_buffer(SUMS, torch.zeros(structure(program).size, dtype=torch.float64))

    def add(_: StepInfo) -> None:
        sums = model.get_buffer(SUMS)
        sums += torch.from_numpy(taylor(program, model)).to(sums.device)

    recipe = Recipe(steps=config.taylor_batches, optimizer=sgd(0.0, momentum=0.0), schedule=constant(), validations=0)
    weights = [p for p in model.parameters() if p.is_floating_point()]
    name = _named("importance", number, config)
    session.fit(model, recipe, name, parameters=weights, hooks=Hooks(before_step=add))
    return model.get_buffer(SUMS).cpu().numpy() / config.taylor_batches


def _left_out(found: Space, config: Prune) -> tuple[str, ...]:
    """Return notes on the widths that BN-gamma cannot rank."""
    if config.importance != "bn-gamma":
        return ()
    everything = _all_widths(found.program, config, found.constraints).choices
    known = {c.group.name for c in found.choices}
    left = [c.group.name for c in everything if c.group.name not in known]
    shown = ", ".join(left[:3])
    return (f"{len(left)} widths stay, since no batch norm scales them: {shown}",) if left else ()
