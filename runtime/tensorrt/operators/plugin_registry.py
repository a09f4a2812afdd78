"""How TensorRT's plugin registry takes the creators of a library, and gives them up again; needs nothing but the standard library.

From 8.6 on the registry opens the library itself. 8.5 opens none: there the library is opened here, stays open until the process ends, and
registers its own creators.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from ...errors import EnvironmentMismatchError

NVINFER = "libnvinfer.so.8"


def register(trt: ModuleType, path: Path) -> Callable[[], None] | None:
    """Register what a library has.

    Args:
        path: absolute; its SHA-256 was checked.

    Returns:
        what takes the creators away again; None if the registry takes none of them: the library is for another release, or one of the names is held.

    Raises:
        EnvironmentMismatchError: if TensorRT's own library is not where it has to be.
    """
    registry = trt.get_plugin_registry()
    if not hasattr(registry, "load_library"):
        return _register_by_hand(path)
    handle = registry.load_library(str(path))
    return None if handle is None else lambda: registry.deregister_library(handle)


def _register_by_hand(path: Path) -> Callable[[], None] | None:
    try:
        library = ctypes.CDLL(str(path))
        enter, leave = library.fathom_register, library.fathom_deregister
    except (OSError, AttributeError):
        return None
    registry = ctypes.c_void_p(native_registry())
    return None if enter(registry) else lambda: leave(registry) and None


def native_registry() -> int:
    """Address of the registry, of the library that the package ``tensorrt`` has loaded already; a second one is never opened."""
    try:
        library = ctypes.CDLL(NVINFER, mode=os.RTLD_NOLOAD | os.RTLD_NOW)
    except OSError as error:
        raise EnvironmentMismatchError(f"the package tensorrt is loaded without {NVINFER} ({error})", fix="build without --plugins") from error
    library.getPluginRegistry.restype = ctypes.c_void_p
    return library.getPluginRegistry()
