"""How commands end when something is wrong: one clear line, the exit code as said, no traceback."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from torch import nn

import fxsurgery
from fxsurgery.argument_names import naming_by
from fxsurgery.capture.input_inference import guess_inputs
from fxsurgery.config import FlagNames
from fxsurgery.errors import DataError

TOLD = 2
"""What the command was told cannot be understood."""
FAILED = 1


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("inspect sample_none:Net", FAILED, "MODEL: there is no module 'sample_none'"),
        ("inspect sample_nets:Nett", FAILED, "did you mean 'Net'?"),
        ("inspect sample_nets:nothing", FAILED, "returns a NoneType, not a torch.nn.Module"),
        ("inspect sample_nets:failing", FAILED, "sample_nets.py, line"),
        ("inspect sample_nets", TOLD, "is a whole module; name what is in it, as sample_nets:NAME"),
        ("inspect sample_nets:Net --example-shape 3,a", TOLD, "--example-shape: '3,a' is not a shape"),
        ("inspect sample_nets:Net --example-shape 5,8,8", FAILED, ""),
        ("inspect sample_nets:Net --model-args {", TOLD, "--model-args: '{' is not valid JSON"),
        ("inspect sample_nets:Net --weights w.pt", FAILED, "--weights: cannot read w.pt"),
        ("inspect .", FAILED, ""),
        ("optimize", TOLD, "no model: name it as module:factory"),
        ("optimize sample_nets:Net --budget macs=half", TOLD, "--budget macs: 'half' is not an amount"),
        ("optimize sample_nets:Net --budget 0.5", TOLD, "--budget: '0.5' is not of the form name=value"),
        ("optimize sample_nets:Net --budget mac=0.5", TOLD, "did you mean 'macs'?"),
        ("optimize sample_nets:Net --set aling=2", TOLD, "--set aling: 'aling' is not a setting of dnal"),
        ("optimize sample_nets:Net --method dnall", TOLD, "--method: no method is named 'dnall'"),
        ("optimize sample_nets:Net --spend 300", TOLD, "write it as --spend epochs=20"),
        ("optimize sample_nets:Net --spend epoch=300", TOLD, "--spend epoch: 'epoch' is not a limit; did you mean"),
        ("optimize sample_nets:Net --workers 0", TOLD, "--workers: it must be at least 1 and less than"),
        ("optimize sample_nets:Net --example-shape 3,8,8 --spend epochs=3", FAILED, "--spend is for --method ectonas"),
        ("optimize sample_nets:Net --example-shape 3,8,8 --workers 3", FAILED, "--workers is for --method ectonas"),
        ("export sample_nets:Net a.onnx --member 1", TOLD, "--member: the model is not a saved result"),
        ("bench none.onnx --member 1", TOLD, "--member is for a saved result, not for ONNX files"),
        ("optimize sample_nets:Net --batch-size 0", TOLD, "--batch-size: it must be at least 1 and less than"),
        ("optimize sample_nets:Net --config none.toml", TOLD, "cannot read none.toml"),
        ("optimize sample_nets:Net --train-data sample_data:train", FAILED, "--val-data is missing: pass"),
        ("optimize sample_nets:Net --val-data sample_data:val", FAILED, "--train-data is missing: pass"),
        ("optimize sample_nets:Net --test-data sample_data:val", FAILED, "--test-data without --train-data"),
        ("optimize sample_nets:Net --not-trained", FAILED, "--not-trained trains the weights, which needs data"),
        ("optimize sample_nets:Net --out .", TOLD, "--out: . holds something else"),
        ("optimize sample_nets:Net --out sample_nets.py/small", TOLD, "sample_nets.py is not a directory"),
        ("optimize sample_nets:Net --onnx sample_nets.py/a.onnx", TOLD, "--onnx: "),
        ("optimize sample_nets:Net --report .", TOLD, "--report: . is a directory"),
        ("optimize sample_nets:Net --run-dir .", FAILED, "holds"),
        ("optimize sample_nets:Net --resume", FAILED, "--resume continues the run of a directory: pass --run-dir"),
        ("optimize sample_nets:Net --device abacus", FAILED, "device 'abacus' is not there"),
        ("optimize sample_nets:Net --train-data none.npz --val-data none.npz", FAILED, "cannot read none.npz"),
        ("export none a.onnx", TOLD, "'none' is neither a file nor a directory here"),
        ("bench none", FAILED, "there is no directory none"),
        ("bench none.onnx", FAILED, "there is no file none.onnx"),
        ("bench none.onnx --threads 1000000", FAILED, "--threads 1,000,000 is more than the "),
        ("bench none --rounds 1000000000000", FAILED, "--rounds 1000000000000 is too large to measure"),
        ("bench none.onnx none", TOLD, "one saved result or ONNX files, not both"),
        ("bench a b", TOLD, "bench takes one saved result"),
        ("bench a.onnx a.onnx", TOLD, "a.onnx is named twice; name each file once"),
        ("report none out.html", FAILED, "there is no directory none"),
        ("report . out.html", FAILED, ""),
    ],
)
def test_what_is_wrong_is_told_in_one_line(here: Path, give, arguments: str, code: int, message: str):
    result = give(*arguments.split())
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert result.exit_code == code, result.output
    assert len(errors) == 1
    assert result.stderr.splitlines()[-1] == errors[0]
    assert message in errors[0]
    assert result.stdout == ""


@pytest.mark.parametrize("flags", ["--out there/small", "--standalone there/a/b", "--onnx there/a.onnx"])
def test_a_place_that_cannot_be_written_to_is_told_before_the_work(here: Path, give, monkeypatch, flags: str):
    Path("there").mkdir()
    monkeypatch.setattr("os.access", lambda path, _mode: Path(path).name != "there")
    result = give("optimize", "sample_nets:Net", *flags.split())
    assert result.exit_code == TOLD
    assert "there cannot be written to" in result.stderr


def test_unknown_options_are_told_by_the_parser(give):
    result = give("optimize", "a:b", "--bugdet", "macs=0.5")
    assert result.exit_code == TOLD
    assert "--budget" in result.stderr


def test_a_run_directory_in_use_is_told_with_the_flag(optimized: Path, here: Path, give, seen: list[str]):
    result = give("optimize", "sample_nets:Net", *seen, "--run-dir", optimized / "run")
    assert result.exit_code == FAILED
    assert "pass --resume to continue it" in result.stderr


def test_advice_names_flags(here: Path, give):
    result = give("optimize", "sample_nets:Net", "--method", "prune", "--set", "importance=taylor")
    assert result.exit_code == FAILED
    assert "give --train-data and --val-data, or" in result.stderr
    assert result.stderr.endswith("With data: pass --train-data DATA --val-data DATA\n")
    np.savez("one.npz", x=np.zeros(3), y=np.zeros(4))
    result = give("optimize", "sample_nets:Net", "--train-data", "one.npz", "--val-data", "one.npz")
    assert result.exit_code == FAILED
    assert "error: --train-data holds different numbers of samples" in result.stderr


def test_an_unfinished_run_is_answered_by_how_to_finish_it(here: Path, give):
    Path("run").mkdir()
    Path("run/journal.jsonl").touch()
    Path("run/config.json").write_text("{}")
    remedy = "run fxsurgery optimize again with the same arguments and --resume to finish it"
    for command in ("report run a.html", "export run a.onnx", "bench run", "inspect run"):
        result = give(*command.split())
        assert result.exit_code == FAILED
        assert f"run holds a run that has not finished, so there is no result to load; {remedy}" in result.stderr


def test_a_key_of_a_config_file_is_told_with_its_line(here: Path, give):
    Path("run.toml").write_text('model = "sample_nets:Net"\n\n[budget]\nmac = 0.5\n')
    result = give("optimize", "--config", "run.toml")
    assert result.exit_code == TOLD
    assert result.stderr == "error: run.toml, line 4: budget.mac: 'mac' is not a limit; did you mean 'macs'?\n"


@pytest.mark.parametrize("in_file", [True, False])
def test_stopping_says_how_to_go_on(here: Path, give, monkeypatch, in_file: bool):
    def stop(*_args: object, run_dir: Path, **_options: object) -> None:
        run_dir.mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(fxsurgery, "optimize", stop)
    Path("run.toml").write_text('model = "sample_nets:Net"\nrun_dir = "run"\n')
    result = give("optimize", *(["--config", "run.toml"] if in_file else ["sample_nets:Net", "--run-dir", "run"]))
    assert result.exit_code == 130
    on = "; the run is kept in run: repeat the command with --resume to continue it"
    assert result.stderr.splitlines()[-1] == f"stopped{on}"


def test_stopping_what_keeps_nothing_says_just_that(here: Path, give, monkeypatch):
    def stop(*_args: object, **_options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(fxsurgery, "optimize", stop)
    result = give("optimize", "sample_nets:Net")
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1] == "stopped"


def started(folder: Path, *arguments: str) -> subprocess.Popen:
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "fxsurgery", *arguments]
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.slow
def test_as_a_process_it_finds_the_models_of_the_folder_and_keeps_its_outputs_apart(here: Path):
    with started(here, "inspect", "sample_nets:Net", "--json") as process:
        output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert output.startswith("{\n")
    assert errors.startswith("note: inputs of (2, 3, 32, 32)")


@pytest.mark.slow
def test_a_run_that_is_interrupted_goes_on_to_the_same_end(here: Path, seen: list[str]):
    flags = ["optimize", "sample_nets:Net", *seen, "--set", "fewest_steps=1500", "--run-dir", "run", "--resume"]
    with started(here, *flags) as process:
        for line in process.stderr:
            if line.startswith("original: "):
                break
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=300)
    assert process.returncode == 130, errors
    assert errors.splitlines()[-1] == "stopped; the run is kept in run: repeat the command with --resume to continue it"
    with started(here, *flags) as process:
        output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert "run: run" in output


def test_inputs_that_cannot_be_guessed_are_asked_for_by_flag():
    class Two(nn.Module):
        def forward(self, x, y):
            return x @ y

    with naming_by(FlagNames()), pytest.raises(DataError) as told:
        guess_inputs(Two())
    assert "Pass --example-shape or --example-inputs, two samples of each" in str(told.value)
    assert str(told.value).endswith("for images: --example-shape 3,224,224, once for each input")
    assert "fxsurgery" not in str(told.value)
    with naming_by(FlagNames()):
        _, how = guess_inputs(nn.Sequential(nn.Conv2d(3, 4, 3)))
    assert how.endswith("--example-shape or --example-inputs overrides")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("optimize sample_nets:Net --lr 1", "settings go through --set: did you mean --set learning_rate=...?"),
        ("optimize sample_nets:Net --learning-rate 1", "did you mean --set learning_rate=...?"),
        ("optimize sample_nets:Net --epochs 3", "did you mean --set finetune_epochs=...?"),
        ("optimize sample_nets:Net --macs 0.5", "there is no flag --macs; did you mean --budget macs=0.5?"),
        ("optimize sample_nets:Net --loader x", "there is no flag --loader; did you mean --train-data?"),
        ("optimize sample_nets:Net --sed 1", "there is no flag --sed; did you mean --seed?"),
        ("inspect sample_nets:Net --lr 1", "there is no flag --lr; --help lists the flags"),
    ],
)
def test_a_flag_that_does_not_exist_names_the_one_that_was_meant(here: Path, give, arguments: str, message: str):
    result = give(*arguments.split())
    assert result.exit_code == TOLD
    assert message in " ".join(result.stderr.replace("│", " ").split())
