"""Models and data by the names that the command line has for them."""

from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from fxsurgery.cli.data import callable_of, data_of
from fxsurgery.cli.sources import Wanted, model_arguments, module_class
from fxsurgery.errors import ConfigError, SourceError
from nonempty import nonempty


def test_a_class_is_called_with_its_arguments(here: Path):
    assert Wanted("sample_nets:Net", {"width": 8}).load().model.head[2].in_features == 8


def test_a_module_is_taken_as_it_is(here: Path):
    model = Wanted("sample_nets:ready").load().model
    assert model is Wanted("sample_nets.py:ready").load().model


def test_the_weights_that_a_factory_draws_follow_from_the_seed(here: Path):
    state = torch.get_rng_state()
    one, same, other = (Wanted("sample_nets:Net", seed=seed).load().model.first[0].weight for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("text", "message"),
    [("sample_nets:nothing", r"sample_nets:nothing\(\) returns a NoneType, not a torch.nn.Module"),
     ("sample_nets:nn", "is a module; it must be a torch.nn.Module")],
)  # fmt: skip
def test_what_is_no_model_is_refused(here: Path, text: str, message: str):
    with pytest.raises(SourceError, match=message):
        Wanted(text).load()


def test_arguments_for_a_module_that_is_there_are_refused(here: Path):
    with pytest.raises(ConfigError, match="is already a module, so it is not called"):
        Wanted("sample_nets:ready", {"width": 8}).load()


@pytest.mark.parametrize("texts", [["width=8", "name=abc"], ['{"width": 8, "name": "abc"}']])
def test_model_arguments_have_two_forms(texts: list[str]):
    assert model_arguments(texts) == {"width": 8, "name": "abc"}


@pytest.mark.parametrize("texts", [["{width: 8}"], ["width"]])
def test_model_arguments_of_another_form_are_refused(texts: list[str]):
    with pytest.raises(ConfigError, match="--model-args: "):
        model_arguments(texts)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "wrapped.pt"])
def test_weights_are_loaded_from_either_kind_of_file(here: Path, name: str):
    trained = Wanted("sample_nets:Net", seed=5).load().model
    if name == "w.safetensors":
        safetensors.torch.save_model(trained, name)
    else:
        torch.save(trained.state_dict() if name == "w.pt" else {"state_dict": trained.state_dict(), "epoch": 3}, name)
    model = Wanted("sample_nets:Net", weights=Path(name), seed=6).load().model
    assert all(torch.equal(v, trained.state_dict()[k]) for k, v in nonempty(model.state_dict().items()))


class Evil:
    """A pickle that would run code."""

    def __reduce__(self):
        return (Path.touch, (Path("executed"),))


def test_weights_never_run_code(here: Path):
    torch.save({"state_dict": Evil()}, "w.pt")
    with pytest.raises(SourceError, match=r"w.pt does not load"):
        Wanted("sample_nets:Net", weights=Path("w.pt")).load()
    assert not (here / "executed").exists()


def test_a_pickled_model_is_one_clear_line(here: Path):
    torch.save(nn.Sequential(nn.Linear(2, 2)), "w.pt")
    with pytest.raises(SourceError, match=r"w.pt does not load: it holds torch.nn.modules.*perhaps a whole") as caught:
        Wanted("sample_nets:Net", weights=Path("w.pt")).load()
    assert str(caught.value).endswith("save its weights alone: torch.save(model.state_dict(), 'weights.pt')")
    assert "\x1b" not in str(caught.value)


def test_nested_weights_are_named(here: Path):
    torch.save({"model": nn.Linear(2, 2).state_dict(), "epoch": 3}, "w.pt")
    with pytest.raises(SourceError, match=r"weights are nested under 'model'; save that entry .*\['model'\]"):
        Wanted("sample_nets:Net", weights=Path("w.pt")).load()


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
def test_weights_of_another_model_are_refused_in_one_line(here: Path, name: str):
    other = nn.Linear(2, 2).state_dict()
    safetensors.torch.save_file(other, name) if name.endswith("s") else torch.save(other, name)
    with pytest.raises(SourceError, match=rf"--weights: {name}") as told:
        Wanted("sample_nets:Net", weights=Path(name)).load()
    assert "\n" not in str(told.value)


def test_weights_that_are_not_there_are_told(here: Path):
    for name in ("w.pt", "w.safetensors"):
        with pytest.raises(SourceError, match=rf"--weights: cannot read {name}"):
            Wanted("sample_nets:Net", weights=Path(name)).load()


def test_shapes_give_two_samples_each(here: Path):
    inputs = Wanted("sample_nets:Net", shapes=((3, 8, 8), (5,))).load().inputs
    assert [tuple(x.shape) for x in inputs.args] == [(2, 3, 8, 8), (2, 5)]


def test_inputs_are_guessed_where_nothing_is_said(here: Path):
    inputs, (how,) = Wanted("sample_nets:Net").load().known_inputs()
    assert inputs.args[0].shape[:2] == (2, 3)
    assert "guessed" in how


def test_example_inputs_are_positional_or_by_name(here: Path):
    assert Wanted("sample_nets:tokens", example_inputs="sample_data:ids").load().inputs.args[0].shape == (2, 6)
    np.savez("by_name.npz", ids=np.zeros((2, 6), np.int64), mask=np.ones((2, 6)))
    inputs = Wanted("sample_nets:tokens", example_inputs="by_name.npz").load().inputs
    assert sorted(inputs.kwargs) == ["ids", "mask"]
    assert not inputs.args


def test_shape_and_inputs_together_are_refused(here: Path):
    with pytest.raises(ConfigError, match="give one of the two"):
        Wanted("sample_nets:Net", shapes=((3, 8, 8),), example_inputs="sample_data:ids").load()


def test_data_are_an_object_or_what_a_function_gives(here: Path):
    assert data_of("sample_data:val", "--val-data", 0)[0].shape == (32, 3, 8, 8)
    assert data_of("sample_data.py:train", "--train-data", 0)[0].shape == (64, 3, 8, 8)


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_files_of_x_and_y_are_pairs_and_others_are_batches_by_name(here: Path, suffix: str):
    x, y = torch.ones(4, 2), torch.arange(4)
    for names in (("x", "y"), ("input_ids", "labels")):
        arrays = dict(zip(names, (x, y), strict=True))
        if suffix == "npz":
            np.savez(f"{names[0]}.npz", **arrays)
        else:
            safetensors.torch.save_file(arrays, f"{names[0]}.safetensors")
    pair, named = data_of(f"x.{suffix}", "--train-data", 0), data_of(f"input_ids.{suffix}", "--train-data", 0)
    assert isinstance(pair, tuple)
    assert np.array_equal(pair[1], y)
    assert sorted(named) == ["input_ids", "labels"]


def test_data_files_never_run_code(here: Path):
    np.savez("evil.npz", x=np.array([Evil()], object), y=np.zeros(1))
    with pytest.raises(SourceError, match=r"--train-data: evil.npz is damaged, or holds something other than arrays"):
        data_of("evil.npz", "--train-data", 0)
    assert not (here / "executed").exists()


@pytest.mark.parametrize("name", ["data.npz", "data.safetensors"])
def test_data_files_that_are_not_there_or_damaged_are_told(here: Path, name: str):
    with pytest.raises(SourceError, match=rf"--val-data: cannot read {name}"):
        data_of(name, "--val-data", 0)
    Path(name).write_bytes(b"not this")
    with pytest.raises(SourceError, match=rf"--val-data: {name} is damaged"):
        data_of(name, "--val-data", 0)


def test_a_loss_is_a_function_an_object_or_a_class(here: Path):
    assert isinstance(callable_of("sample_data:smooth", "--loss"), nn.CrossEntropyLoss)
    assert isinstance(callable_of("torch.nn:MSELoss", "--loss"), nn.MSELoss)
    assert callable_of("sample_data:share", "--metric").__name__ == "share"


def test_a_leaf_module_is_a_class_of_modules(here: Path):
    assert module_class("torch.nn:Linear") is nn.Linear
    with pytest.raises(SourceError, match=r"sample_data:share is not a subclass of torch.nn.Module"):
        module_class("sample_data:share")
