"""What pydantic is asked beyond its own rules; `test_option_types.py` has the rest."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal, Protocol

import numpy as np
import pytest
import torch

from fxsurgery.option_types import Range
from fxsurgery.type_check import BOUNDS, faults


@dataclass
class Plain:
    """What pydantic knows no schema of."""

    other: "Method"


class Method(Protocol):
    def act(self) -> None: ...


FITS = [
    (1, float), (2**63 - 1, int), (-(2**63) + 1, float), (1e300, float),
    (None, Annotated[float | None, Range(above=0)]),
    (float("inf"), Annotated[float, Range(least=0, infinite=True)]), (Plain(None), Plain), (5, Method), ("a", Any),
    (MappingProxyType({"a": 1}), Mapping[str, Any]), ({"a"}, Collection[str]), ((1, 2), tuple[int, ...]),
    (iter([1]), Iterable[int]), (5, ClassVar[str]), ("a", Literal["a", "b"] | None),
]  # fmt: skip
FITS_NOT = [
    (True, float), (True, int), (1.0, int), (2**63, int), (2**63, float), (float("nan"), float), ("1", float),
    (torch.tensor(0.5), float), (np.float32(0.5), float), (0, Annotated[float | None, Range(above=0)]),
    (float("nan"), Annotated[float, Range(least=0, infinite=True)]), (5, Plain), ("ab", Collection[str]),
    ("ab", Iterable[str]), ([1], tuple[int, ...]), ((1, 2**70), tuple[int, ...]), ({1: 2}, Mapping[str, Any]),
    ({"other": None}, Plain), ("c", Literal["a", "b"]),
]  # fmt: skip


@pytest.mark.parametrize(("value", "hint"), FITS)
def test_what_fits(value: object, hint: Any):
    assert not faults(value, hint)


@pytest.mark.parametrize(("value", "hint"), FITS_NOT)
def test_what_does_not_fit(value: object, hint: Any):
    assert faults(value, hint)


def test_a_value_of_the_right_type_breaks_a_bound():
    assert faults(0, Annotated[int, Range(least=1)]) <= BOUNDS
    assert faults("c", Literal["a", "b"]) <= BOUNDS
    assert not faults("a", Annotated[int, Range(least=1)]) <= BOUNDS


def test_an_iterable_is_not_used_up():
    once = iter([1, 2])
    assert not faults(once, Iterable[int])
    assert list(once) == [1, 2]
