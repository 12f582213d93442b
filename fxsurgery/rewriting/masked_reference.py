"""Reference for a resized program: the original program with the removed units set to zero.

The original program runs, and after each node the entries of removed units are set to 0. A contraction then sums over
the surviving units only, and everything else is unchanged. Where removal affects the values of other units (a norm,
mean, or softmax over the units: `Structure.inexact_nodes`), the node runs on the surviving entries alone, and its
result is scattered back into zeros. Recurrent layers run at full size, with the removed slices of their weights zeroed.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree
from typing_extensions import override

from fxsurgery.analysis.refit import refit
from fxsurgery.analysis.structure import Mask, Structure
from fxsurgery.inputs import Inputs
from fxsurgery.ops.labels import Labels
from fxsurgery.ops.union_find import Ids
from fxsurgery.program import Program
from fxsurgery.rewriting.surviving_sizes import SurvivingSizes


def masked_reference(program: Program, facts: Structure, keep: Mask) -> Callable[[Program, Inputs], list[Tensor]]:
    """Return a function that computes the expected outputs from the resized program and inputs.

    Args:
        program: the program before it is resized.
        facts: its structure.
        keep: whether each id survives.
    """

    def outputs(result: Program, inputs: Inputs) -> list[Tensor]:
        run = _MaskedRun(program, result, facts, keep)
        with torch.no_grad():
            found = run.run(*inputs.clone().leaves, enable_io_processing=False)
        return [leaf for leaf in pytree.tree_leaves(found) if isinstance(leaf, Tensor)]

    return outputs


class _MaskedRun(fx.Interpreter):
    """Run a program with the removed units set to zero."""

    def __init__(self, program: Program, result: Program, facts: Structure, keep: Mask) -> None:
        super().__init__(program.graph_module)
        self._after, self._facts, self._keep = SurvivingSizes(facts, keep), facts, keep
        self._result = result.graph_module
        self._twins = {n.name: n for n in result.nodes}
        self._own_batch = program.examples.batch or 1

    @override
    def run_node(self, n: fx.Node) -> Any:
        if n.name in self._facts.inexact_nodes and n.name in self._twins and self._loses(n):
            return self._on_survivors(n)
        value = super().run_node(n)
        if n.op == "get_attr":
            value = pytree.tree_map_only(Tensor, lambda t: t.detach().clone(), value)
        return value if n.op == "output" else self._each(n, value, self._silent)

    @override
    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        module = self.fetch_attr(target)
        if not isinstance(module, nn.RNNBase):
            return super().call_module(target, args, kwargs)
        own = dict[str, Tensor]()
        for name, parameter in module.named_parameters():
            for dim, ids in self._facts.tensors.get(f"{target}.{name}", {}).items():
                own[name] = own.get(name, parameter.detach()).index_fill(dim, self._index(~self._keep[ids]), 0.0)
        return refit(module, own)(*args, **kwargs)

    def _loses(self, node: fx.Node) -> bool:
        """Return True if units are removed from a node's inputs, outputs, or own tensors."""
        flowing = [self._facts.values[n.name] for n in (node, *node.all_input_nodes)]
        found = [v for v in pytree.tree_leaves(flowing, is_leaf=_is_labels) if isinstance(v, Labels)]
        return any(not self._keep[ids].all() for labels in found for ids in self._facts.along(labels).values())

    def _on_survivors(self, node: fx.Node) -> Any:
        twin = self._twins[node.name]
        names = {n.name: n for n in self.env}

        def sliced(read: fx.Node) -> Any:
            original = names.get(read.name)
            if original is None:
                return self._number(read)
            if not isinstance(self.env[original], (Tensor, tuple, list)):
                # An unchanged number comes from this run, whose batch size may differ from the example's.
                stale = self._after.is_stale(original)
                return self._after.number(original) if stale else self.env[original]
            return self._each(original, self.env[original], self._survivors)

        args, kwargs = fx.node.map_arg((twin.args, twin.kwargs), sliced)
        if twin.op == "call_module":
            value = self._result.get_submodule(str(twin.target))(*args, **kwargs)
        elif twin.op == "call_method":
            value = getattr(args[0], str(twin.target))(*args[1:], **kwargs)
        else:
            value = self.call_function(twin.target, args, kwargs)
        return self._each(node, value, self._put_back)

    def _number(self, node: fx.Node) -> Any:
        """Compute a number that only the resized graph contains."""
        args = fx.node.map_arg(node.args, lambda n: self._after.number(n) if n.name in self._twins else n)
        return self.call_function(node.target, args, {})

    def _each(self, node: fx.Node, value: Any, change: Callable[[Tensor, dict[int, Ids]], Tensor]) -> Any:
        """Apply `change` to every tensor of a value along its labeled dims that lose units."""
        known = self._facts.values[node.name]
        if isinstance(value, Tensor) and isinstance(known, Labels):
            losing = self._losing(value, known, change)
            return change(value, losing) if losing else value
        leaves = pytree.tree_leaves(value)
        labels = pytree.tree_leaves(known, is_leaf=_is_labels)
        if len(labels) != len(leaves):
            return value
        new = list[Any]()
        for leaf, found in zip(leaves, labels, strict=True):
            known_tensor = isinstance(found, Labels) and isinstance(leaf, Tensor)
            losing = self._losing(leaf, found, change) if known_tensor else {}
            new.append(change(leaf, losing) if losing else leaf)
        return pytree.tree_unflatten(new, pytree.tree_structure(value))

    def _losing(self, leaf: Tensor, labels: Labels, change: Callable[..., Tensor]) -> dict[int, Ids]:
        """Return the ids along each dim that loses units, for the batch size of `leaf`."""
        found = dict[int, Ids]()
        for dim, ids in self._facts.along(labels).items():
            kept = int(self._keep[ids].sum())
            if kept < len(ids):
                short = change == self._put_back
                found[dim] = self._at_batch(ids, len(ids) * leaf.shape[dim] // kept if short else leaf.shape[dim])
        return found

    def _at_batch(self, ids: Ids, size: int) -> Ids:
        """Return the ids along a dim that the batch is folded into, for a different batch size."""
        if len(ids) == size:
            return ids
        one, samples = len(ids) // self._own_batch, self._own_batch
        if (ids.reshape(samples, one) == ids[:one]).all():
            return np.tile(ids[:one], size // one)
        return np.repeat(ids.reshape(one, samples)[:, 0], size // one)

    def _index(self, chosen: Mask) -> Tensor:
        return torch.from_numpy(np.flatnonzero(chosen))

    def _silent(self, value: Tensor, losing: dict[int, Ids]) -> Tensor:
        """Zero the removed entries in place, so that later writes to a view of `value` still reach it."""
        if any(step == 0 and n > 1 for step, n in zip(value.stride(), value.shape, strict=True)):
            value = value.clone()
        for dim, ids in losing.items():
            value.index_fill_(dim, self._index(~self._keep[ids]).to(value.device), 0)
        return value

    def _survivors(self, value: Tensor, losing: dict[int, Ids]) -> Tensor:
        for dim, ids in losing.items():
            value = value.index_select(dim, self._index(self._keep[ids]).to(value.device))
        return value

    def _put_back(self, value: Tensor, losing: dict[int, Ids]) -> Tensor:
        for dim, ids in losing.items():
            shape = [len(ids) if d == dim else n for d, n in enumerate(value.shape)]
            index = self._index(self._keep[ids]).to(value.device)
            value = value.new_zeros(shape).index_copy(dim, index, value)
        return value


def _is_labels(value: object) -> bool:
    return isinstance(value, Labels)
