"""Messages name arguments in Python's terms, or in those of the front end at work."""

import threading

import pytest
from typing_extensions import override

from fxsurgery.argument_names import ArgumentNames, assigned, keyword, named, naming_by, usage


class Shouting(ArgumentNames):
    @override
    def named(self, *path: str | int) -> str:
        return ".".join(map(str, path)).upper()


def python_terms() -> tuple[str, ...]:
    return named("train_data"), keyword("run_dir"), assigned("threads", 1000, ","), usage("f(x)", "x", call=True)


def test_python_is_the_front_end_unless_another_one_is_at_work():
    assert python_terms() == ("train_data", "run_dir=", "threads=1,000", "call f(x)")
    with naming_by(Shouting()):
        assert named("budget", "macs") == "BUDGET.MACS"
        with naming_by(ArgumentNames()):
            assert named("budget", "macs") == "budget.macs"
        assert named("seed") == "SEED"
    assert named("seed") == "seed"


def test_the_terms_end_with_an_error_and_other_threads_keep_theirs():
    seen = list[str]()
    with naming_by(Shouting()):
        thread = threading.Thread(target=lambda: seen.append(named("seed")))
        thread.start()
        thread.join()
    with pytest.raises(KeyError), naming_by(Shouting()):
        raise KeyError(named("seed"))
    assert [*seen, named("seed")] == ["seed", "seed"]
