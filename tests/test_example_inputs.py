"""One thing in any of its forms means the same to every function that takes a model."""

from collections import UserDict

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import fxsurgery
from fxsurgery import Budget, DataError, SurgeryError
from fxsurgery.deploy import check_parity, compare_latency, export_onnx
from fxsurgery.example_inputs import inputs_of, tensor_of
from nonempty import nonempty

A = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
B = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
Y = torch.arange(4) % 3


class Two(nn.Module):
    """Two inputs: the second one counts twice."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.head = nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.head(self.wide(a + 2 * b).relu())


class OneDict(Two):
    """One input that is a dict."""

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return super().forward(batch["a"], batch["b"])


class OnePair(Two):
    """One input that is a pair."""

    def forward(self, pair: tuple[Tensor, Tensor]) -> Tensor:
        return super().forward(*pair)


def samples() -> list[dict[str, Tensor]]:
    return [{"a": a, "b": b, "label": y} for a, b, y in zip(A, B, Y, strict=True)]


FORMS = {
    "a tuple": {"example_inputs": (A, B)},
    "a list": {"example_inputs": [A, B]},
    "arrays": {"example_inputs": (A.numpy(), B.numpy())},
    "arrays of float64": {"example_inputs": [A.double().numpy(), B]},
    "a dict": {"example_inputs": {"a": A, "b": B}},
    "a dict in another order": {"example_inputs": {"b": B, "a": A}},
    "a dict of arrays": {"example_inputs": {"a": A.numpy(), "b": B.numpy()}},
    "a mapping that is no dict": {"example_inputs": UserDict(a=A, b=B)},
    "by name": {"example_kwargs": {"a": A, "b": B}},
    "both": {"example_inputs": A, "example_kwargs": {"b": B.numpy()}},
    "a loader": {"example_inputs": DataLoader(TensorDataset(A, B, Y), batch_size=4)},
    "a loader of dicts": {"example_inputs": DataLoader(samples(), batch_size=4)},
}


def of_capture(given):
    return fxsurgery.capture(Two(), **given)


def of_inspect(given):
    return fxsurgery.inspect(Two(), **given).program


def of_optimize(given):
    options = {"train_data": (A, B, Y), "val_data": (A, B, Y), "budget": Budget(macs=0.6), "method": "prune"}
    fast = {"fewest_steps": 0, "most_steps": 1, "align": 1, "verbose": False, "device": "cpu"}
    return fxsurgery.optimize(Two(), **options, **fast, **given).original


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("used", [of_capture, of_inspect, of_optimize], ids=lambda used: used.__name__)
def test_each_form_means_the_same(form: str, used):
    program = used(FORMS[form])
    by_name = dict(zip(("a", "b"), program.example_inputs, strict=False)) | dict(program.example_kwargs)
    assert list(by_name) == ["a", "b"]
    assert torch.equal(by_name["a"], A)
    assert torch.equal(by_name["b"], B)


@pytest.mark.parametrize("form", FORMS)
def test_each_form_exports_the_same_file(form: str, tmp_path):
    torch.manual_seed(0)
    model = Two()
    given = {"example_inputs": None} | FORMS[form]
    file = export_onnx(model, path=tmp_path / "m.onnx", exporter="legacy", **given)
    assert file.inputs == ("a", "b")
    assert file.parity.batch_sizes == (4, 5)
    assert check_parity(model, tmp_path / "m.onnx", **given).error < 1e-4
    assert compare_latency({"m": file.path}, rounds=3, seconds=1.0, **given)["m"].runs == 3


@pytest.mark.parametrize("given", [A, A.numpy(), (A,), [A.numpy()], {"input": A}])
def test_one_input_may_stand_alone(given):
    assert torch.equal(fxsurgery.capture(nn.Linear(6, 2), given).examples.tensors[0], A)


def test_a_dict_is_one_input_where_forward_takes_one_thing():
    program = fxsurgery.capture(OneDict(), {"a": A, "b": B})
    assert program.example_kwargs == {}
    assert set(program.example_inputs[0]) == {"a", "b"}
    assert torch.equal(program.example_inputs[0]["b"], B)


def test_one_input_that_is_a_pair_stands_in_a_tuple_of_its_own():
    program = fxsurgery.capture(OnePair(), ((A.numpy(), B),))
    assert torch.equal(program.example_inputs[0][1], B)
    with pytest.raises(DataError, match=r"forward\(pair\) takes 1 by position, and 2 were given: .*\(\(a, b\),\)"):
        fxsurgery.capture(OnePair(), (A, B))


@pytest.mark.parametrize(
    "call",
    [
        lambda **given: fxsurgery.capture(nn.Linear(6, 3), **given),
        lambda **given: fxsurgery.inspect(nn.Linear(6, 3), **given),
        lambda **given: fxsurgery.plan(nn.Linear(6, 3), train_data=(A, Y), val_data=(A, Y), verbose=False, **given),
        lambda **given: export_onnx(nn.Linear(6, 3), path="m.onnx", **({"example_inputs": None} | given)),
    ],
    ids=["capture", "inspect", "plan", "export_onnx"],
)
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"example_inputs": (A, Y)}, r"forward\(input\) takes 1 by position, and 2 were given: leave the target out"),
        ({"example_inputs": {"input": A, "label": Y}}, r"it takes input; in example_inputs, leave out 'label'"),
        ({"example_inputs": "a.npy"}, r"example_inputs is 'a\.npy'; it must be a tensor, a tuple of positional inputs"),
        ({"example_inputs": 3}, r"example_inputs is 3; it must be a tensor"),
        ({"example_inputs": np.array(["a"])}, r"an array of type <U1 holds no numbers; encode it"),
        ({"example_inputs": {"input": A}, "example_kwargs": {"input": A}}, r"'input' is in example_inputs and in"),
        ({"example_kwargs": [A]}, r"example_kwargs=.*: it must be a dict"),
        ({"example_inputs": DataLoader(TensorDataset(A[:0], Y[:0]))}, r"example_inputs holds no batch"),
    ],
    ids=["target", "entry", "text", "number", "texts", "twice", "list by name", "empty"],
)  # fmt: skip
def test_what_does_not_fit_is_one_error_that_says_so(call, given: dict, message: str):
    with pytest.raises(SurgeryError, match=message):
        call(**given)


def test_inspect_without_inputs_infers_them_and_says_what_it_assumed():
    found = fxsurgery.inspect(nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 26 * 26, 4)))
    assert [tuple(x.shape) for x in found.program.example_inputs] == [(2, 1, 28, 28)]
    assert found.notes[0].startswith("inputs of (2, 1, 28, 28): ")
    assert "example_inputs= overrides" in found.notes[0]
    with pytest.raises(DataError, match=r"cannot infer the inputs of forward\(a, b\) from the model alone"):
        fxsurgery.inspect(Two())


def test_a_loader_is_read_alike_each_time_and_leaves_the_random_state_alone():
    loader = DataLoader(TensorDataset(torch.arange(100.0)[:, None], torch.arange(100)), batch_size=3, shuffle=True)
    model, state = nn.Linear(1, 1), torch.get_rng_state()
    first, second = (inputs_of(model, loader).args[0] for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_data_set_gives_its_first_two_samples():
    assert torch.equal(inputs_of(None, TensorDataset(A, Y)).args[0], A[:2])


def test_tensors_go_where_the_model_is_and_others_stay():
    model = nn.Linear(6, 2, device="meta")
    assert inputs_of(model, A).args[0] is A
    assert inputs_of(nn.ReLU(), A).args[0] is A


@pytest.mark.parametrize(
    ("dtype", "made"),
    [("float64", torch.float32), ("float32", torch.float32), ("int32", torch.int64), ("int64", torch.int64),
     ("uint8", torch.uint8), ("bool", torch.bool), ("complex64", torch.complex64)],
)  # fmt: skip
def test_arrays_have_the_types_that_models_expect(dtype: str, made: torch.dtype):
    assert tensor_of(np.ones(3, dtype)).dtype is made


def test_positional_inputs_may_be_listed_for_capture():
    both = [fxsurgery.capture(Two(), A, B), fxsurgery.capture(Two(), A.numpy(), B.numpy())]
    for program in nonempty(both):
        assert torch.equal(program.example_inputs[1], B)


@pytest.mark.parametrize(("dtype", "name"), [(torch.float64, "float64"), (torch.uint8, "uint8")])
def test_an_input_of_another_type_than_the_weights_is_to_be_converted(dtype: torch.dtype, name: str):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten())
    with pytest.raises(DataError, match=rf"pass x\.float\(\): an input is {name}, and the weights are float32"):
        fxsurgery.capture(model, torch.ones(2, 3, 8, 8).to(dtype))
