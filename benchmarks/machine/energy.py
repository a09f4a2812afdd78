"""Energy per query, from whichever counter this machine has: NVML (the card), tegrastats (a Jetson's input rail), RAPL (processor packages)."""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from .nvml import Nvml

POWERCAP = Path("/sys/class/powercap")
RAILS = ("VDD_IN", "VIN_SYS_5V0", "POM_5V_IN")  # the whole module, by board
TEGRASTATS_EVERY_MS = 100
LEAST_S = 2.0  # a counter moves in steps of milliseconds


class Meter(Protocol):
    """A counter of joules.

    Attributes:
        source: what is counted, in words.
    """

    source: str

    def joules(self) -> float:
        """Since some moment in the past."""
        ...

    def close(self) -> None:
        """Stop counting."""
        ...


class NvmlMeter:
    """The card's own counter. Not yet run on a GPU."""

    source = "NVML: total energy of the card"

    def __init__(self, nvml: Nvml | None = None):
        self._nvml = nvml or Nvml()
        if self._nvml.energy_j() is None:
            self._nvml.close()
            raise OSError("this card has no energy counter")

    def joules(self) -> float:
        """See ``Meter``."""
        return self._nvml.energy_j()

    def close(self) -> None:
        """See ``Meter``."""
        self._nvml.close()


class RaplMeter:
    """Sum of the processor packages; each counter starts anew at ``max_energy_range_uj``. Reading it needs rights that few users have."""

    source = "RAPL: processor packages"

    def __init__(self, folder: Path = POWERCAP):
        self._zones = [zone for zone in sorted(folder.glob("intel-rapl:*")) if re.fullmatch(r"intel-rapl:\d+", zone.name)]
        if not self._zones:
            raise OSError("no RAPL on this machine")
        self._ranges = [int((zone / "max_energy_range_uj").read_text()) for zone in self._zones]
        self._last, self._sum_uj = self._read(), 0
        self._joules_lock = threading.Lock()

    def _read(self) -> list[int]:
        return [int((zone / "energy_uj").read_text()) for zone in self._zones]

    def joules(self) -> float:
        """See ``Meter``."""
        with self._joules_lock:
            now = self._read()
            self._sum_uj += sum((new - old) % limit for new, old, limit in zip(now, self._last, self._ranges, strict=True))
            self._last = now
            return self._sum_uj / 1e6

    def close(self) -> None:
        """See ``Meter``."""


class TegrastatsMeter:
    """Power of a Jetson's input rail, ten times a second, times the time between. Not yet run on a Jetson."""

    source = "tegrastats: input rail of the module"

    def __init__(self, program: str = "tegrastats", clock: Callable[[], float] = time.monotonic):
        path = shutil.which(program)
        if path is None:
            raise OSError("no tegrastats on this machine")
        self._clock, self._joules, self._last = clock, 0.0, None
        self._process = subprocess.Popen([path, "--interval", str(TEGRASTATS_EVERY_MS)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        for line in self._process.stdout:
            watts, now = rail_w(line), self._clock()
            if watts is not None:
                self._joules += watts * (now - self._last) if self._last is not None else 0.0
                self._last = now

    def joules(self) -> float:
        """See ``Meter``."""
        return self._joules

    def close(self) -> None:
        """See ``Meter``."""
        self._process.terminate()
        self._process.wait()
        self._thread.join(1)


def rail_w(line: str) -> float | None:
    """Watts of the module's input in a line of tegrastats (``VDD_IN 4010mW/3993mW``: now and on average)."""
    for rail in RAILS:
        found = re.search(rf"\b{rail} (\d+)(?:mW)?/\d+", line)
        if found:
            return int(found[1]) / 1e3
    return None


def open_meter(on_gpu: bool) -> Meter | None:
    """A counter of what runs the network: the card or the module for a GPU, else the processor packages; None if there is none."""
    for kind in (NvmlMeter, TegrastatsMeter) if on_gpu else (TegrastatsMeter, RaplMeter):
        with suppress(OSError, ValueError):
            return kind()
    return None


def energy_per_query(meter: Meter | None, query: Callable[[], Any], least_s: float = LEAST_S, clock: Callable[[], float] = time.perf_counter) -> dict[str, Any]:
    """Queries one after the other for some seconds, and what the counter says; everything else that draws on it is in the number too."""
    if meter is None:
        return {"source": "not measured: no counter on this machine", "joules_per_query": None, "queries": 0, "power_w": None}
    start, before, queries = clock(), meter.joules(), 0
    while clock() - start < least_s or queries < 3:
        query()
        queries += 1
    joules, seconds = meter.joules() - before, clock() - start
    if joules <= 0:
        return {"source": f"not measured: {meter.source} did not move", "joules_per_query": None, "queries": queries, "power_w": None}
    return {"source": meter.source, "joules_per_query": joules / queries, "queries": queries, "power_w": joules / seconds}
