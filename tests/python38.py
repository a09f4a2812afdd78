"""Python 3.8, which is what JetPack 5 has, where this machine has one too."""

import shutil
import subprocess
from pathlib import Path


def find_python38():
    """One that runs, or None: a name on PATH may be a shim with nothing behind it."""
    for name in ("python3.8", *map(str, Path.home().glob(".pyenv/versions/3.8.*/bin/python3.8"))):
        found = shutil.which(name)
        if found and subprocess.run([found, "-c", "import sys; sys.exit(sys.version_info[:2] != (3, 8))"], capture_output=True).returncode == 0:
            return found
    return None
