import pytest
import torch
from torch import fx, nn

from benchmarks.data import fashion_mnist, installed_folder
from benchmarks.models import PRESETS, macs, resnet20, uniform, vgg16

presets = pytest.mark.parametrize("preset", PRESETS.values(), ids=list(PRESETS))


def parameters(model):
    return sum(p.numel() for p in model.parameters())


def test_resnet20_has_20_weight_layers_beside_its_shortcuts():
    layers = [
        name
        for name, module in resnet20().named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear) and "shortcut" not in name
    ]
    assert len(layers) == 20


def test_full_width_networks_have_the_published_sizes():
    # 0.27 M: He et al. 2016, table 6. 14.98 M: Lin et al. 2020 (HRank), table 2; both on CIFAR-10.
    assert parameters(resnet20((16, 32, 64), in_channels=3)) == pytest.approx(0.27e6, rel=0.02)
    assert parameters(vgg16(1.0, in_channels=3)) == pytest.approx(14.98e6, rel=0.001)


@pytest.mark.parametrize("size", [28, 32])
@presets
def test_presets_trace_and_classify(preset, size):
    model = preset.model(seed=0).eval()
    images = torch.randn(3, 1, size, size, generator=torch.Generator().manual_seed(0))
    scores = fx.symbolic_trace(model)(images)
    assert scores.shape == (3, 10)
    assert torch.equal(scores, model(images))


@presets
def test_a_seed_gives_one_network_and_leaves_the_global_state(preset):
    before = torch.get_rng_state()
    a, b, c = (nn.utils.parameters_to_vector(preset.model(seed).parameters()) for seed in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert torch.equal(before, torch.get_rng_state())


def test_macs_are_counted_by_hand_for_one_convolution():
    conv = nn.Conv2d(3, 5, 3, padding=1)
    assert macs(conv, torch.randn(1, 3, 8, 8)) == 3 * 3 * 3 * 5 * 8 * 8
    assert conv.training


@pytest.mark.parametrize("fraction", [0.5, 0.3, 0.15])
@presets
def test_uniform_stays_within_the_budget_and_near_it(preset, fraction):
    scaled = uniform(preset, fraction)
    assert scaled.macs() <= fraction * preset.macs()
    assert scaled.macs() >= 0.85 * fraction * preset.macs()
    assert (scaled.epochs, scaled.batch_size) == (preset.epochs, preset.batch_size)


@presets
def test_uniform_at_the_whole_budget_is_the_same_network(preset):
    assert str(uniform(preset, 1.0).model(0)) == str(preset.model(0))


def test_uniform_refuses_what_no_width_reaches():
    with pytest.raises(ValueError, match="no width reaches"):
        uniform(PRESETS["R20w8"], 1e-6)


@pytest.mark.slow
@pytest.mark.dataset
@pytest.mark.skipif(not installed_folder().is_dir(), reason="Fashion-MNIST is not installed")
@presets
def test_presets_learn_in_two_epochs(preset):
    splits = fashion_mnist(train=6_000, validation=1_000, test=1)
    model = preset.model(seed=0)
    optimizer = torch.optim.SGD(
        model.parameters(),
        preset.learning_rate,
        momentum=0.9,
        weight_decay=preset.weight_decay,
    )
    order = torch.Generator().manual_seed(0)
    for _ in range(2):
        for batch in torch.randperm(6_000, generator=order).split(preset.batch_size):
            loss = nn.functional.cross_entropy(model(splits.train.images[batch]), splits.train.labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        right = model.eval()(splits.validation.images).argmax(1) == splits.validation.labels
    assert right.float().mean() > 0.65
