"""Plans of the demo, how exact they are and how long they take, kept from one run to the next for as long as nothing that goes into them changes."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ... import __version__
from ...runtime.tensorrt.user_cache import cache_folder
from ..machine.system import host
from ..model_cards import WEIGHTS

PACKAGE = Path(__file__).parents[2]
# Folders whose code decides what is kept.
MAKERS = ("models", "export", "runtime", "datasets", "benchmarks/evaluation", "benchmarks/accuracy", "benchmarks/latency")
LIBRARIES = ("torch", "onnxruntime", "transformers", "diffusers", "open_clip_torch")


def content_key(name: str, words: Sequence[str], weights: Path = WEIGHTS, package: Path = PACKAGE) -> str:
    """64 hex digits that differ when a plan would, or the machine does.

    Args:
        name: of the network.
        words: what is said to ``depth-export`` besides its name.
        weights: the folder with ``NAME.safetensors``.
        package: the folder of this package.
    """
    digest = hashlib.sha256("\0".join((name, *words, __version__, *map(_version, LIBRARIES), *map(str, host().values()))).encode())
    sources = sorted(path for folder in MAKERS for path in (package / folder).rglob("*.py"))
    for path in (weights / f"{name}.safetensors", *sources):
        digest.update(path.read_bytes() if path.is_file() else b"none")
        digest.update(b"\0")
    return digest.hexdigest()


def accuracy_file(name: str) -> str:
    """Name of what ``depth-bench accuracy`` wrote about a plan."""
    return f"{name}-accuracy.json"


def latency_file(name: str) -> str:
    """Name of what ``depth-bench latency`` wrote about a plan."""
    return f"{name}-latency.json"


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return ""


def kept(name: str, words: Sequence[str], folder: Path) -> bool:
    """Put into ``folder`` what an earlier run kept of a network (``keep``); whether it did."""
    place = _place(name, words)
    found = (place / f"{name}.plan").is_file()
    if found:
        _copy(place, folder, name)
    return found


def keep(name: str, words: Sequence[str], folder: Path) -> None:
    """Keep ``NAME.plan``, its accuracy and its latency and the bundle ``NAME``, as many of them as ``folder`` has, in place of what was kept before."""
    place = _place(name, words)
    part = Path(tempfile.mkdtemp(prefix=".part-", dir=place.parent))
    try:
        _copy(folder, part, name)
        for old in place.parent.glob(f"{name}-*"):  # of other weights or versions, or broken off
            shutil.rmtree(old, ignore_errors=True)
        os.replace(part, place)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _place(name: str, words: Sequence[str]) -> Path:
    return cache_folder("demo") / f"{name}-{content_key(name, words)[:24]}"


def _copy(source: Path, target: Path, name: str) -> None:
    for file in (f"{name}.plan", accuracy_file(name), latency_file(name)):
        if (source / file).is_file():
            shutil.copyfile(source / file, target / file)
    if (source / name).is_dir():
        shutil.copytree(source / name, target / name, dirs_exist_ok=True)
