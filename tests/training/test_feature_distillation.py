"""Features of a teacher beside the task's loss: the loop by hand, schedules, precision, and what does not fit."""

import doctest

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from fxsurgery import capture
from fxsurgery.errors import SpecError, TrainingError
from fxsurgery.training import FeatureDistillation, Hooks, Progress, Recipe, Task, feature_distillation, fit, sgd
from nonempty import nonempty
from zoo import lively

X = torch.randn(32, 3, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = (X.mean((1, 2, 3)) > 0).long()


def net(width, seed=0):
    """The activation writes into the feature map that is learned."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = nn.Sequential(
            nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(16 * width, 2)
        )
    return lively(layers.double(), seed).eval()


def program(width, seed=0):
    return capture(net(width, seed), X[:2])


def learned(student, objective, steps=4, **options):
    progress, dtype = Progress.quiet(), next(student.parameters()).dtype
    task = Task.of((X.to(dtype), Y), (X.to(dtype), Y), batch_size=32)
    recipe = Recipe(steps=steps, optimizer=sgd(0.1, momentum=0.0), validations=0, **options)
    fit(student, task, recipe, hooks=Hooks(objective=objective), progress=progress, device="cpu")
    return progress.history


def by_hand(student, teacher, weights, loss=F.mse_loss):
    """The same by a plain loop: norms of the student in train mode, those of the teacher in eval mode."""
    student.train()
    told = []
    with torch.no_grad():
        wanted = teacher[1](teacher[0](X))
    for weight in weights:
        student.zero_grad()
        own = student[1](student[0](X))
        scores = student[4](F.relu(own).flatten(1))
        task, features = F.cross_entropy(scores, Y), loss(own, wanted)
        (task + weight * features).backward()
        told.append((task.item(), features.item()))
        with torch.no_grad():
            for p in student.parameters():
                p.sub_(0.1 * p.grad)
    return told


@pytest.mark.parametrize(
    ("weight", "weights"),
    [(0.7, [0.7] * 4), (lambda over: 1 - over, [0.875, 0.625, 0.375, 0.125])],
    ids=["constant", "falling"],
)
def test_it_is_the_loop_by_hand(weight, weights):
    teacher, student, twin = program(4, seed=1), program(4).trainable_copy(), net(4)
    before = {name: x.clone() for name, x in teacher.graph_module.state_dict().items()}
    history = learned(student, FeatureDistillation(teacher, {"_1": "_1"}, weight=weight))
    told = by_hand(twin, net(4, seed=1), weights)
    state = twin.state_dict()
    for name, tensor in nonempty(student.state_dict().items()):
        torch.testing.assert_close(tensor, state[name], rtol=1e-10, atol=1e-12)
    assert [r["loss"] for r in history] == pytest.approx([task for task, _ in told], rel=1e-10)
    assert [r["terms"] for r in history] == [
        {"features": pytest.approx(features, rel=1e-10)} for _, features in nonempty(told)
    ]
    assert all(torch.equal(x, before[name]) for name, x in nonempty(teacher.graph_module.state_dict().items()))
    assert not any(module.training for module in teacher.graph_module.modules())
    assert all(p.requires_grad and p.grad is None for p in nonempty(teacher.graph_module.parameters()))


def test_another_distance_adapts_other_sizes():
    def by_mean(own, wanted):
        return (own.mean(1) - wanted.mean(1)).square().mean()

    teacher, student, twin = program(8, seed=1), program(4).trainable_copy(), net(4)
    learned(student, FeatureDistillation(teacher, {"_1": "_1"}, distance=by_mean))
    by_hand(twin, net(8, seed=1), [1.0] * 4, by_mean)
    for one, other in nonempty(zip(student.parameters(), twin.parameters(), strict=True)):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_several_pairs_weigh_alike():
    teacher, student = program(4, seed=1), program(4).trainable_copy()
    learned(student, FeatureDistillation(teacher, {"_1": "_1", "_4": "_4"}, weight=3.0), steps=1)
    twin, goal = net(4).train(), net(4, seed=1)
    with torch.no_grad():
        wanted = goal[1](goal[0](X))
        scores = goal[4](F.relu(wanted).flatten(1))
    own = twin[1](twin[0](X))
    found = twin[4](F.relu(own).flatten(1))
    (F.cross_entropy(found, Y) + 1.5 * (F.mse_loss(own, wanted) + F.mse_loss(found, scores))).backward()
    for p, q in nonempty(zip(student.parameters(), twin.parameters(), strict=True)):
        torch.testing.assert_close(p, q - 0.1 * q.grad, rtol=1e-10, atol=1e-12)


def test_in_bfloat16_features_are_compared_in_full_precision():
    dtypes = set()

    def noting(own, wanted):
        dtypes.update({own.dtype, wanted.dtype})
        return F.mse_loss(own, wanted)

    teacher = capture(net(4, seed=1).float(), X[:2].float())
    student = capture(net(4).float(), X[:2].float()).trainable_copy()
    inside = set()
    student.get_submodule("0").register_forward_hook(lambda module, given, output: inside.add(output.dtype))
    history = learned(student, FeatureDistillation(teacher, {"_1": "_1"}, distance=noting), mixed_precision="bf16")
    assert (dtypes, inside) == ({torch.float32}, {torch.bfloat16})
    assert history[-1]["terms"]["features"] < history[0]["terms"]["features"]


@pytest.mark.parametrize(
    ("pairs", "width", "error", "message"),
    [
        (
            {"_1": "_1"},
            8,
            TrainingError,
            r"node '_1' of the student, .*32, 4, 4, 4.* node '_1' of the teacher, .*8, 4, 4",
        ),
        ({"_9": "_1"}, 4, SpecError, "no node is named '_9'"),
        ({"_1": "_9"}, 4, SpecError, "no node is named '_9'"),
    ],
)
@pytest.mark.filterwarnings("ignore:Using a target size:UserWarning")
def test_pairs_that_do_not_fit_are_refused(pairs, width, error, message):
    with pytest.raises(error, match=message):
        learned(program(4).trainable_copy(), FeatureDistillation(program(width, seed=1), pairs), steps=1)


def test_a_module_that_is_no_graph_is_refused():
    with pytest.raises(TrainingError, match=r"features of a Sequential cannot be read; train a Program.trainable_copy"):
        learned(net(4), FeatureDistillation(program(4), {"_1": "_1"}), steps=1)


def test_examples():
    found = doctest.testmod(feature_distillation)
    assert (found.failed, found.attempted > 0) == (0, True)
