"""Short texts: what they mean, and what is none."""

import pytest

from fxsurgery.budget import amount
from fxsurgery.config.parsers import assigned, shapes, value, whole_amount


@pytest.mark.parametrize(
    ("text", "number"),
    [("0.5", 0.5), ("50%", 0.5), ("1.0", 1.0), ("1", 1), ("300", 300), ("1e6", 1e6), ("1.2M", 1_200_000),
     ("20k", 20_000), ("2G", 2_000_000_000), (" 1_000 ", 1000), (".25", 0.25), (0.5, 0.5), (7, 7)],
)  # fmt: skip
def test_an_amount_is_the_number_that_it_says(text, number):
    assert amount(text) == number


@pytest.mark.parametrize(("text", "kind"), [("1", int), ("1.0", float), ("100%", float), ("1M", int)])
def test_an_amount_keeps_apart_a_count_of_one_and_the_whole(text: str, kind: type):
    assert type(amount(text)) is kind


@pytest.mark.parametrize("text", ["half", "", "0.5x", "5 percent", "1.2.3", "%", "1 000"])
def test_what_is_no_amount_is_refused_with_what_to_write(text: str):
    with pytest.raises(ValueError, match=r"write 0.5 or 50%"):
        amount(text)


def test_a_share_of_more_than_all_is_refused():
    with pytest.raises(ValueError, match=r"'150%' is more than all of it; write at most 100%"):
        amount("150%")
    with pytest.raises(ValueError, match="not a fraction such as 50%"):
        whole_amount("50%")


def test_an_amount_is_finite():
    with pytest.raises(ValueError, match="is too large"):
        amount("1e400M")


@pytest.mark.parametrize(
    ("given", "sizes"),
    [("3,224,224", [[3, 224, 224]]), ("3x8x8", [[3, 8, 8]]), ("10", [[10]]), ([3, 8, 8], [[3, 8, 8]]),
     (["3,8,8", "10"], [[3, 8, 8], [10]]), ([[3, 8], [10]], [[3, 8], [10]]), ([], [])],
)  # fmt: skip
def test_shapes_are_one_or_several(given, sizes):
    assert shapes(given) == sizes


@pytest.mark.parametrize("text", ["", "3,a", "3,,8", "-1,3", "0,3", "3.5"])
def test_what_is_no_shape_is_refused(text: str):
    with pytest.raises(ValueError, match="is not a shape"):
        shapes(text)


@pytest.mark.parametrize(
    ("text", "meant"),
    [("0.01", 0.01), ("true", True), ("taylor", "taylor"), ("[1, 2]", [1, 2]), ("1e-3", 1e-3),
     ('{name = "adamw"}', {"name": "adamw"}), ("None", "None")],
)  # fmt: skip
def test_a_value_is_read_as_toml_else_it_is_a_text(text: str, meant):
    assert value(text) == meant


def test_an_assignment_is_split_at_its_first_equals_sign():
    assert assigned("optimizer.name = a=b") == (("optimizer", "name"), "a=b")


@pytest.mark.parametrize("text", ["align", "=4", "align=", "", "a.=4", ".a=4", "a..b=4"])
def test_what_assigns_nothing_is_refused(text: str):
    with pytest.raises(ValueError, match="not of the form name=value"):
        assigned(text)
