"""What a session on a card leaves behind, gathered into one record; the formulas that its operators are held against."""

import json
import os
import subprocess
import sys
from pathlib import Path

import kernel_host
import numpy as np
import pytest
import stand_in_card
import test_trt_plugins_operators as operator_tests
import torch

from fathom.benchmarks.card import gather, operators
from fathom.benchmarks.record.record import read_record

SCRIPT = Path(gather.__file__).parents[1] / "gpu_session.sh"
FACTS = """\
|   0  NVIDIA H200                    On  |   00000000:00:06.0 Off |                    0 |
Driver Version                         : 580.159.04
        Current Power Limit            : 700.00 W
    Max Clocks
        Graphics                       : 1980 MHz
torch                    2.11.0
botorch                  0.18.1
model name\t: Intel(R) Xeon(R) Processor
"""
PASSED = """\
trunk: compiling
right on NVIDIA H200 (sm90): largest relative error of a tensor 1.0e-03; the second start gave the same bits; the certificate is kept
PASSED | depth-build | 65.0 s | x.plan
"""
FAILED = "error: stage vae: tensorrt could not compile the network: no scaling factors\nFAILED | depth-build | 32.9 s | x.plan\n"
STAGE = {"name": "trunk", "engine_nbytes": 5, "layers": {"half": 3}, "seconds": 24.5, "peak_nbytes": 7, "stored": {}}
BUILT = {"plan": "x.plan", "nbytes": 9, "backend": "tensorrt", "backend_version": "8.5.3.1", "targets": ["sm90"], "batch": [1, 1, 1], "stages": [STAGE]}
CASES = '<testcase name="a"/><testcase name="b"><failure/></testcase><testcase name="c"><skipped/></testcase>'
JUNIT = f'<testsuites><testsuite time="2.5">{CASES}</testsuite></testsuites>'


@pytest.fixture
def folder(tmp_path):
    logs, out = tmp_path / "logs", tmp_path / "out"
    logs.mkdir()
    out.mkdir()
    (logs / "facts.log").write_text(FACTS)
    for name, err, log in (("evp-tiny-fp16", PASSED, json.dumps(BUILT)), ("evp-tiny-int8", FAILED, ""), ("evp-tiny-fp32", "vae: compiling\n", "")):
        (logs / f"build-{name}.err").write_text(err)
        (logs / f"build-{name}.log").write_text(log)
    row = {"name": "evp-tiny-fp16.plan", "precision": "fp16", "images": 50, "failed": 0}
    (out / "acc-evp-tiny-rooms.json").write_text(json.dumps({"rows": [{**row, "means": {"abs_rel": 0.2141, "rmse": 0.7, "delta1": 0.66}}]}))
    other = {**row, "images": 9, "means": {"abs_rel": 0.2, "rmse": 0.7, "delta1": 0.66}}
    (out / "acc-depthclip-tiny-rooms.json").write_text(json.dumps({"rows": [other]}))
    (out / "kernels.xml").write_text(JUNIT)
    (tmp_path / "notes.txt").write_text("other work was on the card\n")
    return tmp_path


def test_a_session_becomes_one_record(folder, capsys):
    target = folder / "gpu.json"
    assert gather.main([str(folder), "-o", str(target)]) == 0
    found = read_record(target, ("study",))["results"]
    assert found["machine"]["gpu"] == "NVIDIA H200" and found["machine"]["driver"] == "580.159.04" and found["machine"]["max_sm_clock"] == "1980 MHz"
    assert found["machine"]["packages"] == {"torch": "2.11.0"}
    assert found["tests"] == {"kernels": {"passed": 1, "skipped": 1, "failed": ["b"], "seconds": 2.5}}
    rows = {row["precision"]: row for row in found["builds"]}
    assert rows["fp16"]["passed"] and rows["fp16"]["seconds"] == 65.0 and rows["fp16"]["certificate"].endswith("the second start gave the same bits")
    assert rows["fp16"]["stages"][0]["layers"] == {"half": 3} and rows["fp16"]["network"] == "evp-tiny"
    assert not rows["int8"]["passed"] and "no scaling factors" in rows["int8"]["why"]
    assert not rows["fp32"]["passed"] and rows["fp32"]["why"] == "stopped before its end"
    other, row = found["accuracy"]
    assert other["network"] == "depthclip-tiny" and other["abs_rel"] == 0.2 and other["relative"] is None  # PyTorch was measured on 50 pictures, not on 9
    truth = json.loads(gather.REFERENCE.read_text())["results"]["networks"]["evp-tiny"]["sets"]["rooms"]["rows"]["pytorch"]["abs_rel"]
    assert row["relative"]["abs_rel"] == pytest.approx(0.2141 / truth - 1)
    assert found["notes"] == ["other work was on the card"]


def test_a_jetson_has_no_nvidia_smi_and_is_named_by_the_doctor(folder):
    (folder / "logs" / "facts.log").write_text("NV Power Mode: MAXN\n0\nModel name:                      Cortex-A78AE\n")
    board = "NVIDIA Jetson AGX Orin Developer Kit, L4T 36.4.3, JetPack 6.2, power mode MAXN"
    doctor = {"gpus": [{"name": "Orin", "target": "sm87"}], "driver": {"release": "540.4.0", "cuda": "12.6"}, "jetson": {"says": board}}
    (folder / "logs" / "doctor.log").write_text(json.dumps(doctor))
    wanted = {"gpu": "Orin", "driver": "540.4.0", "processor": "Cortex-A78AE", "jetson": board, "power_limit": "", "max_sm_clock": "", "packages": {}}
    assert gather.machine(folder) == wanted


def test_a_folder_of_something_else_is_refused(tmp_path, capsys):
    assert gather.main([str(tmp_path), "-o", str(tmp_path / "x.json")]) == 3
    assert "has no folder logs" in capsys.readouterr().err


def test_the_formulas_in_pytorch_are_those_of_double_precision():
    generator = np.random.default_rng(0)
    shape, centers, attractors = generator.normal(0, 2, (1, 4, 20, 24)), generator.gamma(1, 3, (1, 64, 5, 6)), generator.normal(0, 2, (1, 1, 10, 12))
    made = operators.bins(torch, *map(torch.from_numpy, (shape, centers, attractors))).numpy()
    np.testing.assert_allclose(made, operator_tests.exact_bins(shape, centers, attractors), rtol=1e-9)
    query, keys, values = generator.normal(size=(1, 2, 8, 16)), generator.normal(size=(1, 2, 16, 5)), generator.normal(size=(1, 2, 5, 16))
    attended, found = operators.attention(torch, *map(torch.from_numpy, (query, keys, values)))
    wanted, wanted_map, _ = operator_tests.exact_attention(query, keys, values, 0.25)
    np.testing.assert_allclose(attended.numpy(), wanted, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.numpy(), wanted_map, rtol=1e-9)
    x, scale, shift = generator.normal(size=(1, 64, 8, 8)), generator.normal(size=64), generator.normal(size=64)
    made = operators.norm(torch, *map(torch.from_numpy, (x, scale, shift))).numpy()
    np.testing.assert_allclose(made, operator_tests.exact_norm(x, scale, shift, 32, 1e-5).reshape(x.shape), rtol=1e-9, atol=1e-12)


def test_a_session_script_without_arguments_tells_what_it_does():
    done = subprocess.run(["bash", str(SCRIPT)], capture_output=True, text=True)
    assert done.returncode == 2 and "BUNDLES=DIR" in done.stderr and "set -uo" not in done.stderr


@pytest.mark.skipif(not kernel_host.compiler(), reason="no C++ compiler")
def test_a_session_runs_from_facts_to_record_on_the_stand_in(tiny_bundle, host, tmp_path):
    """Builds, latency, graphs and the record of a plan in two precisions; INT8 was not calibrated, and that step stops no other."""
    (tmp_path / "bundles").mkdir()
    (tmp_path / "bundles" / "small").symlink_to(tiny_bundle("moa-depthclip-tiny"))
    given = {"PYTHON": sys.executable, "BUNDLES": str(tmp_path / "bundles"), "JOBS": "2", "ROUNDS": "3", "MODES": ""}
    env = {**os.environ, **given, **stand_in_card.environment(tmp_path, host.path, "10.13.3.9")}
    steps = ["facts", "build", "latency", "graphs", "record"]
    done = subprocess.run(["bash", str(SCRIPT), str(tmp_path / "out"), *steps], capture_output=True, text=True, env=env, timeout=300)
    lines = dict(line.split(": ", 1) for line in (tmp_path / "out" / "logs" / "summary").read_text().splitlines())
    failed = {name: words for name, words in lines.items() if not words.startswith("exit code 0 ")}
    assert done.returncode == 1 and failed.keys() == {"build-small-int8"}, done.stdout + done.stderr
    assert "was never calibrated" in (tmp_path / "out" / "logs" / "build-small-int8.err").read_text()
    found = json.loads((tmp_path / "out" / "gpu.json").read_text())["results"]
    assert {row["precision"]: row["passed"] for row in found["builds"]} == {"fp16": True, "fp32": True, "int8": False}
    assert [[row["name"] for row in run["rows"]] for run in found["latency"]] == [["small-fp32.plan", "small-fp16.plan"]] * 2
    assert list(found["latency"][1]["rows"][0]["photo_parts_ms"]) == ["copy_in", "shaping", "network", "finishing", "copy_out", "host"]
    layers = found["latency"][1]["rows"][0]["layers"]  # the fake engines call all they have one layer
    assert {layer["stage"] for layer in layers} == {stage["name"] for stage in found["latency"][1]["rows"][0]["stages"]}
    assert sum(layer["share"] for layer in layers) == pytest.approx(1, abs=1e-3)
    assert {name: row["same_bits"] for name, row in found["graphs"].items()} == {"small-fp16.plan": True, "small-fp32.plan": True}
