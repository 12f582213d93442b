"""A training that is cut off and goes on ends where one that was not ends, bit for bit."""

import io
import random

import numpy as np
import pytest
import torch
from torch import fx, nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, RandomSampler, WeightedRandomSampler

from fxsurgery.errors import TrainingError
from fxsurgery.training import Hooks, Progress, Recipe, Task, adamw, cosine, fit, sgd
from nonempty import nonempty

STEPS = 8


class Augmented(Dataset):
    """Random in every way that a data set can be: by torch, numpy, `random`, and a generator of its own."""

    def __init__(self, own=False):
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(20, 1, 6, 6, generator=generator)
        self.y = torch.randint(4, (20,), generator=generator)
        self.own = np.random.default_rng(5) if own else None

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        noise = torch.rand(()) + np.random.rand() + random.random()  # noqa: NPY002 -- as users do
        if self.own is not None:
            noise += self.own.random()
        return self.x[index] + 0.1 * noise.float(), self.y[index]


class Buffered(IterableDataset):
    """Shuffles through a buffer, with draws that come as the batches come."""

    def __iter__(self):
        data, buffer = Augmented(), []
        for index in range(len(data)):
            buffer.append(data[index])
            if len(buffer) > 6:
                yield buffer.pop(random.randrange(len(buffer)))
        yield from buffer


def own_sampler():
    data = Augmented()
    sampler = RandomSampler(data, generator=torch.Generator().manual_seed(3))
    return DataLoader(data, batch_sampler=BatchSampler(sampler, 6, drop_last=False))


LOADERS = {
    "ours": Augmented,
    "tensors": lambda: (Augmented().x, Augmented().y),
    "shuffle": lambda: DataLoader(Augmented(), 6, shuffle=True),
    "generator": lambda: DataLoader(Augmented(), 6, shuffle=True, generator=torch.Generator().manual_seed(1)),
    "own generator": lambda: DataLoader(Augmented(own=True), 6, shuffle=True),
    "batch sampler": own_sampler,
    "weighted": lambda: DataLoader(Augmented(), 6, sampler=WeightedRandomSampler(torch.arange(1.0, 21), 20)),
    "buffer": lambda: DataLoader(Buffered(), 6),
}
WORKERS = {
    "workers": lambda: DataLoader(Augmented(own=True), 6, shuffle=True, num_workers=2),
    "persistent": lambda: DataLoader(Augmented(), 6, shuffle=True, num_workers=2, persistent_workers=True),
}
OPTIMIZERS = {
    "sgd": sgd(0.05, weight_decay=1e-3),
    "adamw": adamw(0.01),
    "adam": lambda parameters: torch.optim.Adam(parameters, amsgrad=True),
}


class CutOffError(Exception):
    """What stands for a kill."""


class Kept:
    """Keeps each snapshot as bytes, as a file would."""

    def __init__(self, content=None, at=None):
        self.content, self.at, self.steps = content, at, []

    def last(self):
        return None if self.content is None else torch.load(io.BytesIO(self.content), weights_only=True)

    def wants(self, step, steps):
        assert steps == STEPS
        self.steps.append(step)
        return self.at is None or step == self.at

    def keep(self, snapshot):
        torch.save(snapshot, buffer := io.BytesIO())
        self.content = buffer.getvalue()


class Averaging(nn.Module):
    """Dropout, and a buffer that moves but is in no state dict."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(8), persistent=False)
        self.drop = nn.Dropout(0.3)

    def forward(self, x):
        self.mean.lerp_(x.detach().float().mean((0, 2, 3)), 0.1)
        return self.drop(x) - self.mean.reshape(1, -1, 1, 1)


class Wandering:
    """Hooks with a memory, that draw at random and edit gradients."""

    def __init__(self, model, cut=None):
        self.model, self.cut, self.momentum, self.calls = model, cut, torch.zeros(4), 0

    def before_step(self, info):
        if info.step == self.cut:
            raise CutOffError
        bias = self.model.get_parameter("6.bias")
        self.momentum = 0.9 * self.momentum + bias.grad
        bias.grad = self.momentum * torch.rand(())

    def after_step(self, info):
        self.calls += 1

    def hooks(self):
        return Hooks(
            before_step=self.before_step,
            after_step=self.after_step,
            state=lambda: {"momentum": self.momentum, "calls": self.calls},
            restore=lambda state: vars(self).update(state),
        )


def net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), Averaging(), nn.MaxPool2d(2), nn.Flatten(),
            nn.Linear(32, 4),
        )  # fmt: skip


def trained(make, optimizer, kept=None, cut=None, model=None, **options):
    """All that a training gives, but seconds."""
    model, data, progress = model or net(), make(), Progress.quiet()
    task = Task.of(data, LOADERS["tensors"](), batch_size=6)
    memory = Wandering(model, cut)
    recipe = Recipe(steps=STEPS, optimizer=optimizer, schedule=cosine(), validations=3, **options)
    report = fit(model, task, recipe, seed=3, hooks=memory.hooks(), progress=progress, device="cpu", keeper=kept)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    bits = {name: tensor.detach().numpy().tobytes() for name, tensor in tensors.items()}
    told = {k: v for k, v in vars(report).items() if k != "seconds"}
    history = [{k: v for k, v in record.items() if k != "seconds"} for record in progress.history]
    return bits, told, history, memory.momentum.tolist(), memory.calls


def cut_off_everywhere(make, optimizer, at, **options):
    whole = trained(make, optimizer, **options)
    for step in nonempty(at):
        kept = Kept()
        with pytest.raises(CutOffError):
            trained(make, optimizer, kept, cut=step, **options)
        assert kept.steps == list(range(1, step + 1))
        again = Kept(kept.content, at=0)
        torch.rand(step), np.random.rand(step)  # noqa: NPY002 -- a new process is elsewhere
        assert trained(make, optimizer, again, **options) == whole
        assert again.steps == list(range(step + 1, STEPS + 1))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_cut_off_at_any_step_it_ends_the_same(optimizer):
    cut_off_everywhere(LOADERS["ours"], OPTIMIZERS[optimizer], range(1, STEPS))


@pytest.mark.parametrize("loader", LOADERS)
def test_whatever_the_loader_draws_it_ends_the_same(loader):
    cut_off_everywhere(LOADERS[loader], OPTIMIZERS["sgd"], (3, 4, 6))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("loader", WORKERS)
def test_with_workers_it_ends_the_same(loader):
    cut_off_everywhere(WORKERS[loader], OPTIMIZERS["sgd"], (3, 6))


@pytest.mark.parametrize(
    "options",
    [{"accumulate": 3}, {"mixed_precision": "bf16"}, {"memory_format": "channels_last"}, {"gradient_clip": 0.1}],
    ids=str,
)
def test_whatever_the_recipe_it_ends_the_same(options):
    cut_off_everywhere(LOADERS["shuffle"], OPTIMIZERS["sgd"], (2, 5), **options)


def test_losses_between_two_records_are_kept():
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    task, losses, kept = Task.of((x, x), (x, x), batch_size=6, loss=nn.MSELoss()), [], Kept(at=107)
    kept.wants = lambda step, steps: step == 107
    for keeper in (kept, kept, None):
        model, progress = nn.Linear(3, 3), Progress.quiet()
        with torch.no_grad():
            model.weight.zero_(), model.bias.zero_()
        fit(model, task, Recipe(steps=120, optimizer=sgd(0.1)), progress=progress, device="cpu", keeper=keeper)
        losses.append([(r["step"], r["loss"]) for r in progress.history])
    assert len(kept.last()["pending"]) == 1
    assert losses[0] == losses[1] == losses[2]


def test_taking_snapshots_changes_nothing():
    make, optimizer = LOADERS["shuffle"], OPTIMIZERS["adamw"]
    assert trained(make, optimizer, Kept()) == trained(make, optimizer)


def test_from_the_last_snapshot_nothing_is_left_to_do():
    make, optimizer, kept = LOADERS["shuffle"], OPTIMIZERS["sgd"], Kept()
    whole = trained(make, optimizer, kept)
    again = Kept(kept.content)
    assert trained(make, optimizer, again) == whole
    assert again.steps == []


def test_keyboard_interrupt_gives_model_and_generator_back():
    generator = torch.Generator().manual_seed(1)
    model, before = net(), generator.get_state()

    def stop(info):
        raise KeyboardInterrupt

    data = DataLoader(Augmented(), 6, shuffle=True, generator=generator)
    task, hooks = Task.of(data, LOADERS["tensors"]()), Hooks(after_step=stop)
    with pytest.raises(KeyboardInterrupt) as caught:
        fit(model.eval(), task, Recipe(steps=3, optimizer=sgd(0.1)), hooks=hooks, device="cpu")
    assert torch.equal(generator.get_state(), before)
    assert not any(module.training for module in model.modules())
    assert all(p.grad is None for p in nonempty(model.parameters()))
    assert caught.value is not None


class Secretive(torch.optim.SGD):
    """Keeps what no snapshot can hold."""

    def step(self, closure=None):
        super().step(closure)
        for group in self.param_groups:
            self.state[group["params"][0]]["secret"] = lambda: None


def test_an_optimizer_that_cannot_be_kept_is_told_at_the_first_snapshot():
    kept = Kept(at=2)
    with pytest.raises(TrainingError, match=r"no snapshot.*optimizer\['state'\]\[0\]\['secret'\] is a function"):
        trained(LOADERS["ours"], lambda p: Secretive(p, lr=0.1), kept)
    assert kept.steps == [1, 2]
    assert kept.content is None


class Coarse(torch.optim.SGD):
    """Its state is of another dtype than its parameters."""

    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                state.setdefault("sum", torch.zeros_like(parameter, dtype=torch.bfloat16)).add_(parameter.grad)
                parameter.data.sub_(0.01 * state["sum"])


def test_states_of_another_dtype_come_back_as_they_were():
    cut_off_everywhere(LOADERS["ours"], lambda p: Coarse(p, lr=0.1), (4,))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 9}, "another training: steps was 9, is 8"),
        ({"stage": "weights", "seed": 4}, "stage was 'weights', is 'training', seed was 4, is 3"),
        ({"tensors": {}}, "another model; they differ in: 0.bias"),
        ({"format": 0}, "format was 0"),
    ],
    ids=str,
)
def test_a_snapshot_of_something_else_is_refused(change, message):
    kept = Kept(at=2)
    trained(LOADERS["ours"], OPTIMIZERS["sgd"], kept)
    snapshot = {**kept.last(), **change}
    kept.keep(snapshot)
    with pytest.raises(TrainingError, match=message):
        trained(LOADERS["ours"], OPTIMIZERS["sgd"], kept)


def test_a_snapshot_of_another_optimizer_is_refused():
    kept = Kept(at=2)
    trained(LOADERS["ours"], sgd(0.1, weight_decay=0.1, decay_norms=False), kept)
    with pytest.raises(TrainingError, match="another optimizer"):
        trained(LOADERS["ours"], OPTIMIZERS["sgd"], kept)


def test_hooks_that_cannot_be_restored_are_refused():
    with pytest.raises(TrainingError, match="one of state= and restore=: pass both or neither"):
        Hooks(state=dict)


def test_tied_weights_stay_tied():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other = nn.Linear(36, 36), nn.Linear(36, 36)
            self.other.weight = self.one.weight

        def forward(self, x):
            return self.other(self.one(x.flatten(1)))

    ends = []
    for kept in (None, Kept(at=4)):
        model = fx.symbolic_trace(Tied())
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(0.01)
        task = Task.of(LOADERS["tensors"](), LOADERS["tensors"](), batch_size=6)
        recipe = Recipe(steps=STEPS, optimizer=sgd(0.05))
        fit(model, task, recipe, device="cpu", keeper=kept)
        if kept:
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.fill_(0.5)
            fit(model, task, recipe, device="cpu", keeper=kept)
        assert model.get_parameter("one.weight") is model.get_parameter("other.weight")
        ends.append([p.detach().clone() for p in model.parameters()])
    assert all(torch.equal(one, other) for one, other in nonempty(zip(*ends, strict=True)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"more": 1}, "'more' is missing or unknown"),
        ({"step": None}, "'step' is not of its type"),
        ({"step": True}, "'step' is not of its type"),
        ({"step": STEPS + 1}, "`step`, `drawn` or `epoch` is more than there are"),
        ({"drawn": 10**12}, "`step`, `drawn` or `epoch` is more than there are"),
        ({"epoch": 10**12}, "`step`, `drawn` or `epoch` is more than there are"),
        ({"epoch": -1}, "'epoch' is not of its type"),
        ({"tensors": {"0.bias": 1}}, "'tensors' is not of its type"),
        ({"optimizer": []}, "'optimizer' is not of its type"),
        ({"optimizer": {"state": 3, "param_groups": 4}}, "another optimizer"),
        ({"pending": ["1"]}, "'pending' is not of its type"),
        ({"score": {"metric": 1.0}}, "'score' is not of its type"),
        ({"records": [{"loss": 1.0}]}, "'records' is not of its type"),
        ({"random": [1]}, "'random' is not of its type"),
        ({"random": [{}]}, "another version of Python, numpy or torch"),
        ({"random": [{"python": (3, (1,), None), "numpy": 1, "torch": 2, "cuda": None}]}, "another version of Python"),
        ({"hooks": "text"}, "'hooks' is not of its type"),
        ({"seconds": "1"}, "'seconds' is not of its type"),
    ],
    ids=str,
)
def test_a_snapshot_that_no_training_keeps_is_refused(change, message):
    kept = Kept(at=2)
    trained(LOADERS["ours"], OPTIMIZERS["sgd"], kept)
    kept.keep({**kept.last(), **change})
    with pytest.raises(TrainingError, match=message):
        trained(LOADERS["ours"], OPTIMIZERS["sgd"], kept)


def test_a_snapshot_that_lacks_something_or_has_other_dtypes_is_refused():
    kept = Kept(at=2)
    trained(LOADERS["ours"], OPTIMIZERS["sgd"], kept)
    whole = kept.last()
    kept.keep({name: value for name, value in whole.items() if name != "random"})
    with pytest.raises(TrainingError, match="'random' is missing or unknown"):
        trained(LOADERS["ours"], OPTIMIZERS["sgd"], kept)
    kept.keep({**whole, "tensors": {name: tensor.double() for name, tensor in whole["tensors"].items()}})
    with pytest.raises(TrainingError, match=r"another model; they differ in: 0\.weight"):
        trained(LOADERS["ours"], OPTIMIZERS["sgd"], kept)
