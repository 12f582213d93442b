"""Which memory format and precision a training takes where it is left to the package. No test here measures time."""

import copy
from itertools import chain, repeat

import pytest
import torch
from torch import nn

from fxsurgery.training import Recipe, Task, cosine, sgd
from fxsurgery.training.probe import Measured, Probe, TrainingMode, choose, modes
from nonempty import nonempty

PLAIN, LAST, HALF = TrainingMode(), TrainingMode("channels_last"), TrainingMode(None, "bf16")


def net(*end):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.5),
            nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(), *(end or (nn.Flatten(),)), nn.Linear(96, 4),
        )  # fmt: skip


def task():
    x = torch.randn(16, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    return Task.of((x, x.flatten(1).argmax(1) % 4), (x, x.flatten(1).argmax(1) % 4), batch_size=8)


def probing(model, clock=lambda: 0.0, **options):
    recipe = Recipe(steps=100, optimizer=sgd(0.1), schedule=cosine(), **options)
    return Probe(lambda: copy.deepcopy(model), task(), recipe, device="cpu", clock=clock)


def test_only_what_is_left_open_is_chosen_among():
    model = net()
    assert modes(model, "auto", None) == [PLAIN, LAST]
    assert modes(model, None, "auto") == [TrainingMode(None, "no"), HALF]
    assert modes(model, "auto", "fp16") == [TrainingMode(None, "fp16"), TrainingMode("channels_last", "fp16")]
    assert modes(model, "channels_last", "auto") == [
        TrainingMode("channels_last", "no"), TrainingMode("channels_last", "bf16")
    ]  # fmt: skip
    assert len(modes(model, "auto", "auto")) == 4
    assert modes(nn.Sequential(nn.Conv1d(3, 3, 3), nn.Linear(3, 3)), "auto", None) == [PLAIN]
    assert modes(model, "contiguous", "bf16") == [TrainingMode("contiguous", "bf16")]


def test_modes_take_turns_and_the_first_turn_and_the_first_steps_do_not_count():
    durations = iter(range(1, 25))
    instants = chain.from_iterable((0.0, float(next(durations))) for _ in repeat(None, 24))
    found = probing(net(), clock=lambda: next(instants)).measure([PLAIN, LAST])
    assert found[PLAIN].seconds == [8, 9, 14, 15, 20, 21]
    assert found[LAST].seconds == [11, 12, 17, 18, 23, 24]


def test_the_losses_of_the_modes_are_comparable():
    found = probing(net()).measure([PLAIN, LAST, HALF])
    plain, last, half = (found[mode].losses for mode in (PLAIN, LAST, HALF))
    assert last == pytest.approx(plain, rel=1e-5)
    assert half == pytest.approx(plain, rel=2e-2)
    assert half != plain
    assert len(set(plain)) == len(plain) == 3, "the weights do not train"
    assert [found[mode].failure for mode in (PLAIN, LAST, HALF)] == ["", "", ""]


def test_several_batches_a_step_are_measured_so():
    found = probing(net(), accumulate=2).measure([PLAIN, LAST])
    assert found[LAST].losses == pytest.approx(found[PLAIN].losses, rel=1e-5)


def test_model_and_random_states_are_left_alone():
    model = net().eval()
    before, states = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    probing(model).measure([PLAIN, LAST, HALF])
    assert torch.equal(torch.get_rng_state(), states)
    assert all(torch.equal(value, before[name]) for name, value in nonempty(model.state_dict().items()))
    assert not model.training
    assert all(p.grad is None and p.is_contiguous() for p in nonempty(model.parameters()))


def test_a_mode_in_which_the_model_cannot_train_is_left_out():
    class View(nn.Module):
        def forward(self, x):
            return x.view(len(x), -1)

    found = probing(net(View())).measure([PLAIN, LAST])
    assert "calls `view`" in found[LAST].failure
    assert found[LAST].seconds == []
    mode, why = choose(found | {PLAIN: Measured([1.0], found[PLAIN].losses)})
    assert mode == PLAIN
    assert "channels_last fails: the model cannot train" in why


def measured(seconds, losses=(2.0, 1.0), failure=""):
    return Measured([seconds, seconds, 100.0], list(losses), failure)


@pytest.mark.parametrize(
    ("last", "half", "chosen", "why"),
    [
        (measured(0.6), measured(0.8), LAST, "channels_last, which takes 0.60 of the time of: plain"),
        (measured(0.8), measured(0.6), HALF, "bf16, which takes 0.60"),
        (measured(0.9), measured(2.0), LAST, "takes 0.90"),
        (measured(0.91), measured(1.5), PLAIN, "(channels_last takes 0.91 of its time; bf16 takes 1.50"),
        (measured(0.1, (2.0, 1.0019)), measured(1.0), LAST, "0.10"),
        (measured(0.1, (2.0, 1.0021)), measured(1.0), PLAIN, "channels_last has other losses: 2, 1.0021, not 2, 1"),
        (measured(0.1, (2.0, 1.0021)), measured(0.5, (2.0, 0.961)), HALF, "0.50"),
        (measured(1.0), measured(0.5, (2.0, 0.959)), PLAIN, "bf16 has other losses: 2, 0.959, not 2, 1"),
        (measured(0.1, (2.0, float("nan"))), measured(1.0), PLAIN, "channels_last has other losses: 2, nan, not"),
        (measured(0.1, failure="no"), measured(0.7), HALF, "0.70"),
        (measured(0.1, failure="no"), measured(0.1, failure="nor"), PLAIN, "channels_last fails: no; bf16 fails: nor"),
    ],
)  # fmt: skip
def test_the_fastest_mode_of_equal_losses_is_chosen_if_it_is_clearly_faster(last, half, chosen, why):
    mode, told = choose({PLAIN: measured(1.0), LAST: last, HALF: half})
    assert mode == chosen
    assert why in told


def test_where_the_plain_steps_fail_nothing_is_changed():
    mode, why = choose({PLAIN: measured(1.0, failure="the loss is inf"), LAST: measured(0.1)})
    assert mode == PLAIN
    assert "the loss is inf" in why


def test_a_step_that_diverges_is_a_failure_of_its_mode():
    model = net()
    nn.init.constant_(model[-1].weight, float("nan"))
    found = probing(model).measure([PLAIN, LAST])
    assert "the loss is nan" in found[PLAIN].failure
    assert choose(found)[0] == PLAIN
