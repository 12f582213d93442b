"""Ratios for containers and patterns, whose layers share channels with layers outside of them."""

import numpy as np
import pytest
import torch
from torch import nn

from fxsurgery import capture
from fxsurgery.analysis.structure import structure
from fxsurgery.program import Program
from fxsurgery.searchers.common.width_constraints import WidthConstraints
from fxsurgery.searchers.common.width_selection import select_widths
from fxsurgery.searchers.common.widths import pruned, space
from zoo import ZOO, Encoder, example


def encoder() -> tuple[nn.Module, Program]:
    model = Encoder().eval()
    return model, capture(model, torch.arange(10).reshape(2, 5))


def cut(start: Program, made: WidthConstraints) -> nn.Module:
    found = space(start, constraints=made, align=1, exact=False)
    scores = np.random.default_rng(0).random(structure(start).size)
    return pruned(start, select_widths(found, scores, None)).graph_module


ATTENTION = "enc.layers.0.self_attn"


@pytest.mark.parametrize("pattern", [ATTENTION, f"{ATTENTION}*"])
def test_a_ratio_for_attention_leaves_the_hidden_width_alone_and_says_so(pattern: str):
    model, start = encoder()
    made = WidthConstraints.of(model, start, (), {pattern: 0.5}, has_goal=False)
    assert {name: target.ratio for name, target in made.targets.items()} == {ATTENTION: 0.5}
    assert cut(start, made).get_parameter(f"{ATTENTION}.in_proj_weight").shape == (24, 16)
    [note] = made.notes(start)
    assert note == (
        f"the ratio of {pattern!r} leaves out {ATTENTION}.out_proj, whose channels are shared with tok, "
        "enc.layers.0.linear2, enc.layers.1.self_attn.out_proj, enc.layers.1.linear2 outside of it; give "
        f"'{ATTENTION}.out_proj' a ratio to change all of them"
    )


def test_an_exact_name_changes_shared_channels_and_names_the_layers():
    model, start = encoder()
    made = WidthConstraints.of(model, start, (), {f"{ATTENTION}.out_proj": 0.5}, has_goal=False)
    assert cut(start, made).tok.embedding_dim == 8
    [note] = made.notes(start)
    assert note.endswith(
        "out_proj is also that of what shares channels with it: tok, enc.layers.0.linear2, "
        "enc.layers.1.self_attn.out_proj, enc.layers.1.linear2"
    )


def test_entries_that_cover_all_layers_of_a_group_together_change_it():
    model, start = ZOO["Residual"](), capture(ZOO["Residual"](), example("Residual"))
    made = WidthConstraints.of(model, start, (), {"st*": 0.5, "conv2*": 0.5}, has_goal=False)
    assert cut(start, made).stem.out_channels == 4
    assert made.notes(start) == ()
