"""The extra for building on the device: what it resolves to, and that nothing more is needed."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fathom

ROOT = Path(fathom.__file__).parent
NETWORKS = ("evp-tiny", "evp-refer-tiny", "vpd-tiny", "depthclip-tiny", "moa-depthclip-tiny", "depthblip2-tiny", "llm-mde-tiny")
BLOCKED = ("torch", "torchvision", "diffusers", "transformers", "onnxscript", "onnx_ir", "open_clip", "huggingface_hub")
BUILD = """
import sys, time
for name in {blocked}: sys.modules[name] = None
from fathom.export.child import child
from fathom.export.plan.build_child import _task

def here(request, **_):  # what the child process would do, without the second it takes to start
    start = time.monotonic()
    return child.ChildResult(_task(request["task"])(request, lambda event, **facts: None), time.monotonic() - start, 0)

child.run_child = here
from fathom.export.commands import build_command
sys.exit(build_command.main({arguments}))
"""


def requirements(extra):
    """What ``pip install fathom-depth[extra]`` asks for, out of setup.py."""
    names = {}
    text = (ROOT / "setup.py").read_text()
    exec(compile(text[: text.index("\nsetup(")], "setup.py", "exec"), {"__file__": str(ROOT / "setup.py")}, names)
    return [*names["RUN"], *names[extra]]


@pytest.mark.parametrize("machine", ["aarch64", "x86_64"])
def test_it_resolves_for_python_3_10(machine, tmp_path):
    platforms = [word for number in (17, 24, 26, 27, 28, 31, 34, 35) for word in ("--platform", f"manylinux_2_{number}_{machine}")]  # JetPack 6: glibc 2.35
    report = tmp_path / "report.json"
    asked = ["--dry-run", "--ignore-installed", "--quiet", "--report", str(report), "--target", str(tmp_path / "none")]
    asked += ["--python-version", "3.10", "--implementation", "cp", "--only-binary=:all:", *platforms, "--retries", "0", "--timeout", "5"]
    done = subprocess.run([sys.executable, "-m", "pip", "install", *asked, *requirements("BUILD")], capture_output=True, text=True)
    if done.returncode and re.search("from versions: none|Connection|No module named pip|NewConnectionError|Temporary failure", done.stderr):
        pytest.skip("no package index is within reach")
    assert done.returncode == 0, done.stderr
    found = {item["metadata"]["name"].lower().replace("_", "-"): item["metadata"]["version"] for item in json.loads(report.read_text())["install"]}
    assert {"onnx", "onnxruntime", "numpy", "ml-dtypes", "safetensors", "pillow"} <= set(found)
    assert not set(found) & {"torch", "diffusers", "transformers", "onnxscript", "onnx-ir"}
    assert found["onnxruntime"].split(".")[:2] == ["1", "23"]  # the last one for 3.10


@pytest.mark.parametrize("name", NETWORKS)
def test_small_networks_build_without_torch(tiny_bundle, tmp_path, name):
    plan = tmp_path / "x.plan"
    code = BUILD.format(blocked=BLOCKED, arguments=[str(tiny_bundle(name)), "-o", str(plan)])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and plan.is_file(), done.stderr
