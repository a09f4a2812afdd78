"""Where a compiler's measurements are kept unless the user says otherwise."""

from __future__ import annotations

from ...runtime.errors import InputError
from ...runtime.tensorrt.user_cache import cache_folder


def timing_cache_file(version: str, target: str) -> str:
    """The path in the user's cache for one release of TensorRT and one kind of GPU; empty if there can be no cache."""
    try:
        return str(cache_folder("timing") / f"tensorrt-{version}-{target or 'gpu'}.cache")
    except InputError:
        return ""
