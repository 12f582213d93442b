"""Narrowing one branch of a residual sum: the stream keeps its width, and what the shortcut brings."""

import operator
import re

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 -- as everywhere in torch

from fxsurgery.analysis.structure import structure
from fxsurgery.capture import capture
from fxsurgery.comparison import relative_error
from fxsurgery.deploy import export_onnx
from fxsurgery.errors import SpecError
from fxsurgery.passes import NarrowBranch, PruneChannels, parse, replay
from fxsurgery.program import Program
from fxsurgery.surgery import Effect
from nonempty import nonempty
from programs import program
from zoo import lively

APART = (0, 3, 4)
"""Channels whose survivors are no neighbors."""


class Block(nn.Module):
    """relu(x + f(bn(conv(x)))); `mask` stands for the gates of the branch."""

    def __init__(self, f: nn.Module | None = None, groups: int = 1) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=groups, bias=False)
        self.bn, self.f, self.head = nn.BatchNorm2d(8), f or nn.Sigmoid(), nn.Conv2d(8, 5, 1)
        self.register_buffer("mask", torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(F.relu(x + self.f(self.bn(self.conv(x))) * self.mask[:, None, None])).mean((2, 3))


class Unmasked(Block):
    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(F.relu(x + self.f(self.bn(self.conv(x))))).mean((2, 3))


def images(seed: int = 0, batch: int = 4) -> Tensor:
    return torch.randn(batch, 3, 6, 6, generator=torch.Generator().manual_seed(seed))


def built(model: type[Block] = Unmasked, f: nn.Module | None = None, groups: int = 1) -> Block:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return lively(model(f, groups)).eval()  # type: ignore[return-value]


def masked(lost: tuple[int, ...], f: nn.Module | None = None) -> Block:
    model = built(Block, f)
    model.mask[list(lost)] = 0
    return model


def pads(of: Program) -> int:
    return sum(n.target is F.pad for n in of.nodes)


def error(got: object, wanted: object) -> float:
    assert isinstance(got, Tensor)
    assert isinstance(wanted, Tensor)
    return relative_error(got, wanted)


@pytest.mark.parametrize("lost", [(6, 7), (0, 1, 2), APART, (1,), (0, 1, 2, 3, 4, 5, 6)])
@pytest.mark.parametrize("f", [nn.Sigmoid, nn.ReLU, nn.Identity])
def test_result_is_the_model_whose_branch_is_silent_at_the_sum(lost: tuple[int, ...], f: type[nn.Module]):
    """Oracle: a mask in the user's own forward. sigmoid(0) is 1/2: only behind it is a closed channel nothing."""
    start = capture(built(f=f()), images())
    result = NarrowBranch(((branch(start), lost),))(start)
    assert result.effect is Effect.LOSSY
    assert result.error is not None
    assert result.error < 1e-6
    larger = images(1, 7)
    with torch.no_grad():
        assert error(result.program(larger), masked(lost, f())(larger)) < 1e-5


def branch(of: Program) -> str:
    """The node that gives what is added to the stem."""
    [total] = [n for n in of.nodes if n.target is operator.add]
    return str(total.args[1])


def test_the_same_steps_lead_where_they_lead_with_the_gates_at_zero():
    start = capture(built(), images())
    result = NarrowBranch(((branch(start), APART),))(start).program
    models = [result.trainable_copy().train(), masked(APART).train()]
    for model in models:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        for step in range(3):
            optimizer.zero_grad()
            output = model(images(step))
            (output - torch.linspace(-1, 1, output.numel()).view_as(output)).square().mean().backward()
            optimizer.step()
    with torch.no_grad():
        moved = error(start(images(9)), models[1].eval()(images(9)))
        assert error(models[0].eval()(images(9)), models[1](images(9))) < 1e-5
    assert moved > 1e-2


def test_a_shortcuts_channels_live_on_where_the_branch_is_closed():
    """The published DNAL code drops them. Oracle: without the branch's share, what is left is the stem's."""
    model = built(f=nn.Identity())
    start = capture(model, images())
    result = NarrowBranch(((branch(start), (0, 1, 2, 3, 4, 5, 6)),))(start).program
    with torch.no_grad():
        stream = model.stem(images())
        stream[:, 7] += model.bn(model.conv(stream))[:, 7]
        assert error(result(images()), model.head(stream.relu()).mean((2, 3))) < 1e-5
    assert result.graph_module.get_parameter("stem.weight").shape[0] == 8
    assert result.graph_module.get_parameter("conv.weight").shape == (1, 8, 3, 3)


def test_only_the_branch_shrinks():
    start = program("Residual")
    before, after = (
        {n: tuple(p.shape) for n, p in of.graph_module.named_parameters()}
        for of in (start, NarrowBranch((("bn2", (1, 6)),))(start).program)
    )
    changed = {n: (before[n], after[n]) for n in before if before[n] != after[n]}
    assert changed == {
        "conv2.weight": ((8, 6, 3, 3), (6, 6, 3, 3)),
        "bn2.weight": ((8,), (6,)),
        "bn2.bias": ((8,), (6,)),
    }


def test_several_branches_of_one_stream_lose_different_channels():
    start = program("Residual")
    move = NarrowBranch((("bn3", (0, 11)), ("project_1", (5, 6, 7))))
    result = move(start)
    assert parse(str(move)) == move
    assert result.error is not None
    assert result.error < 1e-6
    shapes = [tuple(result.program.graph_module.get_parameter(f"{n}.weight").shape) for n in ("conv3", "project.0")]
    assert shapes == [(10, 8, 3, 3), (9, 8, 1, 1)]
    assert replay(result.program.log, start).text() == result.program.text()


def test_narrowing_twice_is_narrowing_once():
    start = capture(built(), images())
    name = branch(start)
    once = NarrowBranch(((name, (0, 3, 4, 6)),))(start).program
    twice = start
    for lost in (APART, (3,)):  # channel 6 is the fourth that is left
        twice = NarrowBranch(((name, lost),))(twice).program
    assert pads(once) == pads(twice) == 1
    assert [n.target for n in nonempty(once.nodes)] == [n.target for n in twice.nodes]
    assert all(torch.equal(a, b) for a, b in nonempty(zip(once.run_examples(), twice.run_examples(), strict=True)))


def test_neighbors_are_padded_and_the_next_analysis_sees_through_the_pad():
    start = program("Residual")
    padded = NarrowBranch((("bn2", (0, 7)),))(start).program
    assert not any(n.target is operator.getitem for n in nonempty(padded.nodes))
    assert structure(padded).group("stem") is not None
    result = PruneChannels((("stem", (0, 1)),))(padded)
    assert result.error is not None
    assert result.error < 1e-5


def test_behind_a_scatter_the_stream_keeps_its_width_and_the_rest_can_still_be_pruned():
    apart = NarrowBranch((("bn2", (1, 6)),))(program("Residual")).program
    assert structure(apart).group("stem") is None
    names = [g.name for g in structure(apart).groups]
    assert names == ["conv1", "conv3"]
    for move in nonempty(PruneChannels.candidates(apart)):
        result = move(apart)
        assert result.error is not None
        assert result.error < 1e-5


def test_what_is_not_the_branchs_own_is_refused():
    start = program("Residual")
    result = NarrowBranch((("stem", (0,)),))(start)
    assert result.program is start
    assert [(r.node, r.reason) for r in result.refusals] == [("stem", "its channels are also read by %conv1")]
    both = NarrowBranch((("bn2", (0,)), ("stem", (0,))))(start)
    assert both.program is start


def test_the_stream_itself_is_refused():
    start = program("resnet18")
    result = NarrowBranch((("layer1_0_relu_1", (0,)),))(start)
    assert [r.reason for r in result.refusals] == ["it continues the residual stream, which keeps its width"]


def test_a_convolution_that_two_branches_call_is_refused():
    class Twice(Block):
        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            x = x + self.conv(x)
            return self.head(F.relu(x + self.bn(self.conv(x)))).mean((2, 3))

    result = NarrowBranch((("bn", (0,)),))(capture(built(Twice), images()))
    assert "also read by" in result.refusals[0].reason


def test_a_norm_over_the_channels_is_refused():
    start = capture(built(f=nn.GroupNorm(1, 8)), images())
    result = NarrowBranch(((branch(start), (0,)),))(start)
    assert "a norm" in result.refusals[0].reason


def test_what_a_grouped_convolution_reads_and_gives_is_refused():
    depthwise = capture(built(groups=8), images())
    grouped = capture(built(f=nn.Conv2d(8, 8, 3, groups=4, padding=1)), images())
    for start in (depthwise, grouped):
        (refusal,) = NarrowBranch(((branch(start), (0,)),))(start).refusals
        assert "also read by" in refusal.reason
        assert "fxsurgery" not in refusal.reason, "a node of the analysis is named, not one of the program"


def test_channels_that_are_made_of_one_go_together():
    class Doubled(Block):
        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return self.head(F.relu(x + self.f(self.bn(self.conv(x))[:, :4].repeat(1, 2, 1, 1)))).mean((2, 3))

    start = capture(built(Doubled), images())
    name = branch(start)
    assert "channel 5 must be removed together with those" in NarrowBranch(((name, (1,)),))(start).refusals[0].reason
    result = NarrowBranch(((name, (1, 5)),))(start)
    assert result.error is not None
    assert result.error < 1e-6


def test_nothing_everything_and_nonsense():
    start = program("Residual")
    assert NarrowBranch(())(start).refusals[0].reason == "no channel is named"
    assert NarrowBranch((("bn2", ()),))(start).refusals[0].reason == "no channel is named"
    whole = NarrowBranch((("bn2", tuple(range(8))),))(start)
    assert "remove the block instead" in whole.refusals[0].reason
    with pytest.raises(SpecError, match="bn2 has 8 channels; there is no channel 8"):
        NarrowBranch((("bn2", (8,)),))(start)
    with pytest.raises(SpecError, match=re.escape("named 'conv2'; there are: bn2, bn3, project_1, stem")):
        NarrowBranch((("conv2", (0,)),))(start)


def test_a_sum_in_place_is_a_sum():
    class InPlace(Block):
        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            y = self.f(self.bn(self.conv(x)))
            y += x
            return self.head(F.relu(y, inplace=True)).mean((2, 3))

    start = capture(built(InPlace), images())
    [name] = [str(n.args[0]) for n in start.nodes if n.target in {operator.iadd, operator.add}]
    result = NarrowBranch(((name, APART),))(start)
    with torch.no_grad():
        assert error(result.program(images(1)), masked(APART)(images(1))) < 1e-5


def test_a_transformers_projection_loses_rows():
    start = program("Attention")
    result = NarrowBranch((("fc2", (2, 5)),))(start)
    assert result.error is not None
    assert result.error < 1e-6
    assert result.program.graph_module.get_parameter("fc2.weight").shape == (6, 12)


@pytest.mark.slow
def test_a_scatter_exports(tmp_path):
    start = capture(built(), images())
    result = NarrowBranch(((branch(start), APART),))(start).program
    assert export_onnx(result.graph_module, result.example_inputs, tmp_path / "model.onnx").parity is not None
