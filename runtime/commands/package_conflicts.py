"""Installed packages that get in each other's way, found without importing any of them."""

from __future__ import annotations

import re
import subprocess
import sys
from functools import lru_cache
from importlib import machinery, metadata
from pathlib import Path

from ..jetson import read_jetson

ORT_GPU = "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'onnxruntime-gpu[cuda,cudnn]'"
ORT_JETSON = "pip uninstall -y onnxruntime, then install the onnxruntime-gpu that jetson-ai-lab builds for this JetPack (PyPI has none for Jetson)"
TRY_S = 60


def version_of(name: str) -> str:
    """Of an installed distribution; empty if there is none."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def onnxruntime_gpu_fix() -> str:
    """How the build of ONNX Runtime for CUDA gets here alone."""
    return ORT_JETSON if read_jetson() else ORT_GPU


def conflicts() -> list[dict[str, str]]:
    """What stands in the way of what, as ``says`` and ``fix``; empty on a sound installation."""
    return [found for look in (two_onnxruntimes, torchvision_for_another_torch) if (found := look())]


def two_onnxruntimes() -> dict[str, str] | None:
    """``onnxruntime`` and ``onnxruntime-gpu`` share one folder; the one that was installed last is what is imported."""
    cpu, gpu = version_of("onnxruntime"), version_of("onnxruntime-gpu")
    if not (cpu and gpu):
        return None
    facts = _text("onnxruntime", "capi/build_and_package_info.py")
    name, version = (found.group(1) if (found := re.search(rf"^{key} = '([^']+)'", facts, re.M)) else "" for key in ("package_name", "__version__"))
    now = f"; what is in it now is {name} {version}".rstrip() if name else ", and whichever came last wins"
    says = f"onnxruntime {cpu} and onnxruntime-gpu {gpu} are both installed: they share one folder{now}"
    return {"says": says, "fix": onnxruntime_gpu_fix()}


@lru_cache(maxsize=None)  # importing torchvision takes seconds
def torchvision_for_another_torch() -> dict[str, str] | None:
    """A torchvision that is compiled for another CUDA than torch cannot be imported, and takes open_clip and parts of transformers with it.

    Only where the two do not look alike is the import really tried, in a process of its own.
    """
    torch, vision = (_release(_text(name, "version.py")) for name in ("torch", "torchvision"))
    if not (torch and vision) or torch.partition("+")[2] == vision.partition("+")[2]:
        return None
    try:
        tried = subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True, text=True, timeout=TRY_S)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if tried.returncode == 0:
        return None
    last = (tried.stderr.strip().splitlines() or ["it gave no reason"])[-1]
    index = f" --index-url https://download.pytorch.org/whl/{torch.partition('+')[2]}" if "+" in torch else ""
    fits = f"pip install --force-reinstall --no-deps torchvision=={vision.partition('+')[0]}{index}"
    says = f"torchvision {vision} cannot be imported beside torch {torch} ({last}); transformers and open_clip take it where it is, so exporting fails too"
    return {"says": says, "fix": f"pip uninstall -y torchvision, which nothing here needs, or {fits}"}


def _text(package: str, name: str) -> str:
    """A text file of an installed package; empty if it is not there."""
    try:
        found = machinery.PathFinder.find_spec(package)
        return (Path(found.origin).parent / name).read_text() if found and found.origin else ""
    except (ImportError, ValueError, OSError):
        return ""


def _release(text: str) -> str:
    found = re.search(r"^__version__ = ['\"]([^'\"]+)['\"]", text, re.M)
    return found.group(1) if found else ""
