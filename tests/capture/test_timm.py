"""timm's models are taken with no part kept whole, also those that symbolic tracing refuses."""

import pytest
import torch
from torch import nn

from capture.parity import leaf_paths
from fxsurgery.capture import capture
from nonempty import nonempty

timm = pytest.importorskip("timm")

SLOW = (
    "xcit_nano_12_p16_224", "nfnet_l0", "swin_tiny_patch4_window7_224", "maxvit_rmlp_pico_rw_256",
    "eva02_tiny_patch14_224", "beit_base_patch16_224", "convnext_atto", "efficientvit_m0",
)  # fmt: skip


def taken(name):
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(0)
        model = timm.create_model(name, pretrained=False).eval()
    size = model.default_cfg["input_size"][-1]
    x = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(0))
    program = capture(model, x[:1])
    assert not leaf_paths(program)
    assert program.graph_module.state_dict().keys() == model.state_dict().keys()
    with torch.no_grad():
        torch.testing.assert_close(program(x), model(x), rtol=1e-4, atol=1e-5)
    return program


@pytest.mark.parametrize("name", ["levit_128s", "mobilevit_xxs", "resnet10t"])
def test_a_model_is_taken(name):
    assert all(type(m).__module__.startswith("torch.nn") for _, m in nonempty(taken(name).calls(nn.BatchNorm2d)))


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_more_models_are_taken(name):
    taken(name)
