"""Folders that somebody crafted: refused before anything of them runs, is built large, or is waited for."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import run  # noqa: F401 -- as the file of a model may import it
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

import fxsurgery
from fxsurgery.capture import capture
from fxsurgery.errors import RunError, SavingError, SurgeryError
from fxsurgery.passes import InsertGates
from fxsurgery.program import Program
from fxsurgery.result import Result
from fxsurgery.saving import load_program, save_program
from fxsurgery.saving.standalone import source
from fxsurgery.saving.standalone.call_code import call
from fxsurgery.saving.standalone.literals import Code
from fxsurgery.saving.stochastic_depth import StochasticDepth
from programs import program

CALLS = list[str]()
"""Names of this file's functions that ran."""


def longest(x: torch.Tensor, scale: float = 1.0, label: str = "kept") -> torch.Tensor:
    """Cannot be traced, so it becomes a leaf."""
    CALLS.append(label)
    return x * scale if float(x.detach().sum()) > -1e9 else x


def other(x: torch.Tensor, scale: float = 1.0, label: str = "other") -> torch.Tensor:
    CALLS.append(label)
    return x * scale


class Calls(nn.Module):
    """Calls a function that becomes a leaf."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(longest(self.first(x).relu(), 2.0, "here"))


class Inner(nn.Module):
    """Writes to a given path: only its own model should call it."""

    def forward(self, x: torch.Tensor, label: str = "inner") -> torch.Tensor:
        CALLS.append(label)
        return x


class Whole(nn.Module):
    """Becomes a leaf together with its parts."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.inner = nn.Parameter(torch.rand(4)), Inner()

    @property
    def trap(self) -> torch.Tensor:
        CALLS.append("property")
        return self.weight

    def forward(self, x: torch.Tensor, label: str = "whole") -> torch.Tensor:
        CALLS.append(label)
        return x * self.weight if float(x.detach().sum()) > -1e9 else x


class Holds(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.whole, self.last = Whole(), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.whole(x, "asked").relu())


class Deep(nn.Module):
    """Stochastic depth, attention and a normed layer."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.drop = nn.LSTM(4, 4, batch_first=True), StochasticDepth(0.25, "batch")
        self.norm = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.drop(self.norm(self.lstm(x)[0]))


def saved(given: Program, folder: Path) -> Path:
    save_program(given, folder / "saved")
    return folder / "saved"


def changed(folder: Path, change: Callable[[dict[str, Any]], object], name: str = "graph.json") -> Path:
    """A folder whose JSON somebody changed, who left out the digests as well."""
    plain = json.loads((folder / name).read_text())
    plain.pop("sha256", None)
    change(plain)
    (folder / name).write_text(json.dumps(plain))
    return folder


def entry(plain: dict[str, Any], name: str, group: str = "nodes") -> dict[str, Any]:
    key = {"nodes": "name", "modules": "path", "state": "name"}[group]
    return next(e for e in plain[group] if e[key] == name)


def calls_program() -> Program:
    return capture(Calls().eval(), torch.randn(2, 4))


def kept_node(plain: dict[str, Any]) -> dict[str, Any]:
    return next(n for n in plain["nodes"] if isinstance(n["target"], dict))


def test_a_function_kept_as_leaf_is_taken_from_the_model(tmp_path: Path) -> None:
    model = Calls().eval()
    given = capture(model, torch.randn(2, 4))
    folder = saved(given, tmp_path)
    again = load_program(folder, original=Calls())
    assert torch.equal(again(x := torch.randn(2, 4)), given(x))
    with pytest.raises(RunError, match=r"longest.*original=your_model"):
        load_program(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"target": {"opaque": ["subprocess", "run"]}},
        {"target": {"opaque": ["subprocess", "run"]}, "args": ["touch /tmp/no"], "kwargs": {"shell": True}},
        {"target": {"opaque": [__name__, "other"]}},
        {"target": {"opaque": [__name__, "saved"]}},
        {"target": {"opaque": ["builtins", "eval"]}},
        {"target": {"opaque": [__name__, "longest.__globals__"]}},
        {"target": {"opaque": [__name__, "longest", "x"]}},
        {"target": {"opaque": [__name__, ["longest"]]}},
        {"target": {"opaque": [__name__, "longest"], "more": 1}},
        {"args": [{"node": "relu"}, 2.0, "changed"]},
        {"args": [{"node": "relu"}, 3.0, "here"]},
        {"args": [{"node": "relu"}, 2, "here"]},
        {"args": [{"node": "relu"}, 2.0], "kwargs": {"label": "here"}},
        {"args": ["relu", 2.0, "here"]},
        {"op": "call_method"},
    ],
)
def test_another_function_or_other_constants_are_refused_unrun(change: dict[str, Any], tmp_path: Path) -> None:
    folder = changed(saved(calls_program(), tmp_path), lambda plain: kept_node(plain).update(change))
    with pytest.raises(SurgeryError):
        load_program(folder, original=Calls())
    assert not [call for call in CALLS if call != "here"]


def test_a_function_kept_as_leaf_elsewhere_is_refused(tmp_path: Path) -> None:
    def twice(plain: dict[str, Any]) -> None:
        kept = kept_node(plain)
        entry(plain, "relu").update(op="call_function", target=kept["target"], args=[{"node": "first"}, 2.0, "here"])

    folder = changed(saved(calls_program(), tmp_path), twice)
    with pytest.raises(RunError, match="at `relu`, but original does not"):
        load_program(folder, original=Calls())


def test_another_model_does_not_vouch_for_a_function(tmp_path: Path) -> None:
    class Similar(Calls):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(x).relu())

    with pytest.raises(RunError, match="pass the model that was optimized"):
        load_program(saved(calls_program(), tmp_path), original=Similar())


def holds_program() -> Program:
    return capture(Holds().eval(), torch.randn(2, 4))


def test_a_module_kept_as_leaf_is_called_as_the_model_calls_it(tmp_path: Path) -> None:
    model = Holds().eval()
    given = capture(model, torch.randn(2, 4))
    again = load_program(saved(given, tmp_path), original=model)
    assert torch.equal(again(x := torch.randn(2, 4)), given(x))


@pytest.mark.parametrize(
    "change",
    [
        {"args": [{"node": "x"}, "changed"]},
        {"args": [{"node": "x"}], "kwargs": {"label": "changed"}},
        {"target": "whole.inner", "args": [{"node": "x"}, "asked"]},
        {"op": "get_attr", "target": "whole.trap", "args": [], "kwargs": {}},
        {"op": "get_attr", "target": "whole.inner", "args": [], "kwargs": {}},
        {"op": "get_attr", "target": "whole.forward", "args": [], "kwargs": {}},
        {"op": "get_attr", "target": "whole.__class__", "args": [], "kwargs": {}},
        {"op": "call_function", "target": "getattr", "args": [{"node": "x"}, "__class__"], "kwargs": {}},
        {"op": "call_function", "target": "getattr", "args": [{"node": "x"}, "grad_fn"], "kwargs": {}},
    ],
)
def test_a_module_kept_as_leaf_is_called_in_no_other_way(change: dict[str, Any], tmp_path: Path) -> None:
    folder = changed(saved(holds_program(), tmp_path), lambda plain: entry(plain, "whole").update(change))
    CALLS.clear()
    with pytest.raises(SurgeryError):
        load_program(folder, original=Holds())
    assert not [call for call in CALLS if call != "asked"]


def test_another_name_of_a_module_kept_as_leaf_is_the_same_module(tmp_path: Path) -> None:
    def alias(plain: dict[str, Any]) -> None:
        plain["modules"].insert(1, {"path": "twin", "kind": "same", "as": "whole"})
        plain["state"].append({"name": "twin.weight", "kind": "parameter", "trains": True, "of": "whole.weight"})
        entry(plain, "whole").update(target="twin", args=[{"node": "x"}, "changed"])

    folder = changed(saved(holds_program(), tmp_path), alias)
    with pytest.raises(RunError, match="calls code of your model in a way that original does not"):
        load_program(folder, original=Holds())


def test_an_attribute_of_what_a_kept_module_gave_must_be_read_by_the_model(tmp_path: Path) -> None:
    def read(plain: dict[str, Any]) -> None:
        args = [{"node": "whole"}, "grad_fn"]
        entry(plain, "relu").update(op="call_function", target="getattr", args=args, kwargs={})

    folder = changed(saved(holds_program(), tmp_path), read)
    with pytest.raises(RunError, match="`relu` calls code of your model"):
        load_program(folder, original=Holds())


def result_of(model: nn.Module) -> Result:
    given = capture(model.eval(), torch.randn(2, 4))
    return Result(given, given, "accuracy", {})


def test_nothing_runs_when_a_loaded_result_is_shown(tmp_path: Path) -> None:
    made = result_of(Calls())
    made.save(tmp_path / "saved")
    loaded = fxsurgery.load(tmp_path / "saved", original=Calls())
    CALLS.clear()
    assert repr(loaded) == repr(made)
    assert loaded.summary() == made.summary()
    assert not CALLS or set(CALLS) == {"here"}
    CALLS.clear()
    repr(loaded)
    loaded.summary()
    assert CALLS == []


def test_a_result_without_saved_costs_is_shown_without_running_it(tmp_path: Path) -> None:
    """As early versions wrote it, and as anybody can."""
    result_of(Calls()).save(tmp_path / "saved")
    changed(tmp_path / "saved", lambda plain: plain.pop("costs"), "result.json")
    loaded = fxsurgery.load(tmp_path / "saved", original=Calls())
    CALLS.clear()
    assert repr(loaded) == "<Result: 67 of 67 parameters>"
    assert "MACs" not in loaded.summary()
    assert CALLS == []
    assert loaded.cost[0].macs == 4 * 8 + 8 * 3


def test_costs_that_the_weights_refute_are_refused(tmp_path: Path) -> None:
    result_of(nn.Sequential(nn.Linear(4, 3))).save(tmp_path / "saved")
    changed(tmp_path / "saved", lambda plain: plain["costs"]["program"].update(params=1), "result.json")
    with pytest.raises(RunError, match="`program` has 15 parameters, and 1 by its file"):
        fxsurgery.load(tmp_path / "saved")


EVIL = 'row"); import os; os.abort(); ("'


def deep_program() -> Program:
    return capture(Deep().eval(), torch.randn(2, 3, 4))


def test_the_mode_of_stochastic_depth_is_one_of_two(tmp_path: Path) -> None:
    folder = changed(saved(deep_program(), tmp_path), lambda plain: entry(plain, "drop", "modules").update(mode=EVIL))
    with pytest.raises(RunError, match=r"drop|modules\.\d+\.depth\.mode: Input should be 'row' or 'batch'"):
        load_program(folder)


def test_every_string_in_generated_code_is_a_literal(tmp_path: Path) -> None:
    given = deep_program()
    given.graph_module.get_submodule("drop").mode = EVIL
    code = source(given)
    assert f"StochasticDepth(0.25, mode={EVIL!r})" in code
    compile(code, "model.py", "exec")


@pytest.mark.parametrize(
    ("group", "name", "change"),
    [
        ("modules", "lstm", {"arguments": {"input_size": 4, "hidden_size": 4, "num_layers": 10**9}}),
        ("modules", "lstm", {"arguments": {"input_size": 4, "hidden_size": 4, "num_layers": True}}),
        ("modules", "lstm", {"arguments": {"input_size": 10**6, "hidden_size": 10**6}}),
        ("modules", "lstm", {"arguments": {"input_size": 4, "hidden_size": 4, "device": "cpu"}}),
        ("modules", "lstm", {"class": "Linear", "arguments": {"in_features": 10**9, "out_features": 10**9}}),
        ("modules", "lstm", {"class": "Linear", "arguments": {"in_features": 10**30, "out_features": 10**30}}),
        ("modules", "lstm", {"class": "Linear", "arguments": {"in_features": -1, "out_features": 1}}),
        ("modules", "lstm", {"class": "Linear", "arguments": {"in_features": "4", "out_features": {"node": "x"}}}),
        ("modules", "lstm", {"class": "Transformer", "arguments": {"num_encoder_layers": 10**9}}),
        ("modules", "lstm", {"class": "DataParallel", "arguments": {"module": None}}),
        ("modules", "lstm", {"class": "Module.__init__"}),
        ("modules", "lstm", {"class": "Embedding", "arguments": {"num_embeddings": 9**9, "embedding_dim": 9**9}}),
        ("modules", "lstm", {"path": "__class__"}),
        ("modules", "lstm", {"path": "drop.forward"}),
        ("modules", "lstm", {"path": "norm.extra"}),
        ("modules", "lstm", {"path": "graph"}),
        ("modules", "lstm", {"path": "meta"}),
        ("modules", "lstm", {"path": "a" * 5000}),
        ("modules", "lstm", {"path": ".".join("a" * 200)}),
        ("modules", "lstm", {"path": "lstm\n"}),
        ("modules", "lstm", {"elastic": {"tuple": []}}),
        ("modules", "lstm", {"more": 1}),
        ("modules", "lstm", {"kind": "opaque", "class": "os.system", "reason": ""}),
        ("modules", "drop", {"p": "0.25"}),
        ("modules", "drop", {"p": 7.0}),
        ("modules", "norm", {"norms": [["weight_norm", "__class__", {}]]}),
        ("modules", "norm", {"norms": [["weight_norm", "weight", {"name": "x"}]]}),
        ("modules", "norm", {"norms": [["_weight_norm", "weight", {}]]}),
        ("modules", "norm", {"norms": [["spectral_norm", "weight", {"dim": "x"}]]}),
        ("nodes", "x", {"target": "x=__import__('os')"}),
        ("nodes", "x", {"target": "self"}),
        ("nodes", "x", {"target": "torch"}),
        ("nodes", "x", {"target": "lambda"}),
        ("nodes", "x", {"target": "__builtins__"}),
        ("nodes", "x", {"name": "\uff58"}),
        ("nodes", "x", {"name": "x; y"}),
        ("nodes", "x", {"args": [1, 2]}),
        ("nodes", "lstm", {"name": "x"}),
        ("nodes", "lstm", {"name": "torch"}),
        ("nodes", "lstm", {"inside": 'a"""'}),
        ("nodes", "lstm", {"inside": "a\nimport os"}),
        ("nodes", "lstm", {"type": "str"}),
        ("nodes", "lstm", {"kwargs": {"x=1, **y": 1}}),
        ("nodes", "lstm", {"kwargs": {"__class__": 1}}),
        ("nodes", "lstm", {"args": [{"node": "output"}]}),
        ("nodes", "lstm", {"args": [{"node": ["x"]}]}),
        ("nodes", "lstm", {"args": [{"dict": [[{"node": "x"}, 1]]}]}),
        ("nodes", "lstm", {"args": [{"float": "__import__('os')"}]}),
        ("nodes", "lstm", {"args": [{"dtype": "__name__"}]}),
        ("nodes", "lstm", {"args": [{"device": {}}]}),
        ("nodes", "lstm", {"op": "call_method", "target": "numpy"}),
        ("nodes", "lstm", {"op": "call_method", "target": "__reduce__"}),
        ("nodes", "lstm", {"op": "call_method", "target": "apply_"}),
        ("nodes", "lstm", {"op": "call_method", "target": "as_subclass"}),
        ("nodes", "lstm", {"op": "call_method", "target": "share_memory_"}),
        ("nodes", "lstm", {"op": "call_method", "target": "register_hook"}),
        ("nodes", "lstm", {"op": "call_method", "target": "data_ptr"}),
        ("nodes", "lstm", {"op": "call_method", "target": "relu", "args": ["x"]}),
        ("nodes", "lstm", {"op": "call_method", "target": "relu", "args": []}),
        ("nodes", "lstm", {"op": "call_function", "target": "torch.ops.aten._print"}),
        ("nodes", "lstm", {"op": "call_function", "target": "torch.nn.functional.triplet_margin_with_distance_loss"}),
        ("nodes", "lstm", {"op": "call_function", "target": "getattr", "args": [{"node": "x"}]}),
        ("nodes", "lstm", {"op": "call_function", "target": "getattr", "args": [{"node": "x"}, "a.b"]}),
        ("nodes", "lstm", {"op": "call_function", "target": "getattr", "args": [{"node": "x"}, "dtype", 1]}),
        ("nodes", "lstm", {"target": "norm.parametrizations.weight"}),
        ("nodes", "output", {"op": "placeholder", "target": "y", "args": []}),
        ("nodes", "output", {"args": []}),
        ("state", "lstm.bias_hh_l0", {"name": "lstm.forward"}),
        ("state", "lstm.bias_hh_l0", {"name": "lstm.hidden_size"}),
        ("state", "lstm.bias_hh_l0", {"name": "lstm.__class__"}),
        ("state", "lstm.bias_hh_l0", {"name": "nowhere.weight"}),
        ("state", "lstm.bias_hh_l0", {"kind": "buffer"}),
        ("state", "lstm.bias_hh_l0", {"of": "lstm.bias_hh_l0"}),
        ("state", "lstm.bias_hh_l0", {"of": "lstm.weight_ih_l0"}),
        ("state", "lstm.bias_hh_l0", {"trains": 1}),
    ],
)  # fmt: skip
def test_no_entry_is_read_that_loading_does_not_know(
    group: str, name: str, change: dict[str, Any], tmp_path: Path
) -> None:
    folder = changed(saved(deep_program(), tmp_path), lambda plain: entry(plain, name, group).update(change))
    with pytest.raises(SurgeryError):
        load_program(folder)


@pytest.mark.parametrize("method", ["to_folder", "load_state_dict", "register_forward_hook", "print_readable", "apply"])
def test_no_module_takes_the_name_of_a_method(method: str, tmp_path: Path) -> None:
    """The generated code would call the method: `self.to_folder("/some/where")` writes files."""

    def rename(plain: dict[str, Any]) -> None:
        entry(plain, "drop", "modules").update(path=method)
        entry(plain, "drop").update(target=method, args=[str(tmp_path / "written"), "module"])

    folder = changed(saved(deep_program(), tmp_path), rename)
    with pytest.raises(RunError, match=f"`{method}` is an attribute name of"):
        load_program(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda plain: plain["nodes"].append(plain["nodes"][-1]),
        lambda plain: plain["nodes"].insert(1, plain["nodes"][0]),
        lambda plain: plain["nodes"].insert(1, {**plain["nodes"][0], "name": "y"}),
        lambda plain: plain["modules"].append(plain["modules"][0]),
        lambda plain: plain["state"].append(plain["state"][0]),
        lambda plain: plain["state"].pop(),
        lambda plain: plain.update(more=1),
        lambda plain: plain.update(format=True),
        lambda plain: plain.update(format=1.0),
        lambda plain: plain.update(log="a"),
        lambda plain: plain.update(notes=[1]),
        lambda plain: plain.update(name=None),
        lambda plain: plain.update(inputs=["x", "x"]),
        lambda plain: plain.update(inputs=["x; import os"]),
        lambda plain: plain.update(inputs=["self"], outputs="*"),
        lambda plain: plain.update(inputs=["x"], outputs={"tuple": ["*", "*"]}),
        lambda plain: plain.update(inputs=["x"], outputs={"os.system": []}),
        lambda plain: plain.update(examples=[]),
        lambda plain: plain.update(examples={"tuple": [{"tuple": []}, {"dict": []}]}),
        lambda plain: plain.update(examples={"tuple": [{"tuple": [{"tensor": "1"}]}, {"dict": []}]}),
        lambda plain: plain.update(examples={"tuple": [{"tuple": []}, {"dict": [["x=1):", {"tensor": "0"}]]}]}),
        lambda plain: plain.update(examples={"tuple": [{"tuple": [{"tensor": "0"}]}, {"dict": [[0, 1]]}]}),
        lambda plain: plain.update(sha256={}),
    ],
)  # fmt: skip
def test_no_graph_is_read_that_loading_does_not_know(
    change: Callable[[dict[str, Any]], object], tmp_path: Path
) -> None:
    with pytest.raises(SurgeryError):
        load_program(changed(saved(deep_program(), tmp_path), change))


@pytest.mark.parametrize("change", [{"mode": "evil"}, {"mode": 1}, {"mode": "off", "forward": 1}, {}])
def test_a_gate_has_what_a_gate_has(change: dict[str, Any], tmp_path: Path) -> None:
    given = InsertGates()(program("Residual")).program

    def craft(plain: dict[str, Any]) -> None:
        gate = next(m for m in plain["modules"] if m.get("class") == "GateVector")
        gate["attributes"] = change

    with pytest.raises(RunError, match=r"GateVector|mode"):
        load_program(changed(saved(given, tmp_path), craft))


class Output:
    """An output type that pytree knows, which runs something when it is made."""

    def __init__(self, x: object) -> None:
        CALLS.append("made")
        self.x = x


pytree.register_pytree_node(Output, lambda o: ([o.x], ["x"]), lambda values, _: Output(values[0]))


def test_no_output_type_is_made_to_load_it(tmp_path: Path) -> None:
    class Gives(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> Output:
            return Output(self.first(x))

    folder = saved(capture(Gives().eval(), torch.randn(2, 4)), tmp_path)
    CALLS.clear()
    loaded = load_program(folder)
    assert CALLS == []
    assert isinstance(loaded(torch.randn(2, 4)), Output)


@pytest.mark.parametrize("name", ["graph.json", "weights.safetensors", "examples.safetensors"])
@pytest.mark.parametrize("what", ["a pipe", "a folder", "a device"])
@pytest.mark.timeout(60)
def test_what_is_no_regular_file_is_refused_and_not_waited_for(name: str, what: str, tmp_path: Path) -> None:
    folder = saved(program("Plain"), tmp_path)
    path = folder / name
    path.unlink()
    makers = {
        "a pipe": lambda: os.mkfifo(path),
        "a folder": path.mkdir,
        "a device": lambda: path.symlink_to("/dev/zero"),
    }
    makers[what]()
    with pytest.raises(RunError, match=rf"{re.escape(name)} is not a regular file"):
        load_program(folder)


@pytest.mark.timeout(60)
def test_a_pipe_as_result_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "saved").mkdir()
    os.mkfifo(tmp_path / "saved" / "result.json")
    with pytest.raises(RunError, match=r"result\.json is not a regular file"):
        fxsurgery.load(tmp_path / "saved")


def header_of(entries: dict[str, Any], room: int) -> bytes:
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + bytes(room)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 8,
        (10**12).to_bytes(8, "little"),
        header_of({"0": {"dtype": "F32", "shape": [10**9, 10**9], "data_offsets": [0, 4 * 10**18]}}, 0),
        header_of({"0": {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 0]}}, 0),
        header_of({"0": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, 4),
        header_of({"0": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, 8),
        header_of({"0": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, 8),
        header_of({"0": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, 4),
        header_of({"0": {"dtype": "F999", "shape": [1], "data_offsets": [0, 4]}}, 4),
        header_of({"0": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}}, 4),
        header_of({"0": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], "more": 1}}, 4),
        header_of({"0": {"dtype": "F32", "shape": [0] * 10**5, "data_offsets": [0, 0]}}, 0),
        header_of({"__metadata__": {"layouts": "[" * 10**5}}, 0),
        header_of({"__metadata__": {"layouts": '{"0": "channels_last"}'}}, 0),
    ],
)  # fmt: skip
def test_tensors_that_are_not_there_are_refused_before_any_is_made(content: bytes, tmp_path: Path) -> None:
    folder = saved(program("Plain"), tmp_path)
    for name in ("weights.safetensors", "examples.safetensors"):
        kept = (folder / name).read_bytes()
        (folder / name).write_bytes(content)
        with pytest.raises(RunError):
            load_program(folder)
        (folder / name).write_bytes(kept)


def test_json_that_two_readers_could_take_differently_is_refused(tmp_path: Path) -> None:
    folder = saved(program("Plain"), tmp_path)
    text = (folder / "graph.json").read_text()
    for crafted in (
        text.replace('"format": 1', '"format": 1, "format": 1'),
        text.replace('"log": []', '"log": ' + "[" * 10**5),
        text.replace('"log": []', '"log": [NaN]'),
        text.replace('"log": []', '"log": ["\\ud800"]'),
    ):
        assert crafted != text
        (folder / "graph.json").write_text(crafted)
        with pytest.raises(RunError, match=r"graph\.json is damaged"):
            load_program(folder)


@pytest.mark.parametrize("name", ["weights.safetensors", "examples.safetensors"])
def test_a_bit_that_flipped_is_found(name: str, tmp_path: Path) -> None:
    folder = saved(program("Plain"), tmp_path)
    content = bytearray((folder / name).read_bytes())
    content[-5] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(RunError, match=rf"{re.escape(name)} is damaged: its SHA-256"):
        load_program(folder)


def test_a_number_that_changed_is_found_and_another_layout_is_the_same(tmp_path: Path) -> None:
    folder = saved(program("Residual"), tmp_path)
    text = (folder / "graph.json").read_text()
    (folder / "graph.json").write_text(json.dumps(json.loads(text)))
    load_program(folder)
    (folder / "graph.json").write_text(text.replace('"stride": 2', '"stride": 1'))
    assert (folder / "graph.json").read_text() != text
    with pytest.raises(RunError, match=r"graph\.json is damaged: its SHA-256"):
        load_program(folder)


def test_a_program_of_another_result_is_found(tmp_path: Path) -> None:
    for name in ("one", "two"):
        result_of(nn.Sequential(nn.Linear(4, 3))).save(tmp_path / name)
    shutil.rmtree(tmp_path / "one" / "program")
    shutil.copytree(tmp_path / "two" / "program", tmp_path / "one" / "program")
    with pytest.raises(RunError, match=r"program/graph\.json is damaged: its SHA-256"):
        fxsurgery.load(tmp_path / "one")


def test_a_folder_without_digests_is_read(tmp_path: Path) -> None:
    """As early versions wrote it."""
    folder = changed(saved(program("Residual"), tmp_path), lambda plain: None)
    assert load_program(folder).text() == program("Residual").text()


@pytest.mark.parametrize(
    "change",
    [
        lambda facts: facts.update(more=1),
        lambda facts: facts.pop("metrics"),
        lambda facts: facts.update(seed="0"),
        lambda facts: facts.update(notes={"tuple": [1]}),
        lambda facts: facts.update(metrics={"dict": [["val", {"tuple": [1, 2, 3]}]]}),
        lambda facts: facts.update(metrics={"dict": [["val", {"tuple": ["1", "2"]}]]}),
        lambda facts: facts.update(search={"dict": [["winner", 0]]}),
        lambda facts: facts.update(pareto=[1]),
        lambda facts: facts.update(pareto=[{"dict": []}]),
        lambda facts: facts.update(pareto=10**9),
    ],
)
def test_no_fact_is_read_that_loading_does_not_know(change: Callable[[dict[str, Any]], object], tmp_path: Path) -> None:
    result_of(nn.Sequential(nn.Linear(4, 3))).save(tmp_path / "saved")
    changed(tmp_path / "saved", lambda plain: change(plain["facts"]), "result.json")
    with pytest.raises(SurgeryError):
        fxsurgery.load(tmp_path / "saved")


@pytest.mark.parametrize("name", ["x=1, **y", "a.b", "class", "", "x y"])
def test_names_in_generated_code_are_identifiers(name: str) -> None:
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    for node in (
        graph.call_method("mean", (x,), {name: 1}),
        graph.call_method(name, (x,)),
        graph.call_function(getattr, (x, name)),
    ):
        with pytest.raises(SavingError, match="is not an identifier"):
            call(node, lambda value: Code(value.name) if isinstance(value, torch.fx.Node) else None, tensors=True)
