"""Arguments that are wrong in type or range: one error of ours for each, whoever is called."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pytest
import torch
from torch import nn

import fxsurgery
from fxsurgery import Budget, Dnal, Ectonas, Program, Prune, Result, Spend, SurgeryError, Task
from fxsurgery.deploy import compare_latency, export_onnx, resolve_target
from fxsurgery.errors import DataError, RunError, SpecError
from fxsurgery.option_types import Count, FilePath, OptionalFilePath, Range, check_fields, check_options, checked
from fxsurgery.passes import PASSES, FoldBn, Widen, parse, replay
from fxsurgery.surgery import Rewrite
from fxsurgery.training import Recipe, adamw, resolve, sgd
from nonempty import nonempty
from programs import program
from zoo import example

WRONG: dict[str, Any] = {
    "None": None, "a text": "a", "an empty text": "", "a null byte": "a\0b", "bytes": b"a", "a float": 1.5,
    "a bool": True, "a list": [1], "a dict": {"a": 1}, "zero": 0, "negative": -1, "nan": math.nan, "inf": math.inf,
    "huge": 10**30, "beyond print": 10**5000, "an object": object(), "a class": int, "numpy": np.float32(0.3),
    "a tensor": torch.zeros(2),
}  # fmt: skip
"""What stands in the place of each argument."""

X, Y = torch.randn(16, 3, 12, 12, generator=torch.Generator().manual_seed(0)), torch.arange(16) % 4


def small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


@cache
def result() -> Result:
    return fxsurgery.optimize(small(), **QUICK)


QUICK = {
    "method": "prune", "train_data": (X, Y), "val_data": (X, Y), "fewest_steps": 0, "most_steps": 1, "align": 1,
    "verbose": False, "device": "cpu",
}  # fmt: skip


def optimized(**given: Any) -> object:
    return fxsurgery.optimize(**{"model": small(), **QUICK, **given})


def planned(**given: Any) -> object:
    return fxsurgery.plan(**{"model": small(), **QUICK, **given})


def task_of(**given: Any) -> object:
    return Task.of(**{"train_data": (X, Y), "val_data": (X, Y), **given})


def _onnx(folder: Path, **given: Any) -> object:
    return export_onnx(**{"model": small(), "example_inputs": (X,), "path": folder / "a.onnx", **given})


def _named(function: Callable[..., Any], *names: str) -> list[tuple[str, Callable[..., Any], str]]:
    return [(function.__name__, function, name) for name in names]


def _fields(kind: type, *, but: Sequence[str] = ()) -> list[tuple[str, Callable[..., Any], str]]:
    return [(kind.__name__, kind, f.name) for f in fields(kind) if f.init and f.name not in but]


_OPTIMIZE = [n for n in inspect.signature(fxsurgery.optimize).parameters if n not in {"settings", "verbose"}]

CALLS: list[tuple[str, Callable[..., Any], str]] = [
    *_named(optimized, *_OPTIMIZE),
    *_named(planned, "method", "budget", "config", "spend"),
    *_named(task_of, "train_data", "val_data", "test_data", "batch_size", "seed", "loss", "metric", "split", "select"),
    *_fields(Budget), *_fields(Spend), *_fields(Dnal), *_fields(Prune), *_fields(Ectonas),
    *((f"{kind.name} as spec", lambda _pass=kind, **g: _applied(_pass, g), field.name)
      for kind in PASSES for field in fields(kind)),
    *(("Recipe", lambda **g: Recipe(**{"steps": 1, "optimizer": sgd(0.1), **g}), n)
      for n in ("steps", "gradient_clip", "accumulate", "validations")),
    *_named(sgd, "lr"), *_named(adamw, "lr"), *_named(resolve, "device"), *_named(resolve_target, "spec"),
    *_named(fxsurgery.load, "folder"), *_named(parse, "spec"),
    ("capture", lambda **g: fxsurgery.capture(*[g.pop("model", small()), g.pop("x", X)], **g), "model"),
    ("capture", lambda **g: fxsurgery.capture(small(), g["x"]), "x"),
    ("capture", lambda **g: fxsurgery.capture(small(), X, **g), "leaf_modules"),
    ("capture", lambda **g: fxsurgery.capture(small(), X, **g), "example_kwargs"),
    ("inspect", lambda **g: fxsurgery.inspect(**{"model": small(), "example_inputs": X, **g}), "model"),
    ("inspect", lambda **g: fxsurgery.inspect(**{"model": small(), "example_inputs": X, **g}), "example_inputs"),
    ("inspect", lambda **g: fxsurgery.inspect(**{"model": small(), "example_inputs": X, **g}), "leaf_modules"),
    ("replay", lambda **g: replay(**{"log": (), "program": program("Plain"), **g}), "log"),
    ("apply", FoldBn(), "program"),
    ("candidates", lambda program: list(Widen.candidates(program)), "program"),
    ("Program", lambda **g: Program(**{"graph_module": program("Plain").graph_module, "example_inputs": (), **g}),
     "graph_module"),
]  # fmt: skip


def _applied(kind: type[Rewrite], given: Mapping[str, Any]) -> object:
    """The first move of a pass that there is, with other options."""
    for name in ("Plain", "PooledLinear"):
        if (move := next(iter(kind.candidates(program(name))), None)) is not None:
            return replace(move, **given)(program(name))
    return kind(**given)(program("Plain"))


@pytest.mark.parametrize(("call", "name"), [pytest.param(c, n, id=f"{who}-{n}") for who, c, n in CALLS])
def test_a_wrong_argument_works_or_is_one_error_of_ours(
    call: Callable[..., Any], name: str, tmp_path: Path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    refused = dict[str, str]()
    for what, value in WRONG.items():
        try:
            call(**{name: value})
        except SurgeryError as error:
            refused[what] = str(error)
        except Exception as error:  # noqa: BLE001 -- whatever it is, it is the finding
            pytest.fail(f"{name}={what}: {type(error).__name__}: {error}")
    assert all(refused[what] for what in nonempty(refused))


@pytest.mark.parametrize("method", ["save", "save_standalone", "report", "export_onnx"])
def test_paths_of_a_result(method: str, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for value in (None, "", "a\0b", b"a", 5, 1.5, True, [1], math.nan):
        with pytest.raises(SurgeryError, match="it must be"):
            getattr(result(), method)(value)


@pytest.mark.parametrize("name", ["rounds", "warmup", "threads", "seconds", "seed"])
@pytest.mark.parametrize("value", [None, "2", math.nan, math.inf, [1], True, 10**5000], ids=type)
def test_options_of_a_benchmark(name: str, value: object):
    if value is None and name == "seed":
        value = "none"
    with pytest.raises(SurgeryError, match=rf"{name}=.*it must be a (whole|finite) number"):
        result().benchmark(**{name: value})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"path": None}, "path=None"), ({"model": 5}, "model=5"), ({"opset": "18"}, "opset='18'"),
        ({"opset": -1}, "opset=-1"), ({"dynamic_batch": 1}, "dynamic_batch=1"),
        ({"exporter": "fast"}, "exporter='fast'"), ({"check": "no"}, "check='no'"),
        ({"example_kwargs": [1]}, "example_kwargs="),
    ],
)  # fmt: skip
def test_arguments_of_an_export(given: dict[str, Any], said: str, tmp_path: Path):
    with pytest.raises(SurgeryError, match=f"export_onnx: {said}.*: it must be"):
        _onnx(tmp_path, **given)
    assert not list(tmp_path.iterdir())


def test_the_message_names_argument_value_and_what_is_wanted():
    for given, said in (
        (
            {"batch_size": "8"},
            r"^optimize: batch_size='8': it must be a whole number, at least 1 and less than 2\*\*31$",
        ),
        ({"batch_size": 8.5}, r"^optimize: batch_size=8.5: it must be"),
        ({"run_dir": "a\0b"}, r"^optimize: run_dir='a\\x00b': it must be not empty and without null bytes$"),
        ({"align": 2.5}, r"^align=2.5: it must be a whole number, at least 1"),
        ({"leaf_modules": [nn.ReLU]}, r"leaf_modules=\[<ABCMeta>|leaf_modules=\["),
        ({"device": "meta"}, r"'meta' holds no numbers"),
    ):
        with pytest.raises(SurgeryError, match=said):
            optimized(**given)
    with pytest.raises(DataError, match=r"train_data must hold numbers, not an array of type <U1"):
        optimized(train_data=(np.array(["a"] * 16), Y))
    with pytest.raises(
        SpecError, match=r"fold-bn takes a fxsurgery.Program, not a torch.nn.Sequential: capture\(model, x\)"
    ):
        FoldBn()(small())  # type: ignore[arg-type]


def test_numbers_of_numpy_are_numbers_and_a_device_is_its_name():
    assert Budget(macs=np.float32(0.5)).macs == 0.5
    assert type(Budget(params=np.int64(100)).params) is int
    assert type(Prune(align=np.int32(4)).align) is int
    given = optimized(seed=np.int64(3), device=torch.device("cpu"), batch_size=np.int16(8))
    assert isinstance(given, Result)
    assert given.asked["seed"] == 3


def test_a_share_given_as_a_float_of_numpy_is_a_share():
    """As an amount, half a parameter could not be reached."""
    assert dict(Budget(params=np.float32(0.5)).limits(fxsurgery.Cost(params=100, macs=1))) == {"params": 50.0}


@pytest.mark.parametrize(
    "spec",
    [
        "split-edge(mode='deepen',target='body_2',ops=1000000000000)",
        "split-edge(mode='widen',target='body_6',source='body_2',channels=1000000000000)",
        "add-conv-cell(after='body_2',channels=1000000000000)",
        "widen(add=(('body.0',1000000000000),))",
        "deepen(after='body_2',kernel=1000000000001)",
        "low-rank(layer='body.0',rank=1000000000000)",
        "prune-channels(drop=(('body.0',(1000000000000,)),))",
        "elasticize(align=1000000000000)",
        "elasticize(shallowest=1000000000000)",
        "add-pool(after='body_2',seed=-1)",
    ],
)
@pytest.mark.timeout(20)
def test_an_amount_beyond_sense_is_refused_at_once(spec: str):
    with pytest.raises(SpecError, match=r"it must be|is wider than|choose"):
        parse(spec)(program("Plain"))


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("split-edge(mode='widen',target='body_6',source='body_2',size=(1000000000000,1000000000000))", "not reached"),
        ("svd-shrink(layer='body.0',units=1000000000000)", "run fold-bn first"),
    ],
)
@pytest.mark.timeout(20)
def test_an_amount_beyond_sense_is_a_refusal_at_once(spec: str, reason: str):
    start = program("Plain")
    found = parse(spec)(start)
    assert found.program is start
    assert reason in found.refusals[0].reason


@pytest.mark.timeout(20)
def test_more_units_than_a_layer_has_are_refused_at_once():
    with pytest.raises(SpecError, match="dense1 can have from 1 to 10 units"):
        parse("svd-shrink(layer='dense1',units=1000000000000)")(program("PooledLinear"))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("settings", [{"most_steps": 2**62}, {"rounds": 1000, "finetune_epochs": 0}])
def test_large_settings_allocate_nothing(settings: dict[str, Any]):
    assert planned(**settings, budget=Budget(macs=0.9)).method == "prune"


@pytest.mark.timeout(60)
def test_a_multiple_beyond_any_width_is_refused():
    with pytest.raises(SurgeryError, match=r"multiples of 1073741824: .* smaller align"):
        planned(align=2**30, budget=Budget(macs=0.9))


@pytest.mark.parametrize("spec", ["widen(add=" + "(" * 5000, "widen(add=" + "-" * 50_000 + "1)", "widen(\0)", "\0"])
def test_specs_that_no_parser_takes(spec: str):
    with pytest.raises(SpecError):
        parse(spec)


@dataclass(frozen=True)
class _Kinds:
    number: float = 1.0
    count: Count = 1
    share: Annotated[float | None, Range(above=0, most=1)] = None
    one: Literal["a", "b"] = "a"
    several: tuple[str, ...] = ()
    pairs: tuple[tuple[str, int], ...] = ()
    numbers: Sequence[int] = ()
    table: Mapping[str, Any] | None = None
    made: Callable[..., Any] | None = None
    kinds: tuple[type[nn.Module], ...] = ()
    path: OptionalFilePath = None
    name = "kinds"


@pytest.mark.parametrize(
    "given",
    [
        {"number": 3}, {"number": -1e300}, {"count": 1}, {"share": 1.0}, {"share": None}, {"one": "b"},
        {"several": ("a",)}, {"pairs": (("a", 1),)}, {"numbers": [1, 2]}, {"numbers": (1,)}, {"table": {"a": object()}},
        {"made": len}, {"made": nn.Linear}, {"kinds": (nn.Linear,)}, {"path": Path("a")}, {"path": "a"},
    ],
)  # fmt: skip
def test_what_fits_an_annotation(given: dict[str, Any]):
    kinds = _Kinds(**given)
    before = dict(vars(kinds))
    check_fields(kinds, SurgeryError)
    check_options(kinds)
    assert vars(kinds) == before


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"number": math.nan}, "number=nan: it must be a finite number"), ({"number": True}, "number=True"),
        ({"number": 10**400}, "number=<an integer of 1,329 bits>: it must be a finite number of at most 63 bits"),
        ({"count": 0}, "count=0: it must be at least 1"),
        ({"count": 1.0}, "count=1.0: it must be a whole number, at least 1"),
        ({"share": 0.0}, "share=0.0: it must be greater than 0 and at most 1"), ({"one": "c"}, "it must be 'a' or 'b'"),
        ({"several": "ab"}, "several='ab'"), ({"several": ("a", 1)}, r"several=\('a', 1\)"),
        ({"pairs": (("a", 1.5),)}, "pairs="), ({"pairs": (("a",),)}, "pairs="), ({"numbers": "12"}, "a list or tuple"),
        ({"numbers": [1, "2"]}, "numbers="), ({"table": {1: 2}}, "table="), ({"table": []}, "a dict or None"),
        ({"made": 5}, "a function or None"), ({"kinds": (int,)}, "kinds="), ({"kinds": (nn.ReLU(),)}, "kinds="),
        ({"path": "\0"}, "null bytes"), ({"path": ""}, "not empty"), ({"path": b"a"}, "a str or a Path"),
    ],
)  # fmt: skip
def test_what_does_not_fit_an_annotation(given: dict[str, Any], said: str):
    with pytest.raises(DataError, match=f"^_Kinds: .*{said}"):
        check_fields(_Kinds(**given), DataError)
    with pytest.raises(SpecError, match=r"^kinds: "):
        check_options(_Kinds(**given))


def test_a_checked_function_keeps_its_signature_and_its_errors_go_by_argument():
    @checked(DataError, path=RunError)
    def act(path: FilePath, *counts: Count, mode: Literal["a", "b"] = "a", **shares: float) -> tuple[object, ...]:
        """Text."""
        return path, counts, mode, shares

    assert (act.__doc__, list(inspect.signature(act).parameters)) == ("Text.", ["path", "counts", "mode", "shares"])
    assert act("a", 1, np.int64(2), mode="b", x=np.float32(0.5)) == ("a", (1, 2), "b", {"x": 0.5})
    for call, kind in (
        (lambda: act(5), RunError), (lambda: act("a", 0), DataError), (lambda: act("a", mode="c"), DataError),
        (lambda: act("a", x="y"), DataError),
    ):  # fmt: skip
        with pytest.raises(kind, match=r"^act: "):
            call()


def test_latency_of_nothing():
    with pytest.raises(SurgeryError):
        compare_latency(None, (example("Plain"),))  # type: ignore[arg-type]


class Wide(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(width, width)


CALLS: dict[str, tuple[Callable[[Any], object], str]] = {
    "optimize": (fxsurgery.optimize, "model is the class Wide; create an instance: Wide(...)"),
    "plan": (fxsurgery.plan, "model is the class Wide; create an instance: Wide(...)"),
    "inspect": (fxsurgery.inspect, "model is the class Wide; create an instance: Wide(...)"),
    "capture": (lambda model: fxsurgery.capture(model, torch.ones(1, 2)), "model is the class Wide; create an"),
    "export_onnx": (lambda model: export_onnx(model, torch.ones(1, 2), "a.onnx"), "model is the class Wide; create"),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_class_in_place_of_a_model_is_named_with_the_function(name: str):
    call, message = CALLS[name]
    with pytest.raises(SurgeryError) as caught:
        call(Wide)
    assert str(caught.value).startswith(f"{name}: {message}")


@pytest.mark.parametrize("call", [fxsurgery.optimize, fxsurgery.inspect])
def test_a_state_dict_in_place_of_a_model_is_named(call: Callable[[Any], object]):
    with pytest.raises(SurgeryError, match="model is an OrderedDict, a state dict; create the model, call its load_"):
        call(Wide(2).state_dict())


def test_a_class_in_place_of_another_argument_is_named():
    with pytest.raises(SurgeryError, match=r"optimize: config is the class Dnal; create an instance: Dnal\(\)"):
        fxsurgery.optimize(Wide(2), config=Dnal)
    with pytest.raises(SurgeryError, match="plan: seed=-1"):
        fxsurgery.plan(Wide(2), seed=-1)


def test_a_bound_beyond_all_sensible_values_is_named_only_where_it_is_broken():
    for value in (-1, "a"):
        with pytest.raises(SurgeryError) as caught:
            Spend(epochs=value)
        assert "1,000,000,000,000,000,000" not in str(caught.value)
    with pytest.raises(SurgeryError, match="it must be less than 1,000,000,000,000,000,000"):
        Spend(epochs=10**18)
