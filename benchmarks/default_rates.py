"""Default training against a fixed learning rate without clipping: `python -m benchmarks.default_rates`.

Networks of several kinds learn scikit-learn's digits. Each is pruned to a fraction of its MACs and fine-tuned, once
after training by AdamW (trained) and once after its weights stage (from scratch), with three settings, from the same
weights and seed:

* fixed: SGD at a learning rate of 0.05, no clipping, the defaults of the first versions;
* default: a learning rate found by a range test, clipping at norm 1, failed stages repeated at a tenth;
* unclipped: the default without clipping.

The score is the validation accuracy of the weights that the fine-tuning ends with, before the better one of the pruned
and the fine-tuned network is chosen. A run that was done before is not run again: delete `runs/` to start over.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from benchmarks.runs import Figures, once
from benchmarks.tables import Table, write
from fxsurgery import Budget, Prune, Task, optimize
from fxsurgery.demo import DigitsNet, digits
from fxsurgery.errors import DivergedError
from fxsurgery.training import Recipe, adamw, cosine, fit

SETTINGS = {
    "fixed": {"learning_rate": 0.05, "gradient_clip": None},
    "default": {},
    "unclipped": {"gradient_clip": None},
}
DIVERGED = 0.0
"""The score of a run that diverges."""


def plain_conv_net() -> nn.Module:
    """Return a convolutional network without norms: (batch, 1, 8, 8) -> (batch, 10)."""
    body = [nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    end = [nn.Conv2d(32, 48, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 10)]
    return nn.Sequential(*body, *end)


def mlp() -> nn.Module:
    """Return a network of dense layers: (batch, 1, 8, 8) -> (batch, 10)."""
    layers = [nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)]
    return nn.Sequential(nn.Flatten(), *layers)


class Block(nn.Module):
    """A block of a transformer, with layer norms: (batch, tokens, width) -> the same."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2, self.heads = nn.LayerNorm(width), nn.LayerNorm(width), heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    @override
    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        parts = self.qkv(self.norm1(x)).reshape(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)
        attended = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, width)
        x = x + self.out(attended)
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    """A transformer on patches of 2 by 2 pixels: (batch, 1, 8, 8) -> (batch, 10)."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, width, 2, 2)
        self.positions = nn.Parameter(0.02 * torch.randn(1, 16, width))
        self.blocks, self.norm = nn.Sequential(Block(width, 4), Block(width, 4)), nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    @override
    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2) + self.positions
        logits: Tensor = self.head(self.norm(self.blocks(x)).mean(1))
        return logits


class ClassAndInk(nn.Module):
    """Classifies a digit and estimates its ink, a number of about 20: (batch, 1, 8, 8) -> a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 96), nn.ReLU())
        self.classes, self.ink = nn.Linear(96, 10), nn.Linear(96, 1)

    @override
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = self.body(x)
        return {"logits": self.classes(hidden), "ink": self.ink(hidden)}


def both_losses(output: dict[str, Tensor], target: Tensor) -> Tensor:
    """Return the cross-entropy of the classes plus the squared error of the ink."""
    value = functional.mse_loss(output["ink"][:, 0], target[:, 1])
    return functional.cross_entropy(output["logits"], target[:, 0].long()) + value


def class_accuracy(output: dict[str, Tensor], target: Tensor) -> float:
    """Return the fraction of digits that are classified correctly."""
    return (output["logits"].argmax(1) == target[:, 0].long()).float().mean().item()


@dataclass(frozen=True)
class Network:
    """A kind of network and how it is trained beforehand."""

    make: Callable[[], nn.Module]
    rate: float
    """Learning rate of AdamW."""
    two_losses: bool = False

    def task(self, seed: int) -> Task:
        """Return digits with the targets of this network."""
        train, val, _ = digits(seed)
        if not self.two_losses:
            return Task.of(train, val, seed=seed)
        parts = ((x, torch.stack([y.float(), x.sum((1, 2, 3))], 1)) for x, y in (train, val))
        return Task.of(*parts, seed=seed, loss=both_losses, metric=class_accuracy)

    def model(self, seed: int) -> nn.Module:
        """Return the network with initial weights."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)  # noqa: TID251 -- forked: the initial weights follow from the seed alone
            return self.make()


NETWORKS = {
    "convolutions, batch norm": Network(lambda: DigitsNet((12, 24)), 2e-3),
    "convolutions, no norm": Network(plain_conv_net, 2e-3),
    "dense layers": Network(mlp, 1e-3),
    "transformer, layer norm": Network(Transformer, 1e-3),
    "class and value": Network(ClassAndInk, 2e-3, two_losses=True),
}


def main() -> None:
    """Run what is missing, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--macs", type=float, default=0.5, help="fraction of the MACs that is left")
    parser.add_argument("--steps", type=int, default=400, help="of the training beforehand")
    parser.add_argument("--epochs", type=float, default=8, help="of the fine-tuning, and of the weights stage")
    options = parser.parse_args()
    rows = [
        _row(name, is_trained, options)
        for name in options.networks for is_trained in (True, False)
    ]  # fmt: skip
    columns = {"network": "", "start": "", "before": ".4f", **dict.fromkeys(SETTINGS, ".4f"), "rate": ".2g"}
    notes = (
        f"Validation accuracy, of 288 digits: of the network before it is pruned to {options.macs:g} of its MACs, with "
        f"the default settings, and after {options.epochs:g} epochs of fine-tuning. {DIVERGED:g}: training diverged. "
        "`rate`: the learning rate of the fine-tuning that the default settings found."
    )
    title = "Default training against a fixed learning rate without clipping"
    print(write(Table(title, columns, rows, options.seeds, notes), "default-rates"))


def _row(name: str, is_trained: bool, options: argparse.Namespace) -> dict[str, Any]:  # noqa: FBT001 -- by place here
    """Return a row of the table: one value a seed in each cell."""
    start, cells = "trained" if is_trained else "from scratch", dict[str, list[float]]()
    for seed in options.seeds:
        figures = dict[str, float]()
        for setting in SETTINGS:
            key = f"default-rates-{name}-{start}-{setting}-{options.macs:g}-{options.steps}-{options.epochs:g}-{seed}"
            run = once(
                key.replace(" ", "_").replace(",", ""),
                lambda setting=setting, seed=seed: _run(NETWORKS[name], setting, is_trained, options, seed),
            )
            figures[setting] = run["score"]
            if setting == "default":
                figures |= {"before": run["before"], "rate": run["rate"]}
        print(name, start, seed, figures, flush=True)
        for column, value in figures.items():
            cells.setdefault(column, []).append(value)
    return {"network": name, "start": start, **cells}


def _run(network: Network, setting: str, is_trained: bool, options: argparse.Namespace, seed: int) -> Figures:  # noqa: FBT001 -- by place here
    """Prune and fine-tune one network."""
    model, task = network.model(seed), network.task(seed)
    if is_trained:
        recipe = Recipe(steps=options.steps, optimizer=adamw(network.rate), schedule=cosine(), gradient_clip=1.0)
        fit(model, task, recipe, seed=seed)
    settings = Prune(
        align=4,
        weights_epochs=options.epochs,
        finetune_epochs=options.epochs,
        **SETTINGS[setting],  # type: ignore[arg-type]
    )
    try:
        result = optimize(
            model, train_data=task, budget=Budget(macs=options.macs), trained=is_trained, config=settings, seed=seed,
            verbose=False,
        )  # fmt: skip
    except DivergedError:
        return {"score": DIVERGED, "before": DIVERGED, "rate": 0.05}
    peak = max(record["lr"] for record in result.history if record["stage"] == result.history[-1]["stage"])
    last = next(record["metric"] for record in reversed(result.history) if record["metric"] is not None)
    return {"score": last, "before": result.metrics["val"].before, "rate": peak}


if __name__ == "__main__":
    main()
