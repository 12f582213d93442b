"""Two processes on CPUs, launched by Accelerate, learn what one learns.

This file is what is launched, too: each process runs the scenarios that it is told and writes down what came of them.
"""

import io
import os
import random
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from torch import nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from fxsurgery import Budget, capture, optimize
from fxsurgery.errors import DataError, TrainingError
from fxsurgery.passes import Elasticize
from fxsurgery.searchers.dnal import Dnal
from fxsurgery.training import (
    FeatureDistillation,
    Hooks,
    Progress,
    Recipe,
    SandwichObjective,
    Task,
    adamw,
    cosine,
    evaluate,
    fit,
    recalibrate,
    sgd,
    steps_for,
)
from fxsurgery.training.probe import Probe, TrainingMode
from nonempty import nonempty

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def launch(arguments, folder, timeout=240):
    """Run a script in two processes; what they print. With `--cpu` Accelerate would start one, unless by MPI."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
        "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
        "--num_cpu_threads_per_process", "1", "--main_process_port", str(port), *map(str, arguments),
    ]  # fmt: skip
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("ACCELERATE_")},
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1",
        "HF_HOME": str(folder),
    }  # fmt: skip
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout, check=False)
    assert run.returncode == 0, run.stderr[-6000:]
    return run


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def images(samples=26):
    x = numbers(samples, 1, 6, 6)
    return x, (4 * x.mean((1, 2, 3))).long().clamp(0, 2)


class Augmented(Dataset):
    """Random by torch, numpy and `random`."""

    def __init__(self):
        self.x, self.y = images()

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        noise = torch.rand(()) + np.random.rand() + random.random()  # noqa: NPY002 -- as users do
        return {"image": self.x[index] + 0.3 * noise.float(), "label": self.y[index]}


class Plain(Augmented):
    """Not random."""

    def __getitem__(self, index):
        return self.x[index], self.y[index]


def net(norm=False, dropout=0.0):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6) if norm else nn.GroupNorm(2, 6), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(6, 8, 2), nn.BatchNorm2d(8) if norm else nn.Identity(), nn.ReLU(), nn.Flatten(),
            nn.Dropout(dropout), nn.Linear(8, 3),
        )  # fmt: skip


class Image(nn.Module):
    """Takes its input by name."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, image):
        return self.inner(image)


def trained(model, task, steps=9, **options):
    """What a training comes to."""
    hooks, keeper = options.pop("hooks", None), options.pop("keeper", None)
    options = {"optimizer": sgd(0.1, weight_decay=1e-2), "validations": 2, **options}
    recipe = Recipe(steps=steps, schedule=cosine(), **options)
    progress = Progress.quiet()
    report = fit(model, task, recipe, seed=5, hooks=hooks, keeper=keeper, progress=progress, device="cpu")
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {
        "tensors": {name: tensor.detach().clone() for name, tensor in tensors.items()},
        "losses": [r["loss"] for r in progress.history],
        "told": [report.steps, report.epochs, report.samples, report.score.samples],
        "score": [report.score.metric, report.score.loss],
    }


def task_of(data, **options):
    return Task.of(data, images(31), **{"batch_size": 7, **options})


def rows_that_do_not_divide():
    return trained(net(), task_of(images()), gradient_clip=0.5, optimizer=adamw(0.01))


def batch_norms():
    return trained(net(norm=True), task_of(images()))


def lone_rows():
    x, y = images()  # two values have nearly no variance now and then: rounding is felt
    return trained(net(norm=True).double(), Task.of((x.double(), y), (x.double(), y), batch_size=2))


def processes_without_a_row():
    return trained(net(), task_of(images(5), batch_size=1))


def users_loader():
    data = DataLoader(Augmented(), 7, shuffle=True, generator=torch.Generator().manual_seed(1))
    return trained(Image(net(norm=True)), Task(data, DataLoader(Augmented(), 7)))


def users_loader_with_workers():
    data = DataLoader(Augmented(), 7, shuffle=True, num_workers=2)
    return trained(Image(net(norm=True)), Task(data, DataLoader(Augmented(), 7)))


def data_set():
    return trained(net(norm=True), task_of(Plain()))


def accumulating():
    return trained(net(norm=True), task_of(images()), accumulate=3)


def unused_parameters():
    model = net()
    model[3].spare = nn.PReLU(2)
    return trained(model, task_of(images()), optimizer=adamw(0.01))


def penalized(model, batch):
    task, penalty = batch.loss(batch.predict(model)), 0.1 * sum(p.abs().sum() for p in model.parameters())
    return task + penalty, {"task": task, "penalty": penalty}


def a_penalty():
    return trained(net(), task_of(images()), hooks=Hooks(objective=penalized))


def a_penalty_where_whole_batches_do_not_count():
    x, y = images()
    y[::3], y[7:15] = -100, -100
    return trained(net(), task_of((x, y)), hooks=Hooks(objective=penalized), accumulate=2)


def sub_networks():
    program = Elasticize()(capture(net(norm=True).eval(), images()[0][:2])).program
    hooks = Hooks(objective=SandwichObjective(draws=2, seed=3))
    return trained(program.trainable_copy(), task_of(images()), hooks=hooks, accumulate=2)


def features_of_a_teacher():
    teacher = capture(net(norm=True).eval(), images()[0][:2])
    hooks = Hooks(objective=FeatureDistillation(teacher, {"_1": "_1", "_6": "_4"}, weight=lambda over: 1 - over))
    model = teacher.trainable_copy()
    with torch.no_grad():
        model.get_parameter("0.weight").mul_(-1)
    return trained(model, task_of(images()), hooks=hooks)


def gradients_that_hooks_edit():
    model = net(norm=True)
    hooks = Hooks(before_step=lambda _: model[9].weight.grad.sign_())
    return trained(model, task_of(images()), hooks=hooks)


def bfloat16():
    return trained(net(norm=True), task_of(images()), mixed_precision="bf16", optimizer=sgd(0.02))


def channels_last():
    return trained(net(norm=True), task_of(images()), memory_format="channels_last")


def measured():
    """A training mode that the first process measures, as if channels_last took no time, and all of them take."""
    calls, real = [], Probe.measure

    def measure(self, candidates):
        found = real(self, candidates)
        calls.append({str(mode): one.failure for mode, one in found.items()})
        found[TrainingMode("channels_last", "no")].seconds = [1e-9]
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Probe, "measure", measure)
        result = optimize(
            net(norm=True), train_data=images(), val_data=images(), budget=Budget(macs=0.8), batch_size=7,
            config=Dnal(align=2, architecture_epochs=1, finetune_epochs=1, fewest_steps=4, most_steps=4), device="cpu",
            verbose=False, memory_format="auto", mixed_precision="auto",
        )  # fmt: skip
    return {"calls": calls, "notes": list(result.notes), "tensors": dict(result.program.graph_module.named_buffers())}


def sparse_gradients():
    words = torch.randint(9, (26, 4), generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(9, 5, sparse=True), nn.Flatten(), nn.Linear(20, 3))
    data = (words, words.sum(1) % 3)
    return trained(model, Task.of(data, data, batch_size=7), optimizer=sgd(0.1, momentum=0.0))


def ignored_targets():
    x, y = images()
    y[::3], y[7:12] = -100, -100
    return trained(net(), task_of((x, y)))


def ignored_targets_with_class_weights():
    x, y = images()
    y[7:14] = 1  # a whole batch
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 4.0, 0.5]), ignore_index=1)
    return trained(net(), Task.of((x, y), (x, y), batch_size=7, loss=loss))


class LastStep(nn.Module):
    """(time, batch, 5) to (batch, 3)."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.cell, self.head = nn.GRU(5, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.cell(x)[1][-1])


def stacked(rows):
    return torch.stack([x for x, _ in rows], 1), torch.tensor([y for _, y in rows])


def time_first():
    rows = list(zip(numbers(26, 4, 5), (torch.arange(26) % 3).tolist(), strict=True))
    loader = DataLoader(rows, 7, collate_fn=stacked)
    return trained(LastStep(), Task(loader, loader, batch_dims=1))


def recalibrated():
    model = net(norm=True)
    recalibrate(model, task_of(Plain()), batches=3)
    score = evaluate(model, task_of(images()))
    return {"tensors": dict(model.named_buffers()), "score": [score.metric, score.loss]}


def how_many_steps():
    return {"told": [steps_for(task_of(images()), 3, min_steps=1)]}


EXACT = [
    rows_that_do_not_divide, batch_norms, lone_rows, processes_without_a_row, users_loader, users_loader_with_workers,
    data_set, ignored_targets, ignored_targets_with_class_weights, time_first, accumulating, unused_parameters,
    a_penalty, a_penalty_where_whole_batches_do_not_count, sub_networks, features_of_a_teacher,
    gradients_that_hooks_edit, sparse_gradients, recalibrated, how_many_steps, channels_last,
]  # fmt: skip


class Kept:
    """Keeps the snapshot after step 4."""

    def __init__(self, content=None):
        self.content = content

    def last(self):
        return None if self.content is None else torch.load(io.BytesIO(self.content), weights_only=True)

    def wants(self, step, steps):
        return step == 4

    def keep(self, snapshot):
        torch.save(snapshot, buffer := io.BytesIO())
        self.content = buffer.getvalue()


def cut_off():
    """With everything that is random; before and after."""

    def data():
        return DataLoader(Augmented(), 7, shuffle=True)

    kept = Kept()
    whole = trained(Image(net(norm=True, dropout=0.3)), task_of(data()), keeper=kept)
    again = trained(Image(net(norm=True, dropout=0.3)), task_of(data()), keeper=Kept(kept.content))
    return {"whole": whole, "again": again, "snapshot": kept.content}


def dropped():
    """What dropout leaves of ones."""
    model, seen = nn.Sequential(nn.Dropout(0.5), nn.Linear(40, 3)), []
    model[0].register_forward_hook(lambda module, given, output: seen.append(output.clone()))
    data = (torch.ones(8, 40), torch.zeros(8, dtype=torch.long))
    fit(model, Task.of(data, data, batch_size=4), Recipe(steps=2, optimizer=sgd(0.1), validations=0), device="cpu")
    return {"seen": seen}


def not_finite_in_one():
    x, y = images(8)
    x[7] = float("inf")
    try:
        trained(net(), Task(DataLoader(list(zip(x, y, strict=True)), 8), task_of(images()).val_data))
    except TrainingError as error:
        return {"error": str(error)}
    return {"error": None}


class Hidden(Plain):
    """Draws from what nobody can seed."""

    def __getitem__(self, index):
        return self.x[index] + random.SystemRandom().random(), self.y[index]


def loaders_that_part_the_data_themselves():
    data, told = Plain(), []
    for loader in (
        DataLoader(data, 7, sampler=DistributedSampler(data, 2, int(os.environ.get("RANK", "0")))),
        prepare_data_loader(DataLoader(data, 7), num_processes=2, process_index=0, device=torch.device("cpu")),
        DataLoader(Hidden(), 7),
    ):
        with pytest.raises(DataError) as caught:
            trained(net(), Task(loader, DataLoader(data, 7)), steps=1)
        told.append(str(caught.value))
    return {"told": told}


def offsets():
    """Rows of ids that belong to offsets cannot be shared."""
    ids, starts, y = torch.arange(20) % 9, torch.arange(0, 20, 4), torch.arange(5) % 3
    loader = DataLoader([(ids, starts, y)], batch_size=None)

    class Bag(nn.Module):
        def __init__(self):
            super().__init__()
            self.bag, self.head = nn.EmbeddingBag(9, 5), nn.Linear(5, 3)

        def forward(self, ids, starts):
            return self.head(self.bag(ids, starts))

    with pytest.raises(DataError) as caught:
        trained(Bag(), Task(loader, loader), steps=1)
    return {"told": [str(caught.value)]}


APART = [offsets, cut_off, dropped, not_finite_in_one, loaders_that_part_the_data_themselves, bfloat16, measured]


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """What each of two processes came to, by scenario."""
    folder = tmp_path_factory.mktemp("two")
    launch([__file__, folder], folder)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("scenario", EXACT, ids=lambda s: s.__name__)
def test_two_processes_learn_what_one_learns(processes, scenario):
    torch.set_num_threads(1)
    one, (first, second) = scenario(), (found[scenario.__name__] for found in processes)
    assert one.keys() == first.keys() == second.keys()
    assert first.get("told") == second.get("told") == one.get("told")
    assert first.get("score") == second.get("score") == pytest.approx(one.get("score"), abs=1e-5)
    assert first.get("losses") == second.get("losses") == pytest.approx(one.get("losses"), abs=1e-5)
    if "tensors" in one:
        for name, tensor in nonempty(one["tensors"].items()):
            mine = first["tensors"][name]
            assert torch.equal(mine, second["tensors"][name]), name
            torch.testing.assert_close(mine, tensor, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: n + m)


def test_in_bfloat16_they_learn_nearly_that(processes):
    one, (first, second) = bfloat16(), (found["bfloat16"] for found in processes)
    assert first["score"] == second["score"]
    for name, tensor in nonempty(one["tensors"].items()):
        assert torch.equal(first["tensors"][name], second["tensors"][name]), name
        torch.testing.assert_close(first["tensors"][name], tensor, rtol=0.05, atol=0.02)


def test_the_first_measures_what_is_fast_and_all_train_so(processes):
    first, second = (found["measured"] for found in processes)
    assert first["calls"] == [{"plain": "", "bf16": "", "channels_last": "", "channels_last, bf16": ""}]
    assert second["calls"] == []
    assert first["notes"] == second["notes"]
    [note] = [note for note in first["notes"] if note.startswith("training mode")]
    assert "channels_last, which takes 0.00" in note
    for name, tensor in nonempty(first["tensors"].items()):
        assert torch.equal(tensor, second["tensors"][name]), name


def test_cut_off_they_end_the_same_bit_for_bit(processes):
    for found in nonempty(processes):
        whole, again = found["cut_off"]["whole"], found["cut_off"]["again"]
        assert whole["told"] == again["told"]
        assert whole["losses"] == again["losses"]
        assert all(torch.equal(tensor, again["tensors"][name]) for name, tensor in nonempty(whole["tensors"].items()))
    first, second = (Kept(found["cut_off"]["snapshot"]).last() for found in processes)
    assert first.keys() == second.keys()
    assert first["random"][0]["torch"].tolist() != first["random"][1]["torch"].tolist()
    for name in ("random", "optimizer", "tensors", "pending", "score", "epoch", "drawn"):
        assert str(first[name]) == str(second[name]), name


def test_one_process_goes_on_from_a_snapshot_of_two(processes):
    found = processes[0]["cut_off"]
    model = Image(net(norm=True, dropout=0.3))
    again = trained(model, task_of(DataLoader(Augmented(), 7, shuffle=True)), keeper=Kept(found["snapshot"]))
    assert again["told"] == found["whole"]["told"]
    assert again["losses"][:4] == found["whole"]["losses"][:4]


def test_each_process_drops_other_units(processes):
    first, second = (found["dropped"]["seen"] for found in processes)
    assert [len(x) for x in (*first, *second)] == [2] * 4
    assert not any(torch.equal(one, other) for one, other in nonempty(zip(first, second, strict=True)))


def test_a_loss_that_is_not_finite_in_one_is_told_in_all(processes):
    one, other = (found["not_finite_in_one"]["error"] for found in processes)
    assert one == other
    assert "step 1 of 9: the loss is" in one


def optimized():
    """The whole of a search, from an untrained network on."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3),
        )  # fmt: skip
    x = numbers(150, 1, 6, 6)
    y = (4 * x.mean((1, 2, 3))).long().clamp(-1, 1) + 1
    steps = Dnal(align=4, weights_epochs=1, architecture_epochs=1, finetune_epochs=1, fewest_steps=40, most_steps=40)
    result = optimize(
        model, train_data=(x[:101], y[:101]), val_data=(x[101:], y[101:]), budget=Budget(macs=0.5), trained=False,
        config=steps, batch_size=25, device="cpu",
    )  # fmt: skip
    return {
        "shapes": [list(p.shape) for p in result.program.graph_module.parameters()],
        "metrics": {name: [pair.before, pair.after] for name, pair in result.metrics.items()},
        "gates": list(result.gates),
        "records": len(result.history),
    }


def test_a_whole_search_in_two_processes_finds_what_one_finds(tmp_path, capsys):
    torch.set_num_threads(1)
    run = launch([__file__, tmp_path, "optimize"], tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    one = optimized()
    assert first == second
    assert first["shapes"] == one["shapes"]
    assert first["records"] == one["records"]
    assert first["gates"] == pytest.approx(one["gates"], abs=0.05)
    for name, pair in nonempty(one["metrics"].items()):
        assert first["metrics"][name] == pytest.approx(pair, abs=0.05)
    shown = [line for line in run.stderr.splitlines() if line.startswith(("params:", "macs:", "fine-tuned:"))]
    assert shown == [
        line for line in capsys.readouterr().err.splitlines() if line.startswith(("params:", "macs:", "fine-tuned:"))
    ]
    assert len(shown) == 3


def test_rows_that_belong_to_offsets_are_not_shared(processes):
    for found in nonempty(processes):
        assert "a batch cannot be shared by processes" in found["offsets"]["told"][0]


def test_loaders_that_part_the_data_themselves_are_refused(processes):
    for found in nonempty(processes):
        told = found["loaders_that_part_the_data_themselves"]["told"]
        assert ["its own part already" in told[0], "its own part already" in told[1]] == [True, True]
        assert "gives each process another batch" in told[2]


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, *what = sys.argv[1:]
    came = optimized() if what else {scenario.__name__: scenario() for scenario in (*EXACT, *APART)}
    torch.save(came, Path(folder) / f"{os.environ['RANK']}.pt")
