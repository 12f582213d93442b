"""Files and flags to a config: what goes before what, and every mistake with its place."""

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from fxsurgery.budget import Budget, Spend
from fxsurgery.config import RunConfig, assignments, effective, read
from fxsurgery.errors import ConfigError
from fxsurgery.searchers.dnal import Dnal
from fxsurgery.searchers.methods import METHODS
from fxsurgery.searchers.prune import Prune
from nonempty import nonempty

TOML = """\
model = "nets:Net"
batch_size = 16
example_shape = [3, 8, 8]

[budget]
macs = 0.5
params = "1.2M"

[settings]
align = 4
learning_rate = 1e-2
"""


@pytest.fixture
def write(tmp_path: Path):
    def write(text: str, name: str = "run.toml") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_a_file_is_read_and_flags_go_before_it(write):
    config, settings = read(write(TOML), {"batch_size": 8, "budget": {"params": "50%"}, "settings": {"align": 2}})
    assert (config.model, config.batch_size, config.example_shape) == ("nets:Net", 8, ((3, 8, 8),))
    assert config.budget == Budget(params=0.5)
    assert settings == Dnal(align=2, learning_rate=0.01)


def test_toml_and_json_say_the_same(write):
    import tomllib

    as_json = write(json.dumps(tomllib.loads(TOML)), "run.json")
    assert read(as_json, {}) == read(write(TOML), {})


def test_a_run_is_its_model_and_defaults():
    config, settings = read(None, {"model": "nets:Net"})
    assert config.budget is None
    assert (config.seed, config.batch_size, config.trained, config.resume) == (0, 64, True, False)
    assert settings == Dnal()


def test_what_a_search_may_spend_is_a_table_like_the_budget(write):
    text = 'model = "n:N"\nmethod = "ectonas"\nexecutor = "processes"\nworkers = 2\n[spend]\nepochs = 300\n'
    config, settings = read(write(text), {"settings": {"greediness": 0.5}})
    assert (config.spend, config.executor, config.workers) == (Spend(epochs=300), "processes", 2)
    assert settings.greediness == 0.5
    config, _ = read(write(text), {"spend": {"seconds": "1.5k"}})
    assert config.spend == Spend(seconds=1500)
    config, _ = read(None, {"model": "n:N"})
    assert (config.spend, config.executor, config.workers) == (None, "in-process", None)


def test_the_effective_config_of_an_evolution_gives_the_same_run_again(write):
    said = {"model": "n:N", "method": "ectonas", "spend": {"epochs": "1.5"}, "settings": {"operations": ["add-cell"]}}
    config, settings = read(None, said)
    again, settings_again = read(write(json.dumps(effective(config, settings)), "again.json"), {})
    assert (again.spend, settings_again) == (config.spend, settings)


def test_the_method_says_which_settings_there_are():
    _, settings = read(None, {"model": "n:N", "method": "prune", "settings": {"importance": "taylor", "rounds": 3}})
    assert settings == Prune(importance="taylor", rounds=3)


def test_whole_numbers_of_a_budget_stay_absolute(write):
    config, _ = read(write('model = "n:N"\n[budget]\nmacs = 1\nparams = 1.0\n'), {})
    budget = config.budget
    assert type(budget.macs) is int
    assert type(budget.params) is float


@pytest.mark.parametrize(("written", "limit"), [('"50%"', 0.5), ("0.5", 0.5), ("2.5", 2.5), ("1", 1)])
def test_a_latency_is_a_share_or_absolute_as_the_other_limits_are(write, written, limit):
    config, _ = read(write(f'model = "n:N"\n[budget]\nlatency_ms = {written}\n'), {})
    assert config.budget == Budget(latency_ms=limit)
    assert type(config.budget.latency_ms) is type(limit)


def test_an_optimizer_is_written_as_a_table(write):
    table = 'optimizer = { name = "adamw", lr = 1e-3, weight_decay = 0.5, betas = [0.8, 0.9] }'
    _, settings = read(write(f'model = "n:N"\n[settings]\n{table}\n'), {})
    made = settings.optimizer([torch.nn.Parameter(torch.ones(2, 2))])
    assert isinstance(made, torch.optim.AdamW)
    [group] = made.param_groups
    assert (group["lr"], group["weight_decay"], tuple(group["betas"])) == (1e-3, 0.5, (0.8, 0.9))


def test_the_effective_config_gives_the_same_run_again(write):
    flags = {"settings": {"optimizer": {"name": "sgd", "lr": 0.5}}, "run_dir": Path("runs/a"), "seed": 3}
    config, settings = read(write(TOML.replace("learning_rate = 1e-2\n", "")), flags)
    again, settings_again = read(write(json.dumps(effective(config, settings)), "again.json"), {})
    settings_said = {**config.settings, "optimizer": again.settings["optimizer"]}
    assert config.settings.items() <= again.settings.items()
    assert replace(again, settings=settings_said) == config
    assert replace(settings_again, optimizer=None) == replace(settings, optimizer=None)
    assert effective(again, settings_again) == effective(config, settings)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('model = "n:N"\nbatchsize = 8\n', "line 2: batchsize: 'batchsize' is not a key; did you mean 'batch_size'?"),
        ('model = "n:N"\nbatch_size = "many"\n', "run.toml, line 2: batch_size: it must be a whole number"),
        ('model = "n:N"\nbatch_size = 0\n',
         "run.toml, line 2: batch_size: it must be at least 1 and less than 2**31, and is 0"),
        ('model = "n:N"\n\n[budget]\nmac = 0.5\n', "line 4: budget.mac: 'mac' is not a limit; did you mean 'macs'?"),
        ('model = "n:N"\n[budget]\nmacs = "half"\n', "run.toml, line 3: budget.macs: 'half' is not an amount"),
        ('model = "n:N"\n[budget]\nmacs = true\n', "run.toml, line 3: budget.macs: a limit is a number"),
        ('model = "n:N"\n[budget]\nmacs = -1\n', "line 3: budget.macs: it must be greater than 0"),
        ('model = "n:N"\n[budget]\nlatency_ms = "0%"\n', "line 3: budget.latency_ms: it must be greater than 0"),
        ('model = "n:N"\n[budget]\nmacs = inf\n',
         "line 3: budget.macs: it must be less than 1,000,000,000,000,000,000, and is inf"),
        ('model = "n:N"\n[spend]\nepoch = 3\n', "line 3: spend.epoch: 'epoch' is not a limit; did you mean 'epochs'?"),
        ('model = "n:N"\n[spend]\nepochs = "50%"\n', "spend.epochs: it must be an absolute amount, not a fraction"),
        ('model = "n:N"\n[spend]\nseconds = 0\n', "line 3: spend.seconds: it must be greater than 0, and is 0"),
        ('model = "n:N"\nexecutor = "mpi"\n',
         "line 2: executor: it must be 'in-process', 'processes' or 'ray', and is 'mpi'"),
        ('model = "n:N"\nworkers = 0\n',
         "run.toml, line 2: workers: it must be at least 1 and less than 1,000,000, and is 0"),
        ('model = "n:N"\n[settings]\naling = 4\n', "line 3: settings.aling: 'aling' is not a setting of dnal; did"),
        ('model = "n:N"\n[settings]\nrounds = 4\n', "rounds' is not a setting of dnal; pass --method prune"),
        ('model = "n:N"\nmacs = 0.5\n', "line 2: macs: 'macs' is an entry of the table [budget]; move it there"),
        ('model = "n:N"\nlearning_rate = 0.5\n', "'learning_rate' is an entry of the table [settings]; move it there"),
        ('model = "n:N"\nlr = 0.5\n', "'lr' is not a key; did you mean 'learning_rate' of the table [settings]?"),
        ('model = "n:N"\n[bugdet]\nmacs = 0.5\n', "line 2: bugdet: 'bugdet' is not a key; did you mean 'budget'?"),
        ('model = "n:N"\ntrained = "no"\n', "line 2: trained: it must be true or false, and is 'no'"),
        ('model = "n:N"\nresume = 1\n', "line 2: resume: "),
        ('model = "n:N"\nbudget = "50%"\n', "line 2: budget: it must be a table of params, macs, latency_ms"),
        ('model = "n:N"\n[budget]\nmacs = "50 percent"\n', "line 3: budget.macs: '50 percent' is not an amount"),
        ('model = "n:N"\n[settings]\nalign = "8"\n', "line 3: settings.align: it must be a whole number"),
        ('model = "n:N"\n[settings]\nalign = "four"\n', "line 3: settings.align: it must be a whole number"),
        ('model = "n:N"\nmethod = "dnall"\n', "line 2: method: no method is named 'dnall'; there are: dnal"),
        ('model = "n:N"\nmethod = "prune"\n[settings]\nbetween = 2\n',
         "line 4: settings.between is a share of the fine-tuning epochs: it must be from 0 to 1, and is 2"),
        ('model = "n:N"\n[settings]\noptimizer = "adamw"\n', "line 3: settings.optimizer: write a table"),
        ('model = "n:N"\n[settings]\noptimizer = {name = "sgd"}\n', "line 3: settings.optimizer.lr: Missing required"),
        ('model = "n:N"\n[settings]\noptimizer = {name = "sgd", lr = 1, mom = 2}\n', "'mom' is not a key; did you"),
        ('model = "n:N"\nmixed_precision = "fp8"\n',
         "line 2: mixed_precision: it must be 'no', 'bf16', 'fp16' or 'auto', and is 'fp8'"),
        ('model = "n:N"\nexample_shape = "3,a"\n', "line 2: example_shape: '3,a' is not a shape"),
        ('model = "n:N"\nseed = {a = 1}\n', "line 2: seed: it must be a whole number"),
        ("seed = 1\n", "no model: name it"),
        ("seed = \n", "run.toml is not valid TOML: Invalid value (at line 1"),
    ],
)  # fmt: skip
def test_every_mistake_in_a_file_is_told_with_its_line(write, text: str, message: str):
    with pytest.raises(ConfigError) as told:
        read(write(text), {})
    assert message in str(told.value)
    assert "\n" not in str(told.value)


def test_all_mistakes_are_told_at_once(write):
    with pytest.raises(ConfigError, match=r"line 2: batch_size: .*; .*line 3: seed: "):
        read(write('model = "n:N"\nbatch_size = 0\nseed = "x"\n'), {})


def test_mistakes_in_flags_are_told_by_the_flag():
    with pytest.raises(ConfigError, match=r"^--budget macs: 'half' is not an amount"):
        read(None, {"model": "n:N", "budget": {"macs": "half"}})
    with pytest.raises(ConfigError, match=r"^--set align: it must be a whole number, at least 1"):
        read(None, {"model": "n:N", "settings": {"align": "four"}})


def test_a_flag_hides_a_mistake_of_the_file(write):
    config, _ = read(write('model = "n:N"\nbatch_size = 0\n'), {"batch_size": 8})
    assert config.batch_size == 8


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [("run.yaml", b"", "is a .toml or a .json file"), ("run.toml", b"\xff\xfe", "is not text in UTF-8"),
     ("run.json", b"[1]", "must hold an object, not a list"), ("run.json", b"{", "is not valid JSON")],
)  # fmt: skip
def test_files_that_are_none_are_refused(tmp_path: Path, name: str, content: bytes, message: str):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read(tmp_path / name, {})


def test_a_file_that_is_not_there_is_told(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"cannot read .*run.toml: No such file"):
        read(tmp_path / "run.toml", {})


def test_assignments_nest_at_dots():
    texts = ["align=4", "optimizer.name=sgd", "optimizer.lr=0.1"]
    assert assignments(texts, "--set", "--set align=4") == {"align": 4, "optimizer": {"name": "sgd", "lr": 0.1}}
    assert assignments(["macs=50%"], "--budget", "--budget macs=50%", raw=True) == {"macs": "50%"}
    with pytest.raises(ConfigError, match="--set: 'align' is not of the form name=value; write it as --set align=4"):
        assignments(["align"], "--set", "--set align=4")


ODD = (
    None, True, 0, -1, 3.5, float("nan"), float("inf"), "", "x", "1e999", "1e400M", "3,4", "a:b", [], [1], [[-1]],
    ["x"], [None], {}, {"macs": 0.5}, {"macs": []}, {"a": {"b": 1}}, {"name": ["sgd"]}, {"name": "adamw", "lr": "x"},
    {"name": "sgd", "lr": 0.1, "betas": 3}, 10**400, "\ud800",
)  # fmt: skip


def understood(**flags: object) -> bool:
    """Whether the flags are; those that are not are told in one line, by an error of ours."""
    try:
        config, _ = read(None, {"model": "n:N", **flags})
    except ConfigError as error:
        told = str(error)
    else:
        assert config.budget is None or isinstance(config.budget, Budget)
        assert config.spend is None or isinstance(config.spend, Spend)
        return True
    assert told
    assert "\n" not in told
    return False


@pytest.mark.parametrize("name", [f.name for f in fields(RunConfig)])
def test_a_value_of_any_kind_is_understood_or_told(name: str):
    assert sum(understood(**{name: value}) for value in ODD) < len(ODD)


@pytest.mark.parametrize("method", METHODS)
def test_a_setting_of_any_kind_is_understood_or_told(method: str):
    for field in nonempty(fields(METHODS[method].settings)):
        assert sum(understood(method=method, settings={field.name: value}) for value in ODD) < len(ODD)


@pytest.mark.parametrize("name", ["macs", "params", "latency_ms"])
def test_a_limit_of_any_kind_is_understood_or_told(name: str):
    assert sum(understood(budget={name: value}) for value in ODD) <= 3


@pytest.mark.parametrize("name", ["epochs", "seconds"])
def test_what_may_be_spent_is_understood_or_told(name: str):
    assert sum(understood(spend={name: value}) for value in ODD) <= 3
