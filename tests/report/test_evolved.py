"""The page of an evolution: the winner's line, the front, the generations, what was rejected, and the words."""

import math
import re
from dataclasses import replace

import pytest

from evolutions import evolved
from fxsurgery.budget import Metric
from fxsurgery.report import render
from fxsurgery.report.formatting import DASH, MINUS, PER_CENT
from fxsurgery.report.generations import generations, mishaps, refusals
from fxsurgery.report.lineage_chart import lineage
from fxsurgery.report.scatter import scatter
from fxsurgery.result import Result
from fxsurgery.searchers.common.trials import SearchRecord, Status, Trial
from nonempty import nonempty
from report.pages import HOSTILE, Element, operated, program, read, result, rows


def evolution(made: Result | None = None) -> SearchRecord:
    found = (made or evolved()).search
    assert found is not None
    return found


def section(page: str, name: str) -> Element:
    [found] = [s for s in read(page).all("section") if s.attributes["aria-labelledby"] == name]
    return found


def points(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"[ML]([\d.]+) ([\d.]+)", path)]


def line(*params: int, trained: bool = True) -> SearchRecord:
    """Each the child of the one before, 10 epochs each; the start is untrained if said so."""
    before = 0 if trained else -10
    found = tuple(
        Trial(
            number=i, parent=i - 1 if i else None, generation=i, operation=f"step-{i}" if i else "start",
            costs={"params": size, "macs": size}, epochs=10.0 * (i + 1) + before, score=0.1 * (i + 1),
            scores=((10.0 * (i + 1) + before, 0.1 * (i + 1)),) if i or trained else (),
        )
        for i, size in enumerate(params)
    )  # fmt: skip
    return SearchRecord(trials=found, winner=len(found) - 1, spent=10.0 * len(found), allowed=None)


def test_the_sentence_says_what_was_spent_and_what_came_out():
    made = evolved()
    before, after = made.cost
    [told] = read(render(made)).all("p", class_="sentence")
    macs, params = 100 * after.macs / before.macs, 100 * after.params / before.params
    assert told.text == (
        f"ECToNAS spent {evolution().spent:g} of 1,000 epochs on {evolution().trained} networks: the winner takes "
        f"{macs:.1f} % of the MACs and {params:.1f} % of the parameters of the start, and the test accuracy went from "
        f"0.2900 to {made.metrics['test'].after:.4f}."
    )


@pytest.mark.parametrize(
    ("change", "asked", "begins"),
    [
        ({"allowed": None}, {"method": "ectonas"}, r"ECToNAS spent \d+ epochs on \d+ networks: the winner"),
        ({}, {}, r"Spent \d+ of 1,000 epochs on"),
        (
            {"spent": 12.34},
            {"method": "ectonas", "budget": {"macs": 0.5}},
            r"ECToNAS was asked for at most 50 % of the MACs and spent 12\.3 of 1,000 epochs on",
        ),
        ({}, {"method": "ectonas", "data_free": True}, r"Without data, ECToNAS spent"),
    ],
)
def test_the_sentence_says_no_more_than_is_known(change: dict, asked: dict, begins: str):
    made = evolved()
    given = replace(made, search=replace(evolution(made), **change), asked=asked)
    [told] = read(render(given)).all("p", class_="sentence")
    assert re.match(begins, told.text)


def test_nothing_that_grew_is_said_to_be_smaller():
    grown = evolved(growing=True)
    assert grown.cost[1].params > grown.cost[0].params
    page = render(grown)
    assert read(page).all("h1")[0].text == "Start, evolved"
    assert "smaller" not in page
    assert "are left" not in read(page).all("p", class_="sentence")[0].text
    values = [e.text for e in read(page).all("span", class_="value")]
    assert values[0].startswith("+")
    assert values[1].startswith("+")


def test_a_result_of_another_method_that_grew_is_not_said_to_be_smaller():
    shrunk = evolved(generations=1)
    grown = replace(shrunk, search=None, pareto=(), original=shrunk.pareto[0].program, program=shrunk.original)
    page = read(render(grown))
    assert page.all("h1")[0].text == "Start, rebuilt"
    assert "the model takes" in page.all("p", class_="sentence")[0].text


def test_pages_of_other_methods_have_nothing_of_it():
    page = render(result())
    assert not {"lineage", "front", "generations"} & {
        s.attributes["aria-labelledby"] for s in read(page).all("section")
    }
    assert read(page).all("h1")[0].text == "Net, made smaller"


def test_a_layer_that_grew_shows_its_old_width_in_front():
    grown = result(original=operated(program()), program=program())
    wide = re.findall(r'<svg class="bar".*?</svg>', render(grown), re.DOTALL)
    told = [re.search(r": (\d+) channels before, (\d+) after", svg) for svg in wide]
    for svg, sizes in nonempty(zip(wide, told, strict=True)):
        assert sizes is not None
        before, after = int(sizes[1]), int(sizes[2])
        if before and after:
            assert (svg.index('class="before"') > svg.index('class="after"')) == (before < after)
    assert any(int(m[1]) < int(m[2]) and int(m[1]) for m in told if m)


def test_the_line_is_drawn_over_its_epochs_with_steps_of_size():
    found = lineage(line(100, 300, 200), "accuracy")
    assert found is not None
    metric, size = found.plots
    assert [x for x, _ in points(metric.path)] == pytest.approx([1000 / 3, 2000 / 3, 1000], abs=0.01)
    heights = [y for _, y in points(metric.path)]
    assert heights == sorted(heights, reverse=True)
    assert [x for x, _ in points(size.path)] == pytest.approx([0, 333.33, 333.33, 666.67, 666.67, 1000], abs=0.01)
    levels = [y for _, y in points(size.path)]
    assert levels[::2] == levels[1::2]
    assert levels[2] < levels[4] < levels[0]
    assert (100 - levels[0]) / (100 - levels[2]) == pytest.approx(100 / 300, abs=1e-3)
    assert metric.note == "dashed: the start, 0.1000"
    assert metric.reference == pytest.approx(heights[0])
    assert size.note == "100 to 200"
    assert found.epochs[0].label == "0"


def test_what_was_done_is_marked_where_it_was_done():
    found = lineage(line(100, 300, 200), "accuracy")
    assert found is not None
    assert [(m.number, m.label) for m in found.marks] == [(1, "step-1"), (2, "step-2")]
    assert [m.at for m in found.marks] == pytest.approx([100 / 3, 200 / 3], abs=0.01)
    assert [(e.number, e.epoch, e.operation, e.params, e.metric) for e in found.entries] == [
        ("", "0", "start", "100", "0.1000"),
        ("1", "10", "step-1", "300", "0.2000"),
        ("2", "20", "step-2", "200", "0.3000"),
    ]
    assert [e.change.replace(MINUS, "-").replace(PER_CENT, "%") for e in found.entries] == ["", "+200.0%", "-33.3%"]


def test_no_two_marks_are_in_each_others_way():
    found = lineage(line(*range(100, 140)), "accuracy")
    assert found is not None
    for one in nonempty(found.marks):
        for other in nonempty(found.marks):
            assert one is other or one.row != other.row or abs(one.at - other.at) >= 7
    assert found.rows == 1 + max(m.row for m in found.marks)
    assert found.marks[-1].flush
    assert found.marks[-1].left == pytest.approx(100 - found.marks[-1].at)


def test_a_start_that_did_not_train_is_the_first_point():
    found = lineage(line(100, 100, trained=False), "accuracy")
    assert found is not None
    assert [x for x, _ in points(found.plots[0].path)] == [0, 1000]
    assert found.marks[0].at == 0


def test_an_untrained_winner_has_no_picture():
    assert lineage(line(100, trained=False), "accuracy") is None
    alone = replace(evolved(), search=line(100, trained=False), pareto=())
    assert "Neither the winner nor its ancestors were trained." in section(render(alone), "lineage").text
    assert "only the start was trained" in section(render(alone), "generations").text


def test_scores_that_are_no_numbers_leave_no_trace():
    made = line(100, 200)
    odd = replace(made.trials[1], scores=((15.0, math.nan), (20.0, math.inf)), score=math.nan)
    found = lineage(replace(made, trials=(made.trials[0], odd)), "accuracy")
    assert found is not None
    assert "nan" not in found.plots[0].path
    assert found.entries[-1].metric == DASH


def test_a_wide_range_of_sizes_is_logarithmic():
    found = lineage(line(100, 100_000), "accuracy")
    assert found is not None
    assert found.plots[1].note == "logarithmic and 100 to 100,000"


def test_every_trained_network_is_a_dot_and_the_front_is_joined():
    made = evolved()
    found = scatter(evolution(), made.pareto, "accuracy")
    assert found is not None
    assert found.others.count("M") + found.members.count("M") == evolution().trained
    assert found.members.count("M") == len(made.pareto)
    corners = points(found.front)
    assert [x for x, _ in nonempty(corners)] == sorted(x for x, _ in corners)
    assert [y for _, y in nonempty(corners)] == sorted((y for _, y in corners), reverse=True)
    assert corners[-1][0] == 1000
    assert {n.name for n in found.named} == {"start", "winner"}
    assert all(0 <= y <= 100 for _, y in nonempty(points(found.others)))


@pytest.mark.parametrize(("axis", "title"), [("macs", "MACs"), ("params", "parameters")])
def test_the_front_is_against_what_was_searched_for(axis: str, title: str):
    found = scatter(replace(evolution(), axis=axis), evolved().pareto, "loss")  # type: ignore[arg-type]
    assert found is not None
    assert found.title == f"Validation loss against {title}"


def with_costs(made: Result, axis: Metric, first: float) -> Result:
    """The result of a search along `axis`, in which the members of the front cost `first`, `first + 1`, ..."""
    trials = [replace(m.trial, costs={**m.trial.costs, axis: first + i}) for i, m in enumerate(made.pareto)]
    members = (replace(m, trial=trial) for m, trial in zip(made.pareto, trials, strict=True))
    return replace(made, search=replace(evolution(made), axis=axis), pareto=tuple(members))


def test_latency_stands_where_it_was_measured():
    made = evolved()
    timed = [
        replace(m, trial=replace(m.trial, costs={**m.trial.costs, "latency_ms": 1.5 + i}))
        for i, m in enumerate(made.pareto)
    ]
    page = render(replace(made, search=replace(evolution(), axis="latency_ms"), pareto=tuple(timed)))
    front = section(page, "front")
    assert "accuracy against latency, ms" in front.text
    assert "2.500" in rows(front.all("table")[0])["1"]
    assert "Latency, ms" not in section(render(made), "front").text


def test_a_front_against_peak_memory_has_a_column_of_it():
    made, axis = evolved(), "peak_activation_bytes"
    held = [
        replace(m, trial=replace(m.trial, costs={**m.trial.costs, axis: 4096 + i})) for i, m in enumerate(made.pareto)
    ]
    front = section(render(replace(made, search=replace(evolution(), axis=axis), pareto=tuple(held))), "front")
    assert "accuracy against peak activation bytes" in front.text
    assert "4,097" in rows(front.all("table")[0])["1"]
    assert "Peak activation bytes" not in section(render(made), "front").text


def test_the_front_is_told_as_a_table():
    made = evolved()
    told = rows(section(render(made), "front").all("table")[0])
    numbers = [re.match(r"\d+", name)[0] for name in told]  # type: ignore[index]
    assert numbers == [str(i) for i in range(len(made.pareto))]
    for cells, member in nonempty(zip(told.values(), made.pareto, strict=True)):
        done = evolution().done(member.trial.number)
        assert cells == [f"{member.metric:.4f}", f"{member.cost.params:,}", f"{member.cost.macs:,}", done]
    winners = [name for name in told if name.endswith("winner")]
    assert winners == [f"{i} winner" for i, m in enumerate(made.pareto) if evolution().is_winner(m.trial)] != []


def test_a_winner_that_was_better_before_is_not_called_the_winner_then():
    made = evolved()
    number = next(i for i, m in enumerate(made.pareto) if evolution().is_winner(m.trial))
    earlier = replace(made.pareto[number], trial=replace(made.pareto[number].trial, epochs=1.0))
    members = (*made.pareto[:number], earlier, *made.pareto[number + 1 :])
    told = rows(section(render(replace(made, pareto=members)), "front").all("table")[0])
    assert not [name for name in told if name.endswith("winner")]
    found = scatter(evolution(), members, "accuracy")
    assert found is not None
    assert found.others.count("M") == evolution().trained - len(members) + 1


def test_a_long_front_is_folded():
    made = evolved()
    front = section(render(replace(made, pareto=made.pareto[:1] * 13)), "front")
    assert front.all("details")[0].all("table")
    assert not section(render(made), "front").all("details")


def test_each_generation_tells_what_each_operation_came_to():
    found = generations(evolution())
    assert [g.number for g in found] == [1, 2, 3, 4]
    assert sum(g.many for g in found) == len(evolution().trials) - 1
    for generation in nonempty(found):
        born = [c for c in evolution().trials if c.generation == generation.number]
        assert sorted(t.operation for t in generation.tried) == sorted({c.operation for c in nonempty(born)})
        for parent in nonempty({c.parent for c in born}):
            assert str(parent) in generation.parents
        for tried in nonempty(generation.tried):
            alike = [c for c in born if c.operation == tried.operation]
            assert tried.candidates == str(len(alike))
            assert int(tried.best) in {c.number for c in alike}
    assert "winner" in {tried.outcome for tried in found[-1].tried}


def test_the_best_of_an_operation_is_whoever_was_not_out_at_once():
    def born(number: int, score: float | None, status: Status, reason: str) -> Trial:
        return Trial(
            number=number, parent=0, generation=1, operation="widen", costs={"params": 1, "macs": 1}, score=score,
            status=status, reason=reason,
        )  # fmt: skip

    start = line(100).trials[0]
    ends: list[tuple[float | None, Status, str]] = [
        (0.9, "eliminated", "lost in competition 1"),
        (0.5, "outranked", "lost in competition 2"),
        (None, "failed", "diverged: nan"),
        (math.nan, "parent", "parent"),
    ]
    found = replace(line(100), trials=(start, *(born(i, *end) for i, end in enumerate(ends, 1))), winner=0)
    [[tried]] = [g.tried for g in generations(found)]
    assert (tried.best, tried.score, tried.outcome) == ("2", "0.5000", "lost in competition 2")
    lost = replace(found, trials=(start, *found.trials[3:4]))
    [[tried]] = [g.tried for g in generations(lost)]
    assert (tried.score, tried.outcome) == (DASH, "diverged: nan")


def test_where_lower_is_better_the_lowest_is_the_best():
    start = line(100).trials[0]
    born = [
        Trial(
            number=i, parent=0, generation=1, operation="widen", costs={"params": 1, "macs": 1}, score=score,
            status="parent",
        )
        for i, score in ((1, 2.0), (2, 1.0))
    ]  # fmt: skip
    found = replace(line(100), trials=(start, *born), higher_is_better=False)
    assert generations(found)[0].tried[0].best == "2"


def test_rejected_moves_are_told_with_their_counts():
    page = section(render(evolved()), "generations")
    assert rows(page.all("table", class_="refusals")[0]) == {
        "remove-dense: nothing is left to remove": ["4"], "add-cell: a map of 1 x 1 cannot be pooled": ["2"]
    }  # fmt: skip
    assert "6 for 2 reasons" in page.text
    assert "1 candidate was equal to another one and not trained." in page.text
    assert "2 matches were run again, since their workers died." in page.text
    quiet = replace(evolution(), rejected={}, duplicates=0, lost_workers=0)
    assert (refusals(quiet), mishaps(quiet)) == ((), ())
    assert "Rejected" not in section(render(replace(evolved(), search=quiet)), "generations").text


def test_the_curves_of_many_matches_are_named_in_a_fold():
    matches = tuple(
        {"stage": f"generation {n}", "epoch": 0, "step": 5, "steps": 5, "loss": 1.0, "metric": 0.5, "lr": 0.1}
        for n in range(9)
    )
    training = section(render(replace(evolved(), history=matches)), "training")
    assert training.all("h2")[0].text == "Training of the winner and its ancestors"
    assert len(training.all("details")[0].all("li")) == 9


def test_nothing_of_the_users_is_markup():
    made = evolved()
    odd = replace(made.pareto[0].trial, operation=HOSTILE, reason=HOSTILE, move=HOSTILE)
    candidates = tuple(replace(c, operation=HOSTILE, reason=HOSTILE) for c in evolution().trials)
    told = replace(evolution(), trials=candidates, rejected={HOSTILE: 3})
    members = (replace(made.pareto[0], trial=odd), *made.pareto[1:])
    tree = read(render(replace(made, search=told, pareto=members, metric_name=HOSTILE)))
    assert not tree.all("script")
    assert not tree.all("img")
    assert not any(nonempty(name.startswith("on") for e in tree.walk() for name in e.attributes))
    assert HOSTILE in tree.text


def test_the_page_can_be_heard_and_is_the_same_each_time():
    page = render(evolved())
    tree = read(page)
    assert all(
        svg.attributes.get("aria-label") and svg.attributes["role"] == "img" for svg in nonempty(tree.all("svg"))
    )
    assert not any(svg.all("text") for svg in nonempty(tree.all("svg")))
    assert all(th.attributes.get("scope") in {"row", "col"} and th.text for th in nonempty(tree.all("th")))
    ids = [e.attributes["id"] for e in tree.walk() if "id" in e.attributes]
    assert len(ids) == len(set(ids))
    assert page == render(evolved())
    assert not re.search(r"https?:|//[a-z]|url\(|@import", page)
