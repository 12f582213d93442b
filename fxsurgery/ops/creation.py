"""Operators that create tensors from numbers, or with the size and dtype of another tensor."""

from fxsurgery.ops.operator import Kind, Operator
from fxsurgery.ops.rules.call import Rule
from fxsurgery.ops.rules.movement import creation, same


def _made(name: str, rule: Rule | None = creation, *, creates: bool = False, apart: bool = False) -> Operator:
    return Operator(
        name=name,
        kind=Kind.CREATION,
        creates=creates,
        takes_sizes_apart=apart,
        rule=rule,
        computes=rule is None,
    )


def _without_rule(name: str) -> Operator:
    return _made(name, None)


DECLARED = (
    *(_made(name, creates=True, apart=True) for name in ("zeros", "ones", "empty")),
    *(_made(name, creates=True) for name in ("arange", "eye", "full", "linspace")),
    *(_made(name, None, creates=True) for name in ("as_tensor", "tensor")),
    *map(
        _made,
        "logspace scalar_tensor empty_strided new_zeros new_ones new_full new_empty new_empty_strided".split(),
    ),
    *(_made(name, same) for name in ("zeros_like", "ones_like", "full_like", "empty_like")),
    *map(
        _without_rule,
        "range asarray new_tensor tril_indices triu_indices bartlett_window blackman_window hamming_window hann_window "
        "kaiser_window fill zero".split(),
    ),
)
