"""Fine-tuning with a teacher: the loss, what is refused early, and that the teacher is left alone."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from fxsurgery import Callback, DataError, Dnal, Ectonas, Prune, RunError, Spend, SurgeryError, TrainingError, capture
from fxsurgery.runs import run_directory
from fxsurgery.training import Hooks, Progress, Recipe, Task, fit, sgd
from fxsurgery.training.callbacks import StepEnd
from fxsurgery.training.knowledge_distillation import distillation_of
from nonempty import nonempty
from tests.training.test_callbacks import SHORT, Recorder, net, optimized, same, weights

GENERATOR = torch.Generator().manual_seed(5)
X = torch.randn(32, 6, generator=GENERATOR)
CLASSES = torch.randint(0, 4, (32,), generator=GENERATOR)


def linear(seed: int, outputs: int = 4) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, outputs))


def loss_of(objective, model, task):
    """The first loss and its terms, at rate 0."""
    progress = Progress.quiet()
    recipe = Recipe(steps=1, optimizer=sgd(0.0, momentum=0.0), validations=0)
    fit(model, task, recipe, hooks=Hooks(objective=objective), progress=progress, device="cpu")
    [record] = progress.history
    return record["loss"], record["terms"]


def of(teacher, task, student=None, **options):
    student = student or linear(0)
    program = capture(student.eval(), X[:2])
    return distillation_of(teacher, program, task, **{"weight": 0.3, "temperature": 3.0, **options}), program


def test_class_scores_are_compared_by_the_divergence_at_the_temperature():
    task = Task.of((X, CLASSES), (X, CLASSES), batch_size=32)
    teacher = linear(1).eval()
    objective, program = of(teacher, task)
    task_loss, terms = loss_of(objective, program.trainable_copy(), task)
    z, t = program.graph_module(X) / 3, teacher(X) / 3
    expected = 9 * functional.kl_div(z.log_softmax(1), t.softmax(1), reduction="batchmean")
    assert terms["distillation"] == pytest.approx(expected.item(), rel=1e-5)
    assert task_loss == pytest.approx(functional.cross_entropy(3 * z, CLASSES).item(), rel=1e-5)


def test_the_weight_mixes_both_losses():
    task = Task.of((X, CLASSES), (X, CLASSES), batch_size=32)
    teacher = linear(1).eval()
    grads = []
    for weight in (0.0, 1.0, 0.25):
        objective, program = of(teacher, task, weight=weight)
        model = program.trainable_copy()
        before = [p.detach().clone() for p in model.parameters()]
        recipe = Recipe(steps=1, optimizer=sgd(1.0, momentum=0.0), validations=0)
        fit(model, task, recipe, hooks=Hooks(objective=objective), device="cpu")
        grads.append(torch.cat([(b - p.detach()).flatten() for b, p in zip(before, model.parameters(), strict=True)]))
    assert torch.allclose(grads[2], 0.75 * grads[0] + 0.25 * grads[1], atol=1e-6)
    assert not torch.allclose(grads[0], grads[1], atol=1e-3)


def test_other_outputs_are_compared_by_the_mean_squared_error():
    y = torch.randn(32, 4, generator=GENERATOR)
    task = Task.of((X, y), (X, y), batch_size=32, loss=nn.MSELoss())
    teacher = linear(1).eval()
    objective, program = of(teacher, task)
    _, terms = loss_of(objective, program.trainable_copy(), task)
    assert terms["distillation"] == pytest.approx(
        functional.mse_loss(program.graph_module(X), teacher(X)).item(), rel=1e-5
    )


class Two(nn.Module):
    def __init__(self, seed):
        super().__init__()
        self.trunk, self.box = linear(seed), nn.Linear(6, 2)

    def forward(self, x):
        return {"logits": self.trunk(x), "box": self.box(x)}


def test_several_outputs_are_matched_by_name():
    task = Task.of((X, CLASSES), (X, CLASSES), batch_size=32, loss=lambda o, t: functional.cross_entropy(o.logits, t))
    teacher = Two(1).eval()
    objective, program = of(teacher, task, Two(0))
    _, terms = loss_of(objective, program.trainable_copy(), task)
    mine, theirs = program.graph_module(X), teacher(X)
    z, t = mine["logits"] / 3, theirs["logits"] / 3
    scores = 9 * functional.kl_div(z.log_softmax(1), t.softmax(1), reduction="batchmean")
    box = functional.mse_loss(mine["box"], theirs["box"])
    assert terms["distillation"] == pytest.approx(((scores + box) / 2).item(), rel=1e-5)


def test_probabilities_are_not_taken_for_logits():
    task = Task.of((X, CLASSES), (X, CLASSES), batch_size=32, loss=nn.CrossEntropyLoss())
    objective, _ = of(nn.Sequential(linear(1), nn.Softmax(1)).eval(), task, nn.Sequential(linear(0), nn.Softmax(1)))
    assert [output.probabilities for output in objective.match.outputs] == [True]


class Fails(nn.Module):
    def forward(self, x, mask):
        return x


class Uncopyable(nn.Module):
    def __deepcopy__(self, memo):
        raise TypeError("no copies")


@pytest.mark.parametrize(
    ("teacher", "kind", "message"),
    [
        (linear(1, 5), DataError, r"teacher= gives `output` of shape \(2, 5\), the model \(2, 4\); give a teacher"),
        (Fails(), DataError, "teacher= the model cannot take inputs"),
        (nn.Linear(7, 4), DataError, "teacher= the model cannot take inputs"),
        (Uncopyable(), TrainingError, "teacher= a Uncopyable cannot be copied: no copies"),
    ],
)
def test_a_teacher_that_does_not_match_is_refused(teacher, kind, message):
    task = Task.of((X, CLASSES), (X, CLASSES))
    with pytest.raises(kind, match=message):
        of(teacher, task)


def test_a_teacher_with_weights_that_are_no_numbers_is_refused():
    teacher = linear(1)
    with torch.no_grad():
        teacher[0].weight.fill_(float("nan"))
    with pytest.raises(DataError, match="teacher= its outputs are not finite"):
        of(teacher, Task.of((X, CLASSES), (X, CLASSES)))


def test_a_teacher_without_an_output_of_the_model_is_refused():
    task = Task.of((X, CLASSES), (X, CLASSES), loss=lambda o, t: functional.cross_entropy(o.logits, t))
    with pytest.raises(DataError, match="teacher= gives no `logits` as the model does, but a tensor"):
        of(linear(1), task, Two(0))


MOVES = Ectonas(match_epochs=1, rounds=1, places=1, learning_rate=0.02, finetune_epochs=1)


@pytest.mark.parametrize(
    ("config", "options"),
    [
        (Dnal(**SHORT, architecture_epochs=1), {}),
        (Prune(**SHORT, rounds=2), {}),
        (MOVES, {"spend": Spend(epochs=8), "budget": None}),
        (MOVES, {"spend": Spend(epochs=8), "budget": None, "executor": "processes", "workers": 2}),
    ],
    ids=["dnal", "prune", "ectonas", "ectonas in processes"],
)
def test_every_method_distills_while_fine_tuning_and_only_then(config, options):
    seen = Recorder()
    optimized(seen, config=config, teacher="original", **options)
    steps = nonempty(seen.of(StepEnd))
    tuned = [event for event in steps if event.stage.startswith("fine-tune")]
    assert all(event.terms["distillation"] >= 0 for event in nonempty(tuned))
    assert not any("distillation" in event.terms for event in steps if event not in tuned)


def test_the_teacher_is_left_as_it_is_and_changes_the_result():
    teacher = net().train()
    for parameter in teacher.parameters():
        parameter.data.add_(0.3)
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    config = Prune(**SHORT, distillation_weight=0.9)
    taught = optimized(config=config, teacher=teacher, metric=first)
    assert same(before, teacher.state_dict())
    assert all(module.training for module in teacher.modules())
    assert all(p.requires_grad and p.grad is None for p in teacher.parameters())
    assert not same(weights(taught), weights(optimized(config=Prune(**SHORT), metric=first)))


def first(output, target):
    """A metric that is the same for every network: of equals, the later one is kept."""
    return 1.0


def test_the_teacher_and_its_weights_are_part_of_the_run(tmp_path: Path):
    teacher, other = net(), net()
    other[0].weight.data[0] += 1
    options = {"config": Prune(**SHORT), "run_dir": tmp_path / "run", "metric": first}
    result = optimized(**options, teacher=teacher)
    assert same(weights(result), weights(optimized(**options, teacher=net(), resume=True)))
    with pytest.raises(RunError, match="teacher"):
        optimized(**options, teacher=other, resume=True)


def test_a_run_that_is_interrupted_while_it_distills_ends_alike(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(run_directory, "SNAPSHOT_SECONDS", 0.0)

    class Dies(Callback):
        def on_step_end(self, event):
            if event.step == 4:
                raise KeyboardInterrupt

    options = {"config": Prune(**SHORT), "teacher": "original", "metric": first}
    with pytest.raises(KeyboardInterrupt):
        optimized(Dies(), run_dir=tmp_path / "run", **options)
    resumed = optimized(run_dir=tmp_path / "run", resume=True, **options)
    assert same(weights(resumed), weights(optimized(**options)))


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"teacher": "orignal"}, SurgeryError, "teacher="),
        ({"teacher": "original", "trained": False}, SurgeryError, "which is not trained; pass a trained module"),
        ({"teacher": "original", "train_data": None, "val_data": None}, DataError, "teacher= needs data"),
        (
            {"teacher": "original", "config": Prune(finetune_epochs=0)},
            SurgeryError,
            "the fine-tune stage, which has no",
        ),
        (
            {"config": Prune(distillation_weight=0.7)},
            SurgeryError,
            r"distillation_weight has no effect without a teacher",
        ),
        ({"teacher": nn.Identity()}, DataError, "teacher="),
    ],
)
def test_what_makes_no_sense_is_refused_before_any_training(options, kind, message):
    with pytest.raises(kind, match=message):
        optimized(**{"config": Prune(**SHORT), **options})


def test_the_command_line_takes_a_teacher_and_a_finetune_function(tmp_path: Path, monkeypatch):
    from typer.testing import CliRunner

    from fxsurgery.cli import app

    (tmp_path / "mine.py").write_text(
        "from pathlib import Path\nimport torch\nfrom torch import nn\n"
        "def make():\n    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 4))\n"
        "x = (torch.randn(32, 3, 8, 8), torch.arange(32) % 4)\n"
        "def tune(model):\n    Path('called').write_text('yes')\n"
    )
    monkeypatch.chdir(tmp_path)
    common = ["optimize", "mine.py:make", "--train-data", "mine.py:x", "--val-data", "mine.py:x", "--method", "prune"]
    few = ["--set", "fewest_steps=3", "--set", "finetune_epochs=1", "--set", "align=2", "--quiet", "--metric", "top2"]
    own = CliRunner().invoke(app, [*common, *few, "--finetune", "mine.py:tune"])
    assert own.exit_code == 0, own.output
    assert (tmp_path / "called").read_text() == "yes"
    taught = CliRunner().invoke(app, [*common, *few, "--teacher", "original", "--set", "distillation_weight=0.9"])
    assert taught.exit_code == 0, taught.output
    assert "top2" in taught.output
    made = CliRunner().invoke(app, [*common, *few, "--teacher", "mine.py:make", "--dry-run"])
    assert made.exit_code == 0, made.output
    wrong = CliRunner().invoke(app, [*common, *few[:-1], "top9"])
    assert wrong.exit_code == 1
    assert "top-9 accuracy needs outputs" in wrong.output


def test_a_job_with_a_teacher_goes_to_another_process():
    pytest.importorskip("ray")
    from fxsurgery.execution import Job
    from fxsurgery.execution.pickling import packed, unpacked

    task = Task.of((X, CLASSES), (X, CLASSES), batch_size=32)
    objective, program = of(linear(1), task)
    job = unpacked(packed(Job("tune", program, Recipe(steps=1, optimizer=sgd(0.0)), 0, objective=objective), "a job"))
    assert isinstance(job, Job)
    here, there = (loss_of(one, program.trainable_copy(), task) for one in (objective, job.objective))
    assert here == there
