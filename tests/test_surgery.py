"""Passes, chains and promises: a pass that lies, crashes or changes a shape is named."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Self

import pytest
import torch
from torch import nn

from fxsurgery.capture import capture
from fxsurgery.edit import Editor
from fxsurgery.errors import PassCrashedError, SpecError, VerifyError
from fxsurgery.passes import (
    Deepen,
    Elasticize,
    FoldBn,
    InsertGates,
    LowRank,
    PruneChannels,
    RemoveGates,
    Widen,
    parse,
)
from fxsurgery.program import Program
from fxsurgery.surgery import Effect, Rewrite, chain
from programs import program


@dataclass(frozen=True)
class Liar(Rewrite):
    """Says EXACT, doubles a weight."""

    name: ClassVar[str] = "liar"

    def rewrite(self, edit: Editor) -> Effect:
        node, conv = next(edit.program.calls(nn.Conv2d))
        new = nn.Conv2d(conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding)
        edit.replace_module(str(node.target), new)
        return Effect.EXACT


@dataclass(frozen=True)
class Cutter(Rewrite):
    """Says LOSSY, changes the output's shape."""

    name: ClassVar[str] = "cutter"

    def rewrite(self, edit: Editor) -> Effect:
        *_, (node, head) = edit.program.calls(nn.Linear)
        edit.replace_module(str(node.target), nn.Linear(head.in_features, 3))
        return Effect.LOSSY


@dataclass(frozen=True)
class Crasher(Rewrite):
    name: ClassVar[str] = "crasher"

    def rewrite(self, edit: Editor) -> Effect:
        raise ZeroDivisionError("oops")


def test_a_broken_promise_is_named_with_its_size():
    with torch.random.fork_rng(), pytest.raises(VerifyError, match=r"liar promised equal outputs; they differ by"):
        Liar()(program("Plain"))


def test_a_changed_output_shape_is_named():
    with torch.random.fork_rng(), pytest.raises(VerifyError, match=r"cutter changed output shapes \[\(2, 10\)\]"):
        Cutter()(program("Plain"))


def test_a_crash_names_the_pass_and_keeps_the_cause():
    with pytest.raises(PassCrashedError, match=r"crasher crashed, after \[\]: ZeroDivisionError") as caught:
        Crasher()(program("Plain"))
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_chain_is_exact_when_its_passes_are():
    start = program("Plain")
    move = next(iter(PruneChannels.candidates(start)))
    exact, lossy = chain(InsertGates(), RemoveGates())(start), chain(move, FoldBn())(start)
    assert (exact.effect, lossy.effect) == (Effect.EXACT, Effect.LOSSY)
    assert lossy.program.log == (str(move), "fold-bn")
    assert min(lossy.changes, exact.changes) > 0


@pytest.mark.parametrize(
    ("move", "message"),
    [
        (Widen(("stem", 2)), "widen: add=.'stem', 2. is not of type"),
        (Widen({"stem": 2}), "is not of type"),
        (PruneChannels((("stem", (0, True)),)), "is not of type"),
        (PruneChannels((("stem", [0, 1]),)), "is not of type"),
        (LowRank("head", rank=2.5), r"low-rank: rank=2.5 is not of type int \| None"),
        (Deepen("relu", kernel=2.5), "deepen: kernel=2.5 is not of type int"),
        (Deepen("relu", kernel="3"), "deepen: kernel='3' is not of type int"),
        (Elasticize(widths=0.5), "is not of type"),
    ],
)
def test_options_of_another_type_are_named_before_anything_runs(move: Rewrite, message: str):
    with pytest.raises(SpecError, match=message):
        move(program("Plain"))


def test_no_options_and_a_whole_number_for_a_float_are_taken():
    assert FoldBn()(program("Plain")).changes
    [refusal] = LowRank("head", energy=1)(program("Plain")).refusals
    assert refusal.reason == "no rank saves parameters with energy=1"


@dataclass(frozen=True)
class Refuser(Rewrite):
    """Lossy where it does something, which is nowhere."""

    name: ClassVar[str] = "refuser"

    def rewrite(self, edit: Editor) -> Effect:
        edit.refuse("output", "nowhere")
        return Effect.LOSSY


class Pairs(nn.Module):
    """Takes batches of two alone, and says so."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch._assert(x.shape[0] == 2, "a batch of two")
        return self.b(torch.relu(self.a(x)))


def test_a_model_that_asserts_its_batch_size_is_compared_at_it_alone():
    result = Widen((("a", 1),))(capture(Pairs().eval(), torch.randn(2, 4)))
    assert result.error is not None
    assert result.error < 1e-5


def test_what_changes_nothing_is_exact():
    assert Refuser()(program("Plain")).effect is Effect.EXACT


def test_a_chain_tells_where_entries_come_from_through_all_of_its_passes():
    start = program("Plain")
    narrow, wide = PruneChannels((("body.0", (0, 5)),)), Widen((("body.0", 6),))
    index = chain(narrow, wide)(start).origins["body.0.weight"].index[0]
    assert index.tolist() == [1, 1, 2, 2, 3, 3, 4, 4, 6, 6, 7, 7]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("no-such-pass", "no pass is named"),
        ("fold-bn(", "not of the form"),
        ("fold-bn(width=3)", "bad options"),
        ("prune-channels(drop=__import__('os'))", "bad options"),
        ("prune-channels(((),))", "given by name"),
    ],
)
def test_bad_specs_are_refused_and_never_run(spec: str, message: str):
    with pytest.raises(SpecError, match=message):
        parse(spec)


def test_a_program_is_kept_in_eval_mode_and_whole():
    start = program("Plain")
    with pytest.raises(VerifyError, match="eval mode"):
        Program(start.trainable_copy().train(), start.example_inputs)
    stray = start.trainable_copy()
    stray.add_module("stray", nn.ReLU())
    with pytest.raises(VerifyError, match="modules that no node calls: stray"):
        Program(stray, start.example_inputs)


def test_a_draft_shares_tensors_and_a_trainable_copy_does_not():
    start = program("Residual")
    own = {t.data_ptr() for t in start.graph_module.parameters()}
    assert {t.data_ptr() for t in start.draft().parameters()} == own
    assert not {t.data_ptr() for t in start.trainable_copy().parameters()} & own


@dataclass(frozen=True)
class Stumbler(Rewrite):
    """Fails while it looks for its places."""

    name: ClassVar[str] = "stumbler"

    @classmethod
    def candidates(cls, program: Program, many: int = 1) -> Iterator[Self]:
        """One, then a failure."""
        for _ in range(many):
            yield cls()
        raise IndexError("index 3 is out of bounds")

    def rewrite(self, edit: Editor) -> Effect:
        return Effect.EXACT


@dataclass(frozen=True)
class Breaker(Rewrite):
    """Leaves what does not run."""

    name: ClassVar[str] = "breaker"

    def rewrite(self, edit: Editor) -> Effect:
        node, _ = next(edit.program.calls(nn.Linear))
        edit.replace_module(str(node.target), nn.Linear(3, 10))
        return Effect.LOSSY


@dataclass(frozen=True)
class Follower(Breaker):
    """The same, where the structure analysis said so."""

    name: ClassVar[str] = "follower"
    follows_structure: ClassVar[bool] = True


@dataclass(frozen=True)
class Prover(Rewrite):
    """Promises what a reference that fails says."""

    name: ClassVar[str] = "prover"

    def rewrite(self, edit: Editor) -> Effect:
        node, conv = next(edit.program.calls(nn.Conv2d))
        edit.replace_module(str(node.target), conv)
        edit.prove_equal_to(lambda _, inputs: torch.zeros(2) @ torch.zeros(3))
        return Effect.LOSSY


def test_candidates_that_fail_are_a_crash_of_the_pass():
    found = Stumbler.candidates(program("Plain"), many=2)
    assert [next(found), next(found)] == [Stumbler(), Stumbler()]
    with pytest.raises(PassCrashedError, match=r"stumbler: its candidates crashed.*IndexError\('index 3") as caught:
        next(found)
    assert isinstance(caught.value.__cause__, IndexError)
    with pytest.raises(SpecError, match=r"widen: candidates takes a fxsurgery\.Program, not a torch.nn.Linear"):
        list(Widen.candidates(nn.Linear(2, 2)))  # type: ignore[arg-type]


def test_what_does_not_run_is_an_error_of_the_pass_unless_it_follows_the_structure():
    start = program("Plain")
    with pytest.raises(VerifyError, match=r"breaker left a program that does not run: .*mat1 and mat2"):
        Breaker()(start)
    result = Follower()(start)
    assert (result.program, result.changes, result.effect) == (start, 0, Effect.EXACT)
    assert result.refusals[-1].reason.startswith("the smaller model would not run, or could not be verified: ")


def test_a_reference_that_does_not_run_is_an_error_of_ours():
    with pytest.raises(VerifyError, match="prover cannot be verified, its reference does not run: "):
        Prover()(program("Plain"))
