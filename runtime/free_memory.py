"""Memory that was freed and is kept by the C library all the same."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress


def give_back_free_memory() -> None:
    """Let glibc return to the system what lies free between what is used: heaps of many threads, and of pictures of many sizes, fill with holes."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)
