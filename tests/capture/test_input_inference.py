"""Guessed inputs against what the models are known to take, and captured on them."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 -- as everywhere in torch

from fxsurgery.capture import capture
from fxsurgery.capture.input_inference import guess_inputs
from fxsurgery.errors import CaptureError, DataError
from nonempty import nonempty
from zoo import ZOO

hf_warnings = pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning", "ignore::DeprecationWarning")


def shape(model):
    inputs, _ = guess_inputs(model)
    [x] = inputs.tensors
    return tuple(x.shape)


def cnn(channels, strides, head=None, out=8):
    """Convolutions of these strides, pooled over all space unless a head is given."""
    layers, width = [], channels
    for stride in strides:
        layers += [nn.Conv2d(width, out, 3, stride, padding=1), nn.BatchNorm2d(out), nn.ReLU()]
        width = out
    return nn.Sequential(*layers, *(head or [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(out, 5)]))


class Called(nn.Module):
    """One layer or several, called as the function says."""

    def __init__(self, call, *layers):
        super().__init__()
        self.layers, self.call = nn.ModuleList(layers), call

    def forward(self, x):
        return self.call(self.layers, x)


@pytest.mark.parametrize("name", sorted(ZOO))
def test_the_zoo_is_captured_on_what_is_guessed(name):
    model = ZOO[name]()
    inputs, _ = guess_inputs(model)
    assert inputs.batch == 2
    capture(model, inputs.args)


@pytest.mark.parametrize(
    ("channels", "strides", "side"),
    [
        (3, [1, 2, 2], 32),  # a CIFAR net
        (3, [2, 2, 2, 2, 2], 224),  # an ImageNet one
        (3, [2, 2, 2], 64),
        (1, [1, 2, 2], 28),  # MNIST
        (1, [1, 2], 16),  # 8x8 digits, or a little larger
        (1, [1], 8),
        (4, [1, 2, 2], 32),
    ],
)
def test_the_size_leaves_a_map_of_about_seven(channels, strides, side):
    assert shape(cnn(channels, strides)) == (2, channels, side, side)


@pytest.mark.parametrize(
    ("channels", "pixels", "side"), [(1, 7 * 7, 28), (3, 8 * 8, 32), (3, 5 * 5, 20), (3, 57**2, 227)]
)
def test_the_size_that_a_linear_layer_asks_for(channels, pixels, side):
    model = cnn(channels, [1, 2, 2], [nn.Flatten(), nn.Linear(8 * pixels, 5)])
    found = shape(model)[-1]
    assert model.eval()(torch.zeros(1, channels, found, found)).shape == (1, 5)
    assert abs(found - side) <= 3


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (nn.Sequential(nn.Linear(13, 8), nn.ReLU(), nn.Linear(8, 1)), (2, 13)),
        (nn.Sequential(nn.Flatten(), nn.Linear(784, 8)), (2, 784)),
        (nn.Sequential(nn.BatchNorm1d(9), nn.Linear(9, 2)), (2, 9)),
        (nn.Sequential(nn.Conv1d(4, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool1d(1)), (2, 4, 128)),
        (nn.Sequential(nn.Conv1d(1, 2, 3, padding=1), nn.Flatten(), nn.Linear(2 * 77, 5)), (2, 1, 77)),
        (nn.Sequential(nn.Conv3d(3, 8, 3), nn.AdaptiveAvgPool3d(1)), (2, 3, 16, 112, 112)),
        (nn.Sequential(nn.Conv3d(1, 8, 3), nn.AdaptiveAvgPool3d(1)), (2, 1, 32, 32, 32)),
        (nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 2)), (2, 6)),
        (Called(lambda ls, x: ls[1](ls[0](x)[0][:, -1]), nn.LSTM(5, 7, batch_first=True), nn.Linear(7, 3)), (2, 16, 5)),
        (Called(lambda ls, x: ls[1](ls[0](x)[0][-1]), nn.GRU(5, 7), nn.Linear(7, 3)), (16, 2, 5)),
        (Called(lambda ls, x: ls[0](x.transpose(0, 1))[0][-1], nn.GRU(5, 7)), (2, 16, 5)),
        (Called(lambda ls, x: ls[1](ls[0](x))[0], nn.Linear(6, 5), nn.LSTM(5, 7, batch_first=True)), (2, 16, 6)),
        (Called(lambda ls, x: ls[0](x, x, x)[0], nn.MultiheadAttention(8, 2, batch_first=True)), (2, 16, 8)),
        (Called(lambda ls, x: ls[0](x.permute(0, 2, 1)), nn.Conv1d(4, 4, 3)), (2, 128, 4)),
        (Called(lambda ls, x: F.conv2d(x, ls[0].weight.abs(), stride=8), nn.Conv2d(3, 4, 8)), (2, 3, 64, 64)),
    ],
    ids=lambda case: str(case) if isinstance(case, tuple) else type(case).__name__,
)
def test_the_kind_of_the_first_layer_tells_the_kind_of_input(model, expected):
    assert shape(model) == expected


def test_ids_stay_below_the_rows_of_the_embedding():
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 2))
    inputs, why = guess_inputs(model)
    assert inputs.args[0].dtype == torch.int64
    assert inputs.args[0].shape == (2, 16)
    assert int(inputs.args[0].max()) < 5
    assert "ids below 5 from 0" in why


def test_a_sequence_has_the_one_length_that_fits():
    class Placed(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.places = nn.Embedding(9, 4), nn.Parameter(torch.randn(11, 4))

        def forward(self, ids):
            return self.words(ids) + self.places

    assert shape(Placed()) == (2, 11)


def test_the_first_layer_is_the_first_that_is_reached():
    class Late(nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.stem = nn.Linear(8, 5), nn.Conv2d(3, 8, 3, 4)

        def forward(self, x):
            return self.head(self.stem(x).mean((2, 3)))

    inputs, why = guess_inputs(Late())
    assert inputs.args[0].shape[1] == 3
    assert "3 channels from stem" in why
    assert "example_inputs= overrides" in why


def test_the_sentence_is_loud_about_what_was_guessed():
    _, why = guess_inputs(cnn(3, [2] * 5))
    assert why == (
        "inputs of (2, 3, 224, 224): 3 channels from 0, size guessed: its smallest feature map is then 7 wide; "
        "example_inputs= overrides"
    )


def test_several_inputs_are_asked_for_by_name():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, left, right, scale=1.0):
            return self.layer(left) + right * scale

    with pytest.raises(DataError) as caught:
        guess_inputs(Pair())
    text = str(caught.value)
    assert "forward(left, right)" in text
    one = "torch.randn(2, 3, 224, 224)"
    assert f"for images: example_inputs=({one}, {one},)  # left, right; token ids: torch.randint(" in text
    assert "fxsurgery.optimize" not in text


def test_what_takes_none_of_the_tries_says_what_was_tried():
    with pytest.raises(DataError, match=r"Tried .*AttributeError.*example_inputs="):
        guess_inputs(Called(lambda ls, x: ls[0](x).no_such_thing, nn.Linear(4, 4)))
    with pytest.raises(DataError, match=r"inputs of forward\(x\)"):
        guess_inputs(Called(lambda ls, x: ls[0](x["image"]), nn.Linear(4, 4)))


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (nn.Sequential(nn.ConvTranspose2d(32, 8, 4), nn.BatchNorm2d(8), nn.ConvTranspose2d(8, 3, 4, 2)), (2, 32, 1, 1)),
        (nn.Sequential(nn.ConvTranspose1d(5, 8, 4), nn.Flatten(), nn.Linear(8 * 7, 3)), (2, 5, 4)),
        (nn.Sequential(nn.ConvTranspose3d(6, 6, 2, groups=2)), (2, 6, 1, 1, 1)),
    ],
)
def test_a_generator_gets_a_small_map(model, expected):
    assert shape(model) == expected


def test_tries_of_large_inputs_take_no_memory(monkeypatch):
    drawn, real = list[int](), torch.randn
    monkeypatch.setattr(torch, "randn", lambda *shape, **given: drawn.append(1) or real(*shape, **given))
    with pytest.raises(DataError, match=r"Tried \(2, 64, 32, 32, 32\)"):
        guess_inputs(Called(lambda ls, x: ls[0](x).no_such_thing, nn.Conv3d(64, 4, 3)))
    assert not drawn


def test_what_cannot_be_captured_is_told_before_anything_is_tried():
    with pytest.raises(CaptureError, match="lazy parameters"):
        guess_inputs(nn.LazyLinear(3))
    with pytest.raises(CaptureError, match=r"meta device.*load its weights"):
        guess_inputs(nn.Linear(3, 3, device="meta"))
    with pytest.warns(FutureWarning, match="weight_norm"):
        old = nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 2))
    with pytest.raises(CaptureError, match=r"`0` uses torch\.nn\.utils\.weight_norm.*parametrizations"):
        guess_inputs(old)


def test_model_and_random_state_stay():
    model = cnn(3, [1, 2, 2]).train()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    first, again = guess_inputs(model)[0], guess_inputs(model)[0]
    assert torch.equal(first.args[0], again.args[0])
    assert all(torch.equal(before[name], x) for name, x in nonempty(model.state_dict().items()))
    assert all(module.training for module in model.modules())
    assert all(p.requires_grad and p.grad is None for p in nonempty(model.parameters()))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_model_in_double_gets_inputs_in_double():
    assert guess_inputs(cnn(3, [1, 2, 2]).double())[0].args[0].dtype == torch.float64


def test_a_timm_configuration_is_believed():
    model = cnn(1, [1, 2, 2])
    model.pretrained_cfg = {"input_size": (3, 48, 48)}
    inputs, why = guess_inputs(model)
    assert inputs.args[0].shape == (2, 1, 48, 48)
    assert "timm" in why


TORCHVISION = {"alexnet": 224, "resnet18": 224, "squeezenet1_1": 224, "mobilenet_v3_small": 224, "inception_v3": 299}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vgg11", "densenet121", "efficientnet_b0", "swin_t", "vit_b_32", *TORCHVISION])
def test_torchvision_models_get_their_size(name):
    models = pytest.importorskip("torchvision.models")
    options = {"init_weights": False} if name == "inception_v3" else {}
    side = TORCHVISION.get(name, 224)
    assert shape(models.get_model(name, weights=None, **options)) == (2, 3, side, side)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet10t", "mobilevit_xxs", "levit_128s", "lcnet_035"])
def test_timm_models_get_their_size(name):
    timm = pytest.importorskip("timm")
    model = timm.create_model(name, pretrained=False)
    assert shape(model) == (2, *model.default_cfg["input_size"])


WIDTH = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
TEXT = {
    **WIDTH,
    "vocab_size": 50,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@hf_warnings
@pytest.mark.parametrize(
    ("name", "config", "settings", "expected"),
    [
        ("BertModel", "BertConfig", TEXT, {"input_ids": (2, 16), "attention_mask": (2, 16)}),
        ("ViTModel", "ViTConfig", {**WIDTH, "image_size": 40, "patch_size": 8}, {"pixel_values": (2, 3, 40, 40)}),
        (
            "T5ForConditionalGeneration",
            "T5Config",
            {"vocab_size": 50, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4},
            {"input_ids": (2, 16), "attention_mask": (2, 16), "decoder_input_ids": (2, 16)},
        ),
    ],
)
def test_transformers_say_what_they_take(name, config, settings, expected):
    hf = pytest.importorskip("transformers")
    inputs, _ = guess_inputs(getattr(hf, name)(getattr(hf, config)(**settings)))
    assert {key: tuple(x.shape) for key, x in inputs.kwargs.items()} == expected
