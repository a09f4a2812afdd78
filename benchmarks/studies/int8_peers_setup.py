"""A virtual environment of its own for NVIDIA ModelOpt, whose ONNX part wants other versions of onnx and ONNX Runtime than Fathom.

    python -m fathom.benchmarks.studies.int8_peers_setup FOLDER

The environment's Python is then given to ``int8_peers`` as ``--modelopt-python FOLDER/bin/python``.
"""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

PACKAGES = ("torch==2.13.0", "nvidia-modelopt[onnx]==0.47.0")


def make(folder: Path) -> Path:
    """Create the environment and install ModelOpt (2 GB); returns its Python.

    Raises:
        RuntimeError: if pip fails.
    """
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    done = subprocess.run([str(python), "-m", "pip", "install", "--quiet", *PACKAGES])
    if done.returncode:
        raise RuntimeError(f"pip ended with {done.returncode}; see above")
    return python


def main() -> int:
    """Run from the command line."""
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        print(make(Path(sys.argv[1])))
    except (OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 6
    return 0


if __name__ == "__main__":
    sys.exit(main())
