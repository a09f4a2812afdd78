"""One contender: who quantised, to which 8 bits, and what came of it."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

LONGEST_S = 1800


@dataclass(frozen=True)
class Arm:
    """What an arm gives to judge: an ONNX file, or what it computed for the inputs of the pairs that prove; or why it could not.

    Args:
        name: with its settings.
        bits: ``int8`` or ``fp8``.
        file: of the quantised network.
        outputs: of the network, [N, ...], where there is no file.
        facts: ``share`` of the multiply-adds in 8 bits, ``types``, ``offsets`` where they are known already.
        failed: the error, in its last words.
    """

    name: str
    bits: str
    file: Path | None = None
    outputs: np.ndarray | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    failed: str = ""


def run_script(python: Path, code: str, *words: str) -> str:
    """Run a script in another environment; returns why it failed, its last words, or nothing."""
    try:
        done = subprocess.run([str(python), "-c", code, *words], capture_output=True, text=True, timeout=LONGEST_S)
    except subprocess.TimeoutExpired:
        return f"not done after {LONGEST_S} s"
    if done.returncode == 0:
        return ""
    lines = [line for line in done.stderr.strip().splitlines() if line.strip()]
    return lines[-1][:300] if lines else f"ended with {done.returncode}"
