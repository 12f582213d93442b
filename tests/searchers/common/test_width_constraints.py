"""Layers that keep their width, and layers that keep a fraction of it: matched by name, coupled, and never ignored."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fxsurgery import capture
from fxsurgery.analysis.cost import cost
from fxsurgery.analysis.layer_widths import layer_widths
from fxsurgery.analysis.structure import structure
from fxsurgery.budget import Budget
from fxsurgery.errors import BudgetError, SpecError, StructureError
from fxsurgery.program import Program
from fxsurgery.searchers.common.layer_names import LayerNames
from fxsurgery.searchers.common.reachable import require_reachable
from fxsurgery.searchers.common.width_constraints import WidthConstraints
from fxsurgery.searchers.common.width_selection import select_widths
from fxsurgery.searchers.common.widths import pruned, space
from nonempty import nonempty
from zoo import ZOO, example


class Tied(nn.Module):
    """Token embeddings that are the output layer's weights, a residual branch, and a layer under two names."""

    def __init__(self):
        super().__init__()
        self.embed, self.inner, self.outer = nn.Embedding(20, 16), nn.Linear(16, 24), nn.Linear(24, 16)
        self.head = nn.Linear(16, 20, bias=False)
        self.head.weight = self.embed.weight
        self.alias = self.inner

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        return self.head(x + self.outer(self.alias(x).relu()))


class Functional(nn.Module):
    """Parameters of the model itself, and of a module that is never called."""

    def __init__(self):
        super().__init__()
        self.inner, self.weight = nn.Module(), nn.Parameter(torch.randn(6, 8))
        self.inner.kernel = nn.Parameter(torch.randn(8, 3, 3, 3))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.conv2d(x, self.inner.kernel).relu().mean((2, 3))
        return self.head(nn.functional.linear(x, self.weight).relu())


def zoo(name: str) -> tuple[nn.Module, Program]:
    model = ZOO[name]()
    return model, capture(model, example(name))


def taken(model: nn.Module, *inputs: Tensor) -> tuple[nn.Module, Program]:
    return model, capture(model.eval(), *inputs)


def tokens() -> Tensor:
    return torch.arange(10).reshape(2, 5)


def layers_of(model: nn.Module, start: Program, pattern: str) -> tuple[str, ...]:
    return LayerNames(model, start).find(pattern, "keep").layers


def cut(start: Program, made: WidthConstraints, budget: Budget | None = None, **options: object) -> Program:
    found = space(start, constraints=made, **options)
    scores = np.random.default_rng(0).random(structure(start).size)
    return pruned(start, select_widths(found, scores, budget))


def outputs(start: Program) -> dict[str, int]:
    """The number of output units of each layer, by name."""
    sizes = dict[str, int]()
    for node, module in start.calls(nn.Conv1d, nn.Conv2d, nn.Linear, nn.Embedding):
        sizes[str(node.target)] = module.weight.shape[1 if isinstance(module, nn.Embedding) else 0]
    return sizes


def test_a_name_a_pattern_and_a_container_stand_for_layers():
    model, start = zoo("Plain")
    assert layers_of(model, start, "body.0") == ("body.0",)
    assert layers_of(model, start, "body") == ("body.0", "body.1", "body.4", "body.5")
    assert layers_of(model, start, "body.[04]") == ("body.0", "body.4")
    assert layers_of(model, start, "*") == tuple(layer_widths(start))
    assert LayerNames(model, start).pattern_of(model.head, "keep") == "head"


def test_a_shared_layer_has_all_its_names():
    model, start = taken(Tied(), tokens())
    assert layers_of(model, start, "alias") == layers_of(model, start, "inner") == ("inner",)
    assert LayerNames(model, start).pattern_of(model.alias, "keep") == "inner"


def test_functions_go_by_the_module_that_holds_their_parameters():
    model, start = taken(Functional(), torch.randn(2, 3, 8, 8))
    assert layer_widths(start)["inner"].groups == ("inner",)
    assert layer_widths(start)["weight"].groups == ("weight",)
    assert layers_of(model, start, "inner") == ("inner",)
    kept = WidthConstraints.of(model, start, ("inner",))
    assert kept.kept_groups(start) == {"inner"}


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("haed", r"keep: no layer of the model is named 'haed'; did you mean 'head'\?"),
        ("xyz*", r"no layer of the model is named 'xyz\*'; use a name such as 'body.0'"),
        ("body.2", r"'body.2' stands for body.2, which has no channels of its own; name a convolution"),
    ],
)
def test_a_name_that_stands_for_nothing_is_refused(pattern: str, said: str):
    model, start = zoo("Plain")
    with pytest.raises(SpecError, match=said):
        WidthConstraints.of(model, start, (pattern,))


def test_a_module_of_another_model_is_refused():
    model, start = zoo("Plain")
    with pytest.raises(SpecError, match="a Linear that is not one of the model's own modules"):
        WidthConstraints.of(model, start, (nn.Linear(2, 2),))


@pytest.mark.parametrize("align", [1, 4])
def test_a_residual_stream_is_kept_as_a_whole_and_named(align: int):
    model, start = zoo("Residual")
    made = WidthConstraints.of(model, start, ("conv2",))
    small = cut(start, made, Budget(macs=0.7), align=align)
    before, after = outputs(start), outputs(small)
    assert {name for name in before if before[name] == after[name]} >= {"stem", "conv2", "head"}
    assert after != before
    assert made.notes(start) == ("kept at full width: conv2; and what shares channels with them: stem",)


@pytest.mark.parametrize("name", ["Residual", "DenseCat", "Grouped", "Attention", "InvertedResidual", "ShuffleSplit"])
def test_a_ratio_is_exact_and_nothing_else_shrinks(name: str):
    model, start = zoo(name)
    for layer in nonempty(w for w in layer_widths(start).values() if w.groups and w.produces):
        made = WidthConstraints.of(model, start, (), {layer.name: 0.5}, has_goal=False)
        found = space(start, align=1, exact=False, constraints=made)
        keep = select_widths(found, np.random.default_rng(0).random(structure(start).size), None)
        for group in nonempty(structure(start).groups):
            share = 0.5 if group.name in layer.groups else 1
            assert keep[group.units].sum() == int(share * len(group.units) + 0.5), (layer.name, group.name)
        pruned(start, keep).run_examples()


def test_tied_embeddings_follow_a_ratio_together():
    model, start = taken(Tied(), tokens())
    small = cut(start, WidthConstraints.of(model, start, ("inner",), {"embed": 0.5}, has_goal=False), align=1)
    assert outputs(small) == {"embed": 8, "inner": 24, "outer": 8, "head": 20}
    assert small.graph_module.head.weight.data_ptr() == small.graph_module.embed.weight.data_ptr()


def test_a_ratio_counts_heads_of_attention():
    model, start = zoo("Attention")
    small = cut(start, WidthConstraints.of(model, start, (), {"qkv": 0.5}, has_goal=False), align=1)
    assert len(structure(start).named("qkv").units) == 2
    assert outputs(small)["qkv"] == outputs(start)["qkv"] // 2


def test_the_rest_meets_the_budget():
    model, start = zoo("Residual")
    made = WidthConstraints.of(model, start, ("stem",), {"conv3": 0.75})
    small = cut(start, made, Budget(macs=0.55), align=1)
    assert outputs(small)["stem"] == 8
    assert outputs(small)["conv3"] == outputs(small)["project.0"] == 9
    assert cost(small).macs <= 0.55 * cost(start).macs


def test_an_exact_name_goes_before_a_pattern_and_the_last_pattern_counts():
    model, start = zoo("Plain")
    ratios = {"body.4": 0.75, "body.*": 0.5, "*": 0.25}
    made = WidthConstraints.of(model, start, (), ratios, has_goal=False)
    assert {name: target.ratio for name, target in made.targets.items()} == {"body.0": 0.25, "body.4": 0.75}
    assert outputs(cut(start, made, align=1)) == {"body.0": 2, "body.4": 9, "head": 10}


def test_norms_follow_what_a_ratio_is_for():
    """A norm reads channels of another layer: a pattern that covers both is for the layers that produce channels."""
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Sequential(nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1)), nn.Conv2d(8, 4, 1))
    model, start = taken(model, torch.randn(2, 3, 4, 4))
    small = cut(start, WidthConstraints.of(model, start, (), {"1": 0.5}, has_goal=False), align=1)
    assert outputs(small) == {"0": 8, "1.1": 4, "2": 4}
    small = cut(start, WidthConstraints.of(model, start, (), {"1.0": 0.5}, has_goal=False), align=1)
    assert outputs(small) == {"0": 4, "1.1": 8, "2": 4}
    kept = WidthConstraints.of(model, start, ("1",))
    assert kept.kept_groups(start) == {"0", "1.1"}


@pytest.mark.parametrize(
    ("keep", "ratios", "said"),
    [
        ((), {"stem": 0.5, "conv2": 0.25}, r"'stem' shall keep 0.5 and 'conv2' 0.25 of the same channels"),
        (("conv2",), {"stem": 0.5}, r"'stem' shares its channels with 'conv2', which keep= keeps"),
        (("stem",), {"stem": 0.5}, r"'stem' is in keep= too"),
        (
            (),
            {"s*": 0.5},
            r"'s\*' changes no width: it stands for stem, whose channels are shared with conv2 outside",
        ),
        ((), {"head": 0.5}, r"ratios: 'head' stands for head, whose width cannot change"),
        ((), {"nothing": 0.5}, r"ratios: no layer of the model is named 'nothing'"),
    ],
)
def test_contradictions_are_refused_with_both_layers(keep: tuple[str, ...], ratios: dict[str, float], said: str):
    model, start = zoo("Residual")
    with pytest.raises((SpecError, StructureError), match=said):
        WidthConstraints.of(model, start, keep, ratios)


def test_one_ratio_for_layers_that_share_channels_is_no_contradiction():
    model, start = zoo("Residual")
    made = WidthConstraints.of(model, start, (), {"stem": 0.5, "conv2": 0.5}, has_goal=False)
    assert outputs(cut(start, made, align=1))["stem"] == 4


def test_a_ratio_that_rounds_to_the_whole_width_is_refused():
    model, start = zoo("Plain")
    made = WidthConstraints.of(model, start, (), {"body.0": 0.8}, has_goal=False)
    with pytest.raises(StructureError, match=r"'body.0' changes no width: body.0 keeps its 8 units.* align=8"):
        space(start, constraints=made).require_targets()
    whole = WidthConstraints.of(model, start, (), {"body.0": 1.0}, has_goal=False)
    with pytest.raises(StructureError, match="leaves every width as it is"):
        space(start, constraints=whole).require_targets()


def test_a_ratio_for_what_no_gate_can_represent_is_refused_or_noted():
    model, start = zoo("Attention")
    for pattern in ("patches", "proj"):
        made = WidthConstraints.of(model, start, (), {pattern: 0.5}, has_goal=False)
        with pytest.raises(StructureError, match=rf"{pattern!r} changes no width.*no gate.*method='prune'"):
            space(start, align=1, constraints=made).require_targets()
    made = WidthConstraints.of(model, start, (), {"*": 0.5}, has_goal=False)
    found = space(start, align=1, constraints=made)
    found.require_targets()
    assert any("patches keeps its width despite its ratio: no gate" in note for note in found.notes())


def test_an_unreachable_budget_names_keep_where_that_is_why():
    model, start = zoo("Plain")
    found = space(start, align=1, constraints=WidthConstraints.of(model, start, ("body.0",)))
    least = space(start, align=1).smallest().macs
    with pytest.raises(BudgetError, match=rf"except what keep= fixes; without keep= it is {least:,}, so name fewer"):
        require_reachable(found, Budget(macs=0.2))
    with pytest.raises(BudgetError) as caught:
        require_reachable(found, Budget(macs=0.0001))
    assert "without keep=" not in str(caught.value)


def test_keeping_everything_is_refused():
    model, start = zoo("Plain")
    with pytest.raises(StructureError, match="keep= holds every width that could change"):
        space(start, align=1, constraints=WidthConstraints.of(model, start, ("*",)))


@pytest.mark.parametrize("seed", range(6))
def test_whatever_is_kept_has_its_width_in_whatever_is_cut(seed: int):
    rng = np.random.default_rng(seed)
    checked = 0
    for name in nonempty(ZOO):
        model, start = zoo(name)
        candidates = [path for path, _ in model.named_modules() if path]
        patterns = [str(rng.choice(candidates)) for _ in range(2)]
        patterns[0] = patterns[0].rpartition(".")[0] + ".*" if "." in patterns[0] else f"{patterns[0][:2]}*"
        try:
            made = WidthConstraints.of(model, start, tuple(patterns))
            found = space(start, align=1, exact=bool(rng.integers(2)), constraints=made)
        except (SpecError, StructureError):
            continue  # they stand for no layers, or hold everything
        scores = rng.random(structure(start).size)
        least = found.smallest()
        share = least.macs / cost(start).macs
        small = pruned(start, select_widths(found, scores, Budget(macs=min(1.0, share + 0.1))))
        before, after = outputs(start), outputs(small)
        changed = [layer for layer in made.kept if layer in before and before[layer] != after[layer]]
        assert changed == [], (name, patterns)
        checked += 1
    assert checked > len(ZOO) / 4
