"""Jetsons of many kinds, as folders with the small files that tell about them: what is said, and that nobody is sent to PyPI."""

import json
import sys
from dataclasses import dataclass, field

import fake_cuda
import onnxruntime
import pytest

from fathom.export.commands import build_command
from fathom.runtime import jetson
from fathom.runtime.commands import doctor, package_conflicts
from fathom.runtime.errors import EnvironmentMismatchError
from fathom.runtime.tensorrt.loading import import_tensorrt

ORIN_NANO = "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super"
SUPER = {0: "15W", 1: "25W", 2: "MAXN_SUPER"}
TENSORRT = {35: "8.5.2.2-1+cuda11.4", 36: "10.3.0.30-1+cuda12.5", 38: "10.13.3.9-1+cuda13.0"}
LINES = {  # in the form boards print them
    "35.4.1": "# R35 (release), REVISION: 4.1, GCID: 33958178, BOARD: t186ref, EABI: aarch64, DATE: Tue Aug  1 19:57:35 UTC 2023",
    "35.3.1": "# R35 (release), REVISION: 3.1, GCID: 32827747, BOARD: t186ref, EABI: aarch64, DATE: Sun Mar 19 15:19:21 UTC 2023",
    "36.3.0": "# R36 (release), REVISION: 3.0, GCID: 36191598, BOARD: generic, EABI: aarch64, DATE: Mon May  6 17:34:21 UTC 2024",
    "36.4.0": "# R36 (release), REVISION: 4.0, GCID: 37537400, BOARD: generic, EABI: aarch64, DATE: Fri Sep 13 04:36:44 UTC 2024",
    "36.4.3": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8 01:49:37 UTC 2025",
    "38.2.0": "# R38 (release), REVISION: 2.0, GCID: 41844464, BOARD: generic, EABI: aarch64, DATE: Fri Aug 22 00:55:42 UTC 2025",
    "40.1.0": "# R40 (release), REVISION: 1.0, GCID: 1, BOARD: generic, EABI: aarch64",
}
REST = "\n# KERNEL_VARIANT: oot\nTARGET_USERSPACE_LIB_DIR=nvidia\nTARGET_USERSPACE_LIB_DIR_PATH=usr/lib/aarch64-linux-gnu/nvidia\n"


@dataclass
class Root:
    """One machine, and what must be said of it."""

    model: str = ""
    line: str = ""
    core: str = ""
    missing: tuple = ()
    modes: dict = field(default_factory=dict)
    mode: int | None = None
    container: bool = False
    kernel: str = "5.15.148-tegra"
    venv: str = ""
    python: tuple = (3, 10)
    wheels: tuple = ()
    jetpack: str = ""
    says: tuple = ()
    fixes: tuple = ()
    silent: tuple = ()


ROOTS = {
    "xavier-nx-5.1.2": Root(
        "NVIDIA Jetson Xavier NX Developer Kit", "35.4.1", kernel="5.10.120-tegra", python=(3, 8), jetpack="5.1.2", says=("DLA is not used",)
    ),
    "agx-xavier-5.1.2-python-3.10": Root(
        "Jetson-AGX", "35.4.1", kernel="5.10.120-tegra", jetpack="5.1.2", modes={0: "MAXN", 2: "MODE_15W"}, mode=2,
        says=("this is Python 3.10", "MODE_15W holds the clocks down", "DLA is not used"),
        fixes=("python3.8 -m venv --system-site-packages VENV", "sudo nvpmodel -m 0 (MAXN)"),
    ),
    "orin-nx-5.1.1": Root("NVIDIA Orin NX Developer Kit", "35.3.1", kernel="5.10.104-tegra", python=(3, 8), jetpack="5.1.1", says=("DLA is not used",)),
    "agx-orin-6.0": Root("NVIDIA Jetson AGX Orin Developer Kit", "36.3.0", jetpack="6.0", says=("DLA is not used",), silent=("missing", "hides")),
    "orin-nx-6.1": Root(
        "NVIDIA Jetson Orin NX Engineering Reference Developer Kit", "36.4.0", jetpack="6.1", missing=("nvidia-l4t-dla-compiler",),
        says=("libnvdla_compiler.so",), fixes=("sudo apt install nvidia-l4t-dla-compiler",),
    ),
    "orin-nano-6.2": Root(
        ORIN_NANO, "36.4.3", jetpack="6.2", modes=SUPER, mode=2, says=("power mode MAXN_SUPER",), silent=("DLA", "holds the clocks", "missing")
    ),
    "orin-nano-6.2-no-tensorrt": Root(
        ORIN_NANO, "36.4.3", jetpack="6.2", missing=("tensorrt", "python3-libnvinfer"), modes=SUPER, mode=0,
        says=("missing of JetPack: tensorrt and python3-libnvinfer", "15W holds"), fixes=("sudo apt install tensorrt python3-libnvinfer", "nvpmodel -m 2"),
    ),
    "orin-nano-6.2-no-bindings": Root(ORIN_NANO, "36.4.3", jetpack="6.2", missing=("python3-libnvinfer",), fixes=("sudo apt install python3-libnvinfer",)),
    "orin-nano-6.2-venv": Root(
        ORIN_NANO, "36.4.3", jetpack="6.2", venv="false", says=("hides the system's packages",), fixes=("python3 -m venv --system-site-packages VENV",)
    ),
    "orin-nano-6.2-open-venv": Root(ORIN_NANO, "36.4.3", jetpack="6.2", venv="true", silent=("hides", "missing")),
    "orin-nano-6.2-wheels-of-pypi": Root(ORIN_NANO, "36.4.3", jetpack="6.2", wheels=("tensorrt-cu12",), fixes=("pip uninstall -y tensorrt-cu12",)),
    "thor-7.0": Root("NVIDIA Jetson AGX Thor Developer Kit", "38.2.0", kernel="6.8.12-tegra", python=(3, 12), jetpack="7.0", silent=("DLA", "missing")),
    "container": Root(
        "", "", container=True, missing=jetson.PACKAGES, says=("in a container", "the release of Jetson Linux is not known"),
        fixes=("nvcr.io/nvidia/l4t-jetpack", "mount /etc/nv_tegra_release"),
    ),
    "no-release-file": Root(ORIN_NANO, "", core="36.4.7-20250918154033", jetpack="6.2.1", silent=("Jetson Linux is not known",)),
    "half-upgraded": Root(ORIN_NANO, "36.4.0", core="36.4.7-20250918154033", jetpack="6.1", says=("an upgrade was not finished",), fixes=("full-upgrade",)),
    "unknown-l4t": Root(ORIN_NANO, "40.1.0", core="40.1.0-20270101000000", says=("in no JetPack that is known",)),
}  # fmt: skip


def make(tmp_path, monkeypatch, root):
    """Write the files of a machine and let Fathom look there."""
    files = {"proc/sys/kernel/osrelease": root.kernel + "\n"}
    if root.line:
        files["etc/nv_tegra_release"] = LINES[root.line] + REST
    if root.model:
        files["proc/device-tree/model"] = root.model + "\0"
    if root.container:
        files[".dockerenv"] = ""
    if root.modes:
        files["etc/nvpmodel.conf"] = "< PM_CONFIG DEFAULT=0 >\n" + "".join(
            f"< POWER_MODEL ID={n} NAME={name} >\nCPU_ONLINE CORE_0 1\n" for n, name in root.modes.items()
        )
        files["var/lib/nvpmodel/status"] = f"pmode:{root.mode:04d}"
    if root.venv:
        files[f"{sys.prefix.lstrip('/')}/pyvenv.cfg"] = f"home = /usr/bin\ninclude-system-site-packages = {root.venv}\n"
    core = root.core or f"{root.line}-20250107174145"
    versions = dict.fromkeys(jetson.PACKAGES, TENSORRT.get(int(core[:2]) if core[:2].isdigit() else 0, "1")) | {"nvidia-l4t-core": core}
    entries = [
        f"Package: {name}\nStatus: {'deinstall ok config-files' if name in root.missing else 'install ok installed'}\n"
        f"Architecture: arm64\nVersion: {version}\nDescription: something\n .\n  indented: words\n"
        for name, version in versions.items()
    ]
    files["var/lib/dpkg/status"] = "\n".join(entries)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(jetson, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "version_info", (*root.python, 0, "final", 0))
    monkeypatch.setattr(jetson, "_has_wheel", root.wheels.__contains__)


@pytest.fixture(params=ROOTS)
def root(request, tmp_path, monkeypatch):
    make(tmp_path, monkeypatch, ROOTS[request.param])
    return ROOTS[request.param]


def test_what_the_machine_is_and_what_mends_it(root):
    found = jetson.read_jetson()
    assert found.jetpack == root.jetpack
    said = " | ".join([found.words, *(remark.says for remark in found.remarks())])
    fixes = " | ".join(remark.fix for remark in found.remarks())
    assert all(words in said for words in root.says), said
    assert all(words in fixes for words in root.fixes), fixes
    assert not any(words in said for words in root.silent), said


def test_nobody_is_sent_to_pypi_for_tensorrt(root, monkeypatch, capsys, tmp_path):
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    fake_cuda.install(monkeypatch, fake_cuda.Machine(devices=1))
    said = []
    for ask in (import_tensorrt,):
        for backend in ("tensorrt", "tensorrt-rtx"):
            with pytest.raises(EnvironmentMismatchError) as caught:
                ask(backend)
            said.append(str(caught.value))
    doctor.main(["--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["jetson"]["jetpack"] == root.jetpack
    doctor.main([])
    build_command.main([str(tmp_path), "--backend", "tensorrt", "-o", str(tmp_path / "x.plan")])
    said += [json.dumps(found), *capsys.readouterr()]
    assert not any("pip install tensorrt" in words or "fathom-depth[tensorrt]" in words or "[rtx]" in words for words in said)
    assert all(
        "apt install" in words or "--system-site-packages" in words or "pip uninstall" in words or "l4t-jetpack" in words for words in (said[0], said[2])
    )


def test_a_tensorrt_that_is_too_old(tmp_path, monkeypatch):
    make(tmp_path, monkeypatch, ROOTS["xavier-nx-5.1.2"])
    assert "--backend onnxruntime" in jetson.tensorrt_upgrade()
    (tmp_path / "proc/device-tree/model").write_text(ORIN_NANO + "\0")
    assert "JetPack 6.1 or later" in jetson.tensorrt_upgrade()


@pytest.mark.parametrize("model", ["", "Raspberry Pi 5 Model B Rev 1.0\0"])
def test_other_machines_are_no_jetsons(tmp_path, monkeypatch, model):
    monkeypatch.setattr(jetson, "ROOT", tmp_path)
    (tmp_path / "proc/device-tree").mkdir(parents=True)
    (tmp_path / "proc/device-tree/model").write_text(model)
    assert jetson.read_jetson() is None
    assert jetson.tensorrt_fix("tensorrt", "pip install tensorrt") == "pip install tensorrt"
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(EnvironmentMismatchError, match=r"fathom-depth\[tensorrt\]"):
        import_tensorrt("tensorrt")


def test_both_packages_of_onnxruntime(monkeypatch):
    monkeypatch.setattr(package_conflicts, "version_of", lambda name: "1.23.2" if name.startswith("onnxruntime") else "")
    found = doctor.examine()["backends"]["onnxruntime-cuda"]
    assert not found["works"] and "both installed" in found["says"] and "pip uninstall -y onnxruntime onnxruntime-gpu" in found["fix"]
    assert f"what is in it now is onnxruntime {onnxruntime.__version__}" in found["says"]
