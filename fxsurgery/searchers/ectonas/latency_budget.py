"""The end of a search with a latency budget: the result is measured thoroughly and meets the budget."""

from collections.abc import Iterator

from fxsurgery.budget import CostEstimate
from fxsurgery.errors import BudgetError
from fxsurgery.searchers.common.latency_model import ATTEMPTS
from fxsurgery.searchers.ectonas.evolution_loop import EvolutionLoop
from fxsurgery.searchers.ectonas.training import TrainedState
from fxsurgery.searchers.session import Session


def verified_choice(loop: EvolutionLoop, chosen: TrainedState) -> tuple[TrainedState, CostEstimate | None]:
    """Return the winner: `chosen`, or the next best network whose verified latency meets the budget.

    Raises:
        BudgetError: none of the best networks meets it.
    """
    model = loop.search_state.session.latency
    if model is None or model.limit_ms is None:
        return chosen, None
    misses = list[CostEstimate]()
    for state in _admitted(loop, chosen):
        found = model.verify(state.program)
        if found.high <= model.limit_ms:
            return state, found
        misses.append(found)
        if len(misses) == ATTEMPTS:
            break
    raise BudgetError(model.missed(min(misses, key=lambda found: found.high)))


def verified_end(session: Session, verified: CostEstimate | None) -> CostEstimate | None:
    """Verify the result; a fine-tuned winner that misses the budget is dropped.

    Args:
        session: holds the verified winner and its fine-tuned version.
        verified: the latency of the winner.

    Returns:
        The latency of the best network that is left.
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


def _admitted(loop: EvolutionLoop, chosen: TrainedState) -> Iterator[TrainedState]:
    """Yield `chosen`, then the other networks with weights whose measured costs meet the budget, best first."""
    search_state = loop.search_state
    yield chosen
    others = [*search_state.latest.values(), *search_state.front.members]
    seen = [chosen]
    for state in sorted(others, key=lambda state: state.worth, reverse=True):
        if state not in seen and not search_state.fitness.excess(state.figures):
            seen.append(state)
            yield state
