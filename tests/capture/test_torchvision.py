"""Torchvision's models are taken whole, alive in train mode; their auxiliary heads are not."""

import pytest
import torch
from torchvision import models
from torchvision.ops import StochasticDepth

from capture.parity import leaf_paths
from fxsurgery.capture import capture
from fxsurgery.errors import CaptureError
from nonempty import nonempty

NO_AUX = {"aux_logits": False, "init_weights": False}


def taken(name, size=64, **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = models.get_model(name, num_classes=5, **options)
    x = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(0))
    program = capture(model, x[:1])
    assert program.graph_module.state_dict().keys() == model.state_dict().keys()
    with torch.no_grad():
        torch.testing.assert_close(program(x), model.eval()(x), rtol=0, atol=1e-6)
    return program


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "shufflenet_v2_x0_5", "densenet121"])
def test_convolutional_models_are_taken(name):
    taken(name)


def test_stochastic_depth_stays_alive_in_train_mode():
    program = taken("efficientnet_b0", stochastic_depth_prob=0.9)
    assert list(program.calls(StochasticDepth))


def test_inception_without_its_auxiliary_head_is_taken():
    taken("inception_v3", 75, **NO_AUX)


@pytest.mark.parametrize(("name", "head"), [("inception_v3", "AuxLogits"), ("googlenet", "aux1")])
def test_an_auxiliary_head_gets_a_clear_error(name, head):
    model = getattr(models, name)(num_classes=5, aux_logits=True, init_weights=False)
    with pytest.raises(CaptureError, match=rf"used only in train mode.*without {head}.*aux_logits=False"):
        capture(model, torch.randn(1, 3, 96, 96))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["convnext_tiny", "swin_t", "mnasnet0_5", "regnet_y_400mf", "squeezenet1_0"])
def test_more_models_are_taken(name):
    taken(name)


@pytest.mark.slow
def test_vision_transformers_are_taken():
    taken("vit_b_16", 224)


@pytest.mark.slow
def test_a_detector_is_taken_but_for_what_depends_on_the_values():
    model = models.detection.fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, min_size=128, max_size=160
    )
    images = [torch.rand(3, 120, 150), torch.rand(3, 130, 140)]
    program = capture(model, (images,))
    assert sorted(leaf_paths(program)) == ["roi_heads", "rpn", "transform"]
    assert any("this batch size only" in note for note in program.notes)
    assert any("targets should not be none" in note for note in program.notes)
    assert any(str(node.target).startswith("backbone.body") for node in program.nodes)
    with torch.no_grad():
        found, wanted = program(images), model.eval()(images)
    for ours, theirs in nonempty(zip(found, wanted, strict=True)):
        torch.testing.assert_close(ours, theirs)
