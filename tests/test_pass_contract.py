"""What every pass owes, on every tiny model. A new pass is covered the day it is listed."""

import copy

import pytest
import torch

from fxsurgery.passes import ALL, InsertGates, parse, replay
from fxsurgery.program import Program
from fxsurgery.surgery import Effect, Rewrite, relative_error
from programs import program
from zoo import ZOO

CASES = [
    pytest.param(name, move, id=f"{name}-{str(move)[:60]}")
    for name in ZOO
    for pass_type in ALL.values()
    for move in pass_type.candidates(program(name))
] + [
    pytest.param(f"{name}+gates", move, id=f"{name}+gates-{move}")
    for name in ZOO
    for gated in [InsertGates()(program(name)).program]
    for move in ALL["remove-gates"].candidates(gated)
]


def start_of(name: str) -> Program:
    plain, _, gated = name.partition("+")
    return InsertGates()(program(plain)).program if gated else program(plain)


def after_steps(start: Program, steps: int = 3) -> list[torch.Tensor]:
    """The outputs after a few plain SGD steps in train mode: norm statistics and gradients take part."""
    model = start.trainable_copy().train()
    parameters = [p for n, p in model.named_parameters() if "fxsurgery_gates" not in n]
    optimizer = torch.optim.SGD(parameters, lr=1e-3)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    for _ in range(steps):
        optimizer.zero_grad()
        output = model(*start.example_inputs)
        leaves = output if isinstance(output, tuple) else (output,)
        torch.stack([leaf.square().mean() for leaf in leaves]).sum().backward()
        optimizer.step()
    return start.with_weights(model).run_examples()


def test_every_pass_has_a_candidate_somewhere():
    assert {type(case.values[1]).name for case in CASES} == set(ALL)


@pytest.mark.parametrize(("name", "move"), CASES)
def test_input_is_left_alone(name: str, move: Rewrite):
    start = start_of(name)
    text, weights = start.text(), copy.deepcopy(start.graph_module.state_dict())
    move(start)
    assert start.text() == text
    after = start.graph_module.state_dict()
    assert after.keys() == weights.keys()
    assert all(torch.equal(after[key], weights[key]) for key in weights)


@pytest.mark.parametrize(("name", "move"), CASES)
def test_changes_are_told_truly(name: str, move: Rewrite):
    start = start_of(name)
    result = move(start)
    assert (result.program is start) == (result.changes == 0)
    assert (result.program.text() == start.text()) == (result.changes == 0)


@pytest.mark.parametrize(("name", "move"), CASES)
def test_outputs_keep_their_shapes_at_another_batch_size(name: str, move: Rewrite):
    start = start_of(name)
    larger = tuple(torch.cat([x, x, x]) for x in start.example_inputs)
    got, wanted = move(start).program(*larger), start(*larger)
    pairs = zip(got, wanted, strict=True) if isinstance(wanted, tuple) else [(got, wanted)]
    assert all(a.shape == b.shape for a, b in pairs)


@pytest.mark.parametrize(("name", "move"), CASES)
def test_exact_means_exact(name: str, move: Rewrite):
    start = start_of(name)
    result = move(start)
    if result.effect is not Effect.EXACT:
        pytest.skip("not promised here")
    errors = map(relative_error, result.program.run_examples(), start.run_examples())
    assert max(errors) < 1e-5


@pytest.mark.parametrize(("name", "move"), CASES)
def test_exact_stays_exact_while_training(name: str, move: Rewrite):
    start = start_of(name)
    result = move(start)
    if result.effect is not Effect.EXACT or move.name == "fold-bn":
        pytest.skip("not promised here: a folded batch norm is for inference")
    assert max(map(relative_error, after_steps(result.program), after_steps(start))) < 1e-4


@pytest.mark.parametrize(("name", "move"), CASES)
def test_result_trains_every_parameter(name: str, move: Rewrite):
    result = move(start_of(name)).program
    model = result.trainable_copy().train()
    output = model(*result.example_inputs)
    leaves = output if isinstance(output, tuple) else (output,)
    torch.stack([(leaf * torch.linspace(-1, 1, leaf.numel()).view_as(leaf)).sum() for leaf in leaves]).sum().backward()
    dead = [
        n for n, p in model.named_parameters() if "fxsurgery_gates" not in n and (p.grad is None or not p.grad.any())
    ]
    assert not dead


@pytest.mark.parametrize(("name", "move"), CASES)
def test_spec_reads_back(name: str, move: Rewrite):
    assert parse(str(move)) == move


@pytest.mark.parametrize(("name", "move"), CASES)
def test_log_replays(name: str, move: Rewrite):
    result = move(start_of(name)).program
    replayed = replay(result.log, program(name.partition("+")[0]))
    assert replayed.text() == result.text()
    assert max(map(relative_error, replayed.run_examples(), result.run_examples())) == 0.0


@pytest.mark.parametrize(("name", "move"), CASES)
def test_a_second_round_of_surgery_works(name: str, move: Rewrite):
    once = move(start_of(name)).program
    for again in ALL["prune-channels"].candidates(once):
        error = again(once).error
        assert error is None or error < 1e-5
        break
