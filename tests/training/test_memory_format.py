"""Training with the weights of convolutions in another memory format: the same result, in the memory of before."""

import copy

import pytest
import torch
from torch import nn

from fxsurgery.capture import capture
from fxsurgery.errors import TrainingError
from fxsurgery.training import Hooks, Progress, Recipe, Task, fit, sgd
from fxsurgery.training.memory_format import conv_weights, laid_out
from nonempty import nonempty


def net(dims=2, end=None):
    conv, norm, pool = (
        (nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d) if dims == 2 else (nn.Conv3d, nn.BatchNorm3d, nn.MaxPool3d)
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        body = [conv(3, 6, 3, padding=1), norm(6), nn.ReLU(), pool(2), conv(6, 6, 3, padding=1, groups=2), nn.ReLU()]
        return nn.Sequential(*body, end or nn.Flatten(), nn.Linear(6 * 2**dims, 4)).double()


def task(dims=2):
    x = torch.randn(32, 3, *[4] * dims, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = (2 * (x.mean(tuple(range(1, dims + 2))) > 0) + (x.flatten(1)[:, 0] > 0)).long()
    return Task.of((x, y), (x, y), batch_size=8)


def trained(memory_format, dims=2, hooks=None, model=None):
    model, progress = model or net(dims), Progress.quiet()
    recipe = Recipe(steps=12, optimizer=sgd(0.1), memory_format=memory_format, validations=1)
    fit(model, task(dims), recipe, hooks=hooks, progress=progress, device="cpu")
    return model, [record["loss"] for record in nonempty(progress.history)]


@pytest.mark.parametrize("dims", [2, 3])
def test_channels_last_learns_the_same_up_to_rounding(dims: int):
    (one, losses), (other, others) = trained(None, dims), trained("channels_last", dims)
    assert others == pytest.approx(losses, rel=1e-9)
    start = net(dims).state_dict()
    for name, value in nonempty(one.state_dict().items()):
        torch.testing.assert_close(other.state_dict()[name], value, rtol=1e-9, atol=1e-11)
    assert not torch.allclose(one.state_dict()["0.weight"], start["0.weight"], atol=1e-3)


@pytest.mark.parametrize(("dims", "form"), [(2, torch.channels_last), (3, torch.channels_last_3d)])
def test_weights_and_maps_are_so_while_they_train_and_not_afterwards(dims: int, form: torch.memory_format):
    model, seen = net(dims), set()
    memory = {name: (id(p), p.data_ptr(), p.stride()) for name, p in model.named_parameters()}

    def watch(module, _, output):
        if module.training:  # the maps of a 3-D convolution in float64 are contiguous on a CPU
            tensors = [module.weight, output] if dims == 2 else [module.weight]
            seen.update(tensor.is_contiguous(memory_format=form) for tensor in tensors)

    model[4].register_forward_hook(watch)
    trained("channels_last", dims, model=model)
    assert seen == {True}
    assert {name: (id(p), p.data_ptr(), p.stride()) for name, p in model.named_parameters()} == memory


def test_weights_lie_as_they_were_unless_said():
    model = net().to(memory_format=torch.channels_last)
    seen = set[bool]()

    def watch(module, *_):
        if module.training:
            seen.add(module.weight.is_contiguous())

    model[0].register_forward_hook(watch)
    trained(None, model=model)
    assert seen == {False}
    seen.clear()
    trained("contiguous", model=model)
    assert seen == {True}
    assert not model[0].weight.is_contiguous()


def test_after_an_error_the_weights_lie_as_they_were():
    model = net()
    strides = [p.stride() for p in model.parameters()]
    with pytest.raises(ZeroDivisionError):
        trained("channels_last", hooks=Hooks(after_step=lambda _: 1 / 0), model=model)
    assert [p.stride() for p in model.parameters()] == strides


def test_shared_weights_and_layers_without_such_maps():
    first = nn.Conv2d(3, 3, 3)
    second = copy.deepcopy(first)
    second.weight = first.weight
    model = nn.Sequential(first, second, nn.Conv1d(3, 3, 3), nn.ConvTranspose2d(3, 3, 2), nn.Linear(3, 3))
    assert [id(w) for w in conv_weights(model)] == [id(first.weight), id(model[3].weight)]
    value = first.weight.detach().clone()
    with laid_out(model, "channels_last"), torch.no_grad():
        assert second.weight is first.weight
        second.weight.add_(1)
    assert torch.equal(first.weight, value + 1)
    assert first.weight.is_contiguous()


class View(nn.Module):
    """Flattens as only contiguous maps allow."""

    def forward(self, x):
        return x.view(x.shape[0], -1)


def test_a_view_of_a_map_is_refused_with_the_remedy():
    x, _ = task().first_batch()
    model = capture(net(end=View()).eval(), x).trainable_copy()
    with pytest.raises(
        TrainingError, match=r"memory_format='channels_last': its forward calls `view` .* leave memory_f"
    ):
        trained("channels_last", model=model)
    trained("contiguous", model=model)


def test_an_unknown_format_is_refused():
    with pytest.raises(TrainingError, match=r"memory_format.* must be 'contiguous', 'channels_last' or None"):
        Recipe(steps=1, optimizer=sgd(0.1), memory_format="channels_first")
