"""The generations of a search: children, two competitions and the next parents, until the spend is used up."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fxsurgery.argument_names import keyword
from fxsurgery.errors import BudgetError, StructureError, TrainingError
from fxsurgery.searchers.common.trials import IDENTITY
from fxsurgery.searchers.ectonas.brackets import drawn
from fxsurgery.searchers.ectonas.fitness import Worth
from fxsurgery.searchers.ectonas.population import Individual
from fxsurgery.searchers.ectonas.training import SearchState, TrainedState

Groups = Mapping[str, list[list[Individual]]]
"""The groups of a round, by operation, or all under one key."""
ALL = "all"


@dataclass(eq=False)
class EvolutionLoop:
    """Runs the generations of a search."""

    search_state: SearchState
    parents: list[Individual] = field(default_factory=list)
    entrants: list[Individual] = field(default_factory=list)
    """The networks left in competition 2 while it is running."""
    generation: int = 0
    is_over: bool = False
    notes: list[str] = field(default_factory=list)

    def begin(self, *, trained: bool) -> None:
        """Warm up the start, or score it.

        Raises:
            BudgetError: the time limit is reached during the warm-up.
            TrainingError: it diverges.
        """
        search_state = self.search_state
        config, session = search_state.config, search_state.session
        [start] = self.parents = search_state.population.everyone[:1]
        assert start.program is not None  # it is new
        start.status = start.reason = "parent"
        search_state.find_rate(start.program, trained=trained)
        steps = 0 if trained else session.steps(config, config.weights_epochs)
        if not steps:
            start.score = session.score(start.program, "original" if trained else "start").metric
            search_state.remember(start, start.program, None)
        elif (ended := search_state.warm_up(start, steps)).failure is not None:
            error = BudgetError if ended.stopped else TrainingError
            raise error(
                f"the warm-up of the first network failed: {ended.failure}; lower its learning rate, or spend more"
            )
        start.program = search_state.latest[start].program

    def run(self) -> None:
        """Run generations until the spend is used up.

        Raises:
            BudgetError: the spend does not cover a single match.
            StructureError: no operation can be applied to the start.
        """
        while not self.is_over:
            self.generation += 1
            children = self.search_state.population.children(self.parents, self.generation)
            if self.generation == 1 and not any(child.move for child in children):
                raise StructureError(self._nothing_to_do())
            self._announce(children)
            self._run_generation(children)

    def short_spend_note(self) -> str | None:
        """Return a note if the spend did not cover the first generation; `None` if it did."""
        search_state = self.search_state
        if (
            self.generation > 1
            or len(self.parents) != 1
            or self.parents[0].number
            or not search_state.tracker.spend.epochs
        ):
            return None
        price = self._price(self._members())
        return (
            f"the spend ended within the first generation, which takes about {price:.0f} epochs: few networks were "
            "compared. Spend more, or set match_epochs, rounds or places lower"
        )

    def _price(self, children: Sequence[Individual]) -> float:
        """Return the number of epochs that a generation takes."""
        return self.search_state.generation_epochs(Counter(child.operation for child in children))

    def _run_generation(self, children: Sequence[Individual]) -> None:
        """Run a generation, or as much of it as the spend covers."""
        best = self._best_of_each_operation(children)
        if not self.is_over:
            self.entrants = best
            best = self._compete({ALL: best}, self.search_state.config.parents, 2)[ALL]
        if not self.is_over:
            self._promote(best)

    def choice(self) -> TrainedState:
        """Return the network that wins if the search ends now."""
        search_state = self.search_state
        champion, candidates = search_state.champion, list(search_state.latest.values())
        assert champion is not None  # the start has a score
        if search_state.config.selection == "random":
            drawn_from = self.entrants or self.parents
            found = self._drawn(
                [state for state in candidates if state.individual in drawn_from] or candidates, self._rng(3)
            )
        elif search_state.config.greediness == 1:
            found = champion
        else:
            start = search_state.population.everyone[0].figures
            found = max(candidates, key=lambda state: search_state.fitness.against(state.figures, start))
        # All networks that meet the budget may have been eliminated; the champion is the best one that ever did.
        return champion if search_state.fitness.excess(found.figures) else found

    def _best_of_each_operation(self, children: Sequence[Individual]) -> list[Individual]:
        """Run competition 1; return the winners of each operation."""
        pools = dict[str, list[Individual]]()
        for child in children:
            pools.setdefault(child.operation, []).append(child)
        winners = 1 if len(pools) >= self.search_state.config.parents else self.search_state.config.parents
        return [winner for pool in self._compete(pools, winners, 1).values() for winner in pool]

    def _compete(
        self, pools: Mapping[str, list[Individual]], winners: int, number: int
    ) -> Mapping[str, list[Individual]]:
        """Return the networks left in each pool after a competition, or when the spend ends it."""
        rounds = self.search_state.config.rounds
        for round_ in range(1, rounds + 1):
            rng = self._rng(number, round_)
            groups = {name: drawn(pool, left=rounds - round_, winners=winners, rng=rng) for name, pool in pools.items()}
            pools = self._round(groups, number, round_, rng)
            if number == 2:
                self.entrants = pools[ALL]
            if self.is_over:
                break
        return pools

    def _round(self, groups: Groups, number: int, round_: int, rng: np.random.Generator) -> dict[str, list[Individual]]:
        """Run one round of all pools at once: all networks train, one of each group advances."""
        search_state = self.search_state
        flat = [group for pool in groups.values() for group in pool]
        affordable = flat[
            : _affordable([sum(map(search_state.match_steps, group)) for group in flat], search_state.tracker.left)
        ]
        if not affordable and not search_state.tracker.spent:
            raise BudgetError(
                f"nothing can be trained: a match of the first networks takes {search_state.match_epochs(flat[0]):.3g} "
                f"epochs, and {search_state.tracker.left / search_state.tracker.epoch:.3g} may be spent; spend more"
            )
        where = f"generation {self.generation}, competition {number}, round {round_}"
        ended = iter(search_state.train([i for group in affordable for i in group], where))
        decided = {id(group) for group in affordable if not any(end.stopped for end in [next(ended) for _ in group])}
        self.is_over = len(decided) < len(flat)
        return {
            name: [i for group in pool for i in self._left(group, number, rng, is_decided=id(group) in decided)]
            for name, pool in groups.items()
        }

    def _left(
        self, group: Sequence[Individual], number: int, rng: np.random.Generator, *, is_decided: bool
    ) -> list[Individual]:
        """Return the network of a group that advances; none if all diverged; all trained ones if it is undecided."""
        trained = [individual for individual in group if individual in self.search_state.latest]
        if not trained or not is_decided:
            return trained
        if self.search_state.config.selection == "random":
            best = self._drawn([self.search_state.latest[i] for i in trained], rng).individual
        else:
            best = max(trained, key=lambda individual: self._worth(individual, greedily=number == 1))
        for loser in trained:
            if loser is not best:
                self.search_state.drop(
                    loser, "eliminated" if number == 1 else "outranked", f"lost in competition {number}"
                )
        return [best]

    def _members(self) -> list[Individual]:
        """Return the networks of this generation."""
        return [one for one in self.search_state.population.everyone if one.generation == self.generation]

    def _drawn(self, states: Sequence[TrainedState], rng: np.random.Generator) -> TrainedState:
        """Draw one network at random from those that meet the budget, or exceed it least."""
        excess = [self.search_state.fitness.excess(state.figures) for state in states]
        admitted = [state for state, beyond in zip(states, excess, strict=True) if beyond == min(excess)]
        return admitted[int(rng.integers(len(admitted)))]

    def _worth(self, individual: Individual, *, greedily: bool) -> Worth:
        fitness = self.search_state.fitness
        if greedily or individual.parent is None:
            return fitness.greedy(individual.figures)
        return fitness.against(individual.figures, individual.parent.figures)

    def _promote(self, winners: Sequence[Individual]) -> None:
        """Make the winners the next parents."""
        if not winners:
            why = (
                "every network diverged"
                if any(i.status == "failed" for i in self._members())
                else "no network could be made"
            )
            self.notes.append(f"generation {self.generation}: {why}, so the search ended early")
            self.is_over = True
            return
        for parent in self.parents:
            self.search_state.drop(parent, parent.status, parent.reason)
        for winner in winners:
            winner.status = winner.reason = "parent"
            winner.program = self.search_state.latest[winner].program
        self.parents, self.entrants = list(winners), []
        chosen = self.choice()
        if not self.search_state.fitness.excess(chosen.figures):
            self.search_state.session.keep(chosen.program)

    def _rng(self, *where: int) -> np.random.Generator:
        return np.random.default_rng((self.search_state.session.seed, self.generation, *where))

    def _announce(self, children: Sequence[Individual]) -> None:
        search_state = self.search_state
        best = (
            ""
            if search_state.champion is None
            else f"best {search_state.session.task.metric_name} {search_state.champion.figures.score:.4f}"
        )
        search_state.session.trainer.progress.note(
            f"generation {self.generation}: {len(children)} networks from {len(self.parents)} "
            f"parent{'' if len(self.parents) == 1 else 's'}, "
            f"{search_state.tracker.epochs:.1f} epochs spent, {best}"
        )

    def _nothing_to_do(self) -> str:
        reasons = self.search_state.population.rejected.most_common(3)
        why_not = "; ".join(f"{why} ({count})" for why, count in reasons) or "no place in it fits"
        named = [name for name in self.search_state.config.operations if name != IDENTITY]
        if not named:
            setting = keyword("settings", "operations")
            return f"{setting} names the identity alone, which makes no other network; name more operations"
        return (
            f"none of the operations {', '.join(named)} can be applied to this model: {why_not}; name more "
            "operations, or pass another model"
        )


def _affordable(prices: Sequence[int], left: float) -> int:
    """Return how many of the first groups the spend covers, one after the other."""
    totals = np.cumsum(prices)
    return int(np.searchsorted(totals, left, side="right"))
