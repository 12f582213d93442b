"""Simple importances against each other and against Torch-Pruning: `python -m benchmarks.prune --preset R20w8`.

One network a seed is trained, and every row starts from it. After that each trains alike, `--finetune` epochs in all,
with batch norms estimated anew after each cut:

* magnitude, bn-gamma, taylor, random: `method="prune"` in one shot, at its defaults;
* 3 rounds: half of the fine-tune goes between the rounds;
* not normalized: sums of different layers are compared as they are;
* Torch-Pruning: its `BasePruner`, global, with its group importances at their defaults and the head ignored; the
  largest network within the budget that its pruning ratio gives. Then the estimate and the loop of fxsurgery. Its
  Taylor importance gets the gradients of as many batches.

'pruned' is right after the last cut. The better one of before and after fine-tuning, on validation data, counts; test
data is scored once per run. Completed runs are not repeated: delete `runs/` to start over.
"""

import argparse
import copy
import time
from collections.abc import Callable
from functools import partial
from itertools import islice
from typing import Any

import torch
import torch_pruning as tp
from torch import nn

from benchmarks.data import Splits, fashion_mnist
from benchmarks.models import PRESETS, Preset
from benchmarks.runs import RUNS, Figures, once
from benchmarks.tables import Table, write
from fxsurgery import Budget, Task, optimize
from fxsurgery.analysis.cost import cost
from fxsurgery.capture import capture
from fxsurgery.searchers.prune import Prune
from fxsurgery.training import Recipe, cosine, evaluate, fit, recalibrate, sgd, steps_for

OURS = {
    "magnitude": Prune(),
    "magnitude, not normalized": Prune(normalize=False),
    "magnitude, 3 rounds": Prune(rounds=3),
    "bn-gamma": Prune(importance="bn-gamma"),
    "taylor": Prune(importance="taylor"),
    "random": Prune(importance="random"),
}
THEIRS = {
    "Torch-Pruning magnitude": tp.importance.GroupMagnitudeImportance,
    "Torch-Pruning taylor": tp.importance.GroupTaylorImportance,
}
FINEST = 256
"""Torch-Pruning's ratio is a multiple of one over this."""


def main() -> None:
    """Run what is missing, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="R20w8", choices=PRESETS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.5, 0.3], help="fractions of the MACs")
    parser.add_argument("--epochs", type=float, default=6, help="epochs of the network that every row starts from")
    parser.add_argument("--finetune", type=float, default=2, help="epochs")
    parser.add_argument("--train", type=int, default=10_000, help="training images")
    parser.add_argument("--align", type=int, default=1, help="widths are multiples of this, Torch-Pruning's too")
    options = parser.parse_args()
    bench = _Bench(options)
    rows: dict[str, Callable[[int], Figures]] = {"as it is": bench.whole}
    for budget in options.budgets:
        rows |= {f"{name}, {budget:g}": partial(bench.ours, config, budget) for name, config in OURS.items()}
        rows |= {f"{name}, {budget:g}": partial(bench.theirs, kind, budget) for name, kind in THEIRS.items()}
    done: dict[str, list[Figures]] = {name: [] for name in rows}
    began = time.monotonic()
    for seed in options.seeds:
        for name, run in rows.items():
            done[name].append(once(f"{bench.key}-{name}-{seed}".replace(" ", "_"), partial(run, seed)))
            minutes = (time.monotonic() - began) / 60
            print(f"{minutes:4.1f} min: {name}, seed {seed}: test accuracy {done[name][-1]['test']:.4f}", flush=True)
    table: list[dict[str, Any]] = [
        {"network": name, **{key: [figures[key] for figures in found] for key in found[0]}}
        for name, found in done.items()
    ]
    columns = {"network": "", "MACs": ".3f", "params": ".3f", "pruned": ".3f", "validation": ".4f", "test": ".4f"}
    notes = (
        f"MACs and parameters as fractions of the network as it is, which trained for {options.epochs:g} epochs of "
        f"{options.train:,} images; the others start from it and train for {options.finetune:g} more. Widths are "
        f"multiples of {options.align}. The last three columns are accuracies; 'pruned' is that on validation data "
        "right after the last cut."
    )
    title = f"Pruning by simple importances, {options.preset} on Fashion-MNIST"
    print(write(Table(title, columns, table, options.seeds, notes), f"prune-{options.preset}"))


class _Bench:
    """The rows' runs, each from a seed to its figures."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.preset: Preset = PRESETS[options.preset]
        self.data: Splits = fashion_mnist(train=options.train)
        self.start = f"prune-{options.preset}-{options.epochs:g}-{options.train}"
        self.key = f"{self.start}-{options.finetune:g}-{options.align}"
        self.original = cost(capture(self.preset.model(0), self.data.train.images[:2]))

    def whole(self, seed: int) -> Figures:
        """The network that every row starts from."""
        figures = self._figures(self._trained(seed), seed)
        return {**figures, "pruned": figures["validation"]}

    def ours(self, config: Prune, budget: float, seed: int) -> Figures:
        """`method="prune"`."""
        settings = {**vars(config), "align": self.options.align, "finetune_epochs": self.options.finetune}
        rates = {"learning_rate": self.preset.learning_rate, "weight_decay": self.preset.weight_decay}
        result = optimize(
            self._trained(seed), train_data=self._task(seed), budget=Budget(macs=budget),
            config=Prune(**{**settings, **rates, "fewest_steps": 1}), seed=seed, verbose=False,
        )  # fmt: skip
        return {**self._figures(result.model, seed), "pruned": result.metrics["val, not fine-tuned"].after}

    def theirs(self, kind: type[Any], budget: float, seed: int) -> Figures:
        """Torch-Pruning, then our estimate of the batch norms and our loop."""
        task, model = self._task(seed), self._trained(seed)
        _leave_gradients(model, task, Prune().taylor_batches)
        low, high = 0, FINEST
        while low + 1 < high:
            middle = (low + high) // 2
            macs = self._cost(self._pruned(model, kind, middle / FINEST)).macs
            low, high = (low, middle) if macs <= budget * self.original.macs else (middle, high)
        pruned = self._pruned(model, kind, high / FINEST)
        pruned.zero_grad()
        recalibrate(pruned, task, seed=seed)
        before, tuned = evaluate(pruned, task).metric, copy.deepcopy(pruned)
        fit(tuned, task, self._recipe(steps_for(task, self.options.finetune, min_steps=1)), seed=seed)
        best = tuned if evaluate(tuned, task).metric >= before else pruned
        return {**self._figures(best, seed), "pruned": before}

    def _pruned(self, model: nn.Module, kind: type[Any], ratio: float) -> nn.Module:
        twin = copy.deepcopy(model)
        for mine, theirs in zip(twin.parameters(), model.parameters(), strict=True):
            mine.grad = None if theirs.grad is None else theirs.grad.clone()
        heads = [m for m in twin.modules() if isinstance(m, nn.Linear)][-1:]
        pruner = tp.pruner.BasePruner(
            twin, self.data.train.images[:2], importance=kind(), global_pruning=True, pruning_ratio=ratio,
            ignored_layers=heads, round_to=self.options.align, in_channel_groups={}, out_channel_groups={},
        )  # fmt: skip
        pruner.step()
        return twin

    def _trained(self, seed: int) -> nn.Module:
        path, model = RUNS / f"{self.start}-{seed}.pt", self.preset.model(seed)
        if path.exists():
            model.load_state_dict(torch.load(path, weights_only=True))
            return model.eval()
        task = self._task(seed)
        fit(model, task, self._recipe(steps_for(task, self.options.epochs)), seed=seed)
        RUNS.mkdir(exist_ok=True)
        torch.save(model.state_dict(), path)
        return model.eval()

    def _recipe(self, steps: int) -> Recipe:
        optimizer = sgd(self.preset.learning_rate, momentum=0.9, weight_decay=self.preset.weight_decay)
        return Recipe(steps=steps, optimizer=optimizer, schedule=cosine())

    def _task(self, seed: int) -> Task:
        parts = ((part.images, part.labels) for part in (self.data.train, self.data.validation))
        return Task.of(*parts, batch_size=self.preset.batch_size, seed=seed)

    def _cost(self, model: nn.Module) -> Any:  # noqa: ANN401
        return cost(capture(model.eval(), self.data.train.images[:2]))

    def _figures(self, model: nn.Module, seed: int) -> Figures:
        task, test, now = self._task(seed), self.data.test, self._cost(model)
        tested = Task.of((test.images, test.labels), (test.images, test.labels), batch_size=500)
        return {
            "MACs": now.macs / self.original.macs,
            "params": now.params / self.original.params,
            "validation": evaluate(model, task).metric,
            "test": evaluate(model, tested).metric,
        }


def _leave_gradients(model: nn.Module, task: Task, batches: int) -> None:
    """Accumulate the gradients of `batches` batches in `model`, in eval mode, as Torch-Pruning's examples do."""
    for images, labels in islice(task.train_data, batches):
        nn.functional.cross_entropy(model(images), labels).backward()


if __name__ == "__main__":
    main()
