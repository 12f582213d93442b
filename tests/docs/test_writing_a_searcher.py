"""The guide to writing a searcher: its own test passes, and what it quotes is there."""

import inspect
import re

import guides
from fxsurgery.training import Batch, sandwich

NAME = "writing-a-searcher.md"


def test_the_guides_own_test_passes():
    [test] = [test for name, test in guides.run(NAME).space.items() if name.startswith("test_")]
    assert test() is None


def test_the_loop_that_it_quotes_is_that_of_the_library():
    [quoted] = re.findall(r"^```\n(for .*?)^```$", guides.page_of(NAME), re.DOTALL | re.MULTILINE)
    source = [line.strip() for line in inspect.getsource(sandwich).splitlines()]
    lines = [line.strip() for line in quoted.splitlines()]
    assert len(lines) == 6
    assert any(source[i : i + 6] == lines for i in range(len(source)))


def test_all_that_a_batch_holds_and_does_is_in_its_table():
    table = set(re.findall(r"`(\w+)", guides.page_of(NAME)))
    does = {n for n, f in vars(Batch).items() if inspect.isfunction(f) and not n.startswith("_")} - {"weighted"}
    assert does == {"predict", "loss", "backward", "precision", "copy"}
    assert does | {"inputs", "target", "step", "steps", "epoch", "stage"} <= table
