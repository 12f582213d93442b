"""The guide to declaring an operator: the facts and lines that it names are there."""

import re
from dataclasses import fields

import guides
from fxsurgery.ops import pointwise
from fxsurgery.ops.operator import Operator
from nonempty import nonempty

NAME = "writing-an-operator.md"


def test_every_fact_of_the_table_is_a_field():
    text = guides.page_of(NAME)
    rows = re.findall(r"^\| (`.*?) \|", text, re.MULTILINE)
    told = {name for row in nonempty(rows) for name in re.findall(r"`(\w+)`", row)}
    assert told <= {field.name for field in fields(Operator)}


def test_the_line_of_the_package_is_there():
    [line] = re.findall(r"^    (_function\(.*\)),$", guides.page_of(NAME), re.MULTILINE)
    made = eval(line, vars(pointwise))
    assert made.modules == next(o for o in pointwise.ACTIVATIONS if o.name == made.name).modules
