"""What a search comes to: the winner trained on, the front, and what there is to tell."""

from dataclasses import replace

from fxsurgery.argument_names import assigned, keyword
from fxsurgery.searchers.common.pareto import ParetoMember
from fxsurgery.searchers.common.trials import SearchRecord
from fxsurgery.searchers.ectonas.evolution_loop import EvolutionLoop
from fxsurgery.searchers.ectonas.training import SearchState, State
from fxsurgery.searchers.session import Session


def relate(session: Session, chosen: State) -> None:
    """Let the history tell of the winner's line."""
    history = session.trainer.progress.history
    for ancestor in chosen.individual.line():
        history.extend(dict(record) for record in ancestor.records[: chosen.records_of(ancestor)])


def record_of(school: SearchState, chosen: State, tuning: int) -> SearchRecord:
    """All that happened; `tuning`: steps that the winner was trained on for."""
    epoch = school.purse.epoch
    trials = [chosen.trial if one is chosen.individual else one.trial(epoch) for one in school.population.everyone]
    trials[chosen.individual.number] = replace(chosen.trial, status="winner", reason="winner")
    return SearchRecord(
        trials=tuple(trials),
        winner=chosen.individual.number,
        spent=(school.purse.spent + tuning) / epoch,
        allowed=school.purse.spend.epochs,
        finetuned=tuning / epoch,
        rejected=dict(school.population.rejected.most_common()),
        duplicates=school.population.duplicates,
        lost_workers=school.session.lost_workers,
        axis=school.config.front,
        higher_is_better=bool(school.session.task.higher_is_better),
    )


def member_of(state: State, session: Session) -> ParetoMember:
    """A network of the front with the whole score of its weights."""
    name = f"score of network {state.trial.number} at {state.trial.epochs:g} epochs"
    return ParetoMember(state.program, state.trial, session.scored(state.program, name))


def told_of(school: SearchState) -> tuple[str, ...]:
    """Notes on the moves that came to nothing."""
    rejected, crashes = school.population.rejected, school.population.crashes
    bugs = tuple(f"please report this: {crash}" for crash in dict.fromkeys(crashes[:3]))
    if school.repeated:
        many = f"{school.repeated} training{'s' * (school.repeated > 1)}"
        repeated = f"{many} diverged and were repeated at a tenth of the learning rate"
        bugs = (*bugs, f"{repeated}; pass {keyword('settings', 'learning_rate')} to set it")
    if not rejected:
        return bugs
    most = "; ".join(f"{why} ({many})" for why, many in rejected.most_common(3))
    return (f"moves that gave no network, or one that diverged: {rejected.total()}, most often: {most}", *bugs)


def out_of_reach(evolving: EvolutionLoop, chosen: State) -> str:
    """What to tell where nobody keeps the budget; `chosen` is the nearest."""
    school, figures = evolving.school, chosen.figures
    latency = f", {figures.costs['latency_ms']:.3g} ms" if "latency_ms" in figures.costs else ""
    generations = f"{evolving.generation} generation{'s' * (evolving.generation > 1)}"
    return (
        f"no network of {generations} keeps the budget; the nearest "
        f"that was trained has {figures.costs['params']:,} parameters and {figures.costs['macs']:,} MACs{latency}. "
        f"Spend more than {school.purse.epochs:.0f} epochs, let each move go further (channels, units, "
        f"change), or begin with what {assigned('method', 'prune')} gives"
    )


def fine_tuned(school: SearchState, chosen: State) -> int:
    """Train the winner on, and offer what comes of it; how many steps that took."""
    session = school.session
    if session.finetune is not None:
        tuned = session.trained(chosen.program, school.config, "fine-tune", 0, is_last=True)
        session.offer(tuned, session.score(tuned, "fine-tuned"))
        return 0
    if not school.purse.reserved:
        return 0
    trained, end, spent = school.fine_tune(chosen)
    if trained is None:
        session.notes.append(f"the fine-tuning failed, and is left out: {end.failure}")
        return spent
    session.trainer.progress.history.extend(dict(record) for record in end.records)
    session.offer(trained, session.score(trained, "fine-tuned"))
    return spent
