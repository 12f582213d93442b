"""Counts the multiply-accumulates of a run by operation, and names operations that it cannot count."""

from collections.abc import Iterable
from typing import Any, Self

from torch import Tensor
from torch._ops import HigherOrderOperator
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from typing_extensions import override

from fxsurgery.analysis.macs import has_unknown_macs, macs_by_torch, macs_of
from fxsurgery.ops.rules.call import base_name

OUTSIDE = frozenset("numpy __array__ __dlpack__ data_ptr".split())
"""Methods that pass the values of a tensor to code outside PyTorch."""


class WorkCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the MACs of one sample; work that depends on no data is done once for the whole batch.

    Args:
        state: parameters and buffers.
        batch: number of samples in the run.
    """

    supports_higher_order_operators = True

    def __init__(self, state: Iterable[Tensor], batch: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.macs = 0.0
        self.unknown: dict[str, None] = {}
        self._batch = batch
        self._fixed = {id(tensor): tensor for tensor in state}
        self._outside = _Outside(self.unknown)

    @override
    def __enter__(self) -> Self:
        self._outside.__enter__()  # type: ignore[no-untyped-call]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    @override
    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._outside.__exit__(*error)  # type: ignore[no-untyped-call]

    @override
    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        is_fixed = self._note_fixed(args, result)
        macs = _macs(func, args, kwargs, result)
        if macs is not None:
            self.macs += macs if is_fixed else macs / self._batch
        elif _is_unknown(func, result):
            self.unknown[_name(func)] = None
        return result

    def _note_fixed(self, args: tuple[Any, ...], result: object) -> bool:
        """Return True if an operation works only on parameters; its result then counts as a parameter."""
        given = [leaf for leaf in pytree.tree_leaves(args) if isinstance(leaf, Tensor)]
        if not given or not all(id(tensor) in self._fixed for tensor in given):
            return False
        self._fixed |= {id(leaf): leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)}
        return True


class _Outside(TorchFunctionMode):
    """Records where values leave PyTorch."""

    def __init__(self, unknown: dict[str, None]) -> None:
        super().__init__()
        self._unknown = unknown

    @override
    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        if getattr(func, "__name__", "") in OUTSIDE:
            self._unknown["NumPy, or other code outside PyTorch"] = None
        return func(*args, **(kwargs or {}))


def _macs(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> float | None:  # noqa: ANN401
    if not isinstance(func, HigherOrderOperator):
        return macs_of(func, args, kwargs, result)
    return macs_by_torch(func, args, kwargs, result)


def _is_unknown(func: Any, result: object) -> bool:  # noqa: ANN401
    if isinstance(func, HigherOrderOperator):
        return True
    return any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(result)) and has_unknown_macs(func)


def _name(func: Any) -> str:  # noqa: ANN401
    return str(func) if isinstance(func, HigherOrderOperator) else base_name(func)
