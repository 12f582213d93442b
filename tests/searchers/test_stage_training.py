"""Default training is safe: a learning rate that suits the network, and stages that fail repeated at a tenth of it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from fxsurgery import Budget, Dnal, Prune, optimize
from fxsurgery.errors import DivergedError, RunError, SurgeryError
from fxsurgery.runs.journal import Journal
from fxsurgery.searchers import stage_training, trainer
from fxsurgery.searchers.stage_training import RETRIES
from fxsurgery.training import Hooks, Recipe, Task, adamw, cosine, fit, sgd
from fxsurgery.training.rate_range import RangeTest
from nonempty import nonempty


class ClassAndValue(nn.Module):
    """Classifies, and regresses a value of a larger scale."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.classes, self.value = nn.Linear(64, 4), nn.Linear(64, 1)

    def forward(self, x):
        hidden = self.body(x)
        return {"logits": self.classes(hidden), "value": self.value(hidden)}


def both_losses(output, target):
    cross_entropy = nn.functional.cross_entropy(output["logits"], target[:, 0].long())
    return cross_entropy + nn.functional.mse_loss(output["value"][:, 0], target[:, 1])


def class_accuracy(output, target):
    return (output["logits"].argmax(1) == target[:, 0].long()).float().mean().item()


def two_targets():
    x = torch.randn(512, 16, generator=torch.Generator().manual_seed(0))
    target = torch.stack([x.reshape(-1, 4, 4).sum(2).argmax(1).float(), 20 + 10 * x[:, :8].sum(1)], 1)
    return {
        "train_data": (x[:384], target[:384]), "val_data": (x[384:], target[384:]), "loss": both_losses,
        "metric": class_accuracy,
    }  # fmt: skip


@pytest.fixture(scope="module")
def trained_on_two():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ClassAndValue()
    data = two_targets()
    task = Task.of(data["train_data"], data["val_data"], loss=both_losses, metric=class_accuracy)
    recipe = Recipe(steps=600, optimizer=adamw(3e-3), schedule=cosine(), gradient_clip=1.0)
    assert fit(model, task, recipe, device="cpu").score.metric > 0.8
    return model


def finetuned(model, settings):
    options = {"budget": Budget(macs=0.8), "device": "cpu", "verbose": False}
    return optimize(model, **two_targets(), config=settings, **options)


def test_a_trained_network_of_two_losses_keeps_its_score_with_the_default_settings(trained_on_two):
    before = finetuned(trained_on_two, Prune(learning_rate=0.05, gradient_clip=None))
    assert before.history[-1]["metric"] < 0.5, "what the defaults did: the test needs a network that they harm"
    result = finetuned(trained_on_two, Prune())
    assert result.history[-1]["metric"] > 0.8
    assert any(note.startswith("fine-tune: a range test found the learning rate 0.00") for note in result.notes)


def test_clipping_alone_keeps_it_too(trained_on_two):
    assert finetuned(trained_on_two, Prune(learning_rate=0.05)).history[-1]["metric"] > 0.8


def small_vgg():
    """Return a network of VGG's shape: its classifier sees each of the last features 49 times."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers, channels = [], 3
        for position in range(6):
            layers += [nn.Conv2d(channels, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()]
            layers += [nn.MaxPool2d(2)] * (position % 2)
            channels = 32
        head = [nn.Linear(32 * 49, 512), nn.ReLU(), nn.Dropout(), nn.Linear(512, 512), nn.ReLU(), nn.Dropout()]
        model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(7), nn.Flatten(), *head, nn.Linear(512, 10))
        for layer in model.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, 0, 0.01)
        return model


def handful(size=8):
    return torch.randn(8, 3, size, size, generator=torch.Generator().manual_seed(0)), torch.arange(8)


def learned(model, data, settings):
    options = {"trained": False, "budget": Budget(macs=1.0), "device": "cpu", "verbose": False}
    return optimize(model, train_data=data, val_data=data, config=settings, **options)


def test_a_vgg_learns_a_handful_of_images_with_the_default_settings():
    settings = Prune(fewest_steps=100, finetune_epochs=0)
    before = learned(small_vgg(), handful(), replace(settings, learning_rate=0.05, gradient_clip=None))
    assert before.history[-1]["loss"] > 1.0, "what the defaults did: the test needs a network that they do not train"
    result = learned(small_vgg(), handful(), settings)
    assert result.history[-1]["loss"] < 0.3
    assert result.metrics["val"].after == 1.0


@pytest.mark.slow
def test_vgg11_bn_learns_a_handful_of_images_with_the_default_settings():
    models = pytest.importorskip("torchvision.models")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = models.vgg11_bn(num_classes=10)
    result = learned(model, handful(32), Prune(fewest_steps=30, most_steps=30, finetune_epochs=0))
    assert result.history[-1]["loss"] < 2.0, "it diverged at step 18 of such a training"


def blobs(samples=64):
    x = torch.randn(samples, 3, 8, 8, generator=torch.Generator().manual_seed(samples))
    x[:, 0] += 2 * (torch.arange(samples) % 2).reshape(-1, 1, 1)
    return x, torch.arange(samples) % 2


def net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 2),
        )  # fmt: skip


QUICK = Prune(align=2, fewest_steps=24, finetune_epochs=1, gradient_clip=None)


def quick(config=QUICK, **options):
    common = {"train_data": blobs(), "val_data": blobs(16), "batch_size": 16, "budget": Budget(macs=0.5)}
    return optimize(net(), config=config, device="cpu", **{"verbose": False, **common, **options})


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch):
    """Let the range test find given rates; collects the stages that were tested."""
    tested, rates = [], {}

    def run(self, stage):
        tested.append(stage)
        return rates.get(stage, 0.01)

    monkeypatch.setattr(RangeTest, "run", run)
    return tested, rates


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch):
    """Collect the stages that train, with the peak of their learning rate."""
    seen, real = [], trainer.fit

    def watched(model, task, recipe, **options):
        rates = []
        hooks = options.pop("hooks") or Hooks()
        hooks = replace(hooks, after_step=lambda info: rates.append(info.learning_rate))
        try:
            return real(model, task, recipe, hooks=hooks, **options)
        finally:
            seen.append((options["stage"], max(rates, default=0.0)))

    def without_hooks(model, task, recipe, hooks=None, **options):
        return watched(model, task, recipe, hooks=hooks, **options)

    monkeypatch.setattr(trainer, "fit", without_hooks)
    return seen


def test_each_kind_of_stage_is_tested_once_and_trains_at_its_rate(found, stages):
    tested, rates = found
    rates |= {"weights": 0.04, "fine-tune": 0.02}
    result = quick(replace(QUICK, rounds=3, weights_epochs=1, schedule="constant", warmup=0.0), trained=False)
    assert tested == ["weights", "fine-tune"]
    assert [(name, round(rate, 6)) for name, rate in stages] == [
        ("weights", 0.04), ("fine-tune, round 1 of 3", 0.02), ("fine-tune, round 2 of 3", 0.02),
        ("fine-tune, round 3 of 3", 0.02),
    ]  # fmt: skip
    assert "weights: a range test found the learning rate 0.04" in result.notes


@pytest.mark.parametrize("settings", [{"learning_rate": 0.02}, {"optimizer": sgd(0.02)}])
def test_a_rate_that_the_user_gives_is_kept_and_nothing_is_tested(settings, found, stages):
    result = quick(replace(QUICK, schedule="constant", warmup=0.0, **settings))
    assert found[0] == []
    assert stages == [("fine-tune", pytest.approx(0.02))]
    assert not any("range test" in note for note in result.notes)


@pytest.mark.parametrize("settings", [{"learning_rate": 1e6}, {"optimizer": sgd(1e6)}])
def test_a_rate_that_the_user_gives_diverges_with_an_error_that_names_the_remedy(settings, stages):
    with pytest.raises(DivergedError, match="lower the learning rate"):
        quick(replace(QUICK, **settings))
    assert len(stages) == 1


def test_a_stage_that_diverges_is_repeated_at_a_tenth_and_that_is_said(found, stages, capsys):
    found[1]["fine-tune"] = 2e3
    result = quick(replace(QUICK, schedule="constant", warmup=0.0), verbose=True)
    assert [name for name, _ in stages] == ["fine-tune", "fine-tune, retry 1", "fine-tune, retry 2"][: len(stages)]
    assert len(stages) > 1
    note = next(note for note in result.notes if "the stage is repeated" in note)
    assert note.startswith("fine-tune: ")
    assert "the loss is " in note
    assert note.endswith("the stage is repeated at the learning rate 200; pass learning_rate= to set it")
    assert "the stage is repeated at the learning rate 200" in capsys.readouterr().err


def test_a_stage_that_diverges_at_each_rate_is_an_error_that_names_the_remedy(found, stages):
    found[1]["fine-tune"] = 1e30
    with pytest.raises(DivergedError, match=r"stage 'fine-tune, retry 2'.*; pass learning_rate= to train at a lower"):
        quick()
    assert len(stages) == 1 + RETRIES


def test_a_first_loss_that_is_not_finite_is_not_repeated(stages):
    def loss(output, target):
        return nn.functional.cross_entropy(output, target) + (torch.nan if output.requires_grad else 0.0)

    with pytest.raises(DivergedError, match="before anything was trained"):
        quick(loss=loss)
    assert stages == []


def scripted(*metrics):
    """Return a metric that gives these values, one an evaluation of one batch."""
    values = iter(metrics)
    return lambda output, target: next(values)


def evaluations(settings, *metrics, **options):
    settings = replace(settings, fewest_steps=4)  # an epoch: a stage validates once
    return quick(settings, metric=scripted(*metrics), **options)


@pytest.fixture
def _long(monkeypatch: pytest.MonkeyPatch):
    """Let the few steps of a test's stages be enough to learn something."""
    monkeypatch.setattr(stage_training, "LONG_ENOUGH", 1)


@pytest.mark.usefixtures("_long")
@pytest.mark.parametrize(
    ("before", "pruned", "tuned", "collapses"),
    [
        (0.97, 0.90, 0.098, True),
        (0.97, 0.90, 0.80, True),
        (0.97, 0.90, 0.82, False),
        (0.97, 0.12, 0.098, True),
        (0.97, 0.12, 0.20, True),
        (0.97, 0.12, 0.21, False),
        (0.97, 0.95, 0.94, False),
        (0.50, 0.55, 0.54, False),
        (0.97, 0.90, float("nan"), True),
    ],
)
def test_a_collapse_is_a_fall_or_no_way_back_to_the_score_before_the_surgery(
    before, pruned, tuned, collapses, found, stages
):
    result = evaluations(QUICK, before, pruned, tuned, *([0.93] if collapses else []), 0.93)
    assert [name for name, _ in stages] == ["fine-tune", *["fine-tune, retry 1"] * collapses]
    assert any("the stage is repeated at the learning rate 0.001" in note for note in result.notes) is collapses


@pytest.mark.usefixtures("_long")
@pytest.mark.parametrize(("start", "end", "collapses"), [(0.25, 0.25, True), (0.25, 0.2, True), (0.25, 0.26, False)])
def test_training_from_scratch_collapses_if_it_learns_nothing(start, end, collapses, found, stages):
    settings = replace(QUICK, weights_epochs=1, finetune_epochs=0)
    evaluations(settings, start, end, *([0.9] if collapses else []), 0.9, 0.9, 0.9, trained=False)
    assert [name for name, _ in stages] == ["weights", *["weights, retry 1"] * collapses]


def test_a_short_stage_need_not_learn_anything_but_must_not_fall(found, stages):
    evaluations(QUICK, 0.97, 0.12, 0.12, 0.12)
    evaluations(QUICK, 0.97, 0.90, 0.12, 0.9, 0.9)
    assert [name for name, _ in stages] == ["fine-tune", "fine-tune", "fine-tune, retry 1"]


def test_a_loss_may_rise_by_more_than_a_metric_may_fall(found, stages):
    class Loss:
        higher_is_better = False

        def __init__(self, *values):
            self.values = iter(values)

        def __call__(self, output, target):
            return next(self.values)

    settings = replace(QUICK, fewest_steps=4)
    quick(settings, metric=Loss(0.10, 0.12, 0.17, 0.17))
    assert [name for name, _ in stages] == ["fine-tune"]
    quick(settings, metric=Loss(0.10, 0.12, 0.19, 0.11, 0.11))
    assert [name for name, _ in stages[1:]] == ["fine-tune", "fine-tune, retry 1"]


def test_the_better_of_two_attempts_is_kept_and_its_rate(found, stages):
    settings = replace(QUICK, rounds=2, schedule="constant", warmup=0.0)
    #            original, pruned, tuned, retry, score; pruned, tuned, score
    evaluations(settings, 0.97, 0.90, 0.50, 0.30, 0.50, 0.60, 0.97, 0.97)
    assert [(name, round(rate, 5)) for name, rate in stages] == [
        ("fine-tune, round 1 of 2", 0.01), ("fine-tune, round 1 of 2, retry 1", 0.001),
        ("fine-tune, round 2 of 2", 0.01),
    ]  # fmt: skip


def weights(result):
    return {name: p.detach() for name, p in result.model.named_parameters()}


@pytest.mark.parametrize("killed_in", ["fine-tune", "fine-tune, retry 1"])
def test_a_resumed_run_recalls_the_rate_and_the_failed_stage(
    killed_in, tmp_path: Path, found, stages, monkeypatch: pytest.MonkeyPatch
):
    class KilledError(Exception):
        """Stands for a kill."""

    found[1]["fine-tune"] = 2e3
    whole = quick(run_dir=tmp_path / "whole")
    ran = [name for name, _ in stages]
    watched = trainer.fit

    def kill(model, task, recipe, **options):
        if options["stage"] == killed_in:
            raise KilledError
        return watched(model, task, recipe, **options)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "fit", kill)
        with pytest.raises(KilledError):
            quick(run_dir=tmp_path / "killed")
    found[0].clear(), stages.clear()
    resumed = quick(run_dir=tmp_path / "killed", resume=True)
    assert found[0] == []
    assert [name for name, _ in stages] == ran[ran.index(killed_in) :]
    assert resumed.notes == whole.notes
    assert all(torch.equal(value, weights(whole)[name]) for name, value in nonempty(weights(resumed).items()))


@pytest.mark.parametrize("value", ["fast", -1.0, None, [0.1]])
def test_another_value_in_the_journal_is_refused(tmp_path: Path, found, value):
    quick(run_dir=tmp_path / "run")
    path = tmp_path / "run" / "journal.jsonl"
    records = Journal(path).records
    path.unlink()
    forged = Journal(path)
    for record in records:
        is_rate = record.get("name") == "learning rate of fine-tune"
        forged.append({**record, "value": value} if is_rate else record)
    with pytest.raises(RunError, match="'learning rate of fine-tune' is not of its type"):
        quick(run_dir=tmp_path / "run", resume=True)


def test_every_schedule_trains_and_a_function_too(found, stages):
    peaks = {}
    for schedule in ("cosine", "linear", "step", "one-cycle", "constant", lambda progress: 0.5):
        quick(replace(QUICK, schedule=schedule, warmup=0.25))
        peaks[schedule if isinstance(schedule, str) else "function"] = stages[-1][1] / 0.01
    assert peaks.pop("function") == pytest.approx(0.5)
    assert list(peaks.values()) == pytest.approx([1.0] * 5, abs=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "cosin"}, r"schedule='cosin': it must be 'cosine', 'linear', 'step', 'one-cycle', 'constant'"),
        ({"schedule": 3}, "schedule=3: it must be 'cosine'"),
        ({"schedule": lambda t: -t}, r"schedule=<lambda> gives -0.01 at 0.01 of the training; it must give"),
        ({"warmup": 1.0}, "warmup=1.0: it must be at least 0 and less than 1"),
        ({"early_stopping": 0}, "early_stopping=0: it must be"),
        ({"learning_rate": 0}, "learning_rate=0: it must be greater than 0"),
        ({"learning_rate": 0.1, "optimizer": sgd(0.1)}, "learning_rate= is for SGD, and the optimizer .*leave"),
    ],
)
@pytest.mark.parametrize("method", [Dnal, Prune])
def test_settings_that_mean_nothing_are_refused(method, options, message):
    with pytest.raises(SurgeryError, match=message):
        method(**options)


def test_early_stopping_ends_a_stage_and_is_noted(found, stages):
    result = quick(replace(QUICK, early_stopping=2, finetune_epochs=10), metric=scripted(0.9, 0.8, *[0.85] * 3, 0.85))
    assert "fine-tune: stopped early after step 12 of 40" in result.notes
    assert result.history[-1]["step"] == 12


def test_another_schedule_is_another_run(tmp_path: Path, found):
    quick(run_dir=tmp_path / "run")
    with pytest.raises(RunError, match="schedule"):
        quick(replace(QUICK, schedule="linear"), run_dir=tmp_path / "run", resume=True)
