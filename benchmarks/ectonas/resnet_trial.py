"""One trial of the part `r20`: R20w8 searched, pruned or trained, from the same first epochs."""

import math
import shutil
from dataclasses import dataclass
from functools import cache

import torch
from torch import nn

from benchmarks.data import Splits, fashion_mnist
from benchmarks.ectonas.trial import SEARCHES, of_search, sizes
from benchmarks.models import PRESETS
from benchmarks.runs import RUNS, Figures, once
from fxsurgery import Budget, BudgetError, Ectonas, Result, Spend, Task, capture, optimize
from fxsurgery.runs.layout import STAGES
from fxsurgery.runs.run_directory import Snapshots
from fxsurgery.searchers.prune import Prune
from fxsurgery.training import Recipe, cosine, evaluate, fit, sgd, steps_for

PRESET = PRESETS["R20w8"]
PRUNE, AS_IT_IS, START = "prune", "as it is", "start"
FREE = 0.0
"""The share of the MACs that stands for no budget."""
OUT_OF_REACH = "out of reach"
"""A figure that a search has where none of its networks kept the budget."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One row for one seed."""

    mode: str
    """One of the searches, or `prune`, `as it is` or `start`."""
    seed: int
    budget: float
    """A share of the MACs, or `FREE`."""
    spend: float
    """Epochs after the first ones: of the search, or of the one network."""
    first: float
    """Epochs that the start is trained."""
    samples: int
    match_epochs: float
    places: int
    rounds: int
    finetune_epochs: float
    learning_rate: float
    """Learning rate of the matches; everything else trains at the preset's, which decays to 0."""

    net = PRESET.name

    @property
    def epochs(self) -> float:
        """Epochs that are trained for this trial only."""
        return self.spend + (self.first if self.mode == AS_IT_IS else 0)

    @property
    def name(self) -> str:
        """Name in the progress messages."""
        budget = f", {self.budget:g} of the MACs" if self.budget else ""
        return f"{self.mode}{budget}, seed {self.seed}, {self.first:g} + {self.spend:g} epochs"

    @property
    def start_key(self) -> str:
        """Key of its start network under `runs/`."""
        return f"ectonas-r20-start-{self.first:g}-{self.samples}-{self.seed}"

    @property
    def key(self) -> str:
        """Key of its figures under `runs/`."""
        search = (
            f"-{self.match_epochs:g}-{self.places}-{self.rounds}-{self.finetune_epochs:g}-{self.learning_rate:g}"
            if self.mode in SEARCHES
            else ""
        )
        of = (self.mode, f"{self.budget:g}", f"{self.first:g}", f"{self.spend:g}", self.samples)
        return f"ectonas-r20-{'-'.join(map(str, of))}{search}-{self.seed}".replace(" ", "_")

    def model(self) -> nn.Module:
        """Return the untrained network."""
        return PRESET.model(self.seed)

    def task(self) -> Task:
        """Return the task."""
        data = _splits(self.samples)
        train, validation, test = ((part.images, part.labels) for part in (data.train, data.validation, data.test))
        return Task.of(train, validation, test_data=test, batch_size=PRESET.batch_size, seed=self.seed)

    def start(self) -> nn.Module:
        """Return the network after its first epochs; it is trained once and stored."""
        path, model = RUNS / f"{self.start_key}.pt", self.model()
        if path.exists():
            model.load_state_dict(torch.load(path, weights_only=True))
            return model.eval()
        self._fit(model, self.first, self.start_key)
        whole = path.with_suffix(".unfinished")
        torch.save(model.state_dict(), whole)
        whole.rename(path)
        return model.eval()

    def figures(self) -> Figures:
        """Run the trial, or recall its figures."""
        run = {START: self._begun, AS_IT_IS: self._whole, PRUNE: self._pruned}.get(self.mode, self._searched)
        found = once(self.key, run)
        shutil.rmtree(RUNS / self.key / STAGES, ignore_errors=True)
        return found

    def _begun(self) -> Figures:
        return {**self._scores(self.start()), "winner trained": 0.0}

    def _whole(self) -> Figures:
        model = self.model()
        self._fit(model, self.epochs, self.key)
        return {**self._scores(model.eval()), "winner trained": self.spend}

    def _pruned(self) -> Figures:
        config = Prune(
            finetune_epochs=self.spend, align=1, fewest_steps=1, learning_rate=PRESET.learning_rate,
            weight_decay=PRESET.weight_decay,
        )  # fmt: skip
        result = optimize(
            self.start(), train_data=self.task(), budget=Budget(macs=self.budget), config=config, seed=self.seed,
            device="cpu", run_dir=RUNS / self.key, resume=True, verbose=False,
        )  # fmt: skip
        return {**self._scores(result.model), "winner trained": self.spend}

    def _searched(self) -> Figures:
        config = Ectonas(
            match_epochs=self.match_epochs, places=self.places, rounds=self.rounds, momentum=0.9,
            finetune_epochs=self.finetune_epochs, learning_rate=self.learning_rate,
            finetune_learning_rate=PRESET.learning_rate, weight_decay=PRESET.weight_decay, **SEARCHES[self.mode],
        )  # fmt: skip
        try:
            result = self._search(config)
        except BudgetError as error:
            print(f"{self.name}: {error}", flush=True)
            return {OUT_OF_REACH: 1.0, "test": math.nan, "params": math.nan}
        found = of_search(result)
        return {**found, "winner trained": found["winner trained"] + self.finetune_epochs}

    def _search(self, config: Ectonas) -> Result:
        return optimize(
            self.start(), method="ectonas", train_data=self.task(), spend=Spend(epochs=self.spend),
            budget=Budget(macs=self.budget) if self.budget else None, config=config, seed=self.seed, device="cpu",
            run_dir=RUNS / self.key, resume=True, executor="in-process", verbose=False,
        )  # fmt: skip

    def _fit(self, model: nn.Module, epochs: float, key: str) -> None:
        RUNS.mkdir(exist_ok=True)
        task, partial = self.task(), RUNS / f"{key}.partial"
        optimizer = sgd(PRESET.learning_rate, momentum=0.9, weight_decay=PRESET.weight_decay)
        steps = steps_for(task, epochs, min_steps=1, max_steps=None)
        recipe = Recipe(steps=steps, optimizer=optimizer, schedule=cosine(), validations=1)
        fit(model, task, recipe, seed=self.seed, keeper=Snapshots(partial), device="cpu")
        partial.unlink(missing_ok=True)

    def _scores(self, model: nn.Module) -> Figures:
        task, example = self.task(), _splits(self.samples).train.images[:2]
        return {
            "validation": evaluate(model, task).metric,
            "test": evaluate(model, task, task.test_data).metric,
            **sizes(capture(self.model().eval(), example), capture(model.eval(), example)),
        }


@cache
def _splits(samples: int) -> Splits:
    return fashion_mnist(train=samples)
