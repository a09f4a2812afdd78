"""Our commands in processes of their own: seconds, greatest memory, JSON results; and the machine they ran on."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

from ...runtime.errors import FathomError
from ..machine.system import host
from ..machine.tree_memory import TreeMemory
from ..our_commands import command_line
from ..record.record import versions

GIB = 1 << 30
PACKAGES = ("torch", "onnx", "onnxruntime", "tensorrt-rtx", "diffusers", "numpy")


def measured(program: str, *arguments: str, threads: int) -> dict[str, Any]:
    """Run one of our commands and record time, peak memory of its process tree and its JSON result (a list where it prints several).

    Raises:
        FathomError: if it fails.
    """
    command = [*command_line(program), *arguments, "--json", "--force"]
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
    return Path(argument).name if os.sep in argument and " " not in argument else argument


def system() -> dict[str, Any]:
    """Processor, memory, load, and versions of what decides the numbers."""
    return host() | {"load_at_start": round(os.getloadavg()[0], 2), "other_software_stack": versions(PACKAGES)}
