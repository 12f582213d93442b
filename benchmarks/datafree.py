"""DNAL without data against its controls: `python -m benchmarks.datafree`.

A network is trained on Fashion-MNIST; then the images are gone. Each row shrinks it at a budget:

* matched: on synthetic inputs matched to its batch norms, taught by the network itself, as `optimize(model,
  method="dnal")` does;
* matched, not fine-tuned: the same without the last stage: gates, pruning, batch norms re-estimated;
* noise: the same as the first on plain Gaussian noise;
* real, no labels: the same on as many of the training images, without their labels: what better inputs could bring.

True accuracy and agreement with the original are measured on the test images, which nothing else uses; the
agreement that a user sees is measured on held-out inputs of the row's own kind. Completed runs are not repeated:
delete `runs/` to start over.
"""

import argparse
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.data import Splits, fashion_mnist
from benchmarks.models import PRESETS, Preset
from benchmarks.runs import RUNS, Figures, once
from benchmarks.tables import Table, write
from fxsurgery import Budget, Dnal, Task, optimize
from fxsurgery.analysis.cost import cost
from fxsurgery.capture import capture
from fxsurgery.inputs import Inputs
from fxsurgery.program import Program
from fxsurgery.training import Recipe, cosine, evaluate, fit, sgd, steps_for
from fxsurgery.training.bn_inversion import Synthetic, noise, synthetic_inputs
from fxsurgery.training.distillation import distilled_task
from fxsurgery.training.synthesis_amount import Amount

KINDS = ("matched", "matched, not fine-tuned", "noise", "real, no labels")
COLUMNS = {
    "network": "",
    "MACs": ".3f",
    "params": ".3f",
    "accuracy": ".4f",
    "agreement": ".4f",
    "agreement on its inputs": ".4f",
}


def main() -> None:
    """Run what is missing, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="R20w8", choices=PRESETS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.7, 0.5], help="fractions of the MACs")
    parser.add_argument("--epochs", type=float, default=8, help="of the training that comes before")
    parser.add_argument("--train", type=int, default=10_000, help="training images")
    options = parser.parse_args()
    data = fashion_mnist(train=options.train)
    done = dict[str, list[Figures]]()
    for seed in options.seeds:
        lab = Lab(PRESETS[options.preset], data, options.epochs, seed)
        for name, run in lab.rows(options.budgets).items():
            key = f"datafree-{options.preset}-{name}-{options.epochs:g}-{options.train}-{seed}".replace(" ", "_")
            figures = once(key, run)
            print(f"seed {seed}, {name}: {figures}", flush=True)
            done.setdefault(name, []).append(figures)
    rows = [{"network": name, **_columns(runs)} for name, runs in done.items()]
    print(write(Table(_title(options.preset), COLUMNS, rows, options.seeds, _notes(options)), "datafree"))


def _columns(runs: list[Figures]) -> dict[str, Any]:
    return {key: [figures[key] for figures in runs] for key in runs[0] if key in COLUMNS}


def _title(preset: str) -> str:
    return f"DNAL without data, {preset} on Fashion-MNIST"


def _notes(options: argparse.Namespace) -> str:
    return (
        f"The network was trained for {options.epochs:g} epochs of {options.train:,} images, then shrunk without them "
        "by the default settings (200 steps for the gates, 200 to fine-tune), widths being multiples of 1. MACs and "
        "parameters as fractions of the network as it is. 'accuracy' and 'agreement' (with the network as it is) are "
        "of the 10,000 test images; the last column is the agreement on held-out inputs of the kind that the row "
        "worked on, which is all that a user without data sees: on matched inputs it is stricter than that on the test "
        "images, on noise far too kind."
    )


class Lab:
    """The network of one seed and its runs."""

    def __init__(self, preset: Preset, data: Splits, epochs: float, seed: int) -> None:
        self._preset, self._data, self._epochs, self._seed = preset, data, epochs, seed
        self._kept = RUNS / f"datafree-{preset.name}-{epochs:g}-{len(data.train)}-{seed}.pt"

    def rows(self, budgets: list[float]) -> dict[str, Callable[[], Figures]]:
        """Return the runs by name."""
        found: dict[str, Callable[[], Figures]] = {"as it is": lambda: self._figures(self.original.graph_module, None)}
        for budget in budgets:
            for kind in KINDS:
                found[f"{kind} {budget:g}"] = functools.partial(self._shrunk, kind, budget)
        return found

    @functools.cached_property
    def original(self) -> Program:
        """Return the trained network."""
        train, validation = (part for part in (self._data.train, self._data.validation))
        task = Task.of(
            (train.images, train.labels), (validation.images, validation.labels),
            batch_size=self._preset.batch_size, seed=self._seed,
        )  # fmt: skip
        model = self._preset.model(self._seed)
        if self._kept.exists():
            model.load_state_dict(torch.load(self._kept, weights_only=True))
            return capture(model.eval(), torch.zeros(2, *train.images.shape[1:]))
        optimizer = sgd(self._preset.learning_rate, momentum=0.9, weight_decay=self._preset.weight_decay)
        recipe = Recipe(steps=steps_for(task, self._epochs), optimizer=optimizer, schedule=cosine())
        fit(model, task, recipe, seed=self._seed, device="cpu")
        RUNS.mkdir(exist_ok=True)
        torch.save(model.state_dict(), self._kept)
        return capture(model.eval(), torch.zeros(2, *train.images.shape[1:]))

    @functools.cached_property
    def amount(self) -> Amount:
        """Return the result of the public interface."""
        return Amount.affordable(cost(self.original).macs)

    @functools.cached_property
    def matched(self) -> Synthetic:
        """Synthesize inputs from the network alone."""

        def train(model: nn.Module, task: Task, recipe: Recipe, stage: str) -> None:
            fit(model, task, recipe, seed=self._seed, stage=stage, device="cpu")

        made = synthetic_inputs(self.original, self.amount, train=train, seed=self._seed)
        print(made, flush=True)
        return made

    def _inputs(self, kind: str) -> tuple[Inputs, Inputs]:
        """Return inputs to train on, and inputs held out."""
        if kind.startswith("matched"):
            return self.matched.train, self.matched.val
        many, few = self.amount.samples, self.amount.validation
        if kind == "noise":
            return noise(self.original, many, 2 * self._seed), noise(self.original, few, 2 * self._seed + 1)
        images = self._data.train.images[: many + few]
        return Inputs((images[:many],)), Inputs((images[many:],))

    def _shrunk(self, kind: str, budget: float) -> Figures:
        task = distilled_task(self.original, *self._inputs(kind), seed=self._seed)
        config = Dnal(align=1, **({"finetune_epochs": 0} if "not" in kind else {}))
        result = optimize(
            self.original.trainable_copy(), train_data=task, budget=Budget(macs=budget), config=config,
            seed=self._seed, device="cpu", verbose=False,
        )  # fmt: skip
        return self._figures(result.model, task)

    def _figures(self, model: nn.Module, task: Task | None) -> Figures:
        test = self._data.test
        now, whole = cost(capture(model, test.images[:2])), cost(self.original)
        answers = _answers(model, test.images)
        return {
            "MACs": now.macs / whole.macs,
            "params": now.params / whole.params,
            "accuracy": _share(answers == test.labels),
            "agreement": _share(answers == _answers(self.original.graph_module, test.images)),
            "agreement on its inputs": 1.0 if task is None else evaluate(model, task).metric,
        }


def _answers(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([model.eval()(part).argmax(1) for part in images.split(500)])


def _share(hits: Tensor) -> float:
    return float(hits.double().mean())


if __name__ == "__main__":
    main()
