"""Annotations in words, values of any size."""

from typing import Annotated, Literal

import pytest

from fxsurgery.option_text import Wording, constraints, demand, expected, shown
from fxsurgery.option_types import Count, OptionalFilePath, Range
from fxsurgery.request import Argument

Optional = Annotated[int, Range(least=1, below=5)] | None


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (Literal["a", "b"], "'a' or 'b'"), (Literal["a", "b"] | None, "'a', 'b' or None"),
        (Annotated[Literal["a", "b"] | None, Argument()], "'a', 'b' or None"), (int | float, "a finite number"),
        (Optional, "a whole number, at least 1 and less than 5 or None"),
        (Annotated[Optional, Argument()], "a whole number, at least 1 and less than 5 or None"),
        (Annotated[float | None, Range(above=0)], "greater than 0 (a finite number or None)"),
        (Annotated[Count, Argument()], "a whole number, at least 1 and less than 2**31"),
        (OptionalFilePath, "not empty and without null bytes (a str or a Path) or None"),
    ],
)  # fmt: skip
def test_an_annotation_in_words(hint, words: str):
    assert expected(hint) == words


def test_a_bound_is_told_alone_and_other_words_take_its_place():
    assert demand(Optional, 9, is_bound=True) == ": it must be at least 1 and less than 5"
    assert demand(Optional, "a", is_bound=False).startswith(": it must be a whole number, at least 1")
    assert demand(Annotated[int, Range(least=1, said=": no step")], 0, is_bound=True) == ": no step"
    named = Annotated[Literal["a"], Wording(": no {value}; there are: a")]
    assert demand(named | None, "c", is_bound=True) == ": no 'c'; there are: a"
    assert demand(int, 2**70, is_bound=False) == ": it must be a whole number of at most 63 bits"


def test_constraints_are_found_within_a_choice():
    assert constraints(Annotated[Optional, Argument()]) == [Range(least=1, below=5)]
    assert constraints(int | None) == []


def test_no_value_makes_a_long_message():
    for value in ("a" * 10**6, [["b" * 10**6] * 10**4], 10**5000, {1: object()}):
        assert len(shown(value)) < 500
