"""Proofs run as few samples as they can, and catch what a run on one sample more would catch."""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from fxsurgery.capture import capture
from fxsurgery.edit import Editor
from fxsurgery.errors import VerifyError
from fxsurgery.kept_outputs import is_apart, sample_outputs
from fxsurgery.passes import FoldBn, PruneChannels, Widen
from fxsurgery.program import Program
from fxsurgery.surgery import Effect, Rewrite, chain
from runs_counted import Runs


class Net(nn.Module):
    """A conv with a norm, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        self.hidden, self.head = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(self.norm(self.conv(x)).relu().mean((2, 3))).relu())


def lively(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.bias)
    return model.eval()


def made(model: nn.Module | None = None, samples: int = 2) -> Program:
    return capture(lively(Net() if model is None else model), torch.randn(samples, 3, 8, 8))


PRUNE = PruneChannels((("conv", (0, 3)),))


@pytest.mark.parametrize(("samples", "few"), [(1, 2), (2, 1), (4, 1)])
def test_a_second_proof_does_not_run_the_program_before(samples: int, few: int, runs: Runs):
    start = made(samples=samples)
    runs.clear()
    first = FoldBn()(start).program
    assert sorted(runs.samples()) == sorted([samples, few] * 2)
    runs.clear()
    second = FoldBn()(start).program
    assert runs.samples(second) == [samples, few]
    assert len(runs) == 2
    assert is_apart(first) is is_apart(second) is is_apart(start) is True


def test_a_child_inherits_what_its_own_proof_has_seen(runs: Runs):
    first = FoldBn()(made()).program
    runs.clear()
    second = Widen((("hidden", 2),))(first).program
    assert (runs.samples(first), runs.samples(second)) == ([], [2, 1])


def test_a_masked_reference_is_run_on_the_examples_alone(runs: Runs, monkeypatch: pytest.MonkeyPatch):
    from fxsurgery.passes import prune_channels

    ran, plain = list[int | None](), prune_channels.masked_reference

    def counted(*given: object) -> Callable[..., Sequence[Tensor]]:
        reference = plain(*given)  # type: ignore[arg-type]
        return lambda result, inputs: ran.append(inputs.batch) or reference(result, inputs)  # type: ignore[func-returns-value]

    monkeypatch.setattr(prune_channels, "masked_reference", counted)
    start = made()
    narrow = PRUNE(start).program
    assert ran == [2, 1]
    assert is_apart(start) is None
    ran.clear()
    PRUNE(start)
    assert is_apart(start) is True
    PRUNE(start)
    assert ran == [2, 2]
    ran.clear()
    runs.clear()
    PruneChannels((("hidden", (0,)),))(narrow)
    assert ran == [2]
    assert sorted(runs.samples()) == [1, 2]


def test_a_chain_runs_each_result_once_at_each_size(runs: Runs):
    start = made()
    runs.clear()
    chain(FoldBn(), Widen((("hidden", 2),)), Widen((("conv", 2),)))(start)
    assert sorted(runs.samples()) == [1] * 4 + [2] * 4


def test_training_in_place_is_no_broken_promise():
    start = made()
    FoldBn()(start)
    model = start.graph_module
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    model(*start.example_inputs).square().sum().backward()
    optimizer.step()
    for move in (FoldBn(), PRUNE, Widen((("hidden", 2),))):
        result = move(start)
        assert result.error is not None
        assert result.error < 1e-4


def test_an_attribute_that_was_changed_in_place_is_no_broken_promise():
    start = made()
    FoldBn()(start)
    before = sample_outputs(start)[0]
    start.graph_module.norm.eps = 3.0
    result = FoldBn()(start)
    assert result.error is not None
    assert result.error < 1e-4
    assert not torch.allclose(sample_outputs(result.program)[0], before)


@dataclass(frozen=True)
class Edits(Rewrite):
    """Promises equal outputs of any edit."""

    name: ClassVar[str] = "edits"
    make: Callable[[Editor], object] = print

    def rewrite(self, edit: Editor) -> Effect:
        self.make(edit)
        return Effect.EXACT


def head(edit: Editor):
    return next(n for n in edit.program.nodes if n.target == "head")


def around(edit: Editor, change: Callable[[Editor, object], object]) -> None:
    """Let the head read what `change` makes of what it read."""
    node = head(edit)
    edit.rewire(node, node.args[0], change(edit, node.args[0]))


class First(nn.Module):
    """As many rows as it was told."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows = rows

    def forward(self, x: Tensor) -> Tensor:
        return x[: self.rows]


def first_two(x: Tensor) -> Tensor:
    return x[:2]


CUTS: dict[str, Callable[[Editor], None]] = {
    "a slice": lambda e: around(
        e, lambda e, x: e.insert_function(operator.getitem, (x, slice(None, 2)), before=head(e))
    ),
    "a named argument": lambda e: around(
        e, lambda e, x: e.insert_function(torch.narrow, (x,), before=head(e), dim=0, start=0, length=2)
    ),
    "a view": lambda e: around(e, lambda e, x: e.insert_function(torch.reshape, (x, (2, -1)), before=head(e))),
    "a module": lambda e: around(e, lambda e, x: e.insert_call("cut", First(2), (x,), before=head(e))),
    "a module inside another": lambda e: around(
        e, lambda e, x: e.insert_call("cut", nn.Sequential(nn.Identity(), First(2)), (x,), before=head(e))
    ),
    "a module in the place of another": lambda e: e.replace_module(
        "head", nn.Sequential(First(2), e.program.graph_module.head)
    ),
    "a function": lambda e: around(e, lambda e, x: e.insert_function(first_two, (x,), before=head(e))),
}


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("known", [False, True])
def test_what_keeps_no_more_samples_than_the_examples_have_is_caught(cut: str, known: bool):
    start = made()
    if known:
        FoldBn()(start)
    with pytest.raises(VerifyError, match=r"at another batch size|at the example batch size alone"):
        Edits(CUTS[cut])(start)


class Centered(nn.Module):
    """The head reads the difference from the mean of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x)).relu().mean((2, 3))
        return self.head(x - x.mean(0, keepdim=True))


@dataclass(frozen=True)
class Bakes(Rewrite):
    """Folds the mean of the example batch into the bias of the head: right for these examples alone."""

    name: ClassVar[str] = "bakes"

    def rewrite(self, edit: Editor) -> Effect:
        node = head(edit)
        difference = node.args[0]
        source, mean = difference.args
        values = torch.fx.Interpreter(edit.program.graph_module)
        values.garbage_collect_values = False
        with torch.no_grad():
            values.run(*edit.program.example_inputs)
            old = edit.program.graph_module.head
            new = nn.Linear(6, 4)
            new.weight, new.bias = old.weight, nn.Parameter(old.bias - old.weight @ values.env[mean][0])
        edit.replace_module("head", new)
        edit.rewire(node, difference, source)
        edit.erase(difference)
        edit.erase(mean)
        return Effect.EXACT


@pytest.mark.parametrize("known", [False, True])
def test_values_that_were_worked_out_on_the_example_batch_are_caught(known: bool):
    start = made(Centered())
    if known:
        FoldBn()(start)
        assert is_apart(start) is False
    with pytest.raises(VerifyError, match="at another batch size the outputs differ"):
        Bakes()(start)


def test_a_program_that_mixes_its_samples_is_proven_on_one_sample_more(runs: Runs):
    start = made(Centered())
    result = FoldBn()(start)
    assert result.changes
    assert 3 in runs.samples(result.program)
    runs.clear()
    child = PruneChannels((("conv", (0,)),))(result.program)
    assert child.error is not None
    assert 3 in runs.samples(child.program)
    assert 1 not in runs.samples(child.program)


class Summed(Net):
    """Gives one number for the whole batch."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).sum()


def test_outputs_without_a_batch_are_proven_on_one_sample_more(runs: Runs):
    start = made(Summed())
    result = FoldBn()(start)
    assert 3 in runs.samples(result.program)
    with pytest.raises(VerifyError, match=r"at another batch size|at the example batch size alone"):
        Edits(CUTS["a slice"])(start)


class Several(Net):
    """Takes no sample alone."""

    def forward(self, x: Tensor) -> Tensor:
        torch._assert(x.shape[0] > 1, "several samples")
        return super().forward(x)


def test_a_program_that_takes_no_sample_alone_is_proven_on_one_more(runs: Runs):
    start = made(Several())
    result = FoldBn()(start)
    assert 3 in runs.samples(result.program)
    with pytest.raises(VerifyError, match=r"at another batch size|at the example batch size alone"):
        Edits(CUTS["a slice"])(start)


class Noisy(Net):
    """Draws at random in eval mode."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.rand(4, x.shape[0], device=x.device).t()


def test_a_program_that_draws_at_random_is_proven_on_one_sample_more(runs: Runs):
    start = made(Noisy())
    result = FoldBn()(start)
    assert result.error is not None
    assert result.error < 1e-5
    assert 3 in runs.samples(result.program)


@pytest.mark.parametrize("argument", [2, 3])
def test_any_integer_that_was_written_may_be_the_batch(argument: int):
    edit = Editor(made())
    assert not edit.may_fix_batch
    edit.set_argument(head(edit), 0, head(edit).args[0])
    edit.replace_module("head", nn.Linear(8, 4))
    assert not edit.may_fix_batch
    node = next(n for n in edit.program.nodes if n.target in {"mean", torch.mean})
    edit.set_argument(node, 1, (argument, 1))
    assert edit.may_fix_batch
