"""What every pass owes, on every tiny model. A new pass is covered the day it is listed."""

import copy
import functools
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from fxsurgery.comparison import relative_error
from fxsurgery.deploy import export_onnx
from fxsurgery.edit import Editor
from fxsurgery.errors import SpecError
from fxsurgery.passes import ALL, parse, replay
from fxsurgery.program import Program
from fxsurgery.surgery import Effect, PassResult, Rewrite, Trains
from nonempty import nonempty, possibly_empty
from programs import program
from zoo import BATCH_NORMS, ZOO, example

AFTER = {"remove-gates": "insert-gates", "extract-subnet": "elasticize"}
"""Passes that undo what another has done, and that other: they are tried on its results."""


@functools.cache
def start_of(name: str) -> Program:
    """`Plain`, or `Plain+insert-gates`: the tiny model after the first candidate of that pass."""
    plain, _, first = name.partition("+")
    if not first:
        return program(plain)
    move = next(iter(ALL[first].candidates(program(plain))), None)
    return program(plain) if move is None else move(program(plain)).program


def _starts() -> list[tuple[str, type[Rewrite]]]:
    plain = [(name, pass_type) for name in ZOO for pass_type in ALL.values()]
    return plain + [(f"{n}+{AFTER[p.name]}", p) for n in ZOO for p in ALL.values() if AFTER.get(p.name) in ALL]


def promises_equality(name: str, move: Rewrite) -> bool:
    """Whether a move is exact where it changes anything; the edit tells, without a run of the result."""
    edit = Editor(start_of(name))
    return move.rewrite(edit) is Effect.EXACT and edit.changes > 0


CASES = [
    pytest.param(name, move, id=f"{name}-{str(move)[:70]}")
    for name, pass_type in _starts()
    for move in pass_type.candidates(start_of(name))
]
EXACT = [case for case in CASES if promises_equality(*case.values)]
"""Those that say that they leave the outputs as they are."""
TRAINED = [case for case in CASES if case.values[1].trains is not Trains.NO]
FIRST = {(case.values[0], type(case.values[1])): case for case in reversed(CASES)}
"""One candidate for each pass and model."""

RESIZERS = {"narrow-branch", "prune-channels", "svd-shrink", "widen"}
"""Passes whose result always has parameters made of entries of what was there before."""

every_case = pytest.mark.parametrize(("name", "move"), CASES)


@functools.lru_cache(maxsize=8)
def outcome(name: str, move: Rewrite) -> PassResult:
    return move(start_of(name))


def applied_again(move: Rewrite, once: Program) -> PassResult | None:
    """What the move does to its own result; `None` where the place that it names is gone."""
    try:
        return move(once)
    except SpecError:
        return None


def outputs_of(model: nn.Module, *inputs: Tensor) -> list[Tensor]:
    output = model(*inputs)
    return list(output) if isinstance(output, tuple) else [output]


def is_ours(name: str) -> bool:
    """Whether a parameter belongs to a search, which trains it in its own time: gates, elastic kernels."""
    return "fxsurgery_" in name


def trained(start: Program, learning_rate: float, *inputs: Tensor, steps: int = 3) -> tuple[Program, set[str]]:
    """The program after a few plain SGD steps in train mode, and the parameters that no gradient reached."""
    inputs = inputs or start.example_inputs
    model = start.trainable_copy().train()
    parameters = {n: p for n, p in model.named_parameters() if not is_ours(n)}
    optimizer = torch.optim.SGD(parameters.values(), lr=learning_rate)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    unreached = set(parameters)
    for step in range(steps):
        optimizer.zero_grad()
        loss = torch.zeros(())
        for output in outputs_of(model, *inputs):
            wanted = torch.linspace(-1, 1, output.numel()).roll(7 * step).view_as(output)
            loss = loss + (output - wanted).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        unreached -= {n for n, p in parameters.items() if p.grad is not None and p.grad.any()}
        optimizer.step()
    return start.with_weights(model), unreached


def worst(got: Program, wanted: Program) -> float:
    return max(map(relative_error, got.run_examples(), wanted.run_examples()))


def norms(of: Program) -> int:
    return sum(1 for _ in of.calls(*BATCH_NORMS))


def rows_of(of: Program) -> dict[str, Tensor]:
    """The weights and the bias behind each output of each layer, by its path: (outputs, numbers)."""
    found = dict[str, Tensor]()
    for path, module in of.graph_module.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d)):
            rows = module.weight.detach().flatten(1)
            found[path] = rows if module.bias is None else torch.cat([rows, module.bias.detach()[:, None]], 1)
    return found


def twins(before: Program, after: Program) -> set[tuple[str, int, int]]:
    """Pairs of outputs of a layer that moved in training and still compute the same."""
    found = set[tuple[str, int, int]]()
    start = rows_of(before)
    for path, rows in rows_of(after).items():
        moved = (rows != start[path]).any(1)
        equal = ((rows[:, None] == rows[None]).all(-1) & moved[:, None]).triu(1)
        found |= {(path, int(i), int(j)) for i, j in equal.nonzero()}
    return found


def test_every_pass_has_a_candidate_somewhere():
    assert {type(case.values[1]).name for case in CASES} == set(nonempty(ALL))


def test_passes_that_can_be_exact_are_so_somewhere():
    assert {type(case.values[1]).name for case in EXACT} == {
        "add-conv-cell", "deepen", "elasticize", "extract-subnet", "fold-bn", "insert-gates", "remove-gates",
        "remove-layer", "remove-pool", "split-edge", "widen",
    }  # fmt: skip


def test_one_pass_alone_is_not_for_training():
    assert {type(case.values[1]).name for case in CASES if case.values[1].trains is Trains.NO} == {"fold-bn"}


@every_case
def test_input_and_the_global_random_state_are_left_alone(name: str, move: Rewrite):
    start, state = start_of(name), torch.get_rng_state()
    text, weights = start.text(), copy.deepcopy(start.graph_module.state_dict())
    move(start)
    assert torch.equal(torch.get_rng_state(), state)
    assert start.text() == text
    after = start.graph_module.state_dict()
    assert after.keys() == weights.keys()
    assert all(torch.equal(after[key], weights[key]) for key in nonempty(weights))


@pytest.mark.parametrize("name", ZOO)
def test_listing_candidates_leaves_global_random_state_alone(name: str):
    state = torch.get_rng_state()
    for pass_type in ALL.values():
        list(pass_type.candidates(replace(start_of(name))))
    assert torch.equal(torch.get_rng_state(), state)


@every_case
def test_changes_are_told_truly(name: str, move: Rewrite):
    start, result = start_of(name), outcome(name, move)
    assert (result.program is start) == (result.changes == 0)
    assert (result.program.text() == start.text()) == (result.changes == 0)


@every_case
def test_outputs_keep_their_shapes_at_another_batch_size(name: str, move: Rewrite):
    start = start_of(name)
    larger = tuple(torch.cat([x, x, x]) for x in start.example_inputs)
    got, wanted = outcome(name, move).program(*larger), start(*larger)
    pairs = zip(got, wanted, strict=True) if isinstance(wanted, tuple) else [(got, wanted)]
    assert all(a.shape == b.shape for a, b in nonempty(pairs))


@pytest.mark.parametrize(("name", "move"), EXACT)
def test_exact_means_exact(name: str, move: Rewrite):
    result = outcome(name, move)
    assert result.effect is Effect.EXACT
    assert result.changes
    assert worst(result.program, start_of(name)) < 1e-5


@pytest.mark.parametrize(("name", "move"), [case for case in EXACT if case.values[1].trains is not Trains.NO])
def test_exact_stays_exact_while_training(name: str, move: Rewrite):
    """The same steps lead to the same outputs; for what goes its own way, steps that move statistics of norms alone.

    A new norm takes its statistics from the example inputs: it repeats them up to n / (n - 1).
    """
    start, result = start_of(name), outcome(name, move)
    rate = 1e-2 if move.trains is Trains.ALIKE else 0.0
    limit = 1e-4 if norms(result.program) <= norms(start) else 2e-2
    assert worst(trained(result.program, rate)[0], trained(start, rate)[0]) < limit


@pytest.mark.parametrize(("name", "move"), TRAINED)
def test_result_trains_every_parameter(name: str, move: Rewrite):
    start, result = start_of(name), outcome(name, move)
    images = example(name.partition("+")[0], batch=32, seed=1)  # so many that no unit is dead on all of them
    after, unreached = trained(result.program, 1e-2, images)
    assert unreached <= trained(start, 1e-2, images)[1]
    assert all(output.isfinite().all() for output in nonempty(after.run_examples()))
    assert not twins(result.program, after)


@every_case
def test_spec_reads_back(name: str, move: Rewrite):
    assert parse(str(move)) == move


@every_case
def test_log_replays(name: str, move: Rewrite):
    result = outcome(name, move).program
    replayed = replay(result.log, program(name.partition("+")[0]))
    assert replayed.text() == result.text()
    assert worst(replayed, result) == 0.0


@every_case
def test_a_second_application_works_or_is_refused(name: str, move: Rewrite):
    once = outcome(name, move).program
    again = applied_again(move, once)
    assert again is None or again.changes or again.refusals


@pytest.mark.parametrize(("name", "move"), [case for case in CASES if case.values[1].name != "insert-gates"])
def test_channels_can_still_be_pruned_afterwards(name: str, move: Rewrite):
    once = outcome(name, move).program
    error = nonempty(ALL["prune-channels"].candidates(once, lambda _: 1))[0](once).error
    assert error is not None
    assert error < 1e-5


@pytest.mark.parametrize(("name", "move"), [case for case in CASES if case.values[1].name == "insert-gates"])
def test_under_gates_every_channel_stays(name: str, move: Rewrite):
    assert list(ALL["prune-channels"].candidates(outcome(name, move).program, lambda _: 1)) == []


@every_case
def test_origins_name_parameters_and_their_entries(name: str, move: Rewrite):
    start, result = start_of(name), outcome(name, move)
    before, after = (dict(p.graph_module.named_parameters()) for p in (start, result.program))
    assert result.origins or move.name not in RESIZERS
    for own, origin in possibly_empty(result.origins.items()):
        sizes = list(before[origin.name].shape)
        assert after[own].dim() == len(sizes)
        for dim, index in possibly_empty(origin.index.items()):
            assert int(index.min()) >= -1
            assert int(index.max()) < sizes[dim]
            sizes[dim] = len(index)
        assert list(after[own].shape) == sizes


@pytest.mark.slow
@pytest.mark.parametrize(("name", "move"), list(FIRST.values()))
def test_onnx_of_the_result_agrees(name: str, move: Rewrite, tmp_path):
    result = outcome(name, move).program
    written = export_onnx(result.graph_module, result.example_inputs, tmp_path / "model.onnx")
    assert written.parity is not None
