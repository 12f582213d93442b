"""ECToNAS: evolve a network by growing and shrinking it, within a fixed spend of epochs (Schiessler et al. 2024).

    warm up the start
    until the epochs are spent:
        every parent makes one child for each operation and place, and one copy of itself
        competition 1: within each operation, in brackets; one is left of each
        competition 2: all of these, in brackets; those that are left are the next parents

`brackets` draws the matches, `fitness` ranks the networks, `searchers.common.moves` defines the operations. A child
starts with its parent's weights; before its first match it trains for a while to recover from the operation. The score
is the validation metric, averaged over the last epochs of a match.

The end. Greedily, the network with the best score of all that ever trained. Otherwise that of the greatest fitness
against the start, among the last parents and those who are in competition 2 when the epochs run out; and in random
mode one of these at random. Each round is paid for before it begins, so that the spend is never exceeded: a round
that cannot be paid for is not started.

Where the published code differs from the paper, this follows the paper: scores are of validation data, both
kinds of pool are tried, and the spend is not exceeded.
"""

import math
from collections import Counter
from dataclasses import replace

from fxsurgery.analysis.cost import cost
from fxsurgery.argument_names import named
from fxsurgery.budget import Budget, Metric, Spend
from fxsurgery.errors import BudgetError, TrainingError
from fxsurgery.program import Program
from fxsurgery.runs.run_directory import RunDir
from fxsurgery.searchers.common.moves import Amounts
from fxsurgery.searchers.common.pareto import Front
from fxsurgery.searchers.common.spend_tracker import SpendTracker
from fxsurgery.searchers.ectonas.evolution_loop import EvolutionLoop
from fxsurgery.searchers.ectonas.fitness import Fitness
from fxsurgery.searchers.ectonas.latency_budget import verified_choice, verified_end
from fxsurgery.searchers.ectonas.outcome import (
    fine_tuned,
    member_of,
    move_notes,
    record_history,
    record_of,
    unmet_budget_message,
)
from fxsurgery.searchers.ectonas.population import Population
from fxsurgery.searchers.ectonas.settings import Ectonas, EvolutionSettings
from fxsurgery.searchers.ectonas.training import SearchState
from fxsurgery.searchers.session import SearchOutcome, Session, Stage

__all__ = ["DEFAULT_SPEND", "Ectonas", "EvolutionSettings", "plan_notes", "search", "stages"]

DEFAULT_SPEND = Spend(epochs=1000)
"""The spend of the paper."""


def search(
    program: Program, budget: Budget | None, config: Ectonas, session: Session, *, trained: bool
) -> SearchOutcome:
    """Evolve `program`, which is not changed.

    Raises:
        BudgetError: no network of the search meets the budget, or the spend does not cover warm-up and fine-tuning.
        StructureError: no operation can be applied to the program.
        TrainingError: the warm-up diverges, or the metric is never a number.
    """
    search_state = _search_state(program, budget, config, session, trained=trained)
    start = search_state.population.start(program)
    loop = EvolutionLoop(search_state)
    with session.workshop, session.trainer.progress.stage("search", *search_state.length()):
        loop.begin(trained=trained)
        begun = search_state.latest[start].program
        loop.run()
    chosen = loop.choice()
    if math.isnan(chosen.figures.score):
        raise TrainingError(
            f"the validation {session.task.metric_name} is not a number (NaN) for any network; see what the metric "
            f"gives on {named('val_data')}"
        )
    if search_state.fitness.excess(chosen.figures):
        raise BudgetError(unmet_budget_message(loop, chosen))
    chosen, verified = verified_choice(loop, chosen)
    record_history(session, chosen)
    before = session.scored(begun, "score of the start")
    session.offer(chosen.program, session.score(chosen.program, "winner"))
    tuned = fine_tuned(search_state, chosen)
    verified = verified_end(session, verified)
    short = loop.short_spend_note()
    told = (*session.notes, *loop.notes, *((short,) if short else ()), *move_notes(search_state))
    outcome = session.outcome(begun, before, None, told)
    record = record_of(search_state, chosen, tuned)
    return replace(
        outcome,
        latency=verified,
        search=record,
        pareto=tuple(member_of(state, session, record) for state in search_state.front.members),
    )


def stages(config: Ectonas, session: Session, *, trained: bool) -> list[Stage]:
    """Return the stages that `search` will train."""
    tracker = _tracker(config, session)
    warm_up = 0 if trained else session.steps(config, config.weights_epochs)
    rest = 0 if tracker.allowed is None else max(int(tracker.left) - warm_up, 0)
    plan = {"warm-up": warm_up, "search": rest, "fine-tune": tracker.reserved}
    matches = max(1, rest // max(1, session.steps(config, config.match_epochs)))
    return [
        Stage(name, steps, round(steps / session.epoch), trainings=matches if name == "search" else 1)
        for name, steps in plan.items()
        if steps
    ]


def plan_notes(program: Program, config: Ectonas, session: Session, *, trained: bool) -> tuple[str, ...]:
    """Return the notes for a plan: how far the spend goes.

    Raises:
        BudgetError: the spend does not cover warm-up and fine-tuning.
    """
    apart = replace(session, latency=None, trainer=replace(session.trainer, run=RunDir()))
    search_state = _search_state(program, None, replace(config, front="params"), apart, trained=trained)
    start = search_state.population.start(program)
    children = Counter(child.operation for child in search_state.population.children([start], 1))
    price, allowed = search_state.generation_epochs(children), search_state.tracker.spend.epochs
    of = "" if allowed is None else f" of the {allowed:g} that may be spent"
    told = f"the first generation, of {children.total()} networks, takes about {price:.0f} epochs{of}"
    return (f"{told}; later ones, of {config.parents} parents, take more",)


def _tracker(config: Ectonas, session: Session) -> SpendTracker:
    reserved = session.last_steps(config, config.finetune_epochs)
    return SpendTracker(session.spend or DEFAULT_SPEND, session.epoch, session.trainer.run, reserved)


def _search_state(
    program: Program, budget: Budget | None, config: Ectonas, session: Session, *, trained: bool
) -> SearchState:
    higher, tracker = bool(session.task.higher_is_better), _tracker(config, session)
    warm_up = 0 if trained else session.steps(config, config.weights_epochs)
    if warm_up > tracker.left:
        fixed = " and ".join(
            f"{what} of {epochs:g} epochs"
            for what, epochs in (
                ("a warm-up", 0 if trained else config.weights_epochs),
                ("a fine-tuning", config.finetune_epochs),
            )
            if epochs
        )
        raise BudgetError(f"{fixed} is more than may be spent: spend more, or set weights_epochs or finetune_epochs")
    limits: dict[Metric, float] = {} if budget is None else dict(budget.limits(cost(program)))
    measured: set[Metric] = {config.front} - {"params", "macs"}
    if session.latency is not None:
        measured.add("latency_ms")
        if session.latency.limit_ms is not None:
            limits["latency_ms"] = session.latency.limit_ms
    amounts = Amounts(channels=config.channels, units=config.units, share=config.change, places=config.places)
    return SearchState(
        config,
        session,
        Population(
            config.operations,
            amounts,
            session.seed,
            config.most_params,
            config.most_growth,
            session.constraints,
            session.costs,
            sorted(measured),
            session.trainer.run,
        ),
        Fitness(greediness=config.greediness, higher_is_better=higher, limits=limits),
        Front(config.front, higher_is_better=higher),
        tracker,
    )
