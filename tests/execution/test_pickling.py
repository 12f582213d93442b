"""What is packed for another process arrives whole: parameters in their order, outputs, gradients, statistics."""

import threading

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import zoo
from execution.jobs import program, task
from fxsurgery.capture import capture
from fxsurgery.errors import SurgeryError
from fxsurgery.inputs import tensors_in
from fxsurgery.passes import parse
from fxsurgery.program import Program
from noisy import Noisy
from nonempty import nonempty

parcels = pytest.importorskip("fxsurgery.execution.pickling")
REAL = ["resnet18", "densenet121", "shufflenet_v2_x1_0", "mobilenet_v3_small"]


def arrived(what):
    return parcels.unpacked(parcels.packed(what, "it"))


def trained(given: Program):
    """What a step in train mode gives, and leaves in the buffers."""
    model, inputs = given.trainable_copy().train(), given.examples.clone()
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(0)
        outputs = [t for _, t in tensors_in(model(*inputs.args, **inputs.kwargs)) if t.is_floating_point()]
    sum(t.square().mean() for t in outputs).backward()
    named = [*model.named_parameters(), *model.named_buffers()]
    return [(name, t.shape, t.stride(), t.detach(), torch.empty(0) if t.grad is None else t.grad) for name, t in named]


def assert_whole(given: Program) -> None:
    found = arrived(given)
    for one, other in nonempty(zip(given.run_examples(), found.run_examples(), strict=True)):
        assert torch.equal(one, other)
    assert found.text() == given.text()
    for one, other in nonempty(zip(trained(given), trained(found), strict=True)):
        assert one[:3] == other[:3]
        assert all(torch.equal(a, b) for a, b in nonempty(zip(one[3:], other[3:], strict=True)))


@pytest.mark.parametrize("name", [*zoo.ZOO, *(pytest.param(name, marks=pytest.mark.slow) for name in REAL)])
def test_a_captured_model_arrives_whole(name: str):
    assert_whole(capture((zoo.ZOO | zoo.REAL)[name](), zoo.example(name)))


@pytest.mark.parametrize("name", ["Plain", "Attention"])
def test_a_program_after_surgery_arrives_whole(name: str):
    given = capture(zoo.ZOO[name](), zoo.example(name))
    assert_whole(parse("insert-gates")(given).program)


class Opaque(nn.Module):
    """Looks at values, and so stays whole."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x):
        return self.layer(x) if x.sum() > 0 else self.layer(x) * 2


class Named(nn.Module):
    """Takes and gives dicts."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.utils.parametrizations.weight_norm(nn.Linear(3, 3))

    def forward(self, left, *, more):
        return {"sum": self.layer(left) + more["right"], "rest": (left, more["right"] * left.shape[0])}


def test_opaque_and_parametrized_modules_and_structures_arrive_whole():
    x = torch.randn(2, 3)
    assert_whole(capture(nn.Sequential(nn.Linear(3, 3), Opaque()), x, leaf_modules=(Opaque,)))
    assert_whole(capture(Named(), x, example_kwargs={"more": {"right": torch.randn(2, 3)}}))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["levit_128s", "swin_tiny_patch4_window7_224"])
def test_models_of_timm_arrive_whole(name: str):
    timm = pytest.importorskip("timm")
    model = timm.create_model(name, pretrained=False).eval()
    size = model.default_cfg["input_size"][-1]
    assert_whole(capture(model, torch.randn(2, 3, size, size)))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["Bert", "GPT2", "Wav2Vec2"])
def test_models_of_transformers_arrive_whole(kind: str):
    hf = pytest.importorskip("transformers")
    from capture.test_transformers import MODELS, built

    name, config, settings, inputs = next(m for m in MODELS if m[0].startswith(kind) and hasattr(hf, m[0]))
    assert_whole(capture(built(name, config, settings).eval(), example_kwargs=inputs))


def test_a_task_arrives_with_functions_that_no_other_process_can_import():
    weight = torch.tensor([1.0, 2.0, 3.0, 4.0])

    def own_loss(output, target):
        return nn.functional.cross_entropy(output, target, weight)

    loader = DataLoader(Noisy(8), 4, shuffle=True, generator=torch.Generator(), num_workers=1, persistent_workers=True)
    given = task(train_data=loader, loss=own_loss)
    try:
        iter(loader)
        found = arrived(given)
    finally:
        loader._iterator._shutdown_workers()
    output, target = torch.randn(8, 4), torch.arange(8) % 4
    assert torch.equal(found.loss(output, target), own_loss(output, target))
    assert torch.equal(found.train_data.dataset.x, given.train_data.dataset.x)
    assert len(next(iter(found.val_data))[0]) == 16


def test_parts_of_one_tensor_are_sent_once():
    whole = torch.randn(1000, 100)
    parcel = parcels.packed([whole[i * 100 : (i + 1) * 100] for i in range(10)], "it")
    assert len(parcel) < 1.1 * whole.nbytes
    assert torch.equal(torch.cat(parcels.unpacked(parcel)), whole)


def test_what_cannot_be_sent_is_named():
    with pytest.raises(SurgeryError, match=r"the task cannot be sent to Ray's workers: .*lock.*; take executor='proc"):
        parcels.packed(threading.Lock(), "the task")


def test_the_program_that_is_sent_stays_as_it_is():
    given = program(8)
    before, text = given.run_examples(), given.text()
    arrived(given)
    assert given.text() == text
    assert torch.equal(before[0], given.run_examples()[0])
