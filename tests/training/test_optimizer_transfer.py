"""Optimizer state that goes with the parameters through surgery.

The oracle is the network before the surgery with the removed units silent: after the same step, its survivors are
what the pruned network's parameters must be.
"""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.optim import (
    ASGD,
    LBFGS,
    SGD,
    Adadelta,
    Adafactor,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    NAdam,
    RAdam,
    RMSprop,
    Rprop,
)

from fxsurgery.capture import capture
from fxsurgery.errors import TrainingError
from fxsurgery.lineage import Origin, compose
from fxsurgery.passes import InsertGates, PruneChannels, Widen
from fxsurgery.training import Recipe, Task, fit, sgd, transfer_optimizer_state
from nonempty import nonempty
from programs import silenced
from zoo import lively

DROP = (1, 4, 7)
KEPT = torch.tensor([0, 2, 3, 5, 6])
IMAGES = torch.randn(6, 3, 6, 6, generator=torch.Generator().manual_seed(1))

KINDS = {
    "sgd": lambda ps: SGD(ps, 0.1, momentum=0.9, weight_decay=1e-2),
    "nesterov": lambda ps: SGD(ps, 0.1, momentum=0.9, nesterov=True),
    "adam": lambda ps: Adam(ps, 0.01),
    "amsgrad": lambda ps: Adam(ps, 0.01, amsgrad=True),
    "adamw": lambda ps: AdamW(ps, 0.01),
    "adamw-fused": lambda ps: AdamW(ps, 0.01, fused=True),
    "rmsprop": lambda ps: RMSprop(ps, 0.01, momentum=0.9, centered=True),
    "adagrad": lambda ps: Adagrad(ps, 0.05, initial_accumulator_value=0.1),
    "adadelta": lambda ps: Adadelta(ps, 1.0),
    "adamax": lambda ps: Adamax(ps, 0.01),
    "nadam": lambda ps: NAdam(ps, 0.01),
    "radam": lambda ps: RAdam(ps, 0.01),
    "asgd": lambda ps: ASGD(ps, 0.05),
    "rprop": lambda ps: Rprop(ps, 0.01),
}


class Net(nn.Module):
    """Of its units, those of `a` are cut: rows of `a` and `norm`, columns of `b`."""

    def __init__(self):
        super().__init__()
        self.a, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.b, self.head = nn.Conv2d(8, 6, 3), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.norm(self.a(x)).relu()).relu().mean((2, 3)))


def start():
    return capture(lively(Net()).eval(), IMAGES)


def survivors(name: str, tensor: Tensor) -> Tensor:
    """By hand: what of a tensor of `Net` is left when units of `a` go."""
    if name.startswith(("a.", "norm.")):
        return tensor[KEPT]
    return tensor[:, KEPT] if name == "b.weight" else tensor


def learn(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 1, seed: int = 5) -> None:
    model.train()
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        x = torch.randn(6, 3, 6, 6, generator=generator)
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
    model.eval()


def trained(make, steps: int = 3):
    """A program, trained, with its optimizer."""
    program = start()
    model = program.trainable_copy()
    optimizer = make(model.parameters())
    learn(model, optimizer, steps)
    return program.with_weights(model), model, optimizer


def pruned(make, *, carried: bool = True):
    program, model, before = trained(make)
    result = PruneChannels((("a", DROP),))(program)
    small = result.program.trainable_copy()
    after = make(small.parameters())
    if carried:
        assert transfer_optimizer_state(before, model, after, small, result.origins) == ()
    return program, before, model, small, after


def distance_to_the_silenced(kind: str, *, carried: bool) -> float:
    """How far two more steps lead the pruned network from the survivors of the silenced one."""
    make = KINDS[kind]
    program, before, model, small, after = pruned(make, carried=carried)
    whole = silenced(program, PruneChannels((("a", DROP),)).keep(program)).trainable_copy()
    theirs = dict(whole.named_parameters())
    oracle = make(theirs[name] for name, _ in model.named_parameters())
    oracle.load_state_dict(copy.deepcopy(before.state_dict()))
    learn(small, after, 2, seed=9)
    learn(whole, oracle, 2, seed=9)
    with torch.no_grad():
        return max(float((p - survivors(n, theirs[n])).abs().max()) for n, p in small.named_parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_next_steps_are_those_of_the_silenced_network(kind: str):
    assert distance_to_the_silenced(kind, carried=True) < 1e-5


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"asgd"}))
def test_without_the_past_the_next_steps_are_others(kind: str):
    """But for ASGD, whose state is an average of the weights."""
    assert distance_to_the_silenced(kind, carried=False) > 1e-3


def test_entries_follow_by_hand():
    _, before, model, small, after = pruned(KINDS["amsgrad"])
    old, new = dict(model.named_parameters()), dict(small.named_parameters())
    for name, parameter in nonempty(new.items()):
        for key in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
            assert torch.equal(after.state[parameter][key], survivors(name, before.state[old[name]][key]))
        assert after.state[parameter]["step"] == 3


def test_the_optimizer_before_is_left_alone():
    _, before, _, small, after = pruned(KINDS["adam"])
    known = copy.deepcopy(before.state_dict()["state"])
    learn(small, after, 2)
    left = before.state_dict()["state"]
    assert all(nonempty(torch.equal(left[i][key], value) for i, state in known.items() for key, value in state.items()))


def copied(make):
    """A linear layer of 3 rows and one of 5: rows 2, 0, a new one, 1, 0 of it; a column is new as well."""
    old, new = nn.Linear(4, 3), nn.Linear(5, 5)
    before, after = make(old.parameters()), make(new.parameters())
    old(torch.linspace(-1, 1, 8).reshape(2, 4)).square().sum().backward()
    before.step()
    rows, columns = torch.tensor([2, 0, -1, 1, 0]), torch.tensor([0, -1, 1, 2, 3])
    origins = {"weight": Origin("weight", {0: rows, 1: columns}), "bias": Origin("bias", {0: rows})}
    assert transfer_optimizer_state(before, old, after, new, origins) == ()
    return before, old, after, new


def test_copies_share_a_past_and_new_entries_have_none():
    before, old, after, new = copied(KINDS["adam"])
    was, now = before.state[old.weight], after.state[new.weight]
    for key in ("exp_avg", "exp_avg_sq"):
        for row, source in enumerate([2, 0, None, 1, 0]):
            wanted = torch.zeros(4) if source is None else was[key][source]
            assert torch.equal(now[key][row, [0, 2, 3, 4]], wanted)
        assert not now[key][:, 1].any()
    assert now["step"] == 1


def test_new_entries_begin_as_the_optimizer_begins():
    """Adagrad's sums do not begin at 0."""
    before, old, after, new = copied(KINDS["adagrad"])
    sums = after.state[new.bias]["sum"]
    assert sums[2] == pytest.approx(0.1)
    assert torch.equal(sums[[0, 1, 3, 4]], before.state[old.bias]["sum"][[2, 0, 1, 0]])


def test_copies_made_by_widen_take_the_past_of_their_unit():
    """Which unit a row is a copy of shows in the weights, which are the same."""
    program, model, before = trained(KINDS["adam"])
    result = Widen((("a", 3),), seed=1)(program)
    wide = result.program.trainable_copy()
    after = KINDS["adam"](wide.parameters())
    assert transfer_optimizer_state(before, model, after, wide, result.origins) == ()
    old, new = model.get_parameter("a.weight"), wide.get_parameter("a.weight")
    source = (new[:, None] == old[None]).flatten(2).all(-1).int().argmax(1)
    assert len(source) == 11
    assert set(source.tolist()) == set(range(8))
    for key in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(after.state[new][key], before.state[old][key][source])
        reader = after.state[wide.get_parameter("b.weight")][key]
        assert torch.equal(reader, before.state[model.get_parameter("b.weight")][key][:, source])
    learn(wide, after)


def test_a_new_entry_takes_a_long_first_step_under_adam():
    """(1 - beta1) / sqrt(1 - beta2) = 3.16 learning rates when the counter is large: as the module says."""
    layer = nn.Linear(1, 2, bias=False)
    optimizer = Adam(layer.parameters(), 0.01)
    layer(torch.ones(1, 1)).sum().backward()
    optimizer.step()
    optimizer.state[layer.weight].update(exp_avg=torch.zeros(2, 1), exp_avg_sq=torch.zeros(2, 1))
    optimizer.state[layer.weight]["step"].fill_(1e5)
    start_of = layer.weight.detach().clone()
    optimizer.step()
    assert (layer.weight - start_of).abs().max().item() == pytest.approx(0.01 * 0.1 / 0.001**0.5, rel=1e-3)


def test_parameters_of_inserted_modules_start_afresh_and_the_others_go_on():
    program, model, before = trained(KINDS["adam"])
    result = InsertGates()(program)
    gated = result.program.trainable_copy()
    after = KINDS["adam"](gated.parameters())
    assert transfer_optimizer_state(before, model, after, gated, result.origins) == ("fxsurgery_gates.vector.logits",)
    for name, parameter in nonempty(model.named_parameters()):
        kept = after.state[gated.get_parameter(name)]
        assert all(torch.equal(kept[key], value) for key, value in nonempty(before.state[parameter].items()))
    assert gated.get_parameter("fxsurgery_gates.vector.logits") not in after.state


def test_groups_and_their_order_are_those_of_the_new_optimizer():
    program, model, before = trained(KINDS["adam"])
    result = PruneChannels((("a", DROP),))(program)
    small = result.program.trainable_copy()
    flat = [p for p in small.parameters() if p.dim() == 1]
    groups = [{"params": flat[::-1], "lr": 0.5}, {"params": [small.get_parameter("b.weight")], "weight_decay": 0.1}]
    after = Adam(groups, 0.01)
    transfer_optimizer_state(before, model, after, small, result.origins)
    assert [(g["lr"], g["weight_decay"]) for g in after.param_groups] == [(0.5, 0), (0.01, 0.1)]
    for name, parameter in nonempty(small.named_parameters()):
        if parameter.dim() == 1 or name == "b.weight":
            wanted = survivors(name, before.state[model.get_parameter(name)]["exp_avg"])
            assert torch.equal(after.state[parameter]["exp_avg"], wanted)
        else:
            assert parameter not in after.state


def test_state_takes_the_type_of_the_new_parameters_and_counters_keep_theirs():
    program, model, before = trained(KINDS["adam"])
    result = PruneChannels((("a", DROP),))(program)
    small = result.program.trainable_copy().double()
    after = KINDS["adam"](small.parameters())
    transfer_optimizer_state(before, model, after, small, result.origins)
    assert {s["exp_avg"].dtype for s in after.state.values()} == {torch.float64}
    assert {s["step"].dtype for s in after.state.values()} == {torch.float32}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no accelerator")
@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw-fused"])
def test_state_moves_to_the_device_of_the_new_parameters(kind: str):
    program, model, before = trained(KINDS[kind])
    result = PruneChannels((("a", DROP),))(program)
    small = result.program.trainable_copy().cuda()
    after = KINDS[kind](small.parameters())
    transfer_optimizer_state(before, model, after, small, result.origins)
    small.train()(IMAGES.cuda()).square().sum().backward()
    after.step()
    tensors = [v for s in after.state.values() for k, v in s.items() if k != "step" and v is not None]
    assert {t.device.type for t in tensors} == {"cuda"}


def test_tied_weights_carry_one_state():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
            self.two.weight = self.one.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.two(self.one(x))

    old, new = Tied(), Tied()
    before, after = KINDS["sgd"](old.parameters()), KINDS["sgd"](new.parameters())
    old(torch.ones(1, 4)).sum().backward()
    before.step()
    index = torch.tensor([3, 2, 1, 0])
    transfer_optimizer_state(before, old, after, new, {"two.weight": Origin("one.weight", {0: index, 1: index})})
    wanted = before.state[old.one.weight]["momentum_buffer"].flip(0, 1)
    assert torch.equal(after.state[new.one.weight]["momentum_buffer"], wanted)


def test_what_is_carried_resumes_from_a_state_dict():
    _, _, _, small, after = pruned(KINDS["adam"])
    saved, weights = copy.deepcopy(after.state_dict()), copy.deepcopy(small.state_dict())
    learn(small, after, 2)
    wanted = {n: p.detach().clone() for n, p in small.named_parameters()}
    small.load_state_dict(weights)
    again = KINDS["adam"](small.parameters())
    again.load_state_dict(saved)
    learn(small, again, 2)
    assert all(torch.equal(p, wanted[n]) for n, p in nonempty(small.named_parameters()))


def test_state_of_a_restored_optimizer_is_carried():
    program, model, before = trained(KINDS["adam"])
    restored = KINDS["adam"](model.parameters())
    restored.load_state_dict(copy.deepcopy(before.state_dict()))
    result = PruneChannels((("a", DROP),))(program)
    small = result.program.trainable_copy()
    one, other = KINDS["adam"](small.parameters()), KINDS["adam"](small.parameters())
    transfer_optimizer_state(before, model, one, small, result.origins)
    transfer_optimizer_state(restored, model, other, small, result.origins)
    pairs = [(one.state[p], other.state[p]) for p in small.parameters()]
    assert all(nonempty(torch.equal(a[key], b[key]) for a, b in pairs for key in a))


def test_momentum_follows_through_the_training_loop():
    """A recipe's optimizer factory is where a searcher takes the state over."""
    data = (IMAGES, torch.tensor([0, 1, 2, 3, 0, 1]))
    task = Task.of(data, data, batch_size=6)
    made = list[torch.optim.Optimizer]()

    def kept(parameters):
        made.append(sgd(0.05)(parameters))
        return made[-1]

    program = start()
    model = program.trainable_copy()
    fit(model, task, Recipe(steps=3, optimizer=kept), device="cpu")
    result = PruneChannels((("a", DROP),))(program.with_weights(model))
    small = result.program.trainable_copy()
    fresh = list[tuple[str, ...]]()

    def going_on(parameters):
        after = sgd(0.05)(parameters)
        fresh.append(transfer_optimizer_state(made[0], model, after, small, result.origins))
        return after

    ends = list[Tensor]()
    for factory in (going_on, sgd(0.05)):
        weights = copy.deepcopy(small.state_dict())
        fit(small, task, Recipe(steps=1, optimizer=factory), device="cpu")
        ends.append(small.get_parameter("a.weight").detach().clone())
        small.load_state_dict(weights)
    assert fresh == [()]
    assert not torch.allclose(ends[0], ends[1])


def test_origins_of_a_chain_are_those_of_its_steps_in_turn():
    program, model, before = trained(KINDS["adam"])
    first = PruneChannels((("a", DROP),))(program)
    second = PruneChannels((("a", (0, 3)), ("b", (5,))))(first.program)
    small = second.program.trainable_copy()
    after = KINDS["adam"](small.parameters())
    assert transfer_optimizer_state(before, model, after, small, compose(program, [first, second])) == ()
    left, outputs = torch.tensor([2, 3, 6]), torch.arange(5)
    wanted = before.state[model.get_parameter("b.weight")]["exp_avg"][outputs][:, left]
    assert torch.equal(after.state[small.get_parameter("b.weight")]["exp_avg"], wanted)
    assert torch.equal(compose(program, [first])["a.weight"].index[0], KEPT)


def test_what_a_later_pass_made_anew_does_not_get_an_older_past():
    """Of the same name and shape as at the start, but widened and cut back in between without a word."""
    program = start()
    half, whole = Net(), Net()
    half.a = nn.Conv2d(3, 4, 3, padding=1)
    half.norm, half.b = nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3)
    there = PruneChannels((("a", DROP),))(program)
    halves = [copy.copy(there), copy.copy(there)]
    object.__setattr__(halves[0], "program", capture(half.eval(), IMAGES))
    object.__setattr__(halves[1], "program", capture(whole.eval(), IMAGES))
    for result in halves:
        object.__setattr__(result, "origins", {})
    origins = compose(program, halves)
    assert all((index == -1).all() for index in nonempty(origins["a.weight"].index.values()))
    assert origins["head.weight"].index == {}
    old, new = program.trainable_copy(), halves[1].program.trainable_copy()
    before, after = KINDS["sgd"](old.parameters()), KINDS["sgd"](new.parameters())
    learn(old, before)
    fresh = transfer_optimizer_state(before, old, after, new, origins)
    assert set(fresh) == {"a.weight", "a.bias", "norm.weight", "norm.bias", "b.weight"}


def test_an_index_into_new_entries_is_new():
    program = start()
    first = PruneChannels((("a", DROP),))(program)
    object.__setattr__(first, "origins", {"a.bias": Origin("a.bias", {0: torch.tensor([0, -1, 3, 5, 6])})})
    second = copy.copy(first)
    object.__setattr__(second, "origins", {"a.bias": Origin("a.bias", {0: torch.tensor([1, 2, -1, 0, 2])})})
    assert compose(program, [first, second])["a.bias"].index[0].tolist() == [-1, 3, -1, 0, 3]


def refused(before, old, after, new, origins=None):
    with pytest.raises(TrainingError) as error:
        transfer_optimizer_state(before, old, after, new, origins or {})
    return str(error.value)


def test_factored_moments_of_a_changed_parameter_are_refused_by_name():
    program, model, before = trained(lambda ps: Adafactor(ps, 0.01))
    result = PruneChannels((("a", DROP),))(program)
    small = result.program.trainable_copy()
    message = refused(before, model, Adafactor(small.parameters()), small, result.origins)
    assert "state 'row_var' of a.weight is of shape (8, 3, 3, 1)" in message


def test_factored_moments_of_untouched_parameters_are_kept():
    program, model, before = trained(lambda ps: Adafactor(ps, 0.01))
    result = InsertGates()(program)
    gated = result.program.trainable_copy()
    after = Adafactor(gated.parameters(), 0.01)
    transfer_optimizer_state(before, model, after, gated, result.origins)
    kept, known = after.state[gated.get_parameter("b.weight")], before.state[model.get_parameter("b.weight")]
    assert torch.equal(kept["row_var"], known["row_var"])


def test_state_that_spans_parameters_is_refused():
    model, other = nn.Linear(3, 2), nn.Linear(3, 2)
    before = LBFGS(model.parameters())

    def closure():
        before.zero_grad()
        loss = model(torch.ones(1, 3)).square().sum()
        loss.backward()
        return loss

    before.step(closure)
    assert "is a list" in refused(before, model, LBFGS(other.parameters()), other)


def test_another_kind_of_optimizer_is_refused():
    one, other = nn.Linear(2, 2), nn.Linear(2, 2)
    message = refused(Adam(one.parameters()), one, SGD(other.parameters()), other)
    assert message == "a SGD cannot continue from the state of a Adam; use the same class of optimizer"


def test_an_option_that_needs_more_state_is_refused():
    program, model, before = trained(KINDS["adam"])
    twin = program.trainable_copy()
    message = refused(before, model, KINDS["amsgrad"](twin.parameters()), twin)
    told = "an optimizer with amsgrad cannot continue from the state of one without it; give both the same options"
    assert message == told


def test_optimizers_of_other_models_are_refused():
    one, other = nn.Linear(2, 2), nn.Linear(2, 2)
    mine, yours = Adam(one.parameters()), Adam(other.parameters())
    assert "before the surgery has parameters" in refused(mine, other, yours, other)
    assert "after the surgery has parameters" in refused(mine, one, yours, one)


def test_origins_of_another_result_are_refused():
    one, other = nn.Linear(2, 3), nn.Linear(2, 3)
    mine, yours = Adam(one.parameters()), Adam(other.parameters())
    known = {"bias": Origin("offset")}
    assert "the model before does not have" in refused(mine, one, yours, other, known)
    known = {"bias": Origin("bias", {0: torch.tensor([0, 1])})}
    told = "bias is (3,), and its origins are those of (2,); pass the origins of this surgery"
    assert refused(mine, one, yours, other, known) == told
