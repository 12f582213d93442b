"""A run that is killed over and over: `python resuming.py JOB FOLDER SEED`; or, by torchrun, in two processes.

First the job runs without a break, then in children that are killed (SIGKILL) at random points and begun again on the
same run directory, until one comes to the end. Prints JSON: the two digests of the end, and at which stage each kill
was. One process imports torch; the children are forks of it.
"""

import hashlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from torch import nn

import fxsurgery
from fxsurgery import Budget, Dnal, Ectonas, Spend
from fxsurgery.runs import run_directory
from fxsurgery.training.synthesis_amount import Amount
from noisy import Noisy, images

COMMON = {"align": 2, "fewest_steps": 25, "weights_epochs": 1, "finetune_epochs": 1, "learning_rate": 0.02}


def net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        body = [nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16), nn.ReLU()]
        model = nn.Sequential(*body, nn.Dropout(0.2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
        return model


def jobs() -> dict[str, dict]:
    data = {"train_data": Noisy(96), "val_data": images(48), "test_data": images(32), "batch_size": 16}
    moves = Ectonas(weights_epochs=2, finetune_epochs=1, match_epochs=1, rounds=2, places=1, learning_rate=0.05)
    evolution = {"trained": False, "config": moves, "spend": Spend(epochs=40), "budget": None}
    return {
        "dnal": {**data, "trained": False, "config": Dnal(**COMMON, architecture_epochs=1)},
        "prune": {**data, "config": fxsurgery.Prune(**COMMON, importance="taylor", rounds=3)},
        "data-free": {"config": Dnal(**COMMON, architecture_epochs=1)},
        "evolution": {**data, **evolution},
        "evolution in processes": {**data, **evolution, "executor": "processes", "workers": 2},
    }


def run(job: str, folder: Path) -> str:
    common = {"budget": Budget(macs=0.5), "run_dir": folder, "resume": True, "verbose": False, "device": "cpu"}
    result = fxsurgery.optimize(net(), **{**common, **jobs()[job]})
    return digest(result)


def digest(result: fxsurgery.Result) -> str:
    """Everything of the end but how long it took."""
    found = hashlib.sha256()
    for name, tensor in sorted({**dict(result.model.named_parameters()), **dict(result.model.named_buffers())}.items()):
        found.update(name.encode() + tensor.detach().numpy().tobytes())
    history = [{k: v for k, v in record.items() if k != "seconds"} for record in result.history]
    pairs = {name: (pair.before, pair.after) for name, pair in result.metrics.items()}
    front = [(m.metric, m.score.loss, m.trial) for m in result.pareto]
    told = (result.log, result.notes, result.gates, pairs, history, result.cost, result.search, front)
    found.update(repr(told).encode())
    return found.hexdigest()


def killed(job: str, folder: Path, rng: random.Random, longest: float) -> str | None:
    """Run in a child that is killed at some point; the digest, if it came to the end before."""
    told = folder.parent / "digest"
    child = os.fork()
    if not child:
        try:
            told.write_text(run(job, folder))
        finally:
            os._exit(0 if told.exists() else 1)
    time.sleep(rng.uniform(0.1, longest))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status):
        assert told.exists(), "the child failed by itself"
    return told.read_text() if told.exists() and told.stat().st_size else None


def under_way(folder: Path) -> str:
    """The stage that a killed run was in."""
    partial = sorted((folder / "stages").glob("*.partial")) if (folder / "stages").exists() else []
    if partial:
        return partial[-1].stem.split("-", 1)[1]
    lines = (folder / "journal.jsonl").read_text().splitlines() if (folder / "journal.jsonl").exists() else []
    return f"after {json.loads(lines[-1])['name']}" if lines and lines[-1].endswith("}") else "the beginning"


def together(folder: Path, kill_at: int) -> None:
    """A run that shares its work with other processes; the first kills itself with its n-th snapshot, if n > 0."""
    torch.set_num_threads(1)
    run_directory.SNAPSHOT_SECONDS = 0.0
    keep, kept = run_directory.Snapshots.keep, []

    def counted(self, snapshot):
        keep(self, snapshot)
        kept.append(1)
        if len(kept) == kill_at and os.environ["RANK"] == "0":
            os.kill(os.getpid(), signal.SIGKILL)

    run_directory.Snapshots.keep = counted
    end = run("dnal", folder)
    (folder.parent / f"{folder.name}.{os.environ['RANK']}").write_text(end)


def main(job: str, scratch: Path, seed: int) -> None:
    torch.set_num_threads(1)
    run_directory.SNAPSHOT_SECONDS = 0.02
    Amount.affordable = classmethod(lambda cls, _: cls(samples=64, validation=32, steps=15, batch_size=32))
    began = time.monotonic()
    whole = run(job, scratch / "whole")
    longest = 0.25 * (time.monotonic() - began)
    rng, stages, end = random.Random(seed), [], None
    while end is None:
        # Longer each time: what a run recalls takes time as well, and in the end one has time for all of it.
        end = killed(job, scratch / "killed", rng, longest * 1.01 ** len(stages))
        stages.append(under_way(scratch / "killed"))
        if len(stages) > 200:
            raise AssertionError("no run comes to its end")
    sys.stdout.write(json.dumps({"whole": whole, "end": end, "kills": stages[:-1]}) + "\n")


if __name__ == "__main__" and sys.argv[1] == "together":
    together(Path(sys.argv[2]), int(sys.argv[3]))
elif __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
