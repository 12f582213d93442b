"""Models that cannot be taken are refused at once: what they are, where, and what to do."""

import threading

import pytest
import torch
from torch import Tensor, nn
from torch.ao import quantization
from torch.nn.utils import prune

from fxsurgery.capture import capture
from fxsurgery.errors import CaptureError

X = torch.linspace(-1, 1, 4 * 12).reshape(4, 12)


def net() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 3)).eval()


def within(part: nn.Module) -> nn.Module:
    return nn.Sequential(part, nn.Linear(3, 2))


def masked(*, run: bool = False, gradients: bool = True) -> nn.Module:
    model = net()
    prune.l1_unstructured(model[0], "weight", 0.5)
    if run:
        with torch.set_grad_enabled(gradients):
            model(X)
    return model


def dynamically_quantized() -> nn.Module:
    return quantization.quantize_dynamic(net(), {nn.Linear}, torch.qint8)


def statically_quantized() -> nn.Module:
    model = nn.Sequential(quantization.QuantStub(), *net(), quantization.DeQuantStub()).eval()
    model.qconfig = quantization.get_default_qconfig("x86")
    quantization.prepare(model, inplace=True)
    model(X)
    return quantization.convert(model, inplace=True)


class CompiledForward(nn.Module):
    """Its forward was compiled on the object."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(12, 3)
        self.forward = torch.compile(self.forward)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def holding(name: str, value: object) -> nn.Module:
    model = net()
    setattr(model[0], name, value)
    return model


def old_norm(norm) -> nn.Module:
    model = net()
    model[0] = norm(model[0])
    model.train()(X)
    return model


EXPORTED = r"comes from torch\.export and accepts only a batch size of 4 .*dynamic_shapes="
REFUSED = {
    "masks before a forward": (masked, r"`0` has a mask .*prune\.remove\(model\.get_submodule\('0'\), 'weight'\)"),
    "masks after a forward": (lambda: masked(run=True), r"`0` has a mask of torch\.nn\.utils\.prune"),
    "masks after a forward without gradients": (lambda: masked(run=True, gradients=False), r"`0` has a mask"),
    "quantized dynamically": (dynamically_quantized, r"`0` \(Linear\) is quantized.*float model from before"),
    "quantized statically": (statically_quantized, r"`0` \(Quantize\) is quantized"),
    "exported for one batch size": (lambda: torch.export.export(net(), (X,)).module(), EXPORTED),
    "a part that was exported": (lambda: within(torch.export.export(net(), (X,)).module()), EXPORTED),
    "an exported program": (lambda: torch.export.export(net(), (X,)), r"ExportedProgram.*pass its \.module\(\)"),
    "a compiled part": (lambda: within(torch.compile(net())), r"`0` comes from torch\.compile.*`0\._orig_mod`"),
    "a compiled forward": (lambda: within(CompiledForward()), r"the forward of `0` comes from torch\.compile"),
    "data parallel": (lambda: nn.DataParallel(net()), r"the model is wrapped in DataParallel; use its `\.module`"),
    "a data parallel part": (lambda: within(nn.DataParallel(net())), r"`0` is wrapped in DataParallel"),
    "a part without numbers": (lambda: within(nn.Linear(12, 3, device="meta")), r"meta device \(`0\.weight`\)"),
    "lazy buffers": (lambda: nn.Sequential(nn.LazyBatchNorm1d(affine=False)), "lazy parameters"),
    "old weight norm": (lambda: old_norm(nn.utils.weight_norm), r"parametrizations\.weight_norm"),
    "old spectral norm": (lambda: old_norm(nn.utils.spectral_norm), r"remove_spectral_norm"),
    "a tensor with history": (
        lambda: holding("cache", net()(X)), r"`0\.cache` is a tensor with gradient history",
    ),
    "a lock": (lambda: holding("lock", threading.Lock()), r"deep-copied.*`0\.lock` is a lock .*remove it from"),
    "a generator": (lambda: holding("numbers", (i for i in range(3))), r"`0\.numbers` is a generator"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
def test_what_cannot_be_taken_is_refused_with_a_remedy(name: str):
    make, message = REFUSED[name]
    with pytest.raises(CaptureError, match=message):
        capture(make(), X)


def test_the_remedies_work():
    pruned = masked(run=True)
    prune.remove(pruned.get_submodule("0"), "weight")
    dynamic = torch.export.export(net(), (X,), dynamic_shapes=({0: torch.export.Dim("batch")},)).module()
    for model in (pruned, dynamic, nn.DataParallel(net()).module, torch.compile(net())._orig_mod):
        program = capture(model, X)
        torch.testing.assert_close(program(X), model(X))
        assert program(X[:2]).shape == (2, 3)


class CompiledFunction(nn.Module):
    """Calls a function that was compiled."""

    def __init__(self):
        super().__init__()
        self.layer, self.activate = nn.Linear(12, 3), torch.compile(torch.relu)

    def forward(self, x: Tensor) -> Tensor:
        return self.activate(self.layer(x))


def test_a_compiled_function_is_taken_as_it_was_written():
    model = CompiledFunction().eval()
    program = capture(model, X)
    assert not program.notes
    torch.testing.assert_close(program(X), torch.relu(model.layer(X)))
    assert program(X[:3]).shape == (3, 3)
