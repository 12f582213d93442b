"""Text that is shown moves no cursor, hides nothing, and stays the lines that it is."""

import doctest
import unicodedata

import pytest

from fxsurgery import printable as module
from fxsurgery.printable import lines, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, é, 表, 🙂, NO-BREAK\u00a0SPACE", "plain, é, 表, 🙂, NO-BREAK\u00a0SPACE"),
        ("\x1b[2J\x07\r", r"\x1b[2J\x07\r"),
        ("\x9b31m\x85\x7f", r"\x9b31m\x85\x7f"),
        ("a\nb\tc\x00", r"a\nb\tc\x00"),
        ("\u202egpj.exe\u2066\u200f", r"\u202egpj.exe\u2066\u200f"),
        ("\u2028\u2029\ud800", r"\u2028\u2029\ud800"),
        ("[red]x[/red] [link=file:///]y", "[red]x[/red] [link=file:///]y"),
    ],
)
def test_what_is_not_shown_as_itself_is_written_out(text: str, shown: str):
    assert printable(text) == shown
    assert printable(shown) == shown


def test_no_control_or_bidirectional_character_is_left():
    everything = "".join(map(chr, range(0x110000)))
    left = printable(everything)
    assert not [c for c in left if unicodedata.category(c) in {"Cc", "Cs", "Zl", "Zp"}]
    steering = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
    assert not [c for c in left if unicodedata.bidirectional(c) in steering]
    left.encode()


def test_a_line_stays_one_and_what_is_to_be_kept_is_kept():
    assert lines(["note: a\nnote: b", "c"]) == "note: a\\nnote: b\nc"
    assert printable("a\nb\x1b", "\n") == "a\nb\\x1b"


def test_examples_of_the_module_are_right():
    found = doctest.testmod(module)
    assert found.attempted == 2
    assert found.failed == 0
