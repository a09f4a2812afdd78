"""``benchmarks/results/hardening.json``: one section per kind of trial, with the machine it ran on."""

from __future__ import annotations

import json
import os
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import fathom
from fathom.runtime.files import whole_file

PACKAGES = ("numpy", "Pillow", "onnxruntime", "torch", "safetensors", "h5py", "scipy", "rosbags", "av", "cryptography")


def add_to_record(path: Path, section: str, facts: dict[str, Any]) -> None:
    """Put a section into the file; the others stay as they are."""
    found = json.loads(path.read_text()) if path.is_file() else {}
    found[section] = {"ended": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "machine": machine(), **facts}
    with whole_file(path, force=True) as part:
        part.write_text(json.dumps(found, indent=1) + "\n")


def machine() -> dict[str, Any]:
    """What ran it."""
    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    facts = {"fathom": fathom.__version__, "python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    return {**facts, "cores": os.cpu_count(), "packages": packages}
