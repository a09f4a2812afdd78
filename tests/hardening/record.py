"""``benchmarks/results/hardening.json``, a study of the form that all results have: one section per kind of trial, with the machine it ran on."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path
from typing import Any

from fathom.benchmarks.record.record import header, read_study, versions, write_record

PACKAGES = ("numpy", "Pillow", "onnxruntime", "torch", "safetensors", "h5py", "scipy", "rosbags", "av", "cryptography")


def add_to_record(path: Path, section: str, facts: dict[str, Any]) -> None:
    """Put a section into the file; the others stay as they are."""
    machine = {"system": f"{platform.system()} {platform.machine()}", "cores": os.cpu_count(), "packages": versions(PACKAGES)}
    found = read_study(path)
    found[section] = {"ended": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "machine": machine, **facts}
    write_record(path, header("study", ["python", "-m", f"hardening.{section}"], PACKAGES) | {"study": "hardening", "results": found}, force=True)
