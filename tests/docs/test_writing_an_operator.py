"""The guide to declaring an operator: its blocks run as they stand, in order, and print what it says they print."""

import re
from dataclasses import fields

import pytest

from fxsurgery.ops import pointwise
from fxsurgery.ops.operator import Operator
from guides import DOCS, Guide
from nonempty import nonempty

NAME = "writing-an-operator.md"


@pytest.fixture(scope="module")
def guide() -> Guide:
    return Guide.run(NAME)


def test_what_is_printed_is_what_the_guide_says(guide):
    assert len(guide.printed) == 3
    for printed, said in nonempty(guide.printed):
        assert printed == said


def test_every_fact_of_the_table_is_a_field():
    text = (DOCS / NAME).read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.*?) \|", text, re.MULTILINE)
    told = {name for row in nonempty(rows) for name in re.findall(r"`(\w+)`", row)}
    assert told <= {field.name for field in fields(Operator)}


def test_the_line_of_the_package_is_there():
    [line] = re.findall(r"^    (_function\(.*\)),$", (DOCS / NAME).read_text(encoding="utf-8"), re.MULTILINE)
    made = eval(line, vars(pointwise))
    assert made.modules == next(o for o in pointwise.ACTIVATIONS if o.name == made.name).modules
