"""The page: what it says is what the result is, nothing of the user's is markup, and it needs nothing else."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from torch import nn

from fxsurgery.errors import RunError
from fxsurgery.report import render, write
from fxsurgery.report.formatting import DASH
from fxsurgery.result import BeforeAfter
from nonempty import nonempty
from report.pages import HOSTILE, HOSTILE_MODULE, latency, operated, program, read, result, rows


def figures(page: str) -> dict[str, list[str]]:
    [table] = read(page).all("table", class_="figures")
    return {re.split(r" (multiply|in memory|median)", name)[0]: cells for name, cells in rows(table).items()}


def test_table_has_the_results_own_numbers():
    given = result()
    before, after = given.cost
    table = figures(render(given))
    assert table["Parameters"] == [f"{before.params:,}", f"{after.params:,}", f"{after.params / before.params:.3f}"]
    assert table["MACs"] == [f"{before.macs:,}", f"{after.macs:,}", f"{after.macs / before.macs:.3f}"]
    assert table["Accuracy (validation)"] == ["0.9125", "0.9011", "0.988"]
    assert table["Accuracy (test)"] == ["0.9071", "0.8963", "0.988"]
    sizes = [4 * sum(p.numel() for p in m.state_dict().values()) for m in (given.original.graph_module, given.model)]
    assert table["Weights and buffers, bytes"][:2] == [f"{size:,}" for size in sizes]
    assert not any("Latency" in name for name in nonempty(table))


def test_every_number_of_a_metric_that_gives_several_is_in_the_table():
    table = figures(render(result(figures={"pixel accuracy (val)": BeforeAfter(0.5, 0.25)})))
    assert table["Pixel accuracy (val)"] == ["0.5000", "0.2500", "0.500"]


def test_latency_and_files_are_there_where_they_were_measured():
    page = render(result(), latency=latency())
    table = figures(page)
    assert table["Latency, ms"] == ["1.234", "0.617", "0.512"]
    assert table["ONNX file, bytes"] == ["54,321", "23,456", "0.432"]
    assert "95 % interval of the ratio 0.480 to 0.540" in page
    assert "busy" not in page
    assert "the machine was busy" in render(result(), latency=replace(latency(), contended=True))


def test_one_sentence_says_what_was_asked_and_what_came_out():
    given = result()
    before, after = given.cost
    [sentence] = read(render(given)).all("p", class_="sentence")
    macs, params = 100 * after.macs / before.macs, 100 * after.params / before.params
    assert sentence.text == (
        f"DNAL was asked for at most 50 % of the MACs: {macs:.1f} % of the MACs and {params:.1f} % of the parameters "
        "are left, and the test accuracy went from 0.9071 to 0.8963."
    )


def test_what_stays_is_not_said_to_go():
    page = render(result(metrics={"val": BeforeAfter(1.0, 1.00001), "val, not fine-tuned": BeforeAfter(1.0, 0.5)}))
    assert "and the validation accuracy stayed at 1.0000." in page
    assert figures(page)["Accuracy (validation, not fine-tuned)"] == ["1.0000", "0.5000", "0.500"]


@pytest.mark.parametrize(
    ("asked", "begins"),
    [
        ({}, r"\d+\.\d % of the MACs"),
        ({"method": "prune"}, r"Prune: \d"),
        ({"budget": {"params": 1000, "latency_ms": 2.5}}, r"Asked for at most 1,000 parameters and 2\.5 ms: \d"),
        ({"budget": {"latency_ms": 0.5}}, r"Asked for at most 50.% of the latency: \d"),
        ({"method": "dnal", "data_free": True, "budget": None}, r"Without data, DNAL: \d"),
    ],
)
def test_the_sentence_says_no_more_than_is_known(asked: dict, begins: str):
    [sentence] = read(render(result(asked=asked, metrics={}))).all("p", class_="sentence")
    assert re.match(begins, sentence.text)
    assert sentence.text.endswith("are left.")


def test_nothing_of_the_users_is_markup():
    original = program(stem=HOSTILE_MODULE)
    given = result(
        original=original,
        program=operated(original, HOSTILE_MODULE),
        metric_name=HOSTILE,
        metrics={HOSTILE: BeforeAfter(1.0, 0.5)},
        figures={HOSTILE: BeforeAfter(1.0, 0.5)},
        notes=(HOSTILE,),
        history=tuple({**record, "stage": HOSTILE} for record in result().history),
        asked={"method": HOSTILE, "budget": {HOSTILE: 0.5}, "model": HOSTILE, HOSTILE: {HOSTILE: HOSTILE}},
    )
    page = render(given, date=HOSTILE)
    tree = read(page)
    assert not tree.all("script")
    assert not tree.all("img")
    assert not any(nonempty(name.startswith("on") for e in tree.walk() for name in e.attributes))
    assert HOSTILE in tree.all("ul", class_="notes")[0].text
    assert any(HOSTILE_MODULE.replace("'", "\\'") in e.text or HOSTILE_MODULE in e.text for e in tree.all("code"))
    assert any(e.attributes.get("title") == HOSTILE_MODULE for e in tree.all("th"))


def test_page_asks_the_network_for_nothing_and_runs_nothing():
    page = render(result(), latency=latency(), date="2026-01-02")
    tree = read(page)
    assert not re.search(r"https?:|//[a-z]|url\(|@import", page)
    assert not {e.tag for e in tree.walk()} & {"script", "link", "img", "iframe", "object", "embed", "image", "use"}
    assert not {n for e in tree.walk() for n in e.attributes} & {"src", "href", "srcset"}
    [policy] = [e for e in tree.all("meta") if "http-equiv" in e.attributes]
    assert policy.attributes["content"] == "default-src 'none'; style-src 'unsafe-inline'"


def test_page_can_be_heard_and_printed():
    page = render(result(), latency=latency())
    tree = read(page)
    assert tree.all("html")[0].attributes["lang"] == "en"
    assert all(
        svg.attributes.get("aria-label") and svg.attributes["role"] == "img" for svg in nonempty(tree.all("svg"))
    )
    assert all(th.attributes.get("scope") in {"row", "col"} and th.text for th in nonempty(tree.all("th")))
    ids = [e.attributes["id"] for e in tree.walk() if "id" in e.attributes]
    assert len(ids) == len(set(ids))
    assert all(section.attributes["aria-labelledby"] in ids for section in nonempty(tree.all("section")))
    assert "prefers-color-scheme: dark" in page
    assert "@media print" in page


def test_every_layer_stands_with_its_widths():
    tree = read(render(result()))
    layers = {}
    for table in tree.all("table", class_="layers"):
        for row in table.all("tbody")[0].all("tr"):
            layers[row.all("th")[0].attributes["title"]] = (row.attributes["class"], [td.text for td in row.all("td")])
    assert layers["stem"][0] == "changed"
    assert layers["stem"][1][:2] == ["16", "8"]
    assert layers["blocks.0.0"][0] == "removed"
    assert layers["blocks.0.0"][1][1] == DASH
    assert layers["head"][0] == "fixed"
    assert layers["head"][1][:2] == ["4", "4"]
    added = [name for name, (state, _) in layers.items() if state == "added"]
    known = {n for n, m in result().model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    assert added
    assert known == {name for name, (state, _) in layers.items() if state != "removed"}


def test_log_notes_and_circumstances_are_told():
    given = result()
    tree = read(render(given, date="2026-01-02"))
    specs = [li.all("code")[-1].text for li in tree.all("ol", class_="log")[0].all("li")]
    assert specs == list(given.log)
    assert [li.text for li in tree.all("ul", class_="notes")[0].all("li")] == nonempty(given.notes)
    told = rows(tree.all("table", class_="circumstances")[0])
    assert told["seed"] == ["7"]
    assert told["date"] == ["2026-01-02"]
    assert told["settings.align"] == ["8"]


def test_a_result_without_training_gates_notes_or_metrics_has_a_page():
    original = program()
    given = result(original=original, program=original, history=(), gates=(), notes=(), metrics={}, asked={})
    tree = read(render(given))
    titles = [h.text for h in tree.all("h2")]
    assert "Gates" not in titles
    assert "Nothing was trained." in tree.text
    assert "None: the graph is that of the original." in tree.text
    assert "0 %" in [e.text for e in tree.all("span", class_="value")]


def test_figures_that_are_no_numbers_are_dashes():
    nan = float("nan")
    given = result(
        metrics={"val": BeforeAfter(nan, 0.5), "test": BeforeAfter(0.0, 0.0)},
        history=({"stage": "s", "step": 1, "steps": 1, "loss": nan, "metric": None, "lr": 0.0},),
        gates=(nan,),
    )
    page = render(given)
    assert figures(page)["Accuracy (validation)"] == [DASH, "0.5000", DASH]
    assert figures(page)["Accuracy (test)"] == ["0.0000", "0.0000", DASH]
    assert "nan" not in read(page).text


def test_equal_results_give_equal_bytes(tmp_path: Path):
    one, other = result(), result()
    assert render(one, latency=latency()) == render(other, latency=latency())
    first, second = (write(r, tmp_path / f"{i}.html").read_bytes() for i, r in enumerate((one, other)))
    assert first == second


def test_report_of_a_result_is_this_page(tmp_path: Path):
    given = result()
    path = given.report(tmp_path / "out.html", latency=latency(), title="Mine", date="2026-01-02")
    assert path.read_text("utf-8") == render(given, latency=latency(), title="Mine", date="2026-01-02")
    assert read(path.read_text("utf-8")).all("h1")[0].text == "Mine"


def test_names_that_utf8_cannot_hold_are_written(tmp_path: Path):
    page = write(result(notes=("half a pair: \ud800",)), tmp_path / "out.html")
    assert "half a pair: &#55296;" in page.read_text("utf-8")


def test_what_stands_in_the_way_of_the_file_is_an_error_of_ours(tmp_path: Path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RunError, match="file"):
        write(result(), tmp_path / "file" / "out.html")
    (tmp_path / "folder").mkdir()
    with pytest.raises(RunError, match="folder"):
        write(result(), tmp_path / "folder")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]
