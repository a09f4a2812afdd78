"""Our commands in processes of their own: seconds, greatest memory, JSON results; and the machine they ran on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from ...runtime.errors import FathomError
from ..machine.system import host
from ..record.record import versions

GIB = 1 << 30
PACKAGES = ("torch", "onnx", "onnxruntime", "tensorrt-rtx", "diffusers", "numpy")
EVERY_S = 0.1
MODULES = {
    "depth-export": "export.commands.export_command",
    "depth-calibrate": "calibration.calibrate_command",
    "depth-build": "export.commands.build_command",
    "depth-run": "runtime.commands.run",
}


class TreeMemory:
    """Largest memory of a process and its descendants together, sampled; pages of mapped files count once per process."""

    def __init__(self, pid: int):
        self.peak_nbytes, self.peak_anonymous_nbytes = 0, 0
        self._pid, self._stop = pid, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stop.wait(EVERY_S):
            total = anonymous = 0
            for pid in _tree(self._pid):
                all_of_it, own = _resident(pid)
                total, anonymous = total + all_of_it, anonymous + own
            self.peak_nbytes = max(self.peak_nbytes, total)
            self.peak_anonymous_nbytes = max(self.peak_anonymous_nbytes, anonymous)

    def stop(self) -> None:
        """No more samples."""
        self._stop.set()
        self._thread.join()


def _tree(root: int) -> list[int]:
    parents: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                parents[int(entry)] = int(Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError, ValueError):
                continue
    found = [root]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found


def _resident(pid: int) -> tuple[int, int]:
    try:
        facts = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
        return tuple(int(facts[key].split()[0]) * 1024 for key in ("VmRSS", "RssAnon"))
    except (OSError, KeyError, ValueError):
        return 0, 0


def measured(program: str, *arguments: str, threads: int) -> dict[str, Any]:
    """Run one of our commands and record time, peak memory of its process tree and its JSON result (a list where it prints several).

    Raises:
        FathomError: if it fails.
    """
    command = [sys.executable, "-m", f"fathom.{MODULES[program]}", *arguments, "--json", "--force"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
    memory = TreeMemory(process.pid)
    output = process.stdout.read()
    code = process.wait()
    seconds = time.monotonic() - start
    memory.stop()
    if code:
        raise FathomError(f"{program} ended with exit code {code}")
    lines = [{key: _short(value) if isinstance(value, str) else value for key, value in json.loads(line).items()} for line in output.splitlines()]
    return {
        "command": f"{program} {' '.join(_short(a) for a in arguments)}",
        "seconds": round(seconds, 1),
        "peak_gib": round(memory.peak_nbytes / GIB, 2),
        "peak_anonymous_gib": round(memory.peak_anonymous_nbytes / GIB, 2),
        "result": lines[0] if len(lines) == 1 else lines,
    }


def _short(argument: str) -> str:
    return Path(argument).name if os.sep in argument else argument


def system() -> dict[str, Any]:
    """Processor, memory, load, and versions of what decides the numbers."""
    return host() | {"load_at_start": round(os.getloadavg()[0], 2), "other_software_stack": versions(PACKAGES)}
