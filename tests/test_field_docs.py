"""The texts under fields, from the source."""

from dataclasses import dataclass

from fxsurgery.field_docs import docs_of, one_line, own_docs, summary


@dataclass
class Base:
    """Of both."""

    first: int = 1
    """What comes
    first."""
    second: int = 2
    """Second."""
    bare: int = 3


@dataclass
class Child(Base):
    second: int = 4
    bare: int = 5
    """Told here.

    At length."""


def test_a_field_has_the_nearest_text():
    assert docs_of(Child) == {"first": "What comes\nfirst.", "second": "Second.", "bare": "Told here.\n\nAt length."}
    assert own_docs(Child) == {"second": "", "bare": "Told here.\n\nAt length."}


def test_a_summary_is_the_first_paragraph_in_one_line():
    assert summary(docs_of(Child)["bare"]) == "Told here."
    assert one_line(docs_of(Child)["first"]) == "What comes first."
