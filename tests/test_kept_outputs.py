"""Outputs that are kept: nothing runs twice, and nothing stale is taken."""

import copy
import gc
import pickle
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from fxsurgery import kept_outputs
from fxsurgery.capture import capture
from fxsurgery.kept_outputs import forget_outputs, is_apart, note_apart, sample_outputs
from fxsurgery.program import Program
from runs_counted import Runs


class Net(nn.Module):
    """A conv with a norm, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU()
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act(self.norm(self.conv(x))).mean((2, 3)))


def made() -> Program:
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        return capture(Net().eval(), torch.randn(2, 3, 8, 8))


def test_outputs_are_worked_out_once_for_each_number_of_samples(runs: Runs):
    start = made()
    runs.clear()
    first, few = sample_outputs(start), sample_outputs(start, 1)
    assert runs.samples(start) == [2, 1]
    assert sample_outputs(start) is first
    assert sample_outputs(start, 1) is few
    assert runs.samples(start) == [2, 1]
    assert torch.equal(first[0], start.run_examples()[0])
    assert few[0].shape == (1, 4)


def train(program: Program, optimizer: Callable[..., torch.optim.Optimizer]) -> None:
    model = program.graph_module
    stepping = optimizer(model.parameters(), lr=0.1)
    model(*program.example_inputs).sum().backward()
    stepping.step()
    stepping.zero_grad()


def statistics(program: Program) -> None:
    program.graph_module.train()(*program.example_inputs)
    program.graph_module.eval()


def retraced(program: Program) -> None:
    node = next(n for n in program.nodes if n.target == "act")
    node.replace_all_uses_with(node.all_input_nodes[0])
    program.graph_module.graph.erase_node(node)
    program.graph_module.recompile()


CHANGES: dict[str, Callable[[Program], object]] = {
    "sgd": lambda p: train(p, torch.optim.SGD),
    "fused": lambda p: train(p, lambda *a, **k: torch.optim.AdamW(*a, fused=True, **k)),
    "data": lambda p: p.graph_module.head.weight.data.mul_(2.0),
    "numpy": lambda p: p.graph_module.head.bias.detach().numpy().__setitem__(0, 9.0),
    "statistics": statistics,
    "parameter": lambda p: setattr(p.graph_module.head, "bias", nn.Parameter(torch.ones(4))),
    "state dict": lambda p: p.graph_module.load_state_dict(
        {k: torch.ones_like(v) for k, v in p.graph_module.state_dict().items()}
    ),
    "module": lambda p: setattr(p.graph_module, "act", nn.Sigmoid()),
    "train mode": lambda p: p.graph_module.train(),
    "graph": retraced,
    "inputs": lambda p: p.example_inputs[0].mul_(2.0),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_was_changed_in_place_is_worked_out_again(change: str):
    start = made()
    before = sample_outputs(start)[0]
    CHANGES[change](start)
    after = sample_outputs(start)[0]
    assert not torch.equal(before, after)
    if change != "train mode":
        assert torch.equal(after, start.run_examples()[0])


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_another_precision_of_matrix_products_is_worked_out_again(precision: str, runs: Runs):
    start = made()
    before = torch.get_float32_matmul_precision()
    sample_outputs(start)
    runs.clear()
    try:
        torch.set_float32_matmul_precision(precision)
        sample_outputs(start)
    finally:
        torch.set_float32_matmul_precision(before)
    assert runs.samples(start) == [2]


def test_deterministic_algorithms_and_switched_off_libraries_are_worked_out_again(runs: Runs):
    start = made()
    sample_outputs(start)
    runs.clear()
    try:
        torch.use_deterministic_algorithms(mode=True)
        sample_outputs(start)
    finally:
        torch.use_deterministic_algorithms(mode=False)
    with torch.backends.cudnn.flags(enabled=False):
        sample_outputs(start)
    assert runs.samples(start) == [2, 2]


def test_the_callers_surroundings_do_not_matter(runs: Runs):
    start = made()
    wanted = sample_outputs(start)[0]
    runs.clear()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.autocast("cpu"), torch.inference_mode(), torch.device("meta"):
            found = sample_outputs(start)[0]
    finally:
        torch.set_default_dtype(torch.float32)
    assert found is wanted
    forget_outputs(start)
    with torch.autocast("cpu"), torch.inference_mode():
        again = sample_outputs(start)[0]
    assert torch.equal(again, wanted)
    assert not again.is_inference()


@pytest.mark.parametrize(
    "made_again",
    [replace, copy.deepcopy, lambda p: pickle.loads(pickle.dumps(p))],
    ids=["replace", "deepcopy", "pickle"],
)
def test_copies_and_pickles_begin_without_any(made_again: Callable[[Program], Program], runs: Runs):
    start = made()
    wanted = sample_outputs(start)[0]
    note_apart(start, value=True)
    other = made_again(start)
    assert is_apart(other) is None
    runs.clear()
    assert torch.equal(sample_outputs(other)[0], wanted)
    assert runs.samples(other) == [2]


def test_large_outputs_are_not_kept(monkeypatch: pytest.MonkeyPatch, runs: Runs):
    start = made()
    runs.clear()
    monkeypatch.setattr(kept_outputs, "MOST_BYTES", 2 * 4 * 4 - 1)
    sample_outputs(start)
    sample_outputs(start)
    assert runs.samples(start) == [2, 2]


def test_they_go_with_their_program():
    start = made()
    gc.collect()
    kept = [len(kept_outputs._RECORDS)]
    sample_outputs(start)
    kept.append(len(kept_outputs._RECORDS))
    del start
    gc.collect()
    assert [*kept, len(kept_outputs._RECORDS)] == [kept[0], kept[0] + 1, kept[0]]


class Bare(nn.Module):
    """Gives its parameter and a slice of what it computes away."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.scale, (x * self.scale)[:, :1]


def test_what_is_kept_is_no_tensor_of_the_model_and_holds_no_larger_one():
    start = capture(Bare().eval(), torch.randn(3, 4))
    scale, part = sample_outputs(start), sample_outputs(start)[1]
    assert scale[0].data_ptr() != next(start.graph_module.parameters()).data_ptr()
    kept = sample_outputs(start)
    assert kept[1].untyped_storage().nbytes() == 3 * 4
    assert part.shape == (3, 1)


class Counting(nn.Module):
    """Adds how often it was called."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1.0)
        return x + self.calls


def test_a_module_that_writes_to_its_own_state_is_run_every_time():
    graph = torch.fx.Graph()
    graph.output(graph.call_module("count", (graph.placeholder("x"),)))
    start = Program(torch.fx.GraphModule({"count": Counting()}, graph).eval(), (torch.zeros(2, 1),))
    assert [sample_outputs(start)[0][0].item() for _ in range(3)] == [1.0, 2.0, 3.0]
