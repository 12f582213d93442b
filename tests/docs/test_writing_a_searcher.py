"""The guide to writing a searcher: its blocks run as they stand, in order, and print what it says they print."""

import inspect
import re

import pytest
import torch

from fxsurgery.training import Batch, sandwich
from guides import DOCS, Guide
from nonempty import nonempty

NAME = "writing-a-searcher.md"


@pytest.fixture(scope="module")
def guide():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Guide.run(NAME)


def test_what_is_printed_is_what_the_guide_says(guide):
    assert len(guide.printed) == 4
    for printed, said in nonempty(guide.printed):
        assert printed == said


def test_the_guides_own_test_passes(guide):
    found = [test for name, test in guide.space.items() if name.startswith("test_")]
    assert len(found) == 1
    found[0]()


def test_the_loop_that_it_quotes_is_that_of_the_library():
    [quoted] = re.findall(r"^```\n(for .*?)^```$", (DOCS / NAME).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    source = [line.strip() for line in inspect.getsource(sandwich).splitlines()]
    lines = [line.strip() for line in quoted.splitlines()]
    assert len(lines) == 6
    assert any(source[i : i + 6] == lines for i in range(len(source)))


def test_all_that_a_batch_holds_and_does_is_in_its_table():
    table = set(re.findall(r"`(\w+)", (DOCS / NAME).read_text(encoding="utf-8")))
    does = {n for n, f in vars(Batch).items() if inspect.isfunction(f) and not n.startswith("_")} - {"weighted"}
    assert does == {"predict", "loss", "backward", "precision", "copy"}
    assert does | {"inputs", "target", "step", "steps", "epoch", "stage"} <= table
