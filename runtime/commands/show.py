"""``depth-run --show``: the results in the desktop's picture viewer, where there is a desktop."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path


def viewer(platform: str = sys.platform, environment: dict[str, str] | None = None) -> str | None:
    """The program that opens a picture, None in a terminal without a display."""
    environment = dict(os.environ) if environment is None else environment
    if platform == "darwin":
        return None if environment.get("SSH_CONNECTION") else shutil.which("open")
    if environment.get("DISPLAY") or environment.get("WAYLAND_DISPLAY"):
        return shutil.which("xdg-open")
    return None


def open_picture(path: Path, program: str) -> bool:
    """Start the viewer and leave it alone; False if it could not be started."""
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    try:
        subprocess.Popen([program, str(path.absolute())], start_new_session=True, **quiet)
    except OSError:
        return False
    return True
