"""The record of a search: its trials, their lines of descent, and the record as plain JSON."""

import json
import math
from dataclasses import fields, replace

import pytest

from evolutions import evolved
from fxsurgery.searchers.common.pareto import member_from_plain, member_to_plain
from fxsurgery.searchers.common.trials import SearchRecord, Trial, from_plain, to_plain, trial_from_plain
from nonempty import nonempty


def trial(number: int, parent: int | None, operation: str = "identity") -> Trial:
    return Trial(number=number, parent=parent, generation=number, operation=operation, costs={"params": 1, "macs": 1})


def chain(*operations: str) -> SearchRecord:
    """Each the child of the one before."""
    line = tuple(trial(i, i - 1 if i else None, name) for i, name in enumerate(operations))
    return SearchRecord(trials=line, winner=len(line) - 1, spent=1.0, allowed=None)


def test_a_line_leads_from_the_start_to_the_candidate() -> None:
    found = evolved().search
    assert found is not None
    line = found.line(found.winner)
    assert (line[0].number, line[-1].number) == (0, found.winner)
    assert [c.parent for c in line] == [None, *(c.number for c in line[:-1])]
    assert found.line(0) == (found.trials[0],)


def test_what_was_done_leaves_out_what_changed_nothing() -> None:
    found = chain("start", "add-cell", "identity", "add-cell", "identity", "remove-units")
    assert [c.number for c in found.changes(5)] == [1, 3, 5]
    assert found.done(5) == "add-cell x2, remove-units"
    assert found.done(3) == "add-cell x2"
    assert chain("start", "identity").done(1) == "trained further"


def test_an_evolution_is_plain_json_and_back() -> None:
    found = evolved().search
    assert found is not None
    again = from_plain(json.loads(json.dumps(to_plain(found))))
    assert again == found
    for name in nonempty(f.name for f in fields(Trial)):
        assert [type(getattr(c, name)) for c in nonempty(again.trials)] == [
            type(getattr(c, name)) for c in found.trials
        ]


def test_scores_that_are_no_numbers_come_back() -> None:
    odd = replace(trial(0, None), score=math.nan, scores=((1.0, math.inf),))
    again = trial_from_plain(json.loads(json.dumps(vars(odd))))
    assert math.isnan(again.score or 0.0)
    assert again.scores == ((1.0, math.inf),)


def test_what_a_later_version_adds_is_left_out() -> None:
    plain = to_plain(chain("start", "identity"))
    plain["trials"][0]["color"] = "red"
    assert from_plain({**plain, "weather": "fine"}) == chain("start", "identity")


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"winner": 2}, ValueError),
        ({"winner": None}, TypeError),
        ({"trials": 3}, TypeError),
        ({"trials": [{}]}, TypeError),
        ({"trials": [{**vars(trial(0, None)), "costs": {"macs": 1}}]}, ValueError),
        ({"trials": [vars(trial(1, None))]}, ValueError),
        ({"trials": [vars(trial(0, 0))]}, ValueError),
        ({"trials": [vars(trial(0, None)), vars(trial(1, 4))]}, ValueError),
    ],
)
def test_what_is_no_line_of_descent_is_refused(change: dict, error: type[Exception]) -> None:
    with pytest.raises(error):
        from_plain({**to_plain(chain("start", "identity")), **change})


def test_a_member_tells_of_its_network() -> None:
    result = evolved()
    member = result.pareto[0]
    assert member.model is member.program.graph_module
    assert sum(p.numel() for p in member.model.parameters()) == member.cost.params == member.along("params")
    assert (member.metric, member.latency_ms) == (member.score.metric, None)
    assert (member.along("macs"), member.along("latency_ms")) == (member.cost.macs, None)


def test_a_member_is_plain_json_and_back() -> None:
    member = evolved().pareto[-1]
    again = member_from_plain(json.loads(json.dumps(member_to_plain(member))), member.program)
    assert (again.program, again.trial, again.score) == (member.program, member.trial, member.score)
