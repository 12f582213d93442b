"""Remove channels, with all tensor slices that belong to them.

A unit is removed from all of its tensors at once (structure analysis). The result depends on what the unit still
contributes to its consumers:

* `leaves="nothing"`: it contributes 0 to each consumer. The result equals the program with these units masked, whose
  norms run over the remaining ones; this is proven on the example inputs.
* `leaves="constant"`: its producers and norms are scaled to 0 and their offsets stay, so it leaves a
  constant c, which is folded into the bias of every consumer: `b[o] += sum_k W[o, c, k] * c`. Equal to the masked
  program if no consumer sees zero padding; otherwise a refusal says so, and only shapes are promised.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from typing_extensions import override

from fxsurgery.analysis.gating import gate_plan
from fxsurgery.analysis.importance import least_important
from fxsurgery.analysis.refit import refit, scale_name
from fxsurgery.analysis.shared_modules import called_again
from fxsurgery.analysis.structure import Mask, Structure, head_dim_structure, structure
from fxsurgery.calls import checked_construction
from fxsurgery.edit import Editor, Reference
from fxsurgery.errors import SpecError
from fxsurgery.ops.propagation_state import Attention
from fxsurgery.program import Program
from fxsurgery.proof import itself
from fxsurgery.rewriting.constants import Leftover, leftovers, scale_silenced
from fxsurgery.rewriting.masked_reference import masked_reference
from fxsurgery.rewriting.resize import resize
from fxsurgery.surgery import Effect, Rewrite


@checked_construction
@dataclass(frozen=True)
class PruneChannels(Rewrite):
    """Remove units, given by channel group and position in it."""

    name: ClassVar[str] = "prune-channels"
    follows_structure: ClassVar[bool] = True
    drop: tuple[tuple[str, tuple[int, ...]], ...]
    """For each channel group, by name, the positions of the units to remove."""
    leaves: Literal["nothing", "constant"] = "nothing"
    attention: Attention = "heads"
    """The units of attention layers: whole `heads`, or the same channels of every head (`head_dim`)."""

    @classmethod
    @override
    def candidates(cls, program: Program, step: Callable[[int], int] | None = None) -> Iterator[Self]:
        """Yield the removal of the least important quarter of each channel group, by |gamma| (ECToNAS).

        Args:
            program: the program to change.
            step: returns the number of units to remove from a width, instead of a quarter; at least one unit stays.
        """
        for group in structure(program).groups:
            size = len(group.units)
            if cut := size // 4 if step is None else min(step(size), size - 1):
                move = cls(((group.name, least_important(program, group, cut)),))
                if not structure(program).empty_dims(move.keep(program)):
                    yield move

    def keep(self, program: Program) -> Mask:
        """Return the mask of the ids of `facts(program)` that stay.

        Raises:
            SpecError: a group or a position in it does not exist.
        """
        facts = self.facts(program)
        removed = list[int]()
        for name, positions in self.drop:
            group = facts.named(name)
            if beyond := [p for p in positions if not 0 <= p < len(group.units)]:
                raise SpecError(f"{name} has {len(group.units)} units; there is no unit {beyond[0]}; choose among them")
            removed += group.units[list(positions)].tolist()
        return facts.mask(np.asarray(removed, np.int64))

    def facts(self, program: Program) -> Structure:
        """Return the structure whose groups are named.

        Raises:
            SpecError: two options exclude each other.
        """
        if (self.leaves, self.attention) == ("constant", "head_dim"):
            raise SpecError(f"leaves={self.leaves!r}: it must be 'nothing', or, with attention='heads', 'constant'")
        return structure(program) if self.attention == "heads" else head_dim_structure(program)

    @override
    def rewrite(self, edit: Editor) -> Effect:
        program, keep = edit.program, self.keep(edit.program)
        if keep.all():
            edit.refuse("output", "there is no channel to remove")
            return Effect.EXACT
        facts = self.facts(program)
        resize(edit, facts, keep)
        reference = masked_reference(program, facts, keep) if self.leaves == "nothing" else _fold(edit, keep)
        if reference is not None:
            edit.prove_equal_to(reference)
        return Effect.LOSSY


def _fold(edit: Editor, keep: Mask) -> Reference | None:
    """Fold constants into biases; return the reference of the result, `None` if padding or a norm prevents equality."""
    reference = scale_silenced(edit.program, keep)
    exact = not set(np.flatnonzero(~keep).tolist()) & structure(edit.program).inexact
    if not exact:
        edit.refuse("output", "a norm, mean or softmax runs over removed channels: no masked program equals the result")
    removed = np.flatnonzero(~keep)
    if not np.isin(removed, gate_plan(edit.program).units).all():
        edit.refuse("output", "what removed channels contribute is read by something other than a layer with a bias")
        exact = False
    for left in leftovers(edit.program, reference, keep):
        if left.is_zero:
            continue
        if (module := _foldable(edit, left)) is None:
            edit.refuse(left.site.node, "the contribution of removed channels cannot be folded into this consumer")
            exact = False
            continue
        if left.obstacle:
            edit.refuse(left.site.node, f"the contribution of removed channels {left.obstacle}")
            exact = False
        path = str(left.site.node.target)
        kept = torch.from_numpy(np.flatnonzero(_kept_outputs(edit.program, path, module, keep)))
        bias = _bias_for(module, left.values)[kept.to(left.values.device)]
        resized = edit.module(path)
        old = resized.get_parameter("bias").detach() if module.bias is not None else torch.zeros_like(bias)
        edit.replace_module(path, _with_bias(resized, old + bias))
    return itself(reference) if exact else None


def _foldable(edit: Editor, left: Leftover) -> _ConvNd | nn.Linear | None:
    node = left.site.node
    module = edit.program.module(node) if node.op == "call_module" else None
    known = isinstance(module, (_ConvNd, nn.Linear)) and not isinstance(module, _ConvTransposeNd)
    return module if known and called_again(edit.program, str(node.target)) is None else None  # type: ignore[return-value]


def _kept_outputs(program: Program, path: str, module: _ConvNd | nn.Linear, keep: Mask) -> Mask:
    ids = structure(program).tensors.get(f"{path}.{scale_name(module)}", {}).get(0)
    return np.ones(module.weight.shape[0], bool) if ids is None else keep[ids]


def _bias_for(module: _ConvNd | nn.Linear, constants: Tensor) -> Tensor:
    """`sum_{c,k} W[o, c, k] * constants[c]`, (out channels,): the output of the layer for constant input."""
    weight = module.weight.detach().flatten(2).sum(2) if module.weight.dim() > 2 else module.weight.detach()
    groups = module.groups if isinstance(module, _ConvNd) else 1
    by_group = constants.reshape(groups, 1, -1)
    return (weight.reshape(groups, -1, weight.shape[1]) * by_group).sum(2).flatten()


def _with_bias(module: nn.Module, bias: Tensor) -> nn.Module:
    new = refit(module, {}, None)
    new.bias = nn.Parameter(bias, requires_grad=next(module.parameters()).requires_grad)
    return new
