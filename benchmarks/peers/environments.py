"""Virtual environments of their own for NVIDIA ModelOpt and Intel NNCF, which want other versions of onnx and ONNX Runtime than Fathom.

    python -m fathom.benchmarks.peers.environments FOLDER

They become FOLDER/modelopt and FOLDER/nncf; FOLDER is then given to ``int8_peers`` as ``--environments``.
"""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

PACKAGES = {
    "modelopt": ("torch==2.13.0", "nvidia-modelopt[onnx]==0.47.0", "requests", "huggingface_hub"),
    "nncf": ("nncf==3.4.0", "onnx", "onnxruntime"),
}


def python_of(folder: Path, peer: str) -> Path:
    """The interpreter of a peer's environment."""
    return folder / peer / "bin" / "python"


def make(folder: Path, peer: str) -> Path:
    """Create the environment of a peer and install it (ModelOpt: 2 GB); returns its Python.

    Raises:
        RuntimeError: if pip fails.
    """
    python = python_of(folder, peer)
    if not python.exists():
        venv.create(folder / peer, with_pip=True)
    done = subprocess.run([str(python), "-m", "pip", "install", "--quiet", *PACKAGES[peer]])
    if done.returncode:
        raise RuntimeError(f"pip ended with {done.returncode} for {peer}; see above")
    return python


def main() -> int:
    """Run from the command line."""
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        for peer in PACKAGES:
            print(make(Path(sys.argv[1]), peer))
    except (OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 6
    return 0


if __name__ == "__main__":
    sys.exit(main())
