"""depth-doctor on machines of all kinds: what it finds, what it advises, how it leaves."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import fake_cuda
import fake_tensorrt
import pytest

import fathom
from fathom.export.plan.build_options import BuildOptions
from fathom.runtime.commands import doctor, doctor_trial
from fathom.runtime.cuda import driver_release
from fathom.runtime.errors import EnvironmentMismatchError, UsageError
from fathom.runtime.tensorrt.compatibility import check_header
from fathom.runtime.tensorrt.engine import Engine
from fathom.runtime.tensorrt.logger import make_logger
from fathom.runtime.tensorrt.rtx_targets import BUILT_FOR, RTX_TARGETS


@pytest.fixture
def gpus(monkeypatch):
    machine = fake_cuda.Machine(devices=2)
    fake_cuda.install(monkeypatch, machine)
    machine.trt = fake_tensorrt.install(monkeypatch, machine, cuda=13)
    machine.rtx = fake_tensorrt.install(monkeypatch, machine, rtx=True, cuda=13)
    return machine


def test_a_machine_with_gpus(gpus):
    found = doctor.examine()
    assert [(gpu["index"], gpu["target"], gpu["memory_mib"], gpu["driver_cuda"]) for gpu in found["gpus"]] == [
        (0, "sm86", 256, "13.0"),
        (1, "sm86", 256, "13.0"),
    ]
    assert found["driver"]["cuda"] == "13.0" and found["gpu_problem"] is None
    assert found["backends"]["tensorrt"]["works"] and "10.13.3.9 on GPU 0 (sm86), GPU 1 (sm86)" in found["backends"]["tensorrt"]["says"]
    assert found["backends"]["tensorrt-rtx"]["works"]
    assert found["kernels"]["taken"] == {"sm86": "cubin"}
    cuda = found["backends"]["onnxruntime-cuda"]
    assert not cuda["works"] and "onnxruntime-gpu" in cuda["fix"]
    assert gpus.leaks() == {}


def test_a_gpu_that_rtx_does_not_list(gpus):
    gpus.capability = (9, 0)
    backends = doctor.examine()["backends"]
    assert not backends["tensorrt-rtx"]["works"] and "does not list sm90" in backends["tensorrt-rtx"]["says"]
    assert "--backend tensorrt" in backends["tensorrt-rtx"]["fix"] and backends["tensorrt"]["works"]


@pytest.mark.parametrize(("capability", "works"), [((7, 5), False), ((8, 0), True), ((8, 7), False), ((12, 0), True), ((12, 1), True)])
def test_builder_doctor_and_documentation_agree_about_a_gpu(gpus, capability, works):
    gpus.capability, target = capability, f"sm{capability[0]}{capability[1]}"
    found = doctor.examine()["backends"]["tensorrt-rtx"]
    if works:
        BuildOptions("tensorrt-rtx", targets=(target,))
    else:
        with pytest.raises(UsageError, match=f"{target} is refused"):
            BuildOptions("tensorrt-rtx", targets=(target,))
    assert found["works"] == works and (works or target in found["says"])
    text = (Path(fathom.__file__).parent / "docs" / "gpu.md").read_text()
    built, refused = (re.search(rf"^- {words}: (.*)$", text, re.M)[1] for words in ("built for", "refused"))
    assert (target in re.findall(r"sm\d+", built)) == works and (target in re.findall(r"sm\d+", refused)) != works
    assert tuple(re.findall(r"sm\d+", built)) == BUILT_FOR and set(re.findall(r"sm\d+", refused)) == set(RTX_TARGETS) - set(BUILT_FOR)


@pytest.mark.parametrize(
    ("version", "words"), [("8.5.2.2", "the tier of 8.5, whose engines are built under precision constraints"), ("8.4.1", "8.4.1 is installed")]
)
def test_the_tier_is_that_of_the_release(gpus, monkeypatch, version, words):
    fake_tensorrt.install(monkeypatch, gpus, version=version)
    found = doctor.examine()["backends"]["tensorrt"]
    assert words in found["says"] and found["works"] == version.startswith("8.5")
    assert found["works"] or "tensorrt>=10.3" in found["fix"]


def test_an_old_driver(gpus):
    gpus.driver = 12040
    backends = doctor.examine()["backends"]
    for name in ("tensorrt", "tensorrt-rtx"):
        assert not backends[name]["works"] and "needs CUDA 13, the driver knows 12.4" in backends[name]["says"] and f"{name}-cu12" in backends[name]["fix"]


def test_a_gpu_that_is_in_a_bad_state(gpus):
    gpus.fail_next["cuDevicePrimaryCtxRetain"] = "CUDA_ERROR_OUT_OF_MEMORY"
    found = doctor.examine()
    assert found["gpus"] == [] and "OUT_OF_MEMORY" in found["gpu_problem"]["says"]
    assert found["backends"]["onnxruntime"]["works"] and not found["backends"]["tensorrt"]["works"]


@pytest.mark.parametrize(("body", "told"), [("raise RuntimeError('operator torchvision::nms does not exist')", True), ("", False)])
def test_a_torchvision_that_does_not_fit_its_torch(tmp_path, body, told):
    """The wheel of PyPI is compiled for CUDA; beside a torch for the CPU it takes transformers down with it."""
    for name, version, text in (("torch", "2.13.0+cpu", ""), ("torchvision", "0.28.0+cu130", body)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "version.py").write_text(f"__version__ = '{version}'\n")
        (tmp_path / name / "__init__.py").write_text(text)
    (tmp_path / "torchvision_on_cpu.py").write_text("def prepare(): pass\n")  # what mends it in this repository's own environment
    code = "import sys; from fathom.runtime.commands import doctor; sys.exit(doctor.main([]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ":".join([str(tmp_path), *sys.path])})
    assert done.returncode == 0, done.stderr
    words = "torchvision 0.28.0+cu130 cannot be imported beside torch 2.13.0+cpu (RuntimeError: operator torchvision::nms does not exist)"
    assert (words in done.stdout) == told
    assert ("torchvision==0.28.0 --index-url https://download.pytorch.org/whl/cpu" in done.stdout) == told


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_without_a_gpu(monkeypatch, capsys, flags):
    fake_cuda.install(monkeypatch, fake_cuda.Machine(devices=0))
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert doctor.main(flags) == 0
    out, err = capsys.readouterr()
    assert err == ""
    if flags:
        found = json.loads(out)
        assert found["backends"]["onnxruntime"]["works"] and "NO_DEVICE" in found["gpu_problem"]["says"]
    else:
        assert "yes  onnxruntime: ONNX Runtime" in out and "no   tensorrt: the package 'tensorrt' is not installed" in out
        assert "fix: pip install 'fathom-depth[tensorrt]'" in out and "GPU: none" in out


def test_nothing_works(monkeypatch, capsys):
    fake_cuda.install(monkeypatch, fake_cuda.Machine(devices=0))
    for name in ("tensorrt", "tensorrt_rtx", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, None)
    assert doctor.main([]) == 6
    assert "pip install onnxruntime" in capsys.readouterr().out


def test_trials_run_in_a_process_of_their_own(monkeypatch):
    words = doctor_trial.try_in_child("tensorrt-rtx")
    assert words["ok"] or "GPU" in words["words"] or "driver" in words["words"] or "not installed" in words["words"]
    monkeypatch.setattr(doctor_trial.sys, "executable", "/bin/false")
    assert doctor_trial.try_in_child("tensorrt") == {"ok": False, "words": "the process ended with exit code 1: "}


def trial_engine(trt, target):
    logger = make_logger(trt)
    return logger, doctor_trial._build(trt, logger, "tensorrt-rtx", target)


def test_real_rtx_engines_tell_their_release_and_are_refused_without_a_gpu():
    """Built ahead of time by the real package, read from memory as the runtime reads a plan."""
    trt = pytest.importorskip("tensorrt_rtx")
    from fathom.runtime.artefact.spec import StageSpec, TensorSpec

    logger, raw = trial_engine(trt, "sm86")
    spec = StageSpec("trial", (TensorSpec("x", "float32", (1, 64)),), (TensorSpec("y", "float32", (1, 64)),))
    runtime = trt.Runtime(logger)
    with memoryview(bytes(memoryview(raw))) as view:
        changed = bytearray(view)
        changed[26] += 1
        release = trt.__version__.split(".")
        other = ".".join([*release[:2], str(int(release[2]) + 1), *release[3:]])
        with pytest.raises(EnvironmentMismatchError, match=f"built with TensorRT-RTX {other}, and {trt.__version__}"):
            check_header(trt, runtime, memoryview(bytes(changed)), "trial")
        try:
            check_header(trt, runtime, view, "trial")
            Engine(trt, runtime, logger, spec, view, (1, 1, 1))
        except EnvironmentMismatchError as error:
            assert "stage trial" in str(error)
        else:
            pytest.skip("there is a GPU here")
        with pytest.raises(EnvironmentMismatchError, match=r"stage trial cannot be loaded \(.*driver"):
            Engine(trt, runtime, logger, spec, view, (1, 1, 1))


@pytest.mark.parametrize(
    "line, wanted",
    [
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build  (builder@)  \n", "580.159.04"),  # of an H200
        ("NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  540.4.0  Release Build  (builder@)  \n", "540.4.0"),
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\n", "550.54.15"),
        ("NVRM version: NVIDIA UNIX Kernel Module\n", ""),
    ],
)
def test_the_release_of_either_kernel_module_is_read(monkeypatch, tmp_path, line, wanted):
    (tmp_path / "version").write_text(line + "GCC version:  gcc version 15.3.0 (GCC)\n")
    monkeypatch.setattr(driver_release, "DRIVER_FACTS", tmp_path / "version")
    assert driver_release.driver_release() == wanted
