"""The guide to writing an operator: its blocks run as they stand, in order, and print what it says they print."""

import dataclasses
import re

import pytest

from fxsurgery.errors import VerifyError
from fxsurgery.ops import registry
from fxsurgery.ops.labels import Labels
from fxsurgery.ops.operator import Operator
from fxsurgery.passes import PruneChannels
from guides import DOCS, Guide
from nonempty import nonempty

NAME = "writing_an_operator.md"


@pytest.fixture(scope="module")
def guide():
    before = registry._DECLARED
    try:
        yield Guide.run(NAME)
    finally:
        registry._put(before)


def test_what_is_printed_is_what_the_guide_says(guide):
    assert len(guide.printed) == 4
    for printed, said in nonempty(guide.printed):
        assert printed == said


def test_the_fields_in_its_tables_are_those_of_a_declaration():
    text = (DOCS / NAME).read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`[^|]+`) \|", text, re.MULTILINE)
    named = {name for row in nonempty(rows) for name in re.findall(r"`(\w+)`", row)}
    assert named <= {field.name for field in dataclasses.fields(Operator)}


def test_a_wrong_rule_is_found_by_the_proof_as_the_guide_says(guide):
    wrong = dataclasses.replace(
        guide.space["operator"], rule=lambda _, call: [Labels(call.shape, list(call.args[0].planes))]
    )
    with registry.declared(wrong), pytest.raises(VerifyError, match="prune-channels"):
        PruneChannels((("first", (0,)),))(guide.space["small"])
