"""DNAL against its controls, at equal training: `python -m benchmarks.dnal --preset R20w8`.

Every row gets the same total number of training epochs, the weights and architecture stages included:

* the network as it is;
* DNAL at each budget: a quarter of the epochs for the weights, an eighth for the gates, the rest to fine-tune (of
  three splits, the best on the validation data of seed 0);
* DNAL's random mode: the same, with units ranked at random instead of by gates, whose epochs go to fine-tuning;
* uniform width: the same architecture with all widths scaled, trained from scratch.

Selection is on validation data (none of these rows selects anything: the last weights count); test data is
scored once per run. Completed runs are not repeated: delete `runs/` to start over.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

from torch import nn

from benchmarks.data import Splits, fashion_mnist
from benchmarks.models import PRESETS, Preset, uniform
from benchmarks.runs import RUNS, Figures, once
from benchmarks.tables import Table, write
from fxsurgery import Budget, Dnal, Task, optimize
from fxsurgery.analysis.cost import cost
from fxsurgery.capture import capture
from fxsurgery.training import Recipe, cosine, evaluate, fit, sgd, steps_for


def main() -> None:
    """Run what is missing, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="R20w8", choices=PRESETS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.5, 0.3], help="fractions of the MACs")
    parser.add_argument("--epochs", type=float, help="epochs per run; the preset's by default")
    parser.add_argument("--train", type=int, default=10_000, help="training images")
    parser.add_argument("--align", type=int, default=1, help="widths are multiples of this; the controls round to 1")
    options = parser.parse_args()
    preset = PRESETS[options.preset]
    epochs = options.epochs or preset.epochs
    data = fashion_mnist(train=options.train)
    rows = _rows(preset, data, epochs, options.budgets, options.align)
    table = list[dict[str, Any]]()
    left = len(rows) * len(options.seeds)
    print(f"{left} runs of {epochs:g} epochs of {options.train:,} images", flush=True)
    began, fresh = time.monotonic(), 0
    for name, run in rows.items():
        done = list[Figures]()
        for seed in options.seeds:
            key = f"dnal-{options.preset}-{name}-{epochs:g}-{options.train}-{options.align}-{seed}".replace(" ", "_")
            known = (RUNS / f"{key}.json").exists()
            done.append(once(key, lambda run=run, seed=seed: run(seed)))
            fresh, left = fresh + (not known), left - 1
            pace = (time.monotonic() - began) / fresh / 60 if fresh else 0.0
            result = f"{name}, seed {seed}: test accuracy {done[-1]['test']:.4f}"
            print(f"{result}; about {pace * left:.0f} min left", flush=True)
        table.append({"network": name, **{k: [figures[k] for figures in done] for k in done[0]}})
    columns = {"network": "", "MACs": ".3f", "params": ".3f", "pruned": ".3f", "validation": ".4f", "test": ".4f"}
    notes = (
        f"MACs and parameters as fractions of the network as it is. Every run trains for {epochs:g} epochs of "
        f"{options.train:,} images in all. Widths are multiples of {options.align}. The last three columns are "
        "accuracies; 'pruned' is that on validation data right after the surgery, before fine-tuning."
    )
    title = f"DNAL, {options.preset} on Fashion-MNIST"
    print(write(Table(title, columns, table, options.seeds, notes), f"dnal-{options.preset}"))


def _rows(
    preset: Preset, data: Splits, epochs: float, budgets: list[float], align: int
) -> dict[str, Callable[[int], Figures]]:
    whole = cost(capture(preset.model(0), data.train.images[:2]))

    def scratch(network: Preset, seed: int) -> Figures:
        task = _task(preset, data, seed)
        model = network.model(seed)
        steps = steps_for(task, epochs)
        optimizer = sgd(preset.learning_rate, momentum=0.9, weight_decay=preset.weight_decay)
        fit(model, task, Recipe(steps=steps, optimizer=optimizer, schedule=cosine()), seed=seed)
        return figures(model, task)

    def figures(model: nn.Module, task: Task) -> Figures:
        now = cost(capture(model, data.train.images[:2]))
        return {
            "MACs": now.macs / whole.macs,
            "params": now.params / whole.params,
            "validation": evaluate(model, task).metric,
            "test": evaluate(model, task, task.test_data).metric,
        }

    def searched(budget: float, seed: int, *, random: bool) -> Figures:
        task = _task(preset, data, seed)
        config = Dnal(
            align=align,
            random=random,
            weights_epochs=epochs / 4,
            architecture_epochs=0 if random else epochs / 8,
            finetune_epochs=epochs * (3 / 4 if random else 5 / 8),
            learning_rate=preset.learning_rate,
            weight_decay=preset.weight_decay,
        )
        result = optimize(
            preset.model(seed), train_data=task, budget=Budget(macs=budget), trained=False, config=config,
            seed=seed, verbose=False,
        )  # fmt: skip
        return {**figures(result.model, task), "pruned": result.metrics["val, not fine-tuned"].after}

    rows: dict[str, Callable[[int], Figures]] = {"as it is": lambda seed: scratch(preset, seed)}
    for budget in budgets:
        narrow = uniform(preset, budget)
        rows[f"DNAL {budget:g}"] = lambda seed, budget=budget: searched(budget, seed, random=False)
        rows[f"random {budget:g}"] = lambda seed, budget=budget: searched(budget, seed, random=True)
        rows[f"uniform {budget:g}"] = lambda seed, narrow=narrow: scratch(narrow, seed)
    return rows


def _task(preset: Preset, data: Splits, seed: int) -> Task:
    parts = ((part.images, part.labels) for part in (data.train, data.validation))
    test = (data.test.images, data.test.labels)
    return Task.of(*parts, test_data=test, batch_size=preset.batch_size, seed=seed)


if __name__ == "__main__":
    main()
