"""The release of the NVIDIA driver, as its kernel module reports it."""

from __future__ import annotations

import re
from pathlib import Path

DRIVER_FACTS = Path("/proc/driver/nvidia/version")


def driver_release() -> str:
    """Such as ``580.65.06``; empty where the driver does not say, as on older Jetsons."""
    try:
        found = re.search(r"Kernel Module.*?\s(\d+(?:\.\d+)+)\s", DRIVER_FACTS.read_text(errors="replace"))
    except OSError:
        return ""
    return found.group(1) if found else ""
