"""No test asserts of nothing: each has something to assert on every path, and about values that are there."""

import textwrap

import pytest

from nonempty import nonempty, possibly_empty
from sources import Sources
from vacuous import findings

MAY_BE_EMPTY = {
    "analysis/test_fast_shapes.py", "conformance/promises.py", "conformance/test_other_sizes.py",
    "raised.py",
    "searchers/ectonas/test_brackets.py", "test_pass_contract.py", "test_tests.py",
    "training/test_meter.py",
}  # fmt: skip
"""Files that hold one rule to many samples, of which some have nothing that it is about."""


def test_every_test_asserts_something_that_can_fail():
    found = "\n".join(map(str, findings(Sources.of_tests())))
    assert not found, f"write nonempty(...) around what has to be there:\n{found}"


def test_few_files_take_none_for_an_answer():
    texts = Sources.of_tests().texts
    assert {name for name, text in nonempty(texts.items()) if "possibly_empty(" in text} == MAY_BE_EMPTY | {
        "nonempty.py"
    }


def test_nothing_to_assert_about_is_a_failure():
    assert nonempty(n for n in (1, 2)) == [1, 2]
    with pytest.raises(AssertionError, match="nothing here to assert anything about"):
        nonempty({})
    assert list(possibly_empty([])) == []


def test_an_empty_list_of_parameters_is_an_error(pytestconfig: pytest.Config):
    assert pytestconfig.getini("empty_parameter_set_mark") == "fail_at_collect"


def faults(body: str, before: str = "") -> list[str]:
    text = f"{textwrap.dedent(before)}\ndef test_it(given):\n{textwrap.indent(textwrap.dedent(body), '    ')}\n"
    return [finding.what for finding in findings(Sources({"test_it.py": text}))]


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ("assert given\nfor x in found():\n    assert x", "a loop that may have no turn"),
        ("assert given\nfor x in given:\n    assert x", "a loop that may have no turn"),
        ("assert given\nfor x in range(len(given)):\n    assert x", "a loop that may have no turn"),
        ("assert given\nfor x in range(3, 3):\n    assert x", "a loop that may have no turn"),
        ("assert given\nfor x in ():\n    assert x", "a loop that may have no turn"),
        ("assert given\nfor x, y in zip(given, [1]):\n    assert x", "a loop that may have no turn"),
        ("xs = list(given)\nassert given\nfor x in xs:\n    assert x", "a loop that may have no turn"),
        ("assert given\nfor x in given:\n    with pytest.raises(E):\n        x()", "a loop that may have no turn"),
        ("assert given\nfor x in given:\n    hold(x)", "a loop that may have no turn"),
        ("assert given\n[hold(x) for x in given]", "a loop that may have no turn"),
        ("assert all(x > 0 for x in given)", "all() of what may be none"),
        ("assert all(x > 0 for x in [1, 2] if x > given)", "all() of what may be none"),
        ("assert all(map(given, found()))", "all() of what may be none"),
        ("fine = all(x > 0 for x in given)\nassert fine", "all() of what may be none"),
        ("assert not any(x > 0 for x in given)", "not any() of what may be none"),
        ("assert set(given) <= {1, 2}", "the subset may be empty"),
        ("assert {1, 2} >= {x for x in given}", "the subset may be empty"),
        ("assert [x for x in given] == [x for x in found()]", "two collections, both of which may be empty"),
        ("found()", "a path on which nothing is asserted"),
        ("if given:\n    assert found()", "a path on which nothing is asserted"),
        ("if given:\n    return\nassert found()", "a path on which nothing is asserted"),
        ("try:\n    assert found()\nexcept ValueError:\n    pass", "a path on which nothing is asserted"),
        ("with suppress(ValueError):\n    assert found()", "a path on which nothing is asserted"),
        ("while given:\n    assert found()", "a path on which nothing is asserted"),
        ("maybe(given)", "a path on which nothing is asserted"),
        ("def inner():\n    assert given", "a path on which nothing is asserted"),
    ],
)  # fmt: skip
def test_what_may_hold_of_nothing_is_found(body: str, what: str):
    helpers = "def hold(x):\n    assert x\ndef maybe(x):\n    if x:\n        assert x > 1\n"
    assert faults(body, helpers) == [what]


@pytest.mark.parametrize(
    "body",
    [
        "for x in nonempty(given):\n    assert x",
        "for x in (1, 2):\n    assert x",
        "for x in {1: 2}.items():\n    assert x",
        "for x in [*given, 1]:\n    assert x",
        "for x in range(2, 5):\n    assert x",
        "for x in range(TURNS):\n    assert x",
        "for x in SIZES:\n    assert x",
        "for x, y in zip(SIZES, given, strict=True):\n    assert x",
        "sizes = [1, 2]\nfor x in sizes:\n    assert x",
        "for i, x in enumerate(itertools.product(SIZES, [1])):\n    assert x",
        "for x in given:\n    found(x)\nassert given",
        "assert all(x > given for x in SIZES)",
        "assert all(nonempty(x > 0 for x in given if x))",
        "assert all(m.training for m in given.modules())",
        "assert not any(x > given for x in SIZES)",
        "assert not [x for x in given if x > 0]",
        "assert {x for x in given} == {1, 2}",
        "assert set(nonempty(given)) <= {1, 2}",
        "if given:\n    assert found()\nelse:\n    assert not found()",
        "if given:\n    pytest.skip('none here')\nassert found()",
        "for x in given:\n    if x:\n        break\nassert x",
        "with pytest.raises(ValueError):\n    found()",
        "hold(given)",
        "through(given)",
        "torch.testing.assert_close(given, 1)",
        "def inner():\n    return given\nassert inner()",
    ],
)
def test_what_is_asserted_in_any_case_is_left_alone(body: str):
    before = """
        TURNS = 3
        SIZES = (1, 2)
        def hold(x):
            assert x
        def through(x):
            hold(x)
    """
    assert faults(body, before) == []
