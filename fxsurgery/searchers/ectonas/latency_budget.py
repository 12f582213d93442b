"""The end of a search under a budget of latency: what is returned is measured thoroughly, and holds the budget."""

from collections.abc import Iterator

from fxsurgery.budget import CostEstimate
from fxsurgery.errors import BudgetError
from fxsurgery.searchers.common.latency_model import ATTEMPTS
from fxsurgery.searchers.ectonas.evolution_loop import EvolutionLoop
from fxsurgery.searchers.ectonas.training import State
from fxsurgery.searchers.session import Session


def verified_choice(evolving: EvolutionLoop, chosen: State) -> tuple[State, CostEstimate | None]:
    """The network that wins: `chosen`, or the next best that holds the budget of latency when verified.

    Raises:
        BudgetError: none of the best holds it.
    """
    model = evolving.school.session.latency
    if model is None or model.limit_ms is None:
        return chosen, None
    misses = list[CostEstimate]()
    for state in _admitted(evolving, chosen):
        found = model.verify(state.program)
        if found.high <= model.limit_ms:
            return state, found
        misses.append(found)
        if len(misses) == ATTEMPTS:
            break
    raise BudgetError(model.missed(min(misses, key=lambda found: found.high)))


def verified_end(session: Session, verified: CostEstimate | None) -> CostEstimate | None:
    """Verify what would be returned; where a fine-tuned winner misses the budget, it is left out.

    Args:
        session: with the winner that was verified, and what was made of it.
        verified: the winner's latency.

    Returns:
        The latency of the best that is left.
    """
    model = session.latency
    if model is None or model.limit_ms is None or session.best[1] is session.offered[0][1]:
        return verified
    found = model.verify(session.best[1])
    if found.high <= model.limit_ms:
        return found
    session.notes.append(
        f"the fine-tuned winner takes up to {found.high:.4g} ms, above the {model.limit_ms:.4g} ms allowed: the "
        "winner is kept as it was before"
    )
    del session.offered[1:]
    session.keep(session.best[1])
    return verified


def _admitted(evolving: EvolutionLoop, chosen: State) -> Iterator[State]:
    """`chosen`, then the others whose weights are there and who keep the budget as they were measured, best first."""
    school = evolving.school
    yield chosen
    others = [*school.latest.values(), *school.front.members]
    seen = [chosen]
    for state in sorted(others, key=lambda state: state.worth, reverse=True):
        if state not in seen and not school.fitness.excess(state.figures):
            seen.append(state)
            yield state
