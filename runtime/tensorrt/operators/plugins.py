"""The library of our operators that some engines for plain TensorRT call: found, held against the plan's SHA-256, loaded once for a process.

It is not in the plan: a plan names it, and nothing else is ever loaded for it. Its creators are registered with the first engine that calls them and
taken away after the last. Needs nothing but the standard library.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from ...artefact.plugin_library import PluginLibrary
from ...errors import ChecksumError, EnvironmentMismatchError, InputError
from ...files import sha256_of
from ..adapters.open_adapter import open_adapter
from ..adapters.releases import library_release

if TYPE_CHECKING:
    from ...artefact.operator_use import OperatorUse

ENVIRONMENT = "FATHOM_PLUGINS"
MARK = re.compile(rb"fathom plugins for TensorRT (\d{1,3})\.(\d{1,3})\0")
MOST_NBYTES = 1 << 30
BUILD = "python -m fathom.trt_plugins.build_plugins --include DIR -o FILE compiles one (docs/plugins.md)"


def read_library(path: str | Path) -> PluginLibrary:
    """What a library says of itself, without running anything in it.

    Raises:
        InputError: if there is no such file, or it is no library of ours.
    """
    path = Path(path)
    try:
        if path.stat().st_size > MOST_NBYTES:
            raise InputError(f"{path} has {path.stat().st_size} bytes", wanted=f"a plugin library of at most {MOST_NBYTES}")
        found = MARK.search(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})", wanted="the library of our operators", fix=BUILD) from error
    if found is None:
        raise InputError(f"{path} does not say which TensorRT it is for", wanted="a library that build_plugins made", fix=BUILD)
    try:
        return PluginLibrary(path.name, sha256_of(path), b".".join(found.groups()).decode())
    except ValueError as error:
        raise InputError(f"{path}: {error}", wanted="a name of letters, digits, dots and dashes") from error


def find_library(wanted: PluginLibrary, beside: Path) -> Path:
    """The library that a plan names: what ``FATHOM_PLUGINS`` says (the file, or its folder), else the file beside the plan.

    Args:
        beside: the plan.

    Raises:
        EnvironmentMismatchError: if it is not there.
        ChecksumError: if it has another SHA-256 than the plan says.
    """
    told = os.environ.get(ENVIRONMENT, "")
    path = (Path(told) / wanted.file if Path(told).is_dir() else Path(told)) if told else beside.parent / wanted.file
    if not path.is_file():
        raise EnvironmentMismatchError(
            f"the engines of {beside} call operators of {wanted.file}, and {path} is not there",
            wanted=f"the library with the SHA-256 {wanted.sha256[:12]}…, for TensorRT {wanted.tensorrt}",
            fix=f"copy it beside the plan, or set {ENVIRONMENT} to it; a plan built without --plugins needs none",
        )
    if (digest := sha256_of(path)) != wanted.sha256:
        raise ChecksumError(
            f"{path} has the SHA-256 {digest[:12]}…",
            wanted=f"{wanted.sha256[:12]}…, the library that the plan was built with",
            fix="copy that library here, or depth-build the plan again with this one",
        )
    return path


@dataclass
class _Loaded:
    sha256: str
    unload: Callable[[], None]
    users: int


_loaded: dict[str, _Loaded] = {}  # by the name of TensorRT's package
_lock = threading.Lock()


class Plugins:
    """A loaded library, from ``load_plugins``. ``close()`` when no engine that calls it is left; may be called twice."""

    def __init__(self, trt: ModuleType):
        self._trt: ModuleType | None = trt

    def close(self) -> None:
        """Take the creators away if nobody else uses them."""
        with _lock:
            trt, self._trt = self._trt, None
            if trt is None:
                return
            loaded = _loaded[trt.__name__]
            loaded.users -= 1
            if not loaded.users:
                del _loaded[trt.__name__]
                loaded.unload()


def open_plugins(trt: ModuleType, operators: OperatorUse | None, beside: Path) -> Plugins | None:
    """The library that a plan names, loaded; None if its engines call none. Errors: see ``find_library`` and ``load_plugins``."""
    library = operators.library if operators is not None else None
    return load_plugins(trt, find_library(library, beside), library) if library is not None else None


def load_plugins(trt: ModuleType, path: Path, library: PluginLibrary) -> Plugins:
    """Load a library into TensorRT's registry, once for all that want it in this process.

    Args:
        path: where it lies; its SHA-256 was checked.
        library: what it is.

    Raises:
        EnvironmentMismatchError: if it is for another TensorRT, another library with the same operators is loaded, or TensorRT refuses it.
    """
    check_release(path, library, trt.__version__)
    with _lock:
        loaded = _loaded.get(trt.__name__)
        if loaded is not None and loaded.sha256 != library.sha256:
            was = f"a library with the SHA-256 {loaded.sha256[:12]}… is loaded already, and its operators have the same names as those of {path}"
            raise EnvironmentMismatchError(was, wanted="one library in a process", fix="close the other plan first, or use a process for each")
        if loaded is None:
            unload = open_adapter(trt).register_library(path.resolve())
            if unload is None:
                was = f"TensorRT {trt.__version__} does not take the library {path}, or has operators of these names already"
                raise EnvironmentMismatchError(was, wanted="a library for this release, alone with its names", fix=BUILD)
            loaded = _loaded[trt.__name__] = _Loaded(library.sha256, unload, 0)
        loaded.users += 1
    return Plugins(trt)


def check_release(path: str | Path, library: PluginLibrary, version: str) -> None:
    """Raise EnvironmentMismatchError if a library is for another TensorRT than the one that is installed.

    Args:
        path: where it lies.
        library: what it is.
        version: of the package ``tensorrt``.
    """
    here = library_release(version)
    if library_release(library.tensorrt) != here:
        was = f"{path} was compiled for TensorRT {library.tensorrt}, and {version} is installed here"
        raise EnvironmentMismatchError(was, wanted=f"a library for TensorRT {here}", fix=BUILD)
