"""The page of the deploy chain names every step."""

import re

import guides
from fxsurgery.deploy.chain import STEPS


def test_every_step_has_a_row():
    rows = re.findall(r"^\| `(\w+)\(", guides.page_of("deploy.md"), re.MULTILINE)
    assert rows == [step.__name__ for step in STEPS.values()]
