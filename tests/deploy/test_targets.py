"""Names of targets, and what is said of those that are not there."""

import onnxruntime
import pytest

from deploy.samples import noise, residual
from fxsurgery.deploy import export_onnx, resolve_target
from fxsurgery.deploy.targets import CUDA, compare_on
from fxsurgery.errors import DeviceError
from fxsurgery.inputs import Inputs


@pytest.mark.parametrize("spec", ["local", "cpu"])
def test_this_machines_cpu_is_a_target(spec):
    assert resolve_target(spec).name == "local"


def test_cuda_without_its_provider_is_refused_with_what_there_is(monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(DeviceError, match=r"needs .*CUDAExecutionProvider; this installation has CPUExecutionProvider"):
        resolve_target("cuda")


def test_cuda_that_falls_back_to_the_cpu_is_refused(monkeypatch, tmp_path):
    if CUDA in onnxruntime.get_available_providers():
        pytest.skip("there is a GPU build")
    x = (noise(2, 3, 8, 8),)
    file = export_onnx(residual(), x, tmp_path / "m.onnx", exporter="legacy")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA])
    target = resolve_target("cuda")
    assert target.name == "cuda"
    with pytest.raises(DeviceError, match=r"on CPUExecutionProvider, not on CUDA"):
        compare_on(target, {"m": file}, Inputs(x), rounds=1)


@pytest.mark.parametrize("spec", ["http://192.168.0.7:8000", "https://phone", "adb:", "adb:R58M"])
def test_remote_targets_are_said_not_to_exist(spec):
    with pytest.raises(DeviceError, match="no remote targets; there are: 'local'"):
        resolve_target(spec)


@pytest.mark.parametrize("spec", ["", "gpu", "Local"])
def test_an_unknown_target_is_refused_with_those_there_are(spec):
    with pytest.raises(DeviceError, match=r"there is no target .*'local' or 'cpu'.*'cuda'"):
        resolve_target(spec)
