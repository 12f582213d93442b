"""V8 trained once: what each pass does to its accuracy, right away and after one epoch."""

import hashlib
from collections.abc import Iterator
from dataclasses import MISSING, fields
from itertools import islice

from benchmarks.data import fashion_mnist
from benchmarks.models import PRESETS
from benchmarks.passes.training import Training, accuracy, after, task_of, trained
from benchmarks.runs import once
from benchmarks.tables import Cell, Table, write
from fxsurgery import Task
from fxsurgery.analysis.cost import cost
from fxsurgery.capture import capture
from fxsurgery.passes import ALL, Rewrite
from fxsurgery.program import Program
from fxsurgery.training import cosine, recalibrate

PRESET = PRESETS["V8"]
EXAMPLES = 256
"""Images that the program is captured on, from which passes take statistics and signs."""
FINETUNE = Training(epochs=1, learning_rate=0.01)
TRIED = 3
"""Moves of each pass, spread evenly over its candidates."""
BEFORE = {
    "extract-subnet": "elasticize",
    "narrow-branch": "split-edge",
    "remove-gates": "insert-gates",
    "svd-shrink": "fold-bn",
}
"""Passes that want another one's result, and that other."""


def main(images: int, epochs: float | None) -> None:
    """Train V8, try every pass on it, write the table."""
    data = fashion_mnist(train=images)
    task = task_of(data, PRESET.batch_size, seed=0)
    training = Training(epochs or PRESET.epochs, PRESET.learning_rate, PRESET.weight_decay)
    key = f"passes-V8-{training.epochs:g}-{images}"
    model = trained(PRESET.model(0), key, task, training, seed=0, schedule=cosine())
    start = capture(model, data.train.images[:EXAMPLES])
    rows = list[dict[str, Cell]]()
    for name, program, effect, error in _tried(start):
        known = once(f"{key}-{_digest(name)}", lambda program=program: _figures(program, start, task))
        rows.append({"pass": f"`{name}`" if program is not start else name, "effect": effect, "error": error, **known})
        print(f"{name}: {known['right after']:.4f}, after one epoch {known['one epoch later']:.4f}", flush=True)
    columns = {
        "pass": "", "effect": "", "error": ".0e", "MACs": ".3f", "params": ".3f", "right after": ".4f",
        "norms re-estimated": ".4f", "one epoch later": ".4f",
    }  # fmt: skip
    notes = (
        f"VGG16 at an eighth of its widths, trained for {training.epochs:g} epochs of {images:,} images; test accuracy "
        "right after the pass, with the statistics of batch norms estimated anew, and after one more epoch at a "
        f"learning rate of {FINETUNE.learning_rate:g}. MACs and parameters as fractions of the network as it is. "
        f"`error` is the largest relative difference from what the pass promised, on {EXAMPLES} images; a dash where "
        f"it promises shapes alone. Up to {TRIED} of each pass's own candidates, spread evenly over the network."
    )
    print(write(Table("Passes on a trained V8, Fashion-MNIST", columns, rows, [0], notes), "passes-accuracy"))


def _tried(start: Program) -> Iterator[tuple[str, Program, str, float | None]]:
    yield "as it is", start, "", None
    for name, pass_type in ALL.items():
        program = start
        if name in BEFORE and not any(True for _ in pass_type.candidates(start)):
            program = next(iter(ALL[BEFORE[name]].candidates(start)))(start).program
        for move in _spread(list(islice(pass_type.candidates(program), 200))):
            result = move(program)
            yield _short(move), result.program, result.effect.value, result.error


def _short(move: Rewrite) -> str:
    """The spec without the options that are left at their defaults."""
    told = (f for f in fields(move) if f.default is MISSING or getattr(move, f.name) != f.default)
    options = ", ".join(f"{f.name}={getattr(move, f.name)!r}" for f in told)
    return f"{move.name}({options})" if options else move.name


def _digest(name: str) -> str:
    """A file name for a spec."""
    return hashlib.sha256(name.encode()).hexdigest()[:16]


def _spread(moves: list[Rewrite]) -> list[Rewrite]:
    if len(moves) <= TRIED:
        return moves
    return [moves[round(i * (len(moves) - 1) / (TRIED - 1))] for i in range(TRIED)]


def _figures(program: Program, start: Program, task: Task) -> dict[str, float]:
    right_after, later = after(program, task, FINETUNE)
    now, whole, settled = cost(program), cost(start), program.trainable_copy()
    recalibrate(settled, task)
    return {
        "MACs": now.macs / whole.macs, "params": now.params / whole.params, "right after": right_after,
        "norms re-estimated": accuracy(settled, task), "one epoch later": later,
    }  # fmt: skip
