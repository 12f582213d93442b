"""What tells runs apart is the same in another process, and differs where what is done differs."""

import functools
import json
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fxsurgery import tensor_state
from fxsurgery.capture import capture
from fxsurgery.passes import FoldBn
from fxsurgery.runs.identity import fingerprint, structural_hash, to_plain
from fxsurgery.training import adamw, sgd


class Weighted:
    """A loss that can be called, and refers to itself."""

    def __init__(self, weight: float, names: list | None = None) -> None:
        self.weight, self.names, self.me = weight, names, self
        self._calls = object()

    def __call__(self, output, target):
        return self.weight * (output - target).square().mean()

    def named(self, output, target):
        return self(output, target)


def scaled(factor: float):
    def loss(output, target):
        return factor * (output - target).mean()

    return loss


def plain(output, target, power=2):
    return (output - target) ** power


DIFFERENT = {
    "a constant of a lambda": (lambda: lambda o, t: (o - t).mean(), lambda: lambda o, t: 2 * (o - t).mean()),
    "an operation of a lambda": (lambda: lambda o, t: (o - t).mean(), lambda: lambda o, t: (o - t).sum()),
    "inside a lambda": (lambda: lambda o, t: (x for x in o), lambda: lambda o, t: (-x for x in o)),
    "a closure": (lambda: scaled(1.0), lambda: scaled(2.0)),
    "a partial": (lambda: functools.partial(plain, power=2), lambda: functools.partial(plain, power=3)),
    "a setting of a module": (nn.CrossEntropyLoss, lambda: nn.CrossEntropyLoss(label_smoothing=0.1)),
    "weights of a module": (
        lambda: nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0])),
        lambda: nn.CrossEntropyLoss(weight=torch.tensor([2.0, 1.0])),
    ),
    "a module in a module": (lambda: nn.Sequential(nn.Hardtanh(0, 1)), lambda: nn.Sequential(nn.Hardtanh(0, 2))),
    "an attribute": (lambda: Weighted(1.0), lambda: Weighted(2.0)),
    "a method's object": (lambda: Weighted(1.0).named, lambda: Weighted(2.0).named),
    "a long list": (lambda: Weighted(1, [*range(500)]), lambda: Weighted(1, [*range(499), 1])),
    "an optimizer's rate": (lambda: sgd(0.1), lambda: sgd(0.2)),
    "betas": (lambda: adamw(0.1), lambda: adamw(0.1, betas=(0.8, 0.9))),
    "an array": (lambda: np.arange(3), lambda: np.arange(3.0)),
    "an optimizer": (lambda: torch.optim.Adam, lambda: torch.optim.SGD),
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_settings_that_do_something_else_are_told_apart_and_equal_ones_are_not(what: str):
    ours, theirs = DIFFERENT[what]
    assert json.dumps(to_plain(ours())) == json.dumps(to_plain(ours()))
    assert to_plain(ours()) != to_plain(theirs())
    assert len(json.dumps(to_plain(ours()))) < 2000
    assert "0x" not in json.dumps(to_plain(ours()))


def test_the_same_is_told_in_every_process(tmp_path: Path):
    script = tmp_path / "settings.py"
    script.write_text(
        textwrap.dedent("""
        import json
        from torch import nn
        from fxsurgery.runs.identity import to_plain
        loss = lambda o, t: o if t in {"many", "names", "in", "a", "set"} else nn.functional.mse_loss(o, t)
        print(json.dumps([to_plain(loss), to_plain(nn.HuberLoss(delta=0.3))]))
    """)
    )
    said = {
        subprocess.run(
            [sys.executable, str(script)], capture_output=True, text=True, check=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parents[2])},
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(said) == 1


def dense(names: tuple[str, str] = ("a", "b"), seed: int = 0, activation: type[nn.Module] = nn.ReLU) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = [nn.Linear(6, 4), nn.Linear(4, 2)]
    model = nn.Sequential()
    model.add_module(names[0], layers[0])
    model.add_module("f", activation())
    model.add_module(names[1], layers[1])
    return model


def test_names_alone_make_no_difference_to_what_a_program_computes():
    x = torch.randn(3, 6)
    one, renamed = (capture(dense(names), x) for names in (("a", "b"), ("first", "second")))
    assert structural_hash(one) == structural_hash(renamed)
    assert fingerprint(one) != fingerprint(renamed)


def test_weights_functions_and_wiring_do():
    class Wired(nn.Module):
        def __init__(self, *, twice: bool, swapped: bool = False) -> None:
            super().__init__()
            with torch.random.fork_rng():
                torch.manual_seed(0)
                self.one, self.other = nn.Linear(4, 4), nn.Linear(4, 4)
            self.twice, self.swapped = twice, swapped

        def forward(self, x):
            first = self.one(x)
            second = (self.one if self.twice else self.other)(first)
            return (second - first if self.swapped else first - second) + self.other(x)

    x = torch.randn(3, 6)
    dense_ones = [dense(), dense(seed=1), dense(activation=nn.Tanh)]
    wired = [Wired(twice=False), Wired(twice=True), Wired(twice=False, swapped=True)]
    found = [structural_hash(capture(m, x)) for m in dense_ones] + [
        structural_hash(capture(m, x[:, :4])) for m in wired
    ]
    assert len(set(found)) == len(found)
    doubled = capture(dense(), x).in_double()
    assert structural_hash(doubled) != found[0]


def test_a_child_is_told_by_the_digests_of_its_parent_and_of_what_is_new(monkeypatch: pytest.MonkeyPatch):
    layers = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3)
    start = capture(nn.Sequential(*layers).eval(), torch.randn(2, 3, 12, 12))
    child = FoldBn()(start).program
    hashed, plain = list[int](), tensor_state._bytes
    monkeypatch.setattr(tensor_state, "_checksum", lambda _: 0)
    monkeypatch.setattr(tensor_state, "_bytes", lambda tensor: hashed.append(tensor.numel()) or plain(tensor))
    first = structural_hash(start)
    assert len(hashed) == len([*start.graph_module.parameters(), *start.graph_module.buffers()])
    hashed.clear()
    assert structural_hash(child) != first
    assert sorted(hashed) == [6, 6 * 3 * 9]
    hashed.clear()
    assert structural_hash(start) == first
    assert not hashed


def test_a_weight_that_a_fused_optimizer_changed_is_told_apart():
    start = capture(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval(), torch.randn(2, 3))
    first = structural_hash(start)
    optimizer = torch.optim.AdamW(start.graph_module.parameters(), fused=True)
    start.graph_module(*start.example_inputs).sum().backward()
    optimizer.step()
    assert structural_hash(start) != first
