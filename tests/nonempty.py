"""Guards for assertions about each of several values: about none, they would hold whatever the code does."""

from collections.abc import Iterable
from typing import TypeVar

T = TypeVar("T")


def nonempty(values: Iterable[T]) -> list[T]:
    """Return the values as a list.

    Raises:
        AssertionError: there are none.
    """
    found = list(values)
    assert found, "there is nothing here to assert anything about"
    return found


def possibly_empty(values: Iterable[T]) -> Iterable[T]:
    """Return the values as they are: none of them is a valid answer here, and another test asserts that there are some.

    `test_tests.py` lists the files that may use it.
    """
    return values
