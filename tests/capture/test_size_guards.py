"""At sizes other than the example's, a captured graph computes what the model does, or refuses in one error."""

import functools
import json
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from fxsurgery.capture import capture
from fxsurgery.inputs import Inputs
from zoo import lively

REFUSED = r"must have (the same )?size|branches on a size"


class Net(nn.Module):
    """Two layers around a function of the feature map; symbolic tracing cannot take the assertion."""

    def __init__(self, between, channels=3):
        super().__init__()
        self.first, self.last = nn.Conv2d(channels, 4, 3, padding=1), nn.Conv2d(4, 5, 1)
        self.between = between

    def forward(self, x):
        assert bool(x.shape[0])
        return self.last(self.between(self.first(x)))


class Tokens(nn.Module):
    def __init__(self, between, longest=40):
        super().__init__()
        self.embed, self.position = nn.Embedding(30, 8), nn.Parameter(torch.randn(1, longest, 8))
        self.cell, self.head = nn.GRUCell(8, 8), nn.Linear(8, 3)
        self.between = between

    def forward(self, batch):
        return self.head(self.between(self, self.embed(batch["ids"]), batch))


def images(*size, batch=2):
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(sum(size)))


def ids(length, batch=2):
    return {"ids": torch.randint(0, 30, (batch, length), generator=torch.Generator().manual_seed(length))}


def taken(model, example, **options):
    model = lively(model).eval()
    return model, capture(model, example, **options)


def agrees(model, program, given):
    own = Inputs((given,)).clone().args[0]
    wanted, got = model(own), program(own)
    return wanted.shape == got.shape and torch.allclose(wanted, got, atol=1e-5)


def told(program):
    """Return the notes, except those about the parts of `Tokens` that a case does not use."""
    return [note for note in program.notes if "so they were removed" not in note]


def pads_and_crops(x):
    h, w = x.shape[-2:]
    return functional.pad(x, (0, -w % 8, 0, -h % 8)).cos()[..., :h, :w]


def flattens(x):
    b, c, h, w = x.size()
    return x.reshape(b, c, h * w).softmax(-1).view(b, c, h, w)


def halves(x):
    return functional.interpolate(x, size=(x.shape[2] // 2, x.shape[3] // 2)).mean((2, 3), keepdim=True)


def rolls(x):
    return torch.roll(x, x.shape[-1] // 2, -1) / x[0, 0].numel()


def ceils(x):
    return functional.avg_pool2d(x, 2, ceil_mode=True) * (-(-x.shape[2] // 2)) ** 0.5


def chunks(x):
    top, bottom = x.chunk(2, 1)
    return torch.cat([top.sin(), bottom], 1) + torch.linspace(0, 1, x.shape[-1])


@pytest.mark.parametrize("between", [pads_and_crops, flattens, halves, rolls, ceils, chunks])
def test_what_is_computed_from_sizes_stays_symbolic(between):
    model, program = taken(Net(between), images(8, 8))
    assert not program.notes
    for size in ((8, 8), (13, 13), (24, 24), (9, 20), (4, 31)):
        assert agrees(model, program, images(*size, batch=3)), size


def with_positions(model, x, _):
    return x + model.position[:, : x.shape[1]]


def shifted(model, x, _):
    n = x.shape[1]
    mask = torch.ones(n, n, dtype=torch.bool).tril()
    return (x @ x.transpose(1, 2)).masked_fill(~mask, -1e4).softmax(-1) @ x


def one_by_one(model, x, _):
    state = x.new_zeros(len(x), 8)
    for step in range(x.shape[1]):
        state = model.cell(x[:, step], state)
    return state


def unbound(model, x, _):
    return sum(step.tanh() for step in x.unbind(1))


def half_of(model, x, _):
    return x[:, : int(x.shape[1] * 0.5)].sum(1)


def only_long(model, x, _):
    return x.cos() if x.shape[1] > 6 else x


@pytest.mark.parametrize("between", [with_positions, shifted])
def test_a_sequence_may_have_any_length_that_the_model_takes(between):
    model, program = taken(Tokens(between), ids(12))
    assert not told(program)
    for length in (1, 3, 12, 29, 40):
        assert agrees(model, program, ids(length, batch=3)), length


@pytest.mark.parametrize("between", [one_by_one, unbound, half_of])
def test_a_length_that_forward_goes_by_is_fixed_and_named(between):
    model, program = taken(Tokens(between), ids(5))
    (note,) = told(program)
    assert note.startswith("`batch['ids']` must have size 5 along dim 1")
    assert "test_size_guards.py" in note
    assert agrees(model, program, ids(5, batch=7))
    for length in (1, 4, 6, 10):
        with pytest.raises(AssertionError, match=r"`batch\['ids'\]` must have size 5.*capture the model at the size"):
            program(ids(length))


def test_a_threshold_that_no_tried_size_crosses_is_guarded():
    def past_a_hundred(x):
        return x * 2 if x.shape[-1] > 100 else x

    model, program = taken(Net(past_a_hundred), images(8, 8))
    assert agrees(model, program, images(50, 100))
    with pytest.raises(AssertionError, match=r"branches on a size \(test_size_guards.py"):
        program(images(8, 101))


@pytest.mark.parametrize("length", [3, 9])
def test_a_branch_holds_where_it_went_the_same_way(length):
    model, program = taken(Tokens(only_long), ids(length))
    for other in range(1, 16):
        if (other > 6) == (length > 6):
            assert agrees(model, program, ids(other))
        else:
            with pytest.raises(AssertionError, match=REFUSED):
                program(ids(other))


def test_dims_that_must_agree_are_tied():
    def masked(model, x, batch):
        mask = batch["mask"]
        if mask.shape[1] > x.shape[1]:
            mask = mask[:, -x.shape[1] :]
        return x * mask[:, :, None]

    model, program = taken(Tokens(masked), {**ids(9), "mask": torch.ones(2, 9)})
    for length in (1, 4, 20):
        assert agrees(model, program, {**ids(length), "mask": torch.rand(2, length)})
    with pytest.raises(AssertionError, match="size"):
        program({**ids(9), "mask": torch.ones(2, 12)})


def test_a_graph_with_the_sizes_of_its_run_is_fixed_to_them():
    class Odd(nn.Module):
        def forward(self, x):
            n = x.shape[2]
            if type(n) is not int:  # a traced size is refused: the recording falls back to plain ones
                raise TypeError("a plain int, please")
            return x[:, :, torch.arange(n).flip(0)]

    model, program = taken(Net(Odd()), images(8, 8))
    assert agrees(model, program, images(8, 8, batch=5))
    for dim, size in ((2, (11, 8)), (3, (8, 11))):
        with pytest.raises(AssertionError, match=rf"`x` must have size 8 along dim {dim}"):
            program(images(*size))


def test_a_threshold_that_cannot_be_followed_is_not_crossed_in_silence():
    class Texts(nn.Module):
        def forward(self, x):
            json.dumps([x.shape[-1]])  # wants a plain int
            return x * 2 if x.shape[-1] > 50 else x

    model, program = taken(Net(Texts()), images(8, 8))
    assert agrees(model, program, images(8, 8, batch=5))
    with pytest.raises(AssertionError, match=r"must have size 8.*its sizes cannot be traced through forward"):
        program(images(8, 64))


def test_symbolic_tracing_is_held_to_other_sizes_too():
    class Cached(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.side = nn.Conv2d(3, 4, 3, padding=1), 8

        def forward(self, x):
            return self.conv(x)[..., : self.side]

    model, program = taken(Cached(), images(8, 8))
    for size in ((8, 8), (4, 4), (16, 9)):
        assert agrees(model, program, images(*size))


def test_train_mode_refuses_too():
    _, program = taken(Tokens(one_by_one), ids(5))
    with pytest.raises(AssertionError, match=REFUSED):
        program.trainable_copy().train()(ids(8))


def test_parameters_that_are_all_zero_hide_nothing():
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        model = Tokens(with_positions).eval()
    for name, parameter in model.named_parameters():
        if "bias" in name:
            nn.init.zeros_(parameter)
    program = capture(model, ids(12))
    assert not told(program)
    assert agrees(model, program, ids(31))


def test_a_model_that_a_small_size_changes_for_good_is_tried_as_it_was():
    class Shrinking(nn.Module):
        def __init__(self):
            super().__init__()
            self.window = 4

        def forward(self, x):
            self.window = min(self.window, x.shape[-1])
            return torch.cat(x.split(self.window, -1), -1)

    _, program = taken(Net(Shrinking()), images(8, 8))
    assert program(images(8, 8, batch=5)).shape == (5, 5, 8, 8)


class Tables(nn.Module):
    """A bias for each length that it knows, under a name made of the length."""

    def __init__(self, name):
        super().__init__()
        self.name = name
        for length in (5, 11):
            self.register_buffer(f"bias_{length}", torch.full((8,), float(length)))

    def forward(self, x):
        return x + getattr(self, self.name(x.shape[1]))


@pytest.mark.parametrize(
    "name",
    [
        lambda n: f"bias_{n}",
        lambda n: "bias_" + str(n),
        lambda n: f"bias_{n!r}",
        lambda n: f"bias_{n:d}",
        "bias_{}".format,
        "bias_%s".__mod__,
        "bias_%d".__mod__,
        lambda n: {5: "bias_5", 11: "bias_11"}[n],
        lambda n: ("bias_5", "bias_11")[[5, 11].index(n)],
    ],
)
def test_a_size_that_is_part_of_a_name_is_held_to(name):
    model = Tokens(lambda own, x, _: own.tables(x))
    model.tables = Tables(name)
    model, program = taken(model, ids(5))
    assert agrees(model, program, ids(5, batch=4))
    with pytest.raises(AssertionError, match=REFUSED):
        program(ids(11))


def test_a_size_in_a_message_leaves_it_free():
    def described(_, x, batch):
        torch._assert(x.shape[2] == 8, f"{x.shape} of {batch['ids'].shape[1]} tokens")
        return x

    model, program = taken(Tokens(described), ids(5))
    for length in (1, 4, 11):
        assert agrees(model, program, ids(length))


def test_sizes_that_no_trial_hits_are_right_or_refused():
    def framed(forward):
        def checked(own, x, _):
            if (x.shape[1] - 1) % 8 or x.shape[1] < 9:
                raise ValueError("8 k + 1, please")
            return forward(own, x)

        return checked

    model, program = taken(Tokens(framed(lambda _, x: x[:, 1:] * x.shape[1])), ids(17))
    for length in (9, 17, 25, 41):
        assert agrees(model, program, ids(length))
    with pytest.raises(AssertionError, match="branches on a size"):
        program(ids(16))

    def looped(own, x):
        return sum(own.position[:, i] * x[:, i] for i in range(x.shape[1] // 8))

    model, program = taken(Tokens(framed(looped)), ids(17))
    assert agrees(model, program, ids(17))
    with pytest.raises(AssertionError, match=r"must have size 17 along dim 1"):
        program(ids(25))


def test_sizes_that_numpy_reads_are_held_to():
    def scaled(_, x, __):
        n = x.shape[1]
        return x / np.sqrt(n) if n <= 50 else x

    model, program = taken(Tokens(scaled), ids(9))
    assert agrees(model, program, ids(9, batch=4))
    for length in (5, 60):
        with pytest.raises(AssertionError, match=REFUSED):
            program(ids(length))


def test_an_unusual_number_of_numpy_times_a_size_is_a_size():
    model, program = taken(Tokens(lambda _, x, __: x * (x.shape[1] * np.float64(0.5)) / 3**0.5), ids(9))
    for length in (1, 9, 20):
        assert agrees(model, program, ids(length))


def test_what_outlives_a_recording_in_a_cache_is_plain():
    @functools.cache
    def room(n):
        return (-n) % 4

    def padded(_, x, __):
        return functional.pad(x, (0, 0, 0, room(x.shape[1])))

    for _ in range(2):
        model, program = taken(Tokens(padded), ids(9))
        assert agrees(model, program, ids(9, batch=4))
    assert room(9) + 1 == 4
    assert type(room(9) + 1) is int


@pytest.mark.parametrize("limit", [8, 4])
def test_a_batch_that_the_graph_does_not_hold_for_is_refused(limit):
    def grouped(_, x, __):
        group = min(x.shape[0], limit // 2)
        spread = x.view(group, -1, *x.shape[1:]).var(0, unbiased=False).mean()
        return (x + spread) * (2 if x.shape[0] >= limit else 1)

    model, program = taken(Tokens(grouped), ids(5, batch=limit // 2))
    for batch, length in ((limit // 2, 5), (limit // 2 - 1, 5), (limit // 2, 9)):
        assert agrees(model, program, ids(length, batch=batch))
    with pytest.raises(AssertionError, match="branches on a size"):
        program(ids(5, batch=2 * limit))
    assert any("branches on a size" in note for note in program.notes)


def test_a_count_that_no_tried_length_changes_is_guarded():
    def split(_, x, __):
        return torch.cat([part.cumsum(1) for part in x.split(16, dim=1)], 1)

    def chunked(_, x, __):
        return torch.cat([part.cumsum(1) for part in x.chunk(chunks=4, dim=1)], 1)

    def counted(_, x, __):
        parts = [x[:, 16 * i : 16 * (i + 1)].cumsum(1) for i in range(-(-x.shape[1] // 16))]
        return torch.cat(parts, 1)

    for between, length, good in ((split, 5, (1, 9, 16)), (counted, 5, (1, 9, 16)), (chunked, 5, ())):
        model, program = taken(Tokens(between), ids(length))
        for other in (length, *good):
            assert agrees(model, program, ids(other))
        with pytest.raises(AssertionError, match=REFUSED):
            program(ids(17))


@pytest.mark.parametrize("silent_runs", [0, 1], ids=["the model warns first", "the graph warns first"])
def test_a_warning_at_another_size_is_no_failure_even_where_warnings_are_errors(silent_runs):
    runs = []

    class Warns(nn.Module):
        """Warns once at lengths below 8."""

        def forward(self, x):
            if x.shape[-1] < 8:
                runs.append(x.shape[-1])
                if len(runs) == silent_runs + 1:
                    warnings.warn("a short row", stacklevel=1)
            return x

    model, program = taken(Net(Warns()), images(8, 8), leaf_modules=(Warns,))
    assert len(runs) > silent_runs
    assert not program.notes
    assert agrees(model, program, images(5, 5))
