"""The result of a search: the fine-tuned winner, the front, the record and the notes."""

from dataclasses import replace

from fxsurgery.argument_names import assigned, keyword
from fxsurgery.searchers.common.pareto import ParetoMember
from fxsurgery.searchers.common.trials import SearchRecord
from fxsurgery.searchers.ectonas.evolution_loop import EvolutionLoop
from fxsurgery.searchers.ectonas.training import SearchState, TrainedState
from fxsurgery.searchers.session import Session


def record_history(session: Session, chosen: TrainedState) -> None:
    """Add the training records of the winner and its ancestors to the history."""
    history = session.trainer.progress.history
    for ancestor in chosen.individual.line():
        history.extend(dict(record) for record in ancestor.records[: chosen.records_of(ancestor)])


def record_of(search_state: SearchState, chosen: TrainedState, tuning: int) -> SearchRecord:
    """Return the record of the search; `tuning`: number of fine-tuning steps of the winner."""
    epoch = search_state.tracker.epoch
    trials = [
        chosen.trial if one is chosen.individual else one.trial(epoch) for one in search_state.population.everyone
    ]
    trials[chosen.individual.number] = replace(chosen.trial, status="winner", reason="winner")
    return SearchRecord(
        trials=tuple(trials),
        winner=chosen.individual.number,
        spent=(search_state.tracker.spent + tuning) / epoch,
        allowed=search_state.tracker.spend.epochs,
        finetuned=tuning / epoch,
        rejected=dict(search_state.population.rejected.most_common()),
        duplicates=search_state.population.duplicates,
        lost_workers=search_state.session.lost_workers,
        axis=search_state.config.front,
        higher_is_better=bool(search_state.session.task.higher_is_better),
    )


def member_of(state: TrainedState, session: Session, record: SearchRecord) -> ParetoMember:
    """Return a network of the front with the full score of its weights, and its status at the end of the search."""
    name = f"score of network {state.trial.number} at {state.trial.epochs:g} epochs"
    status, reason = state.individual.status, state.individual.reason
    if record.is_winner(state.trial):
        status = reason = "winner"
    elif state.trial.number == record.winner:
        reason = f"the winner has other weights of this network, after {record.trials[record.winner].epochs:g} epochs"
    trial = replace(state.trial, status=status, reason=reason)
    return ParetoMember(state.program, trial, session.scored(state.program, name))


def move_notes(search_state: SearchState) -> tuple[str, ...]:
    """Return notes on the moves that gave no network, and on trainings that were repeated."""
    rejected, crashes = search_state.population.rejected, search_state.population.crashes
    bugs: tuple[str, ...] = tuple(f"please report this: {crash}" for crash in dict.fromkeys(crashes[:3]))
    if (many := search_state.repeated) > 0:
        which = f"{many} trainings that diverged were" if many > 1 else "1 training that diverged was"
        remedy = f"pass {keyword('settings', 'learning_rate')} to set it"
        bugs = (*bugs, f"{which} repeated at a tenth of the learning rate; {remedy}")
    if not rejected:
        return bugs
    most = "; ".join(f"{why} ({many})" for why, many in rejected.most_common(3))
    return (f"moves that gave no network, or one that diverged: {rejected.total()}, most often: {most}", *bugs)


def unmet_budget_message(loop: EvolutionLoop, chosen: TrainedState) -> str:
    """Return the message for a search in which no network meets the budget; `chosen` is the nearest one."""
    search_state, figures = loop.search_state, chosen.figures
    latency = f", {figures.costs['latency_ms']:.3g} ms" if "latency_ms" in figures.costs else ""
    generations = f"{loop.generation} generation{'s' * (loop.generation > 1)}"
    return (
        f"no network of {generations} meets the budget; the nearest "
        f"that was trained has {figures.costs['params']:,} parameters and {figures.costs['macs']:,} MACs{latency}. "
        f"Spend more than {search_state.tracker.epochs:.0f} epochs, let each move go further (channels, units, "
        f"change), or begin with what {assigned('method', 'prune')} gives"
    )


def fine_tuned(search_state: SearchState, chosen: TrainedState) -> int:
    """Fine-tune the winner and offer the result; return the number of steps spent."""
    session = search_state.session
    if session.finetune is not None:
        tuned = session.trained(chosen.program, search_state.config, "fine-tune", 0, is_last=True)
        session.offer(tuned, session.score(tuned, "fine-tuned"))
        return 0
    if not search_state.tracker.reserved:
        return 0
    trained, end, spent = search_state.fine_tune(chosen)
    if trained is None:
        session.notes.append(f"the fine-tuning failed, and is left out: {end.failure}")
        return spent
    session.trainer.progress.history.extend(dict(record) for record in end.records)
    session.offer(trained, session.score(trained, "fine-tuned"))
    return spent
