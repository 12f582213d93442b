"""The ATen operations of a propagation: the labels of their results, and their work."""

# ruff: noqa: ANN401 -- values of the user's graph

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from typing_extensions import override

from fxsurgery.analysis.fast_aten import run_on_meta
from fxsurgery.analysis.macs import has_unknown_macs, macs_of
from fxsurgery.ops import registry
from fxsurgery.ops.facets import SizeRule
from fxsurgery.ops.labels import Labels
from fxsurgery.ops.propagation_state import PropagationState, Work
from fxsurgery.ops.rules.call import AtenCall, base_name

ATEN = torch.ops.aten


class AtenCalls(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Observes the ATen operations that a program runs while the mode is active.

    Args:
        state: where rules record which units are tied and which are frozen; `state.node` is the current node.
        fixed: ids of the tensors that depend on no input.
        moving: names of the nodes that depend on an input.
        batch: number of samples in the run.
    """

    def __init__(self, state: PropagationState, fixed: set[int], moving: set[str], batch: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.state = state
        self.uncounted: dict[str, None] = {}
        """Operations without MACs."""
        self.unknown_macs: dict[str, dict[str, None]] = {}
        """Nodes by operation."""
        self.hidden = self.in_module = False
        """For the current node: whether its sizes are out of reach of every rewrite, and whether it calls a module."""
        self._fixed, self._moving, self._batch = fixed, moving, batch
        self._labels: dict[int, Labels] = {}
        self._alive = list[Tensor]()

    @override
    def __torch_dispatch__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        del types
        result = run_on_meta(func, args, kwargs or {})
        self.meet(func, args, kwargs or {}, result)
        return result

    def known(self) -> list[Labels]:
        """Return the labels of every labeled tensor."""
        return [labels for labels in self._labels.values() if labels.planes]

    def labels(self, tensor: Tensor) -> Labels:
        """Return the labels of a tensor; a tensor that was not seen before has none."""
        if (known := self._labels.get(id(tensor))) is None:
            known = self.remember(tensor, Labels(tuple(tensor.shape)))
        return known

    def remember(self, tensor: Tensor, labels: Labels) -> Labels:
        """Record the labels of a tensor."""
        self._labels[id(tensor)] = labels
        self._alive.append(tensor)
        return labels

    def current(self, tensor: Tensor) -> Labels:
        """Return the current labels of a tensor in the form that rules take."""
        labels = self.labels(tensor)
        self.state.refresh(labels)
        return Labels(labels.shape, list(labels.planes), labels.version)

    def meet(self, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: object) -> None:
        """Process one ATen operation."""
        results = (result,) if isinstance(result, Tensor) else tuple(tensors_of(result))
        if not results:
            return
        if base_name(op) == "as_strided" and _is_reshape(args[0], results[0]):
            op, args = ATEN.view.default, (args[0], list(results[0].shape))
        call = AtenCall(op, self._given(args), {k: self._given(v) for k, v in kwargs.items()}, results)
        self.state.op, self.state.work_dims = call.name, ()
        for tensor, labels in zip(results, self._outcome(call), strict=True):
            self.remember(tensor, labels)
        self._count(call, args, kwargs, result)

    def _given(self, value: Any) -> Any:
        """Return the arguments with labels in place of tensors; ATen nests no deeper than lists."""
        if isinstance(value, Tensor):
            return self.current(value)
        if isinstance(value, (list, tuple)) and not all(type(v) is int for v in value):
            return type(value)(map(self._given, value))
        return value

    def _outcome(self, call: AtenCall) -> Sequence[Labels]:
        rule = registry.rule_of(call.op)
        if rule is not None and not self._hides_a_shape(call):
            return self._keep_constants(call, rule(self.state, call))
        labeled = [t for t in call.tensors() if t.planes]
        if labeled and rule is None:
            self.state.unknown.setdefault(call.name, []).append(self.state.node)
        for labels in labeled:
            self.state.freeze_all(labels)
        return [Labels(tuple(r.shape)) for r in call.results]

    def _keep_constants(self, call: AtenCall, results: Sequence[Labels]) -> Sequence[Labels]:
        """Freeze the dims whose size a norm or grouped convolution takes as a number that no rewrite can change."""
        if not self.hidden:
            return results
        sizes = None if (declared := registry.of_aten(call.op)) is None else declared.sizes
        if sizes is None:
            return results
        grouped = sizes.rule is SizeRule.GROUPS and self.state.node in self.state.group_width
        if grouped or sizes.rule is SizeRule.NORMALIZED:
            for labels in results:
                self.state.freeze_all(labels)
        return results

    def _hides_a_shape(self, call: AtenCall) -> bool:
        """Return True if labeled data is reshaped by numbers that no rewrite can change."""
        if not self.hidden:
            return False
        declared = registry.of_aten(call.op)
        return declared is not None and declared.states_sizes and any(t.planes for t in call.tensors())

    def _count(self, call: AtenCall, args: Sequence[Any], kwargs: dict[str, Any], result: object) -> None:
        macs, is_fixed = macs_of(call.op, args, kwargs, result), self._note_fixed(args, call.results)
        if macs is not None:
            # What depends on no input is done once for the whole batch.
            share = macs if is_fixed else macs / self._batch
            self.state.work.append(Work(self.state.node, call.name, share, self.state.work_dims))
        elif (declared := registry.of_aten(call.op)) is None or declared.computes:
            self.uncounted[call.name] = None
            if has_unknown_macs(call.op):
                self.unknown_macs.setdefault(call.name, {})[self.state.node] = None

    def _note_fixed(self, args: Sequence[Any], results: Sequence[Tensor]) -> bool:
        """Return True if an operation works only on parameters; its result then counts as a parameter."""
        if self.state.node in self._moving and not self.in_module:
            return False
        lists = (a if isinstance(a, (list, tuple)) else (a,) for a in args)
        given = [id(a) for members in lists for a in members if isinstance(a, Tensor)]
        is_fixed = self._fixed.issuperset(given) and bool(given or not self.in_module)
        if is_fixed:
            self._fixed.update(map(id, results))
        return is_fixed


def _is_reshape(source: Tensor, result: Tensor) -> bool:
    """Return True if a strided view shows all entries of its source in order.

    When the view is written in place, as pooling to one position does to keep channels last, its rows must be in order.
    """
    if source is result:
        return bool(result.dim() > 1 and result.numel() == len(result) * result.stride(0) and result.stride(1) == 1)
    whole = source.numel() == result.numel() and source.storage_offset() == result.storage_offset()
    return bool(whole and source.is_contiguous() and result.is_contiguous())


def tensors_of(value: Any) -> Iterator[Tensor]:
    """Yield the tensors of a nested value."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple, dict)):
        for leaf in pytree.tree_leaves(value):
            if isinstance(leaf, Tensor):
                yield leaf
