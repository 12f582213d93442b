"""Gates: where they stand, what they do, and that they leave without a trace."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from fxsurgery.analysis.gating import gate_plan
from fxsurgery.analysis.structure import structure
from fxsurgery.capture import capture
from fxsurgery.comparison import relative_error
from fxsurgery.edit import Editor
from fxsurgery.errors import SpecError
from fxsurgery.nn.gates import GateApply, GateVector
from fxsurgery.passes import InsertGates, NarrowBranch, PruneChannels, RemoveGates, parse
from fxsurgery.program import Program
from fxsurgery.rewriting.branches import independent_gates
from fxsurgery.rewriting.gate_insertion import insert_gates
from fxsurgery.surgery import Effect
from nonempty import nonempty
from programs import program
from zoo import ZOO, lively


def gated(start: Program, residual: str = "tied") -> tuple[Program, GateVector]:
    result = InsertGates(residual)(start).program
    [(_, vector)] = result.calls(GateVector)
    return result, vector


@pytest.mark.parametrize("residual", ["tied", "independent"])
@pytest.mark.parametrize("name", ZOO)
def test_inserting_and_removing_is_the_identity(name: str, residual: str):
    start = program(name)
    there = InsertGates(residual)(start)
    back = RemoveGates()(there.program)
    assert (there.effect, back.effect) == (Effect.EXACT, Effect.EXACT)
    assert there.error == 0.0
    assert back.program.text() == start.text()


@pytest.mark.parametrize("name", ["Plain", "Residual", "InvertedResidual", "DenseCat"])
def test_a_closed_gate_is_a_removed_channel(name: str):
    start = program(name)
    move = next(iter(PruneChannels.candidates(start)))
    keep, plan = move.keep(start), gate_plan(start)
    closed, vector = gated(start)
    vector.mode = "hard"
    with torch.no_grad():
        vector.logits.copy_(torch.from_numpy(keep[plan.units]).float() - 0.5)
    assert max(map(relative_error, move(start).program.run_examples(), closed.run_examples())) < 1e-5


def test_gates_start_at_one_half_and_sharpen():
    vector = GateVector(3)
    vector.mode = "soft"
    assert vector().tolist() == [1.0, 0.5, 0.5, 0.5]
    with torch.no_grad():
        vector.logits.copy_(torch.tensor([-0.1, 0.0, 0.1]))
        vector.sharpness.fill_(1e4)
    assert vector().tolist() == [1.0, 0.0, 0.5, 1.0]


def test_removing_gates_that_do_something_is_lossy():
    start, vector = gated(program("Plain"))
    vector.mode = "soft"
    assert RemoveGates()(start).effect is Effect.LOSSY


def test_every_gate_gets_a_gradient():
    start, _ = gated(program("Residual"))
    model = start.trainable_copy().train()
    [vector] = [m for m in model.modules() if isinstance(m, GateVector)]
    vector.mode = "soft"
    many = torch.randn(32, *start.example_inputs[0].shape[1:], generator=torch.Generator().manual_seed(0))
    model(many).square().sum().backward()
    assert (vector.logits.grad != 0).all()


def test_gating_twice_is_refused():
    once = InsertGates()(program("Plain")).program
    again = InsertGates()(once)
    assert again.program is once
    assert again.refusals[0].reason == "the program has gates already"


def test_nothing_to_gate_is_refused_with_the_reason():
    start = capture(nn.Sequential(nn.Conv2d(3, 4, 1)).eval(), torch.ones(2, 3, 4, 4))
    result = InsertGates()(start)
    assert result.changes == 0
    assert "no channel can be removed" in result.refusals[0].reason


def test_gates_are_tied_unless_said():
    assert parse("insert-gates") == InsertGates() == InsertGates("tied")
    start = program("Residual")
    edit, plan = Editor(start), gate_plan(start)
    insert_gates(edit, plan, GateVector(len(plan.units)))
    assert InsertGates()(start).program.text() == edit.finish("by hand").text()
    with pytest.raises(SpecError, match="it must be 'tied' or 'independent'"):
        InsertGates("apart")(start)


def test_independent_gates_are_one_a_channel_of_each_branch():
    """Tied: 6 inside, 8 and 12 in the streams. Apart: 6 inside, and 8 + 12 + 12 for three branches."""
    start = program("Residual")
    assert len(gated(start)[1].logits) == 6 + 8 + 12
    result, vector = gated(start, "independent")
    assert len(vector.logits) == 6 + 8 + 12 + 12
    readers = {str(n.args[0]): str(next(iter(n.users))) for n, _ in result.calls(GateApply)}
    assert readers == {"relu": "conv2", "bn2": "add", "bn3": "add_1", "project_1": "add_1"}


def test_without_sums_independent_gates_are_the_tied_ones():
    start = program("DenseCat")
    assert gated(start, "independent")[0].text() == gated(start)[0].text()


def test_closed_independent_gates_are_narrowed_branches_and_pruned_channels():
    start = program("Residual")
    closed, vector = gated(start, "independent")
    plan = independent_gates(start)
    vector.mode = "hard"
    open_ = torch.rand(1 + plan.size, generator=torch.Generator().manual_seed(0)) > 0.4
    open_[0] = True
    with torch.no_grad():
        vector.logits.copy_(open_[1:].float() - 0.5)
    inner = structure(start).group("conv1")
    position = {unit: i for i, unit in enumerate(inner.units.tolist())}
    lost = tuple(position[u] for u, stays in zip(plan.inner.units.tolist(), open_[1:], strict=False) if not stays)
    drop = tuple((b.operand.name, tuple((~open_[index]).nonzero().flatten().tolist())) for b, index in plan.entries())
    assert lost
    assert all(channels for _, channels in nonempty(drop))
    smaller = NarrowBranch(drop)(PruneChannels((("conv1", lost),))(start).program).program
    assert max(map(relative_error, smaller.run_examples(), closed.run_examples())) < 1e-5


def test_every_independent_gate_gets_a_gradient():
    start, vector = gated(program("Residual"), "independent")
    vector.mode = "soft"
    model = start.trainable_copy().train()
    many = torch.randn(32, *start.example_inputs[0].shape[1:], generator=torch.Generator().manual_seed(0))
    model(many).square().sum().backward()
    [own] = [m for m in model.modules() if isinstance(m, GateVector)]
    assert (own.logits.grad != 0).all()


@pytest.mark.parametrize("size", [5, 8])
def test_a_conv_without_a_batch_is_gated_along_its_channels(size: int):
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    start = capture(lively(model), torch.linspace(-1, 1, 3 * size * size).reshape(3, size, size))
    closed, vector = gated(start)
    vector.mode = "hard"
    with torch.no_grad():
        vector.logits.fill_(1.0)[3] = -1.0
    pruned = PruneChannels((("0", (3,)),))(start).program
    assert relative_error(closed.run_examples()[0], pruned.run_examples()[0]) < 1e-6


class NoFloatFirst(nn.Module):
    """Its first parameter is a whole number; with `frozen`, the weights are no parameters at all."""

    def __init__(self, *, frozen: bool) -> None:
        super().__init__()
        self.times = nn.Parameter(torch.tensor([2]), requires_grad=False)
        for name in ("stem", "body", "head"):
            weight = torch.linspace(-1, 1, 36).roll(len(name)).sin().reshape(6, 6)
            self.register_buffer(name, weight) if frozen else self.register_parameter(name, nn.Parameter(weight))

    def forward(self, x: Tensor) -> Tensor:
        x = F.linear(x, self.stem * self.times).relu()
        return F.linear(x + F.linear(x, self.body), self.head)


@pytest.mark.parametrize("residual", ["tied", "independent"])
@pytest.mark.parametrize("frozen", [False, True])
def test_gates_take_the_dtype_of_floating_point_tensors(residual: str, *, frozen: bool):
    start = capture(NoFloatFirst(frozen=frozen).eval(), torch.linspace(-1, 1, 12).reshape(2, 6))
    closed, vector = gated(start, residual)
    assert vector.logits.dtype == torch.float32
    assert RemoveGates()(closed).program.text() == start.text()


def test_a_program_with_gates_has_no_candidates():
    start = program("Residual")
    assert list(InsertGates.candidates(start))
    assert not list(InsertGates.candidates(gated(start)[0]))
