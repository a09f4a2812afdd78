"""What a user gets: the wheel in a bare environment, where depth-run works without torch, onnx or transformers."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fathom

ROOT = Path(fathom.__file__).parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy of the tracked files so that the checkout stays clean."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    listed = subprocess.check_output(["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, text=True).split("\0")
    for name in filter(None, listed):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(out), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    return next(out.glob("*.whl"))


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0] for name in names} == {"fathom", f"fathom_depth-{fathom.__version__}.dist-info"}
    assert {
        "fathom/runtime/artefact/schemas/plan.schema.json",
        "fathom/py.typed",
        "fathom/benchmarks/demo/viewer.js",
        "fathom/benchmarks/demo/style.css",
    } <= set(names)
    assert not [name for name in names if "/tests/" in name or name.endswith("/setup.py")]
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_depth_run_works_in_a_bare_environment(wheel, tmp_path):
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", str(bare)], check=True)
    install = [str(bare / "bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", str(wheel)]
    installed = subprocess.run(install, capture_output=True, text=True)
    if installed.returncode and "Could not find a version" in installed.stderr:
        pytest.skip("no package index can be reached")
    assert installed.returncode == 0, installed.stderr
    commands = Path(sys.executable).parent
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    subprocess.run([commands / "depth-export", "--model", "evp-tiny", "-o", tmp_path / "evp.plan", "--quiet"], check=True, capture_output=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (120, 160, 3), np.uint8)).save(tmp_path / "photo.png")
    command = [bare / "bin/depth-run", "--engine", tmp_path / "evp.plan", tmp_path / "photo.png", "-o", tmp_path / "out", "--json", "--save", "png16,npy,color"]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["untrained"] in (True, False)
    depth_m = np.load(next((tmp_path / "out").glob("*.npy")), allow_pickle=False)
    assert depth_m.shape == (120, 160) and np.isfinite(depth_m).all()
    listed = json.loads(subprocess.check_output([bare / "bin/python", "-m", "pip", "list", "--format", "json"], text=True))
    assert not {package["name"].lower() for package in listed} & {"torch", "onnx", "transformers", "diffusers", "safetensors"}
    refused = subprocess.run(
        [bare / "bin/depth-export", "--model", "evp-tiny", "-o", tmp_path / "b"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert refused.returncode == 6 and "pip install 'fathom-depth[export]'" in refused.stderr
