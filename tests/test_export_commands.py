"""``depth-export`` and ``depth-build`` as a user meets them: words, exit codes, nothing half-written."""

import gc
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fathom.export.commands import build_command, command_line, export_command
from fathom.export.plan.build import check_outputs
from fathom.export.plan.build_options import BuildOptions
from fathom.runtime.artefact.manifest import BACKENDS
from fathom.runtime.artefact.plan import PlanFile
from fathom.runtime.errors import UsageError


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    """An ONNX file and its contract."""
    import numpy as np

    folder = tmp_path_factory.mktemp("foreign")
    kernel = (np.random.default_rng(0).standard_normal((1, 3, 3, 3)) / 9).astype(np.float32)
    x, y = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 32, 48]), helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1, 32, 48])
    nodes = [helper.make_node("Conv", ["x", "kernel"], ["c"], pads=[1] * 4), helper.make_node("Sigmoid", ["c"], ["y"])]
    model = helper.make_model(
        helper.make_graph(nodes, "g", [x], [y], [numpy_helper.from_array(kernel, "kernel")]), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    onnx.save(model, folder / "net.onnx")
    step = {"op": "resize", "height": 32, "width": 48, "interpolation": "bilinear", "min_width": 0}
    protocol = {"name": "single-image", "steps": [step], "lefts": [0], "fill_lefts": [], "flip": False, "source": "a test"}
    data = {
        "input": {"tensor": "x", "window": [32, 48], "canvas": [32, 48], "mean": [0.5] * 3, "std": [0.25] * 3},
        "output": {"tensor": "y", "kind": "relative", "unit": "", "near": 0.0, "far": 1.0, "larger_is": "near", "upsample": "bilinear"},
        "protocols": [protocol],
    }
    (folder / "contract.json").write_text(json.dumps(data))
    return ["--onnx", str(folder / "net.onnx"), "--contract", str(folder / "contract.json")]


def test_the_backends_of_the_flags_are_those_of_the_plan():
    assert command_line.BACKENDS == BACKENDS


def test_cycles_are_looked_for_seldom_while_a_command_works_and_as_before_afterwards():
    seen, before, usual = [], gc.get_threshold(), (700, 10, 10)

    def work(on_message, on_progress):
        seen.append(gc.get_threshold())
        raise UsageError("enough")

    gc.set_threshold(*usual)  # these tests themselves look for them as seldom
    try:
        assert command_line.run_and_close("depth-export", "x", True, work) == 2
        assert seen == [command_line.FEW_COLLECTIONS] and gc.get_threshold() == usual
    finally:
        gc.set_threshold(*before)


@pytest.mark.parametrize("module", ["export_command", "build_command"])
def test_help_is_fast_and_loads_nothing_heavy(module):
    code = f"import sys, fathom.export.commands.{module} as m\ntry:\n m.main(['--help'])\nexcept SystemExit as e: assert e.code == 0\n"
    code += "heavy = {'torch', 'numpy', 'onnx', 'onnxruntime', 'tensorrt_rtx', 'safetensors'} & set(sys.modules)\nassert not heavy, heavy"
    before = os.times()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    after = os.times()
    assert done.returncode == 0, done.stderr
    cpu_s = after.children_user + after.children_system - before.children_user - before.children_system
    assert "examples:" in done.stdout and cpu_s < 1.0  # 0.1 s on a quiet machine


def test_the_list_names_networks_and_the_weights_they_want(capsys):
    assert export_command.main(["--list"]) == 0
    words = capsys.readouterr().out
    assert "evp-tiny" in words and "model.safetensors of MykolaL/evp_depth" in words
    assert export_command.main(["--list", "--json"]) == 0
    assert {json.loads(line)["name"] for line in capsys.readouterr().out.splitlines()} >= {"evp", "evp-tiny", "vpd"}


def test_bundle_then_plan_with_closing_lines(foreign, tmp_path, capsys):
    assert export_command.main([*foreign, "-o", str(tmp_path / "net")]) == 0
    shown = capsys.readouterr()
    assert shown.out.strip() == str(tmp_path / "net")
    last = shown.err.strip().splitlines()[-1]
    assert last.startswith("PASSED | depth-export | ") and last.endswith(f"| {tmp_path / 'net'}")
    assert build_command.main([str(tmp_path / "net"), "-o", str(tmp_path / "net.plan"), "--json", "--quiet"]) == 0
    shown = capsys.readouterr()
    facts = json.loads(shown.out)
    assert shown.err == "" and facts["nbytes"] == (tmp_path / "net.plan").stat().st_size and facts["backend"] == "onnxruntime"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net", "net.plan"]


def test_export_straight_to_a_plan(foreign, tmp_path, capsys):
    assert export_command.main([*foreign, "-o", str(tmp_path / "net.plan"), "--quiet", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["plan"] == str(tmp_path / "net.plan")
    assert [p.name for p in tmp_path.iterdir()] == ["net.plan"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--onnx", "x.onnx", "-o", "OUT"], 2, "--contract"),
        (["--model", "evp", "-o", "OUT"], 3, "--weights"),
        (["--model", "nonsense", "-o", "OUT"], 2, "no network 'nonsense'"),
        (["--model", "evp-tiny", "--variant", "moon", "-o", "OUT"], 2, "no variant 'moon'"),
        (["--model", "evp-tiny", "--contract", "x", "-o", "OUT"], 2, "--contract does not go with --model"),
        (["--model", "evp-tiny", "--precision", "fp16", "-o", "OUT"], 2, "--precision can only go with -o x.plan"),
        (["--model", "evp-tiny", "--batch", "4", "--device", "1", "-o", "OUT"], 2, "--batch and --device can only go with"),
        (["--model", "evp-tiny", "--operators", "GroupNormSilu", "--plugins", "x.so", "-o", "OUT"], 2, "--operators and --plugins can only go with"),
        (["--model", "evp-tiny", "--memory", "4", "--workspace", "1", "--timing-cache", "c", "--layers", "l", "-o", "OUT"], 2, "-cache and --layers can"),
        (["--model", "evp-tiny", "--name", "mine", "-o", "OUT"], 2, "--name does not go with --model"),
        (["--model", "evp-tiny", "--licence", "MIT", "-o", "OUT"], 2, "--licence does not go with --model"),
        (["--model", "evp-tiny", "--seed", "0", "-o", "OUT"], 2, "--seed is of random weights"),
        (["--model", "evp", "--weights", "w.safetensors", "--seed", "1", "-o", "OUT"], 2, "--seed is of random weights"),
        (["--onnx", "x.onnx", "--contract", "c.json", "--seed", "1", "-o", "OUT"], 2, "--seed is of random weights"),
        (["--model", "evp-tiny", "--precision", "int8", "--data", "rooms:8", "--budget", "abs_rel=1", "-o", "OUT.plan"], 2, "--budget 'abs_rel=1'"),
        (["--model", "evp-tiny", "--precision", "int8", "--data", "moon:8", "-o", "OUT.plan"], 2, "--data"),
        (["--model", "evp-tiny", "--precision", "int8", "--data", "images:OUT", "-o", "OUT.plan"], 3, "--data images:"),
        (["--model", "evp-tiny", "--precision", "fp16", "--target", "sm86", "-o", "OUT.PLAN"], 2, "goes with tensorrt-rtx"),
        (["--model", "evp-tiny", "--weights", "missing.safetensors", "-o", "OUT"], 3, "missing.safetensors"),
        (["--model", "evp-tiny", "-o", "OUT/deep/er"], 3, "does not exist"),
        (["--model", "evp-tiny", "-o", "OUT.plan", "--precision", "fp16", "--target", "sm86"], 2, "goes with tensorrt-rtx"),
        (["--model", "evp-tiny", "-o", "OUT.plan", "--batch", "many"], 2, "--batch 'many'"),
        (["--model", "evp-tiny", "-o", "OUT.plan", "--backend", "tensorrt-rtx", "--target", "sm75"], 2, "Turing"),
    ],
)
def test_wrong_use_is_told_with_the_right_code_and_leaves_nothing(arguments, code, words, tmp_path, capsys):
    arguments = [a.replace("OUT", str(tmp_path / "out")) for a in arguments]
    assert export_command.main(arguments) == code
    shown = capsys.readouterr().err.strip().splitlines()
    assert any(words in line for line in shown) and shown[-1].startswith("FAILED | depth-export")
    assert not any("Traceback" in line for line in shown) and not list(tmp_path.iterdir())


def test_what_is_wrong_is_told_before_minutes_of_exporting(tmp_path, capsys):
    calibrated = ["--precision", "int8", "--data", "rooms:8"]
    for extra in (["--budget", "abs_rel=1"], ["--data", f"images:{tmp_path}/none"], ["--layers", str(tmp_path)]):
        assert export_command.main(["--model", "evp-tiny", *calibrated, *extra, "-o", str(tmp_path / "x.plan")]) in (2, 3)
        assert "loading" not in capsys.readouterr().err


def test_layers_and_plan_are_two_files(tmp_path, monkeypatch):
    (tmp_path / "here").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    for path in ("x.plan", str(tmp_path / "x.plan"), "here/x.plan"):
        with pytest.raises(UsageError, match=r"both .*x\.plan"):
            check_outputs(Path("x.plan"), BuildOptions("tensorrt", layers=path), force=True)
    check_outputs(Path("x.plan"), BuildOptions("tensorrt", layers="x.json"), force=True)


def test_a_plan_may_be_called_plan_in_capitals(foreign, tmp_path):
    assert export_command.main([*foreign, "-o", str(tmp_path / "net.PLAN"), "--quiet"]) == 0
    with PlanFile.open(tmp_path / "net.PLAN") as plan:
        assert plan.manifest.network.name == "net"


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        (export_command, []),
        (export_command, ["--model", "evp-tiny"]),
        (export_command, ["--model", "a", "--onnx", "b", "-o", "c"]),
        (export_command, ["--nonsense"]),
        (export_command, ["--model", "evp-tiny", "--weights", "", "-o", "c"]),
        (export_command, ["--model", "evp-tiny", "--variant", "", "-o", "c"]),
        (export_command, ["--onnx", "a", "--contract", "b", "--name", "", "-o", "c"]),
        (build_command, ["bundle", "-o", "c.plan", "--layers", ""]),
        (build_command, ["bundle", "-o", "c.plan", "--backend", "tensorrt", "--operators", "GroupNormSilu", "--plugins", ""]),
    ],
)
def test_argparse_errors_are_code_2(module, arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        module.main(arguments)
    shown = capsys.readouterr().err
    assert caught.value.code == 2 and "Traceback" not in shown and ("" not in arguments or "its value is empty" in shown)


@pytest.mark.parametrize("path", ["nothing", "empty", "file"])
def test_building_from_what_is_no_bundle(path, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    assert build_command.main([str(tmp_path / path), "-o", str(tmp_path / "x.plan")]) == 3
    assert "is not a bundle" in capsys.readouterr().err and not (tmp_path / "x.plan").exists()


def test_an_existing_output_is_kept_without_force(foreign, tmp_path, capsys):
    (tmp_path / "net.plan").write_text("mine")
    assert export_command.main([*foreign, "-o", str(tmp_path / "net.plan")]) == 3
    assert "--force" in capsys.readouterr().err and (tmp_path / "net.plan").read_text() == "mine"


@pytest.mark.parametrize(
    ("module", "arguments", "missing", "words"),
    [
        (export_command, ["--model", "evp-tiny", "-o", "OUT"], "torch", "pip install 'fathom-depth[export]'"),
        (export_command, ["--onnx", "a", "--contract", "b", "-o", "OUT"], "onnx", "pip install 'fathom-depth[export]'"),
        (build_command, ["bundle", "-o", "OUT.plan", "--backend", "tensorrt-rtx"], "tensorrt_rtx", "pip install 'fathom-depth[rtx]'"),
        (build_command, ["bundle", "-o", "OUT.plan"], "onnxruntime", "pip install 'fathom-depth[build]'"),
    ],
)
def test_a_missing_package_is_named_with_the_pip_install_that_mends_it(module, arguments, missing, words, tmp_path, capsys, monkeypatch):
    real = command_line.importlib.util.find_spec
    monkeypatch.setattr(command_line.importlib.util, "find_spec", lambda name: None if name == missing else real(name))
    assert module.main([a.replace("OUT", str(tmp_path / "out")) for a in arguments]) == 6
    shown = capsys.readouterr().err
    assert f"'{missing}' is not installed" in shown and words in shown


def test_a_compiler_that_takes_too_much_is_exit_7_with_the_numbers(foreign, tmp_path, capsys, monkeypatch):
    pytest.importorskip("tensorrt_rtx")
    from fathom.export.plan import stage_builder

    assert export_command.main([*foreign, "-o", str(tmp_path / "net"), "--quiet"]) == 0
    monkeypatch.setattr(stage_builder, "default_limit_nbytes", lambda: 20 << 20)
    assert build_command.main([str(tmp_path / "net"), "-o", str(tmp_path / "x.plan"), "--backend", "tensorrt-rtx"]) == 7
    shown = capsys.readouterr().err
    assert "stopped at the limit of 0.02 GiB" in shown and "--memory" in shown and sorted(p.name for p in tmp_path.iterdir()) == ["net"]
    with pytest.raises(SystemExit):
        build_command.main([str(tmp_path / "net"), "-o", str(tmp_path / "x.plan"), "--memory", "0.001"])
    assert "no number of GiB" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_leaves_nothing_and_is_code_130(small_bundle, tmp_path, number):
    """The build is interrupted while its child works."""
    command = [sys.executable, "-m", "fathom.export.commands.build_command", str(small_bundle), "-o", str(tmp_path / "x.plan")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    for line in process.stderr:
        if "encoder" in line:
            process.send_signal(number)
            break
    rest = process.stderr.read()
    assert process.wait(30) == 130 and "interrupted" in rest and rest.strip().splitlines()[-1].startswith("FAILED | depth-build")
    process.stderr.close()
    assert not list(tmp_path.iterdir())


def test_an_unwritable_folder_is_found_before_the_work(foreign, tmp_path, capsys):
    if os.geteuid() == 0:
        target = "/proc/net.plan"  # root may write anywhere else
    else:
        tmp_path.chmod(0o500)
        target = str(tmp_path / "net.plan")
    start = time.monotonic()
    assert export_command.main([*foreign, "-o", target]) == 3
    assert time.monotonic() - start < 10 and "Traceback" not in capsys.readouterr().err
    assert not Path(target).exists()


@pytest.mark.parametrize(
    ("model", "extra", "words"),
    [("evp-refer-tiny", [], "asked in words, and so it is calibrated"), ("llm-mde-tiny", ["--prompt", "the chair"], "not asked in words")],
)
def test_words_to_calibrate_with_are_checked_before_anything_is_exported(tmp_path, capsys, model, extra, words):
    command = ["--model", model, "--random-init", "--precision", "int8", "--data", "rooms:2", *extra, "-o", str(tmp_path / "x.plan")]
    assert export_command.main(command) == 2
    shown = capsys.readouterr().err
    assert words in shown and "exporting" not in shown and list(tmp_path.iterdir()) == []
