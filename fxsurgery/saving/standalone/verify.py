"""Verification of an exported folder in a separate process that cannot import fxsurgery or safetensors."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fxsurgery.errors import SavingError
from fxsurgery.inputs import tensors_in
from fxsurgery.program import Program
from fxsurgery.saving.tensors import write_tensors
from fxsurgery.saving.values import encoded, tensors_as
from fxsurgery.seeding import seeded

TIMEOUT_S = 600

SCRIPT = """
import importlib.util, json, sys
for name in ("fxsurgery", "safetensors"):
    sys.modules[name] = None
from pathlib import Path
import torch
folder, work = Path(sys.argv[1]), Path(sys.argv[2])
spec = importlib.util.spec_from_file_location("model", folder / "model.py")
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
expected = json.loads((work / "expected.json").read_text())
torch.set_num_threads(expected["threads"])
inputs = module.read_tensors(work / "inputs.safetensors")
outputs = module.read_tensors(work / "outputs.safetensors")
kinds = {"tensor": inputs.__getitem__, "tuple": lambda v: tuple(map(value, v)), "float": float,
         "dict": lambda v: {value(k): value(x) for k, x in v}, "device": torch.device,
         "dtype": lambda v: getattr(torch, v), "size": torch.Size, "ellipsis": lambda v: ...}

def value(plain):
    if isinstance(plain, list):
        return [value(v) for v in plain]
    if isinstance(plain, dict):
        [(kind, content)] = plain.items()
        return kinds[kind](content)
    return plain

def tensors(found):
    if isinstance(found, torch.Tensor):
        yield found
    elif isinstance(found, (tuple, list, dict)):
        for part in found.values() if isinstance(found, dict) else found:
            yield from tensors(part)

model = module.load(folder)
assert not model.training, "load() returns a model in train mode"
assert sorted(model.state_dict()) == sorted(expected["keys"]), "other state_dict keys: %s" % sorted(
    set(model.state_dict()) ^ set(expected["keys"]))
own = dict(model.named_parameters(remove_duplicate=False))
assert sorted(n for n, p in own.items() if p.requires_grad) == expected["trains"], "requires_grad differs"
args, kwargs = value(expected["call"])
torch.manual_seed(0)
with torch.no_grad():
    got = list(tensors(model(*args, **kwargs)))
assert len(got) == len(outputs), "%d outputs instead of %d" % (len(got), len(outputs))
for i, output in enumerate(got):
    reference = outputs[str(i)]
    same = output.dtype == reference.dtype and output.shape == reference.shape
    assert same and torch.equal(output.nan_to_num(), reference.nan_to_num()), "output %d differs" % i
if expected["train"]:
    args, kwargs = value(expected["call"])
    got = [x for x in tensors(model.train()(*args, **kwargs)) if x.requires_grad]
    sum(x.float().sum() for x in got).backward()
    assert any(p.grad is not None for p in model.parameters()), "no gradient reaches a parameter"
"""


def verify(program: Program, folder: Path) -> None:
    """Check that the code in `folder` computes what `program`, on the CPU, does.

    Raises:
        SavingError: it does not load, has other tensors, returns other outputs, or cannot train.
    """
    with tempfile.TemporaryDirectory(prefix="fxsurgery-") as name:
        work = Path(name)
        (work / "expected.json").write_text(json.dumps(_expectations(program, work)), encoding="utf-8")
        command = [sys.executable, "-I", "-B", "-c", SCRIPT, str(folder.resolve()), str(work)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired as error:
            raise SavingError(
                f"the exported code did not finish within {TIMEOUT_S} s; report this model, and use `save` instead"
            ) from error
    if done.returncode:
        raise SavingError(
            f"the exported code differs from the model: {done.stderr.strip()[-800:]}; report this model, and use "
            "`save` instead"
        )


def _expectations(program: Program, work: Path) -> dict[str, Any]:
    inputs = dict[str, Tensor]()
    call = encoded((program.example_inputs, dict(program.example_kwargs)), tensors_as(inputs))
    write_tensors(work / "inputs.safetensors", {name: tensor.clone() for name, tensor in inputs.items()})
    with seeded(0, torch.device("cpu")):
        outputs = program.run_examples()
    write_tensors(work / "outputs.safetensors", {str(i): tensor.clone() for i, tensor in enumerate(outputs)})
    model = program.graph_module
    return {
        "call": call,
        "keys": list(model.state_dict()),
        "trains": sorted(n for n, p in model.named_parameters(remove_duplicate=False) if p.requires_grad),
        "threads": torch.get_num_threads(),
        "train": _trains(program.trainable_copy(), program),
    }


def _trains(model: nn.Module, program: Program) -> bool:
    """Return True if the program can run a backward pass on its examples; batch norm needs two values per channel."""
    inputs = program.examples.clone()
    try:
        with seeded(0, torch.device("cpu")):
            found = [t for _, t in tensors_in(model.train()(*inputs.args, **inputs.kwargs)) if t.requires_grad]
            if found:
                sum(t.float().sum() for t in found).backward()  # type: ignore[union-attr]
    except (RuntimeError, ValueError):
        return False
    return any(p.grad is not None for p in model.parameters())
