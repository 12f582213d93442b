"""What replaces the loss of a batch: its gradients, split and whole, its terms, and what it is refused for."""

import copy
import doctest

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from fxsurgery.errors import DivergedError, TrainingError
from fxsurgery.training import Hooks, Progress, Recipe, Task, fit, objective, sgd, task_objective
from nonempty import nonempty

X = torch.randn(48, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = X.argmax(1) % 3


def net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def learned(objective=task_objective, *, batch_size=16, steps=5, model=None, **options):
    """The weights and the history of a training without momentum, unshuffled."""
    model, progress = model or net(), Progress.quiet()
    data = [(x, y) for x, y in zip(X.split(batch_size), Y.split(batch_size), strict=True)]
    loader = torch.utils.data.DataLoader(data, batch_size=None)
    recipe = Recipe(steps=steps, optimizer=sgd(0.5, momentum=0.0), **options)
    fit(model, Task(loader, loader), recipe, hooks=Hooks(objective=objective), progress=progress, device="cpu")
    return [p.detach() for p in model.parameters()], progress.history


def by_hand(loss, *, steps=5, size=16):
    """The same by a plain loop."""
    model = net()
    parameters = list(model.parameters())
    for step in range(steps):
        rows = slice(step * size % len(X), step * size % len(X) + size)
        gradients = torch.autograd.grad(loss(model, X[rows], Y[rows]), parameters)
        with torch.no_grad():
            for p, g in zip(parameters, gradients, strict=True):
                p.sub_(0.5 * g)
    return [p.detach() for p in parameters]


def close(one, other):
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


def two_heads(model, x, y):
    """The loss, and one of the hidden layer by other means: what an objective does that runs forward twice."""
    shifted = model(x + 1)
    return F.cross_entropy(model(x), y), 0.3 * F.mse_loss(shifted, F.one_hot(y, 3).double())


def several_backward(model, batch):
    first, second = two_heads(model, batch.inputs.args[0], batch.target)
    batch.backward(first)
    batch.backward(second)
    return (first + second).detach(), {"first": first, "second": second}


def first_backward(model, batch):
    first, second = two_heads(model, batch.inputs.args[0], batch.target)
    batch.backward(first)
    return second, {}


def one_backward(model, batch):
    return sum(two_heads(model, batch.inputs.args[0], batch.target)), {}


@pytest.mark.parametrize("objective", [several_backward, first_backward, one_backward])
@pytest.mark.parametrize(
    "options", [{}, {"accumulate": 2, "batch_size": 8}, {"accumulate": 4, "batch_size": 4}], ids=str
)
def test_gradients_of_several_losses_add_up_split_as_whole(objective, options):
    close(learned(objective, **options)[0], by_hand(lambda *given: sum(two_heads(*given))))


@pytest.mark.parametrize("options", [{}, {"accumulate": 2, "batch_size": 8}], ids=str)
def test_a_penalty_counts_once_a_step(options):
    def penalized(model, batch):
        task, extra = batch.loss(batch.predict(model)), 0.1 * model[0].weight.square().sum()
        return task + extra, {"task": task, "penalty": extra}

    found, history = learned(penalized, **options)
    close(found, by_hand(lambda m, x, y: F.cross_entropy(m(x), y) + 0.1 * m[0].weight.square().sum()))
    assert history[0]["terms"].keys() == {"penalty"}
    with torch.no_grad():
        assert history[0]["loss"] == pytest.approx(float(F.cross_entropy(net()(X[:16]), Y[:16])), rel=1e-12)
        assert history[0]["terms"]["penalty"] == pytest.approx(0.1 * float(net()[0].weight.square().sum()), rel=1e-12)


def test_the_task_objective_is_the_plain_loop():
    found, history = learned()
    close(found, by_hand(lambda m, x, y: F.cross_entropy(m(x), y)))
    assert all("terms" not in record for record in nonempty(history))


def test_it_may_choose_before_the_forward_pass_by_the_step_and_sees_the_same_in_all_its_batches():
    seen = []

    def choosing(model, batch):
        seen.append((batch.step, batch.steps, batch.epoch, batch.stage, len(batch.target)))
        model[1].slope = batch.step
        return task_objective(model, batch)

    learned(choosing, steps=4, batch_size=8, accumulate=2)
    assert [s[0] for s in seen] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert [s[2] for s in seen] == [0, 0, 0, 0, 0, 0, 1, 1]
    assert {(s[1], s[3], s[4]) for s in seen} == {(4, "training", 8)}


class Spoiling(nn.Module):
    """Writes into its input."""

    def __init__(self):
        super().__init__()
        self.inner = net()

    def forward(self, x):
        return self.inner(x.sub_(1))


def test_a_model_that_writes_into_its_inputs_can_run_twice():
    def twice(model, batch):
        losses = [batch.loss(batch.predict(model)) for _ in range(2)]
        assert torch.equal(*losses)
        return sum(losses), {}

    found = learned(twice, model=Spoiling(), validations=0)[0]
    close(found, by_hand(lambda m, x, y: 2 * F.cross_entropy(m(x - 1), y)))


def test_terms_are_means_since_the_last_record_and_survive_a_cut():
    def counting(model, batch):
        loss, _ = task_objective(model, batch)
        return loss, {"step": float(batch.step), "half": loss / 2}

    class Kept:
        def __init__(self):
            self.snapshot = None

        def last(self):
            return self.snapshot

        def wants(self, step, steps):
            return step == 107 and self.snapshot is None

        def keep(self, snapshot):
            self.snapshot = copy.deepcopy(snapshot)

    kept, histories = Kept(), []
    for keeper in (kept, kept, None):
        model, progress = net(), Progress.quiet()
        task, recipe = Task.of((X, Y), (X, Y), batch_size=16), Recipe(steps=150, optimizer=sgd(0.1))
        hooks = Hooks(objective=counting)
        fit(model, task, recipe, hooks=hooks, progress=progress, device="cpu", keeper=keeper)
        histories.append([{k: v for k, v in r.items() if k != "seconds"} for r in progress.history])
    assert kept.snapshot["terms"]["step"] == 105 + 106
    assert histories[0] == histories[1] == histories[2]
    assert [r["terms"]["step"] for r in histories[0]] == [3 * n + 1.0 for n in range(50)]
    assert [r["terms"]["half"] for r in histories[0]] == pytest.approx([r["loss"] / 2 for r in histories[0]], rel=1e-12)


def test_a_loss_that_is_not_finite_names_its_terms():
    def diverging(model, batch):
        task = batch.loss(batch.predict(model))
        extra = torch.log(-model[0].weight.abs().sum())
        return task + extra, {"task": task, "volume": extra}

    with pytest.raises(DivergedError, match=r"step 1 of 5: the loss is nan at learning rate 0.5 \(volume=nan\)"):
        learned(diverging)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda model, batch: batch.loss(batch.predict(model)), "it gave a Tensor"),
        (lambda model, batch: (batch.predict(model), {}), r"it gave as loss a Tensor \(16, 3\)"),
        (lambda model, batch: (0.5, {}), r"it gave as loss a float \(\)"),
        (lambda model, batch: (batch.predict(model).sum(), {"rows": torch.ones(2)}), r"as term 'rows' a Tensor \(2,\)"),
        (lambda model, batch: (batch.predict(model).sum(), {"": 1.0}), "as term '' a float"),
        (lambda model, batch: (batch.predict(model).sum().detach(), {}), "does not depend on any parameter that"),
    ],
)
def test_what_is_no_loss_and_terms_is_refused(wrong, message):
    with pytest.raises(TrainingError, match=message):
        learned(wrong)


def test_terms_that_only_some_batches_of_a_step_have_are_refused():
    seen = []

    def moody(model, batch):
        seen.append(batch.step)
        return task_objective(model, batch)[0], {"odd": 1.0} if len(seen) % 2 else {}

    with pytest.raises(TrainingError, match="the objective gave the term 'odd' for some batches of a step and not for"):
        learned(moody, batch_size=8, accumulate=2)


def test_what_an_objective_remembers_is_in_snapshots():
    class Moving:
        """Learns the moving mean of its own losses away: its memory shows in the gradients."""

        def __init__(self):
            self.mean = 0.0

        def __call__(self, model, batch):
            loss, _ = task_objective(model, batch)
            self.mean = 0.9 * self.mean + 0.1 * float(loss.detach())
            return loss * self.mean, {}

    class Kept:
        def __init__(self):
            self.snapshot = None

        def last(self):
            return self.snapshot

        def wants(self, step, steps):
            return step == 3 and self.snapshot is None

        def keep(self, snapshot):
            self.snapshot = copy.deepcopy(snapshot)

    kept, ends = Kept(), []
    for keeper in (kept, kept, None):
        own, model = Moving(), net()
        hooks = Hooks(
            objective=own, state=lambda own=own: {"mean": own.mean}, restore=lambda s, own=own: vars(own).update(s)
        )
        task = Task.of((X, Y), (X, Y), batch_size=16)
        fit(model, task, Recipe(steps=6, optimizer=sgd(0.1)), hooks=hooks, device="cpu", keeper=keeper)
        ends.append((own.mean, [p.detach() for p in model.parameters()]))
    assert ends[0][0] == ends[1][0] == ends[2][0]
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in nonempty(zip(*(e[1] for e in ends), strict=True)))


def test_examples():
    found = doctest.testmod(objective)
    assert (found.failed, found.attempted > 0) == (0, True)
