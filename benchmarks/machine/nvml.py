"""What the driver says of a GPU while it works: energy, clocks, temperature, throttling. NVML through ctypes."""

from __future__ import annotations

import ctypes
from typing import Any

LIBRARIES = ("libnvidia-ml.so.1", "nvml.dll")
SM_CLOCK, MEMORY_CLOCK, GPU_SENSOR = 1, 2, 0
IDLE_REASON = 0x1  # the clocks are low because nothing runs: no throttling
REASONS = {
    0x2: "application clocks",
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "software thermal",
    0x40: "hardware thermal",
    0x80: "power brake",
    0x100: "display clocks",
}


class Nvml:
    """One GPU by its index. Every question is answered with None where driver or card do not know.

    Raises:
        OSError: if there is no NVML, or no such GPU.
    """

    def __init__(self, index: int = 0, library: Any = None):
        self._library = library or _load()
        self._handle = ctypes.c_void_p()
        if self._library.nvmlInit_v2():
            raise OSError("NVML does not start")
        if self._library.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(self._handle)):
            self.close()
            raise OSError(f"NVML knows no GPU {index}")

    def energy_j(self) -> float | None:
        """Since the driver was loaded (Volta and newer)."""
        value = self._ask("nvmlDeviceGetTotalEnergyConsumption", ctypes.c_ulonglong())
        return None if value is None else value / 1e3

    def sample(self) -> dict[str, Any]:
        """Clocks in MHz, temperature in degrees Celsius, power in watts, and why the clocks are held back."""
        power_mw = self._ask("nvmlDeviceGetPowerUsage", ctypes.c_uint())
        reasons = self._ask("nvmlDeviceGetCurrentClocksThrottleReasons", ctypes.c_ulonglong())
        return {
            "sm_clock_mhz": self._ask("nvmlDeviceGetClockInfo", ctypes.c_uint(), ctypes.c_uint(SM_CLOCK)),
            "memory_clock_mhz": self._ask("nvmlDeviceGetClockInfo", ctypes.c_uint(), ctypes.c_uint(MEMORY_CLOCK)),
            "temperature_c": self._ask("nvmlDeviceGetTemperature", ctypes.c_uint(), ctypes.c_uint(GPU_SENSOR)),
            "power_w": None if power_mw is None else power_mw / 1e3,
            "throttling": [] if reasons is None else [word for bit, word in REASONS.items() if reasons & bit],
        }

    def power_limit_w(self) -> float | None:
        """What the driver enforces."""
        value = self._ask("nvmlDeviceGetEnforcedPowerLimit", ctypes.c_uint())
        return None if value is None else value / 1e3

    def close(self) -> None:
        """May be called twice."""
        library, self._library = self._library, None
        if library is not None:
            library.nvmlShutdown()

    def _ask(self, name: str, value: Any, *arguments: Any) -> Any:
        function = getattr(self._library, name, None)
        if function is None or function(self._handle, *arguments, ctypes.byref(value)):
            return None
        return value.value


def _load() -> Any:
    for name in LIBRARIES:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise OSError("no NVML on this machine")
