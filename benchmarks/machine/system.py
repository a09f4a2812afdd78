"""The machine in MLPerf's words, as far as it can be asked."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

MACHINE = ("host_processor_model_name", "host_processor_core_count", "accelerators_per_node", "accelerator_model_name")
CLOCKS = ("power_mode", "host_processor_governor", "accelerator_power_limit_w")


def host() -> dict[str, Any]:
    """Processor, memory and operating system; needs nothing but the files of ``/proc``."""
    cpu = _pairs("/proc/cpuinfo")
    memory_kib = _pairs("/proc/meminfo").get("MemTotal", "0").split()[0]
    return {
        "host_processor_model_name": cpu.get("model name") or platform.processor() or platform.machine(),
        "host_processor_core_count": os.cpu_count(),
        "host_memory_capacity_gib": round(int(memory_kib) / (1 << 20), 1) or None,
        "operating_system": f"{platform.system()} {platform.machine()} {' '.join(platform.libc_ver())}".strip(),
    }


def describe() -> dict[str, Any]:
    """``host()``, the accelerators, their software, and how the clocks are set."""
    from ...runtime.commands.doctor import devices
    from .conditions import settings

    found = devices()
    gpus = found["gpus"]
    facts = host() | {
        "accelerators_per_node": len(gpus),
        "accelerator_model_name": gpus[0]["name"] if gpus else "",
        "accelerator_memory_capacity_mib": gpus[0]["memory_mib"] if gpus else None,
        "accelerator_target": gpus[0]["target"] if gpus else "",
        "driver": found["driver"],
        "other_software_stack": found["packages"],
    }
    return facts | settings()


def _pairs(path: str) -> dict[str, str]:
    """The first value of every key of a file of lines ``key: value``; empty where there is no such file."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return {}
    found: dict[str, str] = {}
    for line in lines:
        key, colon, value = line.partition(":")
        if colon:
            found.setdefault(key.strip(), value.strip())
    return found
