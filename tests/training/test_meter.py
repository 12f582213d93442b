"""What a loss and a metric may be, and what they come to over a whole split."""

import copy
import math
import warnings
from collections import namedtuple
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fxsurgery.errors import DataError, TrainingError
from fxsurgery.training import Recipe, Task, evaluate, fit, sgd
from fxsurgery.training.invocation import loss_of
from fxsurgery.training.meter import Meter
from nonempty import nonempty, possibly_empty

CPU = torch.device("cpu")


def table(samples: int = 10, outputs: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(samples)
    x = torch.randn(samples, 3, generator=generator)
    return x, x.cumsum(1)[:, :outputs] + 0.1


def net(outputs: int = 1) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, outputs))


def of(data: object = None, **options) -> Task:
    data = table() if data is None else data
    return Task.of(data, data, **{"loss": nn.MSELoss(), "batch_size": 4, **options})


def one_step(task: Task) -> nn.Module:
    model = net()
    fit(model, task, Recipe(steps=1, optimizer=sgd(0.1)), device="cpu")
    return model


class Variance:
    """Of the outputs: no mean over batches. Remembers how it was used."""

    higher_is_better = False

    def __init__(self):
        self.seen = list[Tensor]()

    def update(self, output, target):
        self.seen.append(output)

    def compute(self):
        return torch.cat(self.seen).var()


class Resettable(Variance):
    """With what its owner left in it."""

    def __init__(self):
        super().__init__()
        self.seen.append(torch.tensor([[1e3], [-1e3]]))

    def reset(self):
        self.seen = []


# ---------------------------------------------------------------- losses


Terms = namedtuple("Terms", ["near", "far"])  # noqa: PYI024 -- what users write


@pytest.mark.parametrize(
    "several",
    [
        lambda near, far: {"near": near, "far": far},
        lambda near, far: (near, far),
        lambda near, far: [near, far[None]],
        Terms,
        lambda near, far: {"near": near, "far": far, "off": 0.0},
    ],
)
def test_several_terms_are_summed(several):
    def terms(output, target):
        return (output - target).abs().mean(), 3 * output.square().mean()

    whole = one_step(of(loss=lambda *given: sum(terms(*given))))
    parts = one_step(of(loss=lambda *given: several(*terms(*given))))
    for one, other in nonempty(zip(whole.parameters(), parts.parameters(), strict=True)):
        assert torch.equal(one, other)


def test_a_single_term_is_the_loss_itself():
    output = torch.ones(2, 1, dtype=torch.bfloat16)
    assert loss_of(of(loss=lambda o, t: {"only": o.mean()}), output, output).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("terms", "blamed"),
    [
        (lambda o, t: {"class": o.mean(), "box": o.mean() * torch.nan}, r"class=[-.\d]+, box=nan, 'box' is not finite"),
        (lambda o, t: (o.mean() * torch.inf, o.mean()), r"'0' is not finite"),
        (lambda o, t: {"a": o.mean(), "b": math.nan}, r"'b' is not finite"),
    ],
)
def test_a_term_that_is_not_finite_is_named(terms, blamed):
    with pytest.raises(TrainingError, match=blamed):
        one_step(of(loss=terms))


def test_a_term_that_is_not_finite_is_a_score_like_another():
    assert math.isinf(evaluate(net(), of(loss=lambda o, t: {"a": o.mean() ** 2, "b": math.inf})).loss)


@pytest.mark.parametrize("wrong", [{}, {"a": "b"}, {"a": torch.zeros(2)}, {"a": 1.0}, [], None, "nan"])
def test_terms_that_are_no_scalars_are_refused(wrong):
    with pytest.raises(TrainingError, match="a scalar tensor, the mean over the batch, or several in a dict"):
        one_step(of(loss=lambda output, target: wrong))


def test_a_module_is_a_loss_and_stays_as_it_is():
    weight = torch.tensor([1.0, 5.0])
    loss = nn.CrossEntropyLoss(weight=weight, label_smoothing=0.1)
    x, y = table()
    task = of((x, (y[:, 0] > 0).long()), loss=loss)
    output = net(2)(x)
    assert loss_of(task, output, (y[:, 0] > 0).long()) == loss(output, (y[:, 0] > 0).long())
    there = loss_of(task, output.to("meta"), y[:, 0].long().to("meta"))
    assert there.device.type == "meta"
    assert loss.weight is weight


def test_parameters_of_a_loss_get_no_gradients():
    class Perceptual(nn.Module):
        def __init__(self):
            super().__init__()
            self.look = nn.Linear(1, 4)

        def forward(self, output, target):
            return (self.look(output) - self.look(target)).square().mean()

    loss = Perceptual()
    one_step(of(loss=loss))
    assert all(p.grad is None and p.requires_grad for p in nonempty(loss.parameters()))


def test_binary_cross_entropy_reports_the_loss():
    x, y = table()
    task = of((x, (y > 0).float()), loss=nn.BCEWithLogitsLoss(pos_weight=torch.tensor([2.0])))
    score = evaluate(net(), task)
    assert score.metric == score.loss
    assert (task.metric_name, task.higher_is_better) == ("loss", False)


@pytest.mark.parametrize("loss", [nn.MSELoss(), nn.L1Loss(), nn.HuberLoss(), nn.functional.mse_loss])
def test_every_output_against_every_target_is_refused(loss):
    x, y = table()
    with pytest.raises(DataError, match=r"\(4, 1\) and target \(4,\) as \(4, 4\).* y\[:, None\]"):
        one_step(of((x, y[:, 0]), loss=loss))


def test_a_metric_that_compares_every_output_with_every_target_is_refused():
    x, y = table()
    task = of((x, y[:, 0]), loss=lambda o, t: (o[:, 0] - t).square().mean(), metric=nn.L1Loss())
    with pytest.raises(DataError, match=r"the L1Loss would compare output \(4, 1\) and target \(4,\)"):
        evaluate(net(), task)


def test_pytorchs_own_word_of_a_broadcast_is_heard_once():
    x, y = table()
    task = of((x, y[:, 0]), loss=lambda o, t: nn.functional.mse_loss(o, t))  # noqa: PLW0108 -- ours cannot look inside
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("default")
        fit(net(), task, Recipe(steps=10, optimizer=sgd(0.01), validations=1), device="cpu")
    assert len([w for w in heard if "target size" in str(w.message)]) == 2  # batches of 4, and the last of 2


# ---------------------------------------------------------------- metrics


def test_a_metric_of_several_numbers_is_a_mean_over_samples():
    task = of(metric=lambda o, t: {"size": len(o), "half": torch.tensor(0.5), "rows": torch.ones(3)})
    score = evaluate(net(), task)
    assert score.figures == {"size": pytest.approx((4 * 4 + 4 * 4 + 2 * 2) / 10), "half": 0.5}
    assert score.metric == score.figures["size"]


def test_select_says_which_number_counts_and_names_it():
    task = of(metric=lambda o, t: {"size": len(o), "half": 0.5}, select="half")
    assert task.metric_name == "half"
    assert evaluate(net(), task).metric == 0.5
    with pytest.raises(DataError, match=r"no number 'third'; it gives: a, b"):
        evaluate(net(), of(metric=lambda o, t: {"a": 1, "b": 2}, select="third"))


def test_every_score_has_its_figures():
    assert evaluate(net(), of(metric=lambda o, t: 2.0, metric_name="two")).figures == {"two": 2.0}
    plain = evaluate(net(), of())
    assert plain.figures == {"loss": plain.loss}


@pytest.mark.parametrize("kind", [Variance, Resettable])
def test_an_accumulating_metric_is_of_the_whole_split(kind):
    metric = kind()
    before = copy.deepcopy(metric.seen)
    task = of(metric=metric)
    x, _ = table()
    for _ in range(2):
        assert evaluate(net(), task).metric == pytest.approx(net()(x).var().item(), rel=1e-6)
    assert [s.tolist() for s in possibly_empty(metric.seen)] == [s.tolist() for s in before]
    assert (task.metric_name, task.higher_is_better) == (kind.__name__, False)


def test_an_accumulating_metric_may_give_several_numbers_and_is_moved():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("total", torch.zeros(()))

        def update(self, output, target):
            self.total += output.sum()

        def compute(self):
            return {"total": self.total, "twice": 2 * self.total, "by class": torch.zeros(3)}

    metric = Both()
    score = evaluate(net(), of(metric=metric, select="twice"))
    assert list(score.figures) == ["total", "twice"]
    assert score.metric == 2 * score.figures["total"] != 0
    assert metric.total == 0
    assert of(metric=metric).fresh_metric(torch.device("meta")).total.is_meta


def test_an_accumulating_metric_that_fails_is_told():
    class Fails(Variance):
        def compute(self):
            return torch.stack(self.seen)

    with pytest.raises(DataError, match=r"compute\(\) of Fails fails, or gives no number"):
        evaluate(net(), of(metric=Fails()))

    class Refuses(Variance):
        def update(self, output, target):
            raise ValueError("not these")

    with pytest.raises(DataError, match=r"Refuses cannot take output \(4, 1\) float32 .* not these"):
        evaluate(net(), of(metric=Refuses()))


def mean_error(output, target):
    return (output - target).abs().mean()


mean_error.higher_is_better = False


@pytest.mark.parametrize(
    ("metric", "name", "higher"),
    [
        (mean_error, "mean_error", False),
        (partial(torch.nn.functional.l1_loss, reduction="mean"), "l1_loss", False),
        (nn.L1Loss(), "L1Loss", False),
        (lambda o, t: 0.0, "metric", True),
    ],
)
def test_names_and_directions_come_from_the_metric(metric, name, higher):
    task = of(metric=metric)
    assert (task.metric_name, task.higher_is_better) == (name, higher)
    assert not of(metric=metric, higher_is_better=False).higher_is_better


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"loss": nn.MSELoss}, r"loss is the class MSELoss; create an instance: MSELoss\(\)"),
        ({"metric": Variance}, r"metric is the class Variance; create an instance: Variance\(\)"),
        ({"loss": "mse"}, r"loss must be a function or a module, loss\(output, target\), not str"),
        ({"metric": 0.5}, "metric must be a function or a module"),
    ],
)
def test_what_cannot_be_called_is_refused_at_once(given, message):
    with pytest.raises(DataError, match=message):
        of(**given)


# ---------------------------------------------------------------- targets


def boxes(sizes: list[int]) -> DataLoader:
    """Pictures, and targets that are lists of as many boxes as each has."""
    rows = [{"boxes": torch.ones(n, 4), "picture": torch.full((3,), float(n))} for n in sizes]

    def together(rows):
        return {"boxes": [r["boxes"] for r in rows], "picture": torch.stack([r["picture"] for r in rows])}

    return DataLoader(rows, batch_size=3, collate_fn=together)


def test_samples_are_counted_by_the_inputs_whatever_the_target_holds():
    data = boxes([1, 7, 0, 2, 5])
    task = Task(
        data,
        data,
        split=lambda batch: (batch["picture"], batch["boxes"]),
        loss=lambda output, target: output.mean() + 0 * sum(len(b) for b in target),
        metric=lambda output, target: sum(len(b) for b in target) / len(target),
    )
    score = evaluate(net(), task)
    assert (score.samples, score.metric) == (5, pytest.approx((1 + 7 + 0 + 2 + 5) / 5))
    report = fit(net(), task, Recipe(steps=4, optimizer=sgd(0.01)), device="cpu")
    assert report.samples == 10


def test_a_target_may_be_a_dict_of_arrays():
    x, y = table()
    task = of((x, {"value": y.numpy(), "sign": y > 0}), loss=lambda o, t: (o - t["value"]).square().mean())
    assert evaluate(net(), task).samples == 10


def test_a_model_that_computes_its_own_loss_needs_no_target():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = net()

        def forward(self, x, y):
            return {"loss": nn.functional.mse_loss(self.inner(x), y)}

    data = dict(zip("xy", table(), strict=True))
    task = of(data, split=lambda batch: (batch, None), loss=lambda output, _: output.loss)
    assert fit(Own(), task, Recipe(steps=30, optimizer=sgd(0.1)), device="cpu").score.loss < 0.5


def test_a_meter_of_nothing_has_no_numbers():
    meter = Meter(of(), CPU)
    assert (meter.loss, meter.samples, meter.figures()) == (0.0, 0, {})
