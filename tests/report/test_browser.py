"""The page in a real browser: it loads without a complaint, asks for nothing, and shows the numbers."""

import html
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from evolutions import evolved
from fxsurgery.report import render
from fxsurgery.report.notebook import available
from fxsurgery.result import Result
from nonempty import nonempty
from report.pages import HOSTILE, latency, read, result

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((path for name in NAMES if (path := shutil.which(name))), None)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --no-first-run --hide-scrollbars --enable-logging=stderr "
    "--disable-background-networking --disable-component-update"
).split()

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium"),
]


def browse(page: str, folder: Path) -> tuple[str, list[str]]:
    """What the browser made of a page: its document, and what it said on the console."""
    (folder / "page.html").write_text(page, "utf-8")
    command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={folder / 'profile'}", "--dump-dom"]
    address = (folder / "page.html").as_uri()
    run = subprocess.run([*command, address], capture_output=True, text=True, timeout=120, check=True)
    return run.stdout, [line for line in run.stderr.splitlines() if ":CONSOLE" in line]


def test_it_loads_in_silence_and_shows_the_numbers(tmp_path: Path):
    given = result(notes=(HOSTILE,))
    document, said = browse(render(given, latency=latency(), date="2026-01-02"), tmp_path)
    assert said == []
    shown = read(document)
    before, after = given.cost
    cells = [td.text for td in shown.all("td")]
    assert {f"{before.params:,}", f"{after.params:,}", f"{before.macs:,}", f"{after.macs:,}", "0.8963"} <= set(cells)
    assert "0.512" in cells
    assert len(shown.all("figure")) == 4 + (len(shown.all("svg", class_="bar")) > 5)
    assert [li.text for li in shown.all("ul", class_="notes")[0].all("li")] == [HOSTILE]


def test_an_evolution_loads_in_silence_and_is_told_to_the_end(tmp_path: Path):
    given = evolved()
    document, said = browse(render(given), tmp_path)
    assert said == []
    shown = read(document)
    assert [len(shown.all("table", class_=name)) for name in ("steps", "front", "refusals")] == [1, 1, 1]
    assert len(shown.all("table", class_="tried")) == 4
    assert len(shown.all("figure", class_="chart lineage")) == 2


def test_what_would_ask_the_network_or_run_is_refused_aloud(tmp_path: Path):
    """Shows that silence means something."""
    intruded = render(result()).replace(
        "</main>", "</main><img src='https://example.invalid/x.png'><script>document.title = 'run'</script>"
    )
    document, said = browse(intruded, tmp_path)
    assert len(said) == 2
    assert all("Content Security Policy" in line for line in nonempty(said))
    assert "<title>run</title>" not in document


@pytest.mark.parametrize("width", [390, 1100])
@pytest.mark.parametrize("given", [result, evolved], ids=["smaller", "evolved"])
def test_nothing_sticks_out_of_the_screen(tmp_path: Path, given: Callable[[], Result], width: int):
    """In a frame, since a window cannot be that narrow; a script that is let in for this tells how wide it came out."""
    probe = "<script>parent.document.body.dataset.wide = [innerWidth, document.documentElement.scrollWidth]</script>"
    page = render(given(), latency=latency()).replace("default-src 'none'", "script-src 'unsafe-inline'")
    framed = html.escape(page.replace("</body>", f"{probe}</body>"))
    document, _ = browse(f'<body><iframe width="{width}" height="900" srcdoc="{framed}"></iframe></body>', tmp_path)
    [body] = read(document).all("body")
    inside, needed = body.attributes["data-wide"].split(",")
    assert int(inside) == width
    assert int(needed) <= width


@pytest.mark.parametrize("given", [result, evolved], ids=["smaller", "evolved"])
def test_cards_and_figures_load_in_silence_and_ask_the_network_for_nothing(tmp_path: Path, given: Callable[[], Result]):
    policy = "<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'; style-src 'unsafe-inline'\">"
    figures = [given().plot(name) for name in available(given())]
    parts = [given()._repr_html_(), latency()._repr_html_(), *(figure._repr_html_() for figure in figures)]
    document, said = browse(f"<!DOCTYPE html><meta charset='utf-8'>{policy}{''.join(parts)}", tmp_path)
    assert said == []
    shown = read(document)
    assert len(shown.all("svg")) == len(nonempty(figures)) + 1
    assert len(shown.all("table")) == 2
