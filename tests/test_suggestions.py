"""What is suggested for a name that does not exist."""

import inspect
from dataclasses import fields

import fxsurgery
from fxsurgery import Budget, Result, Spend, Task, deploy, training
from fxsurgery.argument_names import naming_by
from fxsurgery.config.flag_names import FlagNames
from fxsurgery.searchers.methods import METHODS
from fxsurgery.suggestions import _TERMS, hint, meant_by
from nonempty import nonempty


def known_arguments() -> set[str]:
    """Every argument of the public functions and classes that the table may suggest."""
    functions = [
        fxsurgery.optimize, fxsurgery.capture, fxsurgery.inspect, fxsurgery.load, Task, training.Recipe, training.sgd,
        training.cosine, Budget, Spend, deploy.export_onnx, Result.export_onnx, Result.benchmark, Result.report,
    ]  # fmt: skip
    found = {name for function in nonempty(functions) for name in inspect.signature(function).parameters}
    return found | {field.name for method in METHODS.values() for field in fields(method.settings)}


def test_every_suggestion_is_an_argument_that_exists_somewhere():
    suggested = {meaning.partition("=")[0] for meaning, _ in nonempty(_TERMS)}
    assert suggested - known_arguments() == set()


def test_no_term_is_listed_twice_for_one_meaning():
    pairs = [(meaning, term) for meaning, terms in _TERMS for term in terms.split()]
    assert len(pairs) == len(set(pairs))


def test_only_what_the_call_accepts_is_suggested():
    assert meant_by("flops", ["macs", "params"]) == "macs="
    assert meant_by("flops", ["budget"]) == "budget=Budget(macs=0.5)"
    assert meant_by("flops", ["path"]) is None
    assert meant_by("LR", ["learning_rate"]) == "learning_rate="


def test_a_name_is_never_answered_with_itself():
    assert meant_by("macs", ["macs"]) == "macs="  # known: similar spelling alone
    assert meant_by("latency", ["budget", "seed"]) == "budget=Budget(latency_ms=0.5)"


def test_the_command_line_suggests_its_flags():
    with naming_by(FlagNames()):
        assert hint("bs", ["batch_size"]) == "did you mean --batch-size?"
    assert hint("bs", ["batch_size"]) == "did you mean batch_size=?"
    assert hint("zzz", []) == "it takes none"
