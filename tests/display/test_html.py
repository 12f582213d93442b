"""Cards are markup of a few kinds; whatever text is in them is text."""

from fxsurgery.display import Html, bar, card, listing, table
from nonempty import nonempty
from report.pages import read

MARKUP = "<script>alert(1)</script>' \" onload=x &lt;b&gt; \x1b[2J\u202e"


def test_all_text_is_escaped():
    page = read(
        card(MARKUP, MARKUP, table((MARKUP, MARKUP), [(MARKUP, bar(0.5, MARKUP))]), listing(MARKUP, [MARKUP] * 2))
    )
    assert {e.tag for e in page.walk()} == {
        "page",
        "div",
        "p",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "span",
        "ul",
        "li",
    }
    assert {name for e in page.walk() for name in e.attributes} == {"style"}
    assert page.text.count("<script>alert(1)</script>") == 9
    assert "\x1b" not in page.text
    assert r"\x1b[2J\u202e" in page.text


def test_columns_of_bars_are_aligned_left_with_their_heads():
    page = read(table(("name", "bar", "number"), [("a", bar(1.0, "x"), "1")]))
    sides = [e.attributes["style"].partition("text-align:")[2].partition(";")[0] for e in nonempty(page.all("th"))]
    assert sides == ["left", "left", "right"]


def test_bars_stay_within_their_room():
    assert all("width:8.00em" in bar(share) for share in (1.0, 7.0, float("inf")))
    assert "width:0.00em" in bar(-1.0)


def test_a_long_list_is_cut():
    items = read(listing("notes", [str(i) for i in range(20)], limit=5)).all("li")
    assert [item.text for item in items] == ["0", "1", "2", "3", "4", "and 15 more"]
    assert listing("notes", []) == ""
    assert isinstance(listing("notes", ["a"]), Html)
