"""The graph module that capture builds: its inputs are called as the user calls them, wherever code can."""

import pytest
import torch
from torch import nn

from fxsurgery.capture import capture
from fxsurgery.errors import CaptureError


class Inner(nn.Module):
    def forward(self, x):
        return torch.relu(x) + torch.arange(4)[1:3].sum()


def calling(signature: str, body: str) -> nn.Module:
    names = {}
    exec(f"def forward(model, {signature}): return model.child({body})", names)
    net = type("Net", (nn.Module,), {"forward": names["forward"]})()
    net.child = Inner()
    return net.eval()


@pytest.mark.parametrize("name", ["torch", "self", "device", "slice", "fx_pytree"])
def test_an_input_whose_name_the_code_needs_gets_another(name: str) -> None:
    x = torch.randn(2, 4)
    net = calling(name, name)
    program = capture(net, x)
    assert torch.equal(program.run_examples()[0], net(x))


@pytest.mark.parametrize("name", ["x", "input", "len", "mask"])
def test_every_other_input_keeps_its_name(name: str) -> None:
    x = torch.randn(2, 4)
    program = capture(calling(name, name), x)
    assert torch.equal(program(**{name: x}), program(x))


def test_an_input_called_like_the_new_name_of_another_is_told_apart() -> None:
    x, y = torch.randn(2, 4), torch.randn(2, 4)
    net = calling("torch, torch_", "torch - 2 * torch_")
    assert torch.equal(capture(net, x, y)(x, y), net(x, y))


@pytest.mark.parametrize("name", ["torch", "fx_pytree"])
def test_an_input_by_name_that_the_code_needs_is_refused(name: str) -> None:
    net = calling(f"*, {name}", name)
    with pytest.raises(CaptureError, match=f"keyword input '{name}', which generated code cannot use as a name"):
        capture(net, example_kwargs={name: torch.randn(2, 4)})


def test_a_keyword_as_the_name_of_an_input_is_refused() -> None:
    net = calling("**named", "named['class']")
    with pytest.raises(CaptureError, match="keyword input 'class'"):
        capture(net, example_kwargs={"class": torch.randn(2, 4)})
