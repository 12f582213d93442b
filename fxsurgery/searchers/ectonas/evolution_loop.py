"""The generations of a search: children, two competitions, and the next parents, until nothing is left to spend."""

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
from fxsurgery.searchers.ectonas.training import SearchState, State

Groups = Mapping[str, list[list[Individual]]]
"""Who trains against whom, by operation; or all in one."""
ALL = "all"


@dataclass(eq=False)
class EvolutionLoop:
    """A search under way."""

    school: SearchState
    parents: list[Individual] = field(default_factory=list)
    entrants: list[Individual] = field(default_factory=list)
    """Who is left in competition 2, while there is one."""
    generation: int = 0
    is_over: bool = False
    notes: list[str] = field(default_factory=list)

    def begin(self, *, trained: bool) -> None:
        """Warm the start up, or score it.

        Raises:
            BudgetError: the time is up before the warm-up is over.
            TrainingError: it diverges.
        """
        school = self.school
        config, session = school.config, school.session
        [start] = self.parents = school.population.everyone[:1]
        assert start.program is not None  # it is new
        start.status = start.reason = "parent"
        school.find_rate(start.program, trained=trained)
        steps = 0 if trained else session.steps(config, config.weights_epochs)
        if not steps:
            start.score = session.score(start.program, "original" if trained else "start").metric
            school.remember(start, start.program, None)
        elif (ended := school.warm_up(start, steps)).failure is not None:
            error = BudgetError if ended.stopped else TrainingError
            raise error(
                f"the warm-up of the first network failed: {ended.failure}; lower its learning rate, or spend more"
            )
        start.program = school.latest[start].program

    def run(self) -> None:
        """Go on until what may be spent is spent.

        Raises:
            BudgetError: nothing can be trained for what may be spent.
            StructureError: no operation can be done to the start.
        """
        while not self.is_over:
            self.generation += 1
            children = self.school.population.children(self.parents, self.generation)
            if self.generation == 1 and not any(child.move for child in children):
                raise StructureError(self._nothing_to_do())
            self._announce(children)
            self._live_through(children)

    def first_is_short(self) -> str | None:
        """What to tell where the spend did not pay for the first generation."""
        school = self.school
        if self.generation > 1 or len(self.parents) != 1 or self.parents[0].number or not school.purse.spend.epochs:
            return None
        price = self._price(self._born())
        return (
            f"the spend ended within the first generation, which takes about {price:.0f} epochs: few networks were "
            "compared. Spend more, or set match_epochs, rounds or places lower"
        )

    def _price(self, children: Sequence[Individual]) -> float:
        """Epochs that a generation takes."""
        return self.school.generation_epochs(Counter(child.operation for child in children))

    def _live_through(self, children: Sequence[Individual]) -> None:
        """A generation, or as much of it as can be paid for."""
        best = self._best_of_each_operation(children)
        if not self.is_over:
            self.entrants = best
            best = self._compete({ALL: best}, self.school.config.parents, 2)[ALL]
        if not self.is_over:
            self._succeed(best)

    def choice(self) -> State:
        """Who wins, as things stand."""
        school = self.school
        champion, in_race = school.champion, list(school.latest.values())
        assert champion is not None  # the start has a score
        if school.config.selection == "random":
            drawn_from = self.entrants or self.parents
            found = self._lot([state for state in in_race if state.individual in drawn_from] or in_race, self._rng(3))
        elif school.config.greediness == 1:
            found = champion
        else:
            start = school.population.everyone[0].figures
            found = max(in_race, key=lambda state: school.fitness.against(state.figures, start))
        # Those who keep the budget may have died out, and the champion is the best of all that ever did.
        return champion if school.fitness.excess(found.figures) else found

    def _best_of_each_operation(self, children: Sequence[Individual]) -> list[Individual]:
        """Competition 1."""
        pools = dict[str, list[Individual]]()
        for child in children:
            pools.setdefault(child.operation, []).append(child)
        winners = 1 if len(pools) >= self.school.config.parents else self.school.config.parents
        return [winner for pool in self._compete(pools, winners, 1).values() for winner in pool]

    def _compete(
        self, pools: Mapping[str, list[Individual]], winners: int, number: int
    ) -> Mapping[str, list[Individual]]:
        """Who is left of each pool after a competition, or when the spend ends it."""
        rounds = self.school.config.rounds
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
        """One round of all pools at once: everyone trains, one of each group goes on."""
        school = self.school
        flat = [group for pool in groups.values() for group in pool]
        paid = flat[: _payable([sum(map(school.match_steps, group)) for group in flat], school.purse.left)]
        if not paid and not school.purse.spent:
            raise BudgetError(
                f"nothing can be trained: a match of the first networks takes {school.match_epochs(flat[0]):.3g} "
                f"epochs, and {school.purse.left / school.purse.epoch:.3g} may be spent; spend more"
            )
        where = f"generation {self.generation}, competition {number}, round {round_}"
        ended = iter(school.train([i for group in paid for i in group], where))
        decided = {id(group) for group in paid if not any(end.stopped for end in [next(ended) for _ in group])}
        self.is_over = len(decided) < len(flat)
        return {
            name: [i for group in pool for i in self._left(group, number, rng, is_decided=id(group) in decided)]
            for name, pool in groups.items()
        }

    def _left(
        self, group: Sequence[Individual], number: int, rng: np.random.Generator, *, is_decided: bool
    ) -> list[Individual]:
        """Of a group, the one that goes on; nobody where all diverged; all that have trained where it is undecided."""
        living = [individual for individual in group if individual in self.school.latest]
        if not living or not is_decided:
            return living
        if self.school.config.selection == "random":
            best = self._lot([self.school.latest[i] for i in living], rng).individual
        else:
            best = max(living, key=lambda individual: self._worth(individual, greedily=number == 1))
        for loser in living:
            if loser is not best:
                self.school.drop(loser, "eliminated" if number == 1 else "outranked", f"lost in competition {number}")
        return [best]

    def _born(self) -> list[Individual]:
        """Those of this generation."""
        return [one for one in self.school.population.everyone if one.generation == self.generation]

    def _lot(self, states: Sequence[State], rng: np.random.Generator) -> State:
        """One by lot; of those that keep the budget, or exceed it by least."""
        excess = [self.school.fitness.excess(state.figures) for state in states]
        admitted = [state for state, beyond in zip(states, excess, strict=True) if beyond == min(excess)]
        return admitted[int(rng.integers(len(admitted)))]

    def _worth(self, individual: Individual, *, greedily: bool) -> Worth:
        fitness = self.school.fitness
        if greedily or individual.parent is None:
            return fitness.greedy(individual.figures)
        return fitness.against(individual.figures, individual.parent.figures)

    def _succeed(self, winners: Sequence[Individual]) -> None:
        """The winners are the next parents."""
        if not winners:
            why = (
                "every network diverged" if any(i.status == "failed" for i in self._born()) else "nothing could be made"
            )
            self.notes.append(f"generation {self.generation}: {why}, so the search ended early")
            self.is_over = True
            return
        for parent in self.parents:
            self.school.drop(parent, parent.status, parent.reason)
        for winner in winners:
            winner.status = winner.reason = "parent"
            winner.program = self.school.latest[winner].program
        self.parents, self.entrants = list(winners), []
        chosen = self.choice()
        if not self.school.fitness.excess(chosen.figures):
            self.school.session.keep(chosen.program)

    def _rng(self, *where: int) -> np.random.Generator:
        return np.random.default_rng((self.school.session.seed, self.generation, *where))

    def _announce(self, children: Sequence[Individual]) -> None:
        school = self.school
        best = (
            ""
            if school.champion is None
            else f"best {school.session.task.metric_name} {school.champion.figures.score:.4f}"
        )
        school.session.trainer.progress.note(
            f"generation {self.generation}: {len(children)} networks of {len(self.parents)}, "
            f"{school.purse.epochs:.1f} epochs spent, {best}"
        )

    def _nothing_to_do(self) -> str:
        reasons = self.school.population.rejected.most_common(3)
        told = "; ".join(f"{why} ({many})" for why, many in reasons) or "they find no place in it"
        named = [name for name in self.school.config.operations if name != IDENTITY]
        if not named:
            setting = keyword("settings", "operations")
            return f"{setting} names the identity alone, which makes no other network; name more operations"
        return (
            f"none of the operations {', '.join(named)} can be done to this model: {told}; name more operations, or "
            "pass another model"
        )


def _payable(prices: Sequence[int], purse: float) -> int:
    """How many of the first can be paid for, one after the other."""
    totals = np.cumsum(prices)
    return int(np.searchsorted(totals, purse, side="right"))
