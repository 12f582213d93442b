"""Calls that do not fit a signature: one error of ours, in one line, that names the argument and the one meant."""

import inspect
import pickle
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

import fxsurgery
from fxsurgery import ArgumentError, Budget, Dnal, Prune, Spend, SurgeryError, Task
from fxsurgery.calls import checked_construction
from fxsurgery.deploy import export_onnx
from fxsurgery.option_types import checked
from fxsurgery.passes import PASSES, Widen
from fxsurgery.training import Recipe
from nonempty import nonempty

X, Y = torch.zeros(4, 3, 8, 8), torch.zeros(4, dtype=torch.long)


def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


def plan(**given):
    return fxsurgery.plan(net(), train_data=(X, Y), val_data=(X, Y), verbose=False, **given)


@checked()
def act(path: str, *more: int, mode: str, loud: bool = False) -> tuple[object, ...]:
    return path, more, mode, loud


@checked()
def pair(first: int, second: int = 0) -> tuple[int, int]:
    return first, second


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: act("a", mod="b"), r"^act: there is no argument mod=; did you mean mode=\?$"),
        (lambda: act("a", mode="b", zzz=1), r"^act: there is no argument zzz=; it takes: path, mode, loud$"),
        (lambda: act(mode="b"), r"^act: path= is missing; call act\(path, mode=\.\.\.\)$"),
        (lambda: act("a"), r"^act: mode= is missing; call act\(path, mode=\.\.\.\)$"),
        (lambda: act("a", path="b", mode="c"), r"^act: path= is given by position and by name; pass it once$"),
        (lambda: pair(1, 2, 3), r"^pair\(\.\.\.\) takes only first, second by position; leave the other out$"),
        (lambda: Budget(0.5), r"^Budget\(\.\.\.\) takes no positional arguments; pass it by name"),
        (lambda: Budget(flops=0.5), r"^Budget: there is no argument flops=; did you mean macs=\?$"),
        (lambda: Spend(epoch=5), r"^Spend: there is no argument epoch=; did you mean epochs=\?$"),
        (lambda: Dnal(lr=0.1), r"^Dnal: there is no argument lr=; did you mean learning_rate=\?$"),
        (lambda: Prune(round_to=8), r"^Prune: there is no argument round_to=; did you mean align=\?$"),
        (Recipe, r"^Recipe: steps= is missing; call Recipe\(steps=\.\.\., optimizer=\.\.\.\)$"),
        (lambda: Task.of((X, Y), (X, Y), criterion=1), r"^Task\.of: .*criterion=; did you mean loss="),
        (lambda: Widen(ad=()), r"^Widen: there is no argument ad=; did you mean add=\?$"),
        (fxsurgery.plan, r"^plan: model= is missing; call plan\(model\)$"),
        (lambda: fxsurgery.plan(net(), (X, Y)), r"^plan\(\.\.\.\) takes only model by position; pass the other"),
        (lambda: fxsurgery.load("a", orig=1), r"^load: there is no argument orig=; did you mean original=\?$"),
        (lambda: export_onnx(net(), X, "a", opset_version=1), r"^export_onnx: .* did you mean opset=\?$"),
        (lambda: export_onnx(net(), X, "a", half=True), r"did you mean transforms=\(ToFloat16\(\),\)\?$"),
    ],
)  # fmt: skip
def test_a_call_that_does_not_fit_is_one_error_that_names_the_argument(call, message: str):
    with pytest.raises(ArgumentError, match=message) as raised:
        call()
    assert isinstance(raised.value, SurgeryError)
    assert isinstance(raised.value, TypeError)
    assert raised.value.__cause__ is raised.value.__context__ is None


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ({"lr": 0.1}, "learning_rate="), ({"lr_rate": 0.1}, "learning_rate="), ({"epochs": 3}, "finetune_epochs="),
        ({"flops": 0.5}, "budget=Budget(macs=0.5)"), ({"pruning_ratio": 0.5}, "budget=Budget(macs=0.5)"),
        ({"sparsity": 0.5}, "budget=Budget(macs=0.5)"), ({"macs": 0.5}, "budget=Budget(macs=0.5)"),
        ({"example_input": X}, "example_inputs="), ({"dummy_input": X}, "example_inputs="),
        ({"dataloader": X}, "train_data="), ({"train_loader": X}, "train_data="), ({"eval_dataset": X}, "val_data="),
        ({"criterion": 1}, "loss="), ({"bs": 8}, "batch_size="), ({"per_device_train_batch_size": 8}, "batch_size="),
        ({"output_dir": "a"}, "run_dir="), ({"amp": True}, "mixed_precision="), ({"random_state": 1}, "seed="),
        ({"max_grad_norm": 1.0}, "gradient_clip="), ({"gradient_accumulation_steps": 2}, "accumulate="),
        ({"num_workers": 2}, "workers="), ({"pretrained": True}, "trained="), ({"imgsz": 224}, "example_inputs="),
        ({"round_to": 8}, "align="), ({"optim": 1}, "optimizer="), ({"bacth_size": 8}, "batch_size="),
        ({"ignored_layers": []}, "keep="), ({"exclude": []}, "keep="), ({"layer_ratios": {}}, "ratios="),
        ({"report_to": "wandb"}, "loggers="), ({"patience": 3}, "early_stopping="), ({"scheduler": 1}, "schedule="),
        ({"teacher_model": 1}, "teacher="), ({"temperature": 2.0}, "distillation_temperature="),
    ],
    ids=lambda given: next(iter(given)) if isinstance(given, dict) else given,
)  # fmt: skip
def test_the_terms_of_other_tools_are_understood(given: dict, meant: str):
    with pytest.raises(ArgumentError) as raised:
        plan(**given)
    assert str(raised.value).endswith(f"did you mean {meant}?")
    assert raised.value.path == (next(iter(given)),)


def test_every_pass_answers_a_wrong_name_and_is_as_it_was():
    for kind in nonempty(PASSES):
        with pytest.raises(ArgumentError, match=rf"^{kind.__name__}: there is no argument nonsense="):
            kind(nonsense=1)
        assert "args" not in inspect.signature(kind).parameters
    move = Widen(add=(("a", 1),))
    assert pickle.loads(pickle.dumps(move)) == move == replace(move, seed=move.seed)


def test_a_decorated_class_keeps_its_signature_and_checks_its_subclasses_by_their_own():
    @checked_construction
    @dataclass(frozen=True)
    class Base:
        """Text."""

        width: int = 1

    @checked_construction
    @dataclass(frozen=True)
    class Child(Base):
        depth: int = 2

    assert (Base.__doc__, list(inspect.signature(Child).parameters)) == ("Text.", ["width", "depth"])
    assert Child(3, depth=4) == Child(width=3, depth=4)
    with pytest.raises(ArgumentError, match=r"^Child: there is no argument dept=; did you mean depth=\?"):
        Child(dept=1)
    with pytest.raises(ArgumentError, match=r"^Base: there is no argument depth="):
        Base(depth=1)
