"""ECToNAS: evolve a network by growing and shrinking it, within a fixed spend of epochs (Schiessler et al. 2024).

    warm up the start
    until the epochs are spent:
        every parent makes one child for each operation and place, and one that is itself
        competition 1: within each operation, in brackets; one is left of each
        competition 2: all of these, in brackets; those that are left are the next parents

Who trains against whom says `brackets`, who wins `fitness`, what an operation is `searchers.operations`. A child goes
on with its parent's weights; before its first match it is given some time to recover from what was done to it. The
score is the validation metric, averaged over the last epochs of a match.

The end. Greedily, the network with the best score of all that ever trained. Otherwise that of the greatest fitness
against the start, among the last parents and those who are in competition 2 when the epochs run out; and in random
mode one of these at random. Each round is paid for before it begins, so that the spend is never overshot: what cannot
be paid for is not begun.

Where the published code does otherwise than the paper, this follows the paper: scores are of validation data, both
kinds of pool are tried, and the spend is not overshot.
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
from fxsurgery.searchers.ectonas.outcome import fine_tuned, member_of, out_of_reach, record_of, relate, told_of
from fxsurgery.searchers.ectonas.population import Population
from fxsurgery.searchers.ectonas.settings import Ectonas, EvolutionSettings
from fxsurgery.searchers.ectonas.training import SearchState
from fxsurgery.searchers.session import SearchOutcome, Session, Stage

__all__ = ["DEFAULT_SPEND", "Ectonas", "EvolutionSettings", "plan_notes", "search", "stages"]

DEFAULT_SPEND = Spend(epochs=1000)
"""The paper's."""


def search(
    program: Program, budget: Budget | None, config: Ectonas, session: Session, *, trained: bool
) -> SearchOutcome:
    """Evolve `program`, which is left as it is.

    Raises:
        BudgetError: no network of the search keeps the budget, or the spend does not pay for warm-up and fine-tuning.
        StructureError: no operation can be done to the program.
        TrainingError: the warm-up diverges, or the metric is never a number.
    """
    school = _school(program, budget, config, session, trained=trained)
    start = school.population.start(program)
    evolving = EvolutionLoop(school)
    with session.workshop, session.trainer.progress.stage("search", *school.length()):
        evolving.begin(trained=trained)
        begun = school.latest[start].program
        evolving.run()
    chosen = evolving.choice()
    if math.isnan(chosen.figures.score):
        raise TrainingError(
            f"the validation {session.task.metric_name} is not a number (NaN) for any network; see what the metric "
            f"gives on {named('val_data')}"
        )
    if school.fitness.excess(chosen.figures):
        raise BudgetError(out_of_reach(evolving, chosen))
    chosen, verified = verified_choice(evolving, chosen)
    relate(session, chosen)
    before = session.scored(begun, "score of the start")
    session.offer(chosen.program, session.score(chosen.program, "winner"))
    tuned = fine_tuned(school, chosen)
    verified = verified_end(session, verified)
    short = evolving.first_is_short()
    told = (*session.notes, *evolving.notes, *((short,) if short else ()), *told_of(school))
    outcome = session.outcome(begun, before, None, told)
    return replace(
        outcome,
        latency=verified,
        search=record_of(school, chosen, tuned),
        pareto=tuple(member_of(state, session) for state in school.front.members),
    )


def stages(config: Ectonas, session: Session, *, trained: bool) -> list[Stage]:
    """What `search` will train."""
    purse = _purse(config, session)
    warm_up = 0 if trained else session.steps(config, config.weights_epochs)
    rest = 0 if purse.allowed is None else max(int(purse.left) - warm_up, 0)
    plan = {"warm-up": warm_up, "search": rest, "fine-tune": purse.reserved}
    matches = max(1, rest // max(1, session.steps(config, config.match_epochs)))
    return [
        Stage(name, steps, round(steps / session.epoch), trainings=matches if name == "search" else 1)
        for name, steps in plan.items()
        if steps
    ]


def plan_notes(program: Program, config: Ectonas, session: Session, *, trained: bool) -> tuple[str, ...]:
    """What to know before a search: how far what may be spent goes.

    Raises:
        BudgetError: it does not pay for the warm-up and the fine-tuning.
    """
    apart = replace(session, latency=None, trainer=replace(session.trainer, run=RunDir()))
    school = _school(program, None, replace(config, front="params"), apart, trained=trained)
    start = school.population.start(program)
    children = Counter(child.operation for child in school.population.children([start], 1))
    price, allowed = school.generation_epochs(children), school.purse.spend.epochs
    of = "" if allowed is None else f" of the {allowed:g} that may be spent"
    told = f"the first generation, of {children.total()} networks, takes about {price:.0f} epochs{of}"
    return (f"{told}; later ones, of {config.parents} parents, take more",)


def _purse(config: Ectonas, session: Session) -> SpendTracker:
    reserved = session.last_steps(config, config.finetune_epochs)
    return SpendTracker(session.spend or DEFAULT_SPEND, session.epoch, session.trainer.run, reserved)


def _school(
    program: Program, budget: Budget | None, config: Ectonas, session: Session, *, trained: bool
) -> SearchState:
    higher, purse = bool(session.task.higher_is_better), _purse(config, session)
    warm_up = 0 if trained else session.steps(config, config.weights_epochs)
    if warm_up > purse.left:
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
            session.costs,
            sorted(measured),
            session.trainer.run,
        ),
        Fitness(greediness=config.greediness, higher_is_better=higher, limits=limits),
        Front(config.front, higher_is_better=higher),
        purse,
    )
