"""Infer the target sizes of a view after the shape of its input changed."""

import math
from collections.abc import Sequence


def infer_view_sizes(before: Sequence[int], now: Sequence[int], old: Sequence[int]) -> list[int] | None:
    """Infer the target sizes of a view after its input shape changed; `None` if ambiguous.

    Args:
        before: shape of the input before the change.
        now: shape of the input after it.
        old: target sizes of the view of `before`. The same dims are joined and split in the view of `now`.
    """
    found, at = list[int](), 0
    out = 0
    while out < len(old):
        first_in, first_out = at, out
        inner, outer, at, out = before[at] if at < len(before) else 1, old[out], at + 1, out + 1
        while inner != outer:
            if inner < outer and at < len(before):
                inner, at = inner * before[at], at + 1
            elif inner > outer and out < len(old):
                outer, out = outer * old[out], out + 1
            else:
                return None
        while out == len(old) and at < len(before):  # remaining dims of size 1
            at += 1
        group = _group(before[first_in:at], now[first_in:at], old[first_out:out])
        if group is None:
            return None
        found += group
    return found


def _group(before: Sequence[int], now: Sequence[int], old: Sequence[int]) -> list[int] | None:
    """Infer the sizes of one group of dims that a view joins and splits; leading sizes come from unchanged dims."""
    if tuple(before) == tuple(now):
        return list(old)
    pairs, found = list(zip(before, now, strict=True)), list[int]()
    for size in old[:-1]:
        while size > 1 and pairs and pairs[0] == (1, 1):
            pairs.pop(0)
        if size > 1:
            if not pairs or pairs[0][0] != pairs[0][1] or pairs[0][0] % size:
                return None
            pairs[0] = (pairs[0][0] // size,) * 2
        found.append(size)
    return [*found, math.prod(now_ for _, now_ in pairs)]
