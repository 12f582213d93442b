"""The six start nets: their shapes and sizes, and that a seed alone decides their weights."""

import pytest
import torch
from torch import nn

from fxsurgery.errors import SurgeryError
from fxsurgery.searchers.ectonas.start_nets import START_NETS, start_net
from nonempty import nonempty


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_the_six_have_the_parameters_that_the_paper_says():
    sizes = {name: parameters(build()) for name, build in START_NETS.items()}
    assert sizes == {
        "small-cnn": 2289, "medium-cnn": 3386, "large-cnn": 64606,
        "small-ffnn": 7960, "medium-ffnn": 8070, "large-ffnn": 84170,
    }  # fmt: skip
    assert int(sum(sizes.values()) / 6) == 28413


@pytest.mark.parametrize("name", START_NETS)
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (1, 10, 10), (2, 7, 5)])
def test_it_gives_scores_for_images_of_any_size(name: str, shape: tuple[int, ...]):
    scores = START_NETS[name](shape, classes=4).eval()(torch.randn(3, *shape))
    assert scores.shape == (3, 4)


def test_without_convolutions_a_sample_may_be_a_vector():
    assert START_NETS["large-ffnn"]([7], classes=2)(torch.randn(3, 7)).shape == (3, 2)


def test_the_seed_alone_decides_the_weights():
    state = torch.get_rng_state()
    first = START_NETS["small-cnn"](seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    again, other = START_NETS["small-cnn"](seed=1), START_NETS["small-cnn"](seed=2)
    torch.set_rng_state(state)
    for one, two, three in nonempty(zip(first.parameters(), again.parameters(), other.parameters(), strict=True)):
        assert torch.equal(one, two)
        assert not one.numel() > 9 or not torch.equal(one, three)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"size": "huge"}, "small, medium, large"),
        ({"classes": 0}, "classes=.*: it must be at least 1"),
        ({"classes": True}, "classes=.*: it must be at least 1"),
        ({"input_shape": (28, 28)}, "channels, height, width"),
        ({"input_shape": (1, 0, 28)}, "sizes of one sample"),
        ({"input_shape": 28}, "sizes of one sample"),
        ({"input_shape": "28"}, "sizes of one sample"),
    ],
)
def test_what_makes_no_net_is_told(wrong: dict[str, object], told: str):
    with pytest.raises(SurgeryError, match=told):
        start_net(**{"size": "small", "convolutions": True, **wrong})  # type: ignore[arg-type]
