"""Results of examining a site: a match, or a refusal with the reason why the site is left alone.

A function that looks for something to rewrite returns `Match[Plan]`, so `Plan | Refusal`; one that asks only whether
anything stands in the way returns `Refusal | None`.
"""

from dataclasses import dataclass
from typing import TypeAlias, TypeVar

from typing_extensions import override

T = TypeVar("T")


@dataclass(frozen=True)
class Refusal:
    """Why a site that looked like a match is left alone.

    Example:
        >>> str(Refusal("conv1", "conv1 is called 2 times"))
        'conv1 is called 2 times'
    """

    node: str
    """Name of the node, or path of the module, that prevents the rewrite."""
    reason: str

    @override
    def __str__(self) -> str:
        return self.reason


Match: TypeAlias = T | Refusal
"""A match, or the refusal of one."""
