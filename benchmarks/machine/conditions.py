"""What the machine did while it was measured: clocks, temperature, throttling, and who else was busy."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from .nvml import Nvml

CPU = Path("/sys/devices/system/cpu/cpu0")
THERMAL = Path("/sys/class/thermal")
PROC = Path("/proc")
EVERY_S = 1.0


def settings() -> dict[str, Any]:
    """How the clocks are set, in words a later run is compared by: ``power_mode`` (a Jetson's, or the platform's profile),
    ``host_processor_governor`` and ``accelerator_power_limit_w``; empty or None where nobody says."""
    return {
        "power_mode": _power_mode(),
        "host_processor_governor": _word(CPU / "cpufreq/scaling_governor"),
        "accelerator_power_limit_w": _power_limit_w(),
    }


class Conditions:
    """Samples the machine between queries, at most once a second; close it.

    Args:
        proc: where the kernel's counters are.
        index: which GPU to ask.
    """

    def __init__(self, proc: Path = PROC, index: int = 0):
        self._proc, self._samples, self._last_s = proc, [], -EVERY_S
        self._nvml = None
        with suppress(OSError):
            self._nvml = Nvml(index)
        self._start = self._cpu_seconds()

    def sample(self) -> None:
        """Look, unless it was done a moment ago."""
        now = time.monotonic()
        if now - self._last_s < EVERY_S:
            return
        self._last_s = now
        self._samples.append(_look(self._proc) | (self._nvml.sample() if self._nvml else {}))

    def _cpu_seconds(self) -> tuple[float, float, float, float]:
        """Seconds of all cores busy, of those by this process and its children, stolen by the hypervisor, and by the clock."""
        ticks = os.sysconf("SC_CLK_TCK")
        busy = stolen = 0.0
        with suppress(OSError, ValueError, IndexError):
            user, nice, system, _, _, irq, soft, steal, *_ = map(int, (self._proc / "stat").read_text().splitlines()[0].split()[1:])
            busy, stolen = (user + nice + system + irq + soft) / ticks, steal / ticks
        own = os.times()
        return busy, own.user + own.system + own.children_user + own.children_system, stolen, time.monotonic()

    def close(self) -> dict[str, Any]:
        """What was seen: least, greatest and last of every reading, and the shares of the processor that others had."""
        before, after = self._start, self._cpu_seconds()
        busy, own, stolen, seconds = (new - old for new, old in zip(after, before, strict=True))
        capacity = max(1e-9, seconds * (os.cpu_count() or 1))
        if self._nvml is not None:
            self._nvml.close()
            self._nvml = None
        names = sorted({name for sample in self._samples for name, value in sample.items() if isinstance(value, (int, float))})
        readings = {}
        for name in names:
            values = [sample[name] for sample in self._samples if sample.get(name) is not None]
            readings[name] = {"min": min(values), "max": max(values), "last": values[-1]}
        throttled = sorted({word for sample in self._samples for word in sample.get("throttling", ())})
        counts = [sample["throttle_count"] for sample in self._samples if "throttle_count" in sample]
        if counts and counts[-1] > counts[0]:
            throttled.append("processor thermal")
        return {
            "duration_s": round(seconds, 2),
            "sample_size": len(self._samples),
            "others_busy": round(min(1.0, max(0.0, busy - own) / capacity), 4),
            "stolen": round(min(1.0, max(0.0, stolen) / capacity), 4),
            "readings": readings,
            "throttling": throttled,
        }


def _look(proc: Path) -> dict[str, Any]:
    """Readings of the processor; only those that exist here."""
    found: dict[str, Any] = {"load": round(os.getloadavg()[0], 2)} if hasattr(os, "getloadavg") else {}
    mhz = []
    with suppress(OSError, ValueError):
        mhz = [float(line.split(":")[1]) for line in (proc / "cpuinfo").read_text().splitlines() if line.startswith("cpu MHz")]
    if mhz:
        found["cpu_clock_mhz"] = round(sum(mhz) / len(mhz))
    zones = [int(word) for zone in THERMAL.glob("thermal_zone*") if (word := _word(zone / "temp")).lstrip("-").isdigit()]
    if zones:
        found["cpu_temperature_c"] = max(zones) / 1000
    if (count := _word(CPU / "thermal_throttle/core_throttle_count")).isdigit():
        found["throttle_count"] = int(count)
    return found


def _power_mode() -> str:
    program = shutil.which("nvpmodel")
    if program:
        with suppress(OSError, subprocess.SubprocessError):
            text = subprocess.run([program, "-q"], capture_output=True, text=True, timeout=5).stdout
            return " ".join(text.split())
    return _word(Path("/sys/firmware/acpi/platform_profile"))


def _power_limit_w() -> float | None:
    with suppress(OSError):
        nvml = Nvml()
        try:
            return nvml.power_limit_w()
        finally:
            nvml.close()
    return None


def _word(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
