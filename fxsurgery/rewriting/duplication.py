"""Decide which units can be duplicated without changing the outputs, and reweight their consumers.

A copy has the same value as its unit, so a consumer that sums `W[o, u] x[u]` computes the same from
`sum_k s[k] W[o, u] x[u_k]` with shares s that sum to 1. This requires a consumer with a weight of its own. A sum, a
softmax, or a product of two activations over units would count each copy; a norm over units is unaffected if all of
them have the same number of copies.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from fxsurgery.analysis.cached import cached
from fxsurgery.analysis.refit import is_computed, is_weight_normed
from fxsurgery.analysis.structure import Counts, Structure, structure
from fxsurgery.edit import Editor
from fxsurgery.errors import first_line
from fxsurgery.match import Refusal
from fxsurgery.ops.labels import Labels
from fxsurgery.ops.operator import Kind
from fxsurgery.ops.union_find import Ids
from fxsurgery.program import Program
from fxsurgery.proof import RUN_ERRORS
from fxsurgery.rewriting.resize import Shares, places, resize

_COUNTED = "it would count every copy of a unit"
_SUMMED = "a sum, a softmax or a recurrent layer over the units would count every copy of one"


@dataclass(frozen=True, eq=False)
class Duplication:
    """Which units of a program can be duplicated, and which consumers must be reweighted."""

    contracted: dict[str, int]
    """Parameters that multiply units, by name, with the dim along which they do."""
    blocked: dict[int, str]
    """Units that cannot be copied, with the node that would count every copy; an empty name if there may be several."""
    together: tuple[tuple[str, Ids], ...]
    """Nodes with a norm over these units, which must all have the same number of copies."""

    def obstacle(self, counts: Counts) -> Refusal | None:
        """Return the node that prevents this number of copies of each unit, with the reason, or `None`."""
        for unit in np.flatnonzero(counts > 1).tolist():
            if unit in self.blocked:
                return Refusal(self.blocked[unit] or "output", _COUNTED if self.blocked[unit] else _SUMMED)
        for node, ids in self.together:
            if len(set(counts[ids].tolist())) > 1:
                return Refusal(node, "it normalizes over units that would not all have the same number of copies")
        return None


@cached
def duplication(program: Program) -> Duplication:
    """Return which units of `program` can be copied."""
    facts = structure(program)
    nodes = {n.name: n for n in program.nodes}
    contracted, blocked = dict[str, int](), dict[int, str]()
    weighed = dict[int, set[str]]()
    first_names = {id(p): name for name, p in program.graph_module.named_parameters()}
    for contraction in facts.contractions:
        weight = _weight(program, nodes[contraction.node], facts)
        if weight is None:
            blocked |= dict.fromkeys(contraction.ids.tolist(), contraction.node)
        elif weight[0] is not None:
            contracted[first_names[id(weight[0])]] = weight[1]
            weighed.setdefault(id(weight[0]), set()).add(contraction.node)
    for user, parameter in _uses(program):
        name = first_names[id(parameter)]
        if name in contracted and user.name not in weighed[id(parameter)]:
            ids = facts.tensors.get(name, {}).get(contracted[name], np.zeros(1, np.int64))
            blocked |= dict.fromkeys(ids.tolist(), user.name)
    blocked |= dict.fromkeys(facts.ungateable, "")
    together, alone = list[tuple[str, Ids]](), dict[int, str]()
    for name in sorted(facts.inexact_nodes):
        vectors = [ids for value in _entering(facts, nodes[name]) for ids in facts.along(value).values()]
        if _is_norm(program, nodes[name]):
            together += [(name, ids) for ids in vectors if set(ids.tolist()) & facts.inexact]
        else:
            alone |= dict.fromkeys(facts.inexact & {u for ids in vectors for u in ids.tolist()}, name)
    blocked = {unit: node for unit, node in {**blocked, **alone}.items() if unit}
    return Duplication(contracted, blocked, tuple(together))


def duplicate(edit: Editor, counts: Counts, generator: torch.Generator) -> Refusal | None:
    """Duplicate units without changing the outputs.

    Args:
        edit: editor of the program.
        counts: number of copies of each id of `structure`, at least 1.
        generator: draws the shares with which consumers weight the copies.

    Returns:
        `None` on success. Otherwise the reason, with nothing edited: the copies would end up in a different order than
        the weights of their consumers, because the program lays out units in several ways at once.
    """
    if refusal := copies_mixed_up(edit.program, counts):
        return refusal
    resize(edit, structure(edit.program), counts, _shares(edit.program, counts, generator))
    return None


def copies_mixed_up(program: Program, counts: Counts) -> Refusal | None:
    """Return why the copies would end up in a different order than their consumers' weights, or `None`."""
    facts = structure(program)
    if _stand_in_rows(facts, counts):
        trial = Editor(program)
        resize(trial, facts, counts)
        try:
            after = structure(trial.finish("trial"))
        except RUN_ERRORS as error:
            return Refusal("output", f"the wider model would not run: {first_line(error)}")
        if not _kept_apart(program, after, counts):
            return Refusal(
                "output", "the copies of different channels would be mixed up, because they meet in more than one order"
            )
    return None


def _weight(program: Program, node: fx.Node, facts: Structure) -> tuple[nn.Parameter | None, int] | None:
    """Return the parameter that multiplies what a node sums over, with the dim; (None, 0) where whole groups pass."""
    if node.name in facts.group_width:
        return None, 0
    if node.op == "call_module":
        return _own_weight(program.module(node))
    operator = program.operator(node)
    if operator is None or operator.kind is not Kind.CONTRACTION or (place := operator.weight) is None:
        return None
    weight = place.argument.of_node(node)
    if place.inputs is None or not isinstance(weight, fx.Node) or weight.op != "get_attr":
        return None
    found = program.attribute(str(weight.target))
    return (found, place.inputs) if isinstance(found, nn.Parameter) else None


def _own_weight(module: nn.Module) -> tuple[nn.Parameter, int] | None:
    if is_computed(module) and not is_weight_normed(module):
        return None
    if isinstance(module, nn.RNNBase):
        # A second direction or layer multiplies its inputs by another parameter.
        return None if module.bidirectional else (module.get_parameter("weight_ih_l0"), 1)
    if not isinstance(module, (_ConvNd, nn.Linear)):
        return None
    name = "parametrizations.weight.original1" if is_weight_normed(module) else "weight"
    return module.get_parameter(name), 0 if isinstance(module, _ConvTransposeNd) else 1


def _uses(program: Program) -> Iterator[tuple[fx.Node, nn.Parameter]]:
    """Yield every parameter with each node that reads it."""
    for node in program.nodes:
        if node.op == "call_module":
            yield from ((node, parameter) for parameter in program.module(node).parameters())
        elif node.op == "get_attr" and isinstance(found := program.attribute(str(node.target)), nn.Parameter):
            yield from ((reader, found) for reader in node.users)


def _entering(facts: Structure, node: fx.Node) -> list[Labels]:
    values = [facts.values[n.name] for n in node.all_input_nodes]
    return [value for value in values if isinstance(value, Labels)]


def _is_norm(program: Program, node: fx.Node) -> bool:
    operator = program.operator(node)
    return operator is not None and operator.statistics in {"group", "trailing"}


def _shares(program: Program, counts: Counts, generator: torch.Generator) -> Shares:
    """Draw positive shares that sum to 1 over the copies of each unit, independently for each weight.

    With equal shares the copies would get equal gradients and stay identical in training.
    """
    facts, found = structure(program), dict[str, tuple[int, Tensor]]()
    for name, dim in duplication(program).contracted.items():
        ids = facts.tensors.get(name, {}).get(dim)
        if ids is None or (counts[ids] == 1).all():
            continue
        index, copy = places(ids, counts)
        units, inverse = np.unique(ids, return_inverse=True)
        draws = torch.rand(len(units), int(counts[ids].max()), generator=generator, dtype=torch.float64) + 0.5
        draws *= torch.arange(draws.shape[1]) < torch.from_numpy(np.asarray(counts[units], np.int64))[:, None]
        draws /= draws.sum(dim=1, keepdim=True)
        found[name] = (dim, draws[torch.from_numpy(inverse[index]), torch.from_numpy(copy)])
    return found


def _stand_in_rows(facts: Structure, counts: Counts) -> bool:
    """Return True if a copied unit has several consecutive entries in any vector, so that copy order matters."""
    return any(bool(((ids[1:] == ids[:-1]) & (counts[ids[1:]] > 1)).any()) for ids in facts.vectors())


def _kept_apart(program: Program, after: Structure, counts: Counts) -> bool:
    """Return True if the copies of each unit are separate units in the structure of the result."""
    owner = np.full(after.size, -1, np.int64)
    stride = int(counts.max())
    for name, dims in structure(program).tensors.items():
        for dim, ids in dims.items():
            if (counts[ids] == 1).all():
                continue
            index, copy = places(ids, counts)
            copied = counts[ids[index]] > 1
            roots = after.tensors.get(name, {}).get(dim, np.zeros(len(index), np.int64))[copied]
            labels = (ids[index] * stride + copy)[copied]
            taken = (owner[roots] >= 0) & (owner[roots] != labels)
            if taken.any() or not roots.all():
                return False
            owner[roots] = labels
            if (owner[roots] != labels).any():
                return False
    return True
