"""Plans of the demo and how exact they are, kept from one run to the next for as long as nothing that goes into them changes."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ... import __version__
from ...runtime.tensorrt.user_cache import cache_folder
from ..model_cards import WEIGHTS

PACKAGE = Path(__file__).parents[2]
MAKERS = ("models", "export", "runtime", "datasets", "benchmarks/accuracy")  # folders whose code decides what is in a plan and what it computes
LIBRARIES = ("torch", "onnxruntime", "transformers", "diffusers", "open_clip_torch")


def content_key(name: str, words: Sequence[str], weights: Path = WEIGHTS, package: Path = PACKAGE) -> str:
    """64 hex digits that differ when a plan would.

    Args:
        name: of the network.
        words: what is said to ``depth-export`` besides its name.
        weights: the folder with ``NAME.safetensors``.
        package: the folder of this package.
    """
    digest = hashlib.sha256("\0".join((name, *words, __version__, *map(_version, LIBRARIES))).encode())
    sources = sorted(path for folder in MAKERS for path in (package / folder).rglob("*.py"))
    for path in (weights / f"{name}.safetensors", *sources):
        digest.update(path.read_bytes() if path.is_file() else b"none")
        digest.update(b"\0")
    return digest.hexdigest()


def accuracy_file(name: str) -> str:
    """Name of what ``depth-bench accuracy`` wrote about a plan; it is a function of the plan alone, so it is kept with it."""
    return f"{name}-accuracy.json"


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return ""


def kept(name: str, words: Sequence[str], folder: Path, make: Callable[[], None]) -> bool:
    """Put ``NAME.plan``, ``NAME-accuracy.json`` and, if there is one, the bundle ``NAME`` into ``folder``.

    From the cache, else by ``make``, which writes them there.

    Returns:
        whether they came from the cache.
    """
    cache = cache_folder("demo")
    place = cache / f"{name}-{content_key(name, words)[:24]}"
    if (place / f"{name}.plan").is_file():
        _copy(place, folder, name)
        return True
    make()
    part = Path(tempfile.mkdtemp(prefix=".part-", dir=cache))
    try:
        _copy(folder, part, name)
        for old in cache.glob(f"{name}-*"):  # of other weights or versions, or broken off
            shutil.rmtree(old, ignore_errors=True)
        os.replace(part, place)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return False


def _copy(source: Path, target: Path, name: str) -> None:
    for file in (f"{name}.plan", accuracy_file(name)):
        if (source / file).is_file():
            shutil.copyfile(source / file, target / file)
    if (source / name).is_dir():
        shutil.copytree(source / name, target / name, dirs_exist_ok=True)
