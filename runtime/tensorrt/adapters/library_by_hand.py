"""How TensorRT 8.5, whose plugin registry opens no libraries, gets the creators of one all the same; needs nothing but the standard library."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from pathlib import Path

from ...errors import EnvironmentMismatchError

NVINFER = "libnvinfer.so.8"


def register_by_hand(path: Path) -> Callable[[], None] | None:
    """See ``adapter.Adapter.register_library``; the library stays open until the process ends, as its creators must while a plugin lives.

    Raises:
        EnvironmentMismatchError: if TensorRT's own library is not where it has to be.
    """
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
