import re

import pytest
import torch
from torch import nn

from fxsurgery import capture
from fxsurgery.errors import DataError, first_line, reason_of, typed_reason


@pytest.mark.parametrize(
    ("error", "reason", "line", "typed"),
    [
        (ValueError("no 3"), "no 3", "no 3", "ValueError: no 3"),
        (RuntimeError("\nsize 3\nat line 7\n"), "size 3\nat line 7", "size 3", "RuntimeError: size 3\nat line 7"),
        (AssertionError(), "AssertionError", "AssertionError", "AssertionError"),
        (AssertionError(" \n"), "AssertionError", "AssertionError", "AssertionError"),
        (KeyError("x"), "'x'", "'x'", "KeyError: 'x'"),
    ],
)
def test_an_error_is_quoted_with_its_text_or_its_type(error, reason, line, typed):
    assert (reason_of(error), first_line(error), typed_reason(error)) == (reason, line, typed)
    assert typed_reason(error, short=True) == typed.splitlines()[0]


class Silent(nn.Module):
    """Refuses its input without a word."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.dim() != 4:
            raise AssertionError
        return x


def test_a_model_that_refuses_without_a_word_leaves_no_hole_in_the_message():
    said = "example inputs of shape (2, 3): AssertionError; pass inputs that its forward takes"
    with pytest.raises(DataError, match=re.escape(said)):
        capture(Silent(), torch.zeros(2, 3))
