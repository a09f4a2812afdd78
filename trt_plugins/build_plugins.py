"""Compile the plugin library for one release of TensorRT: ``python -m fathom.trt_plugins.build_plugins --include DIR -o libfathom.so``.

One library serves one major version, whose headers it is compiled against; its SHA-256 is printed. The registry loads it
(``IPluginRegistry.load_library``, 8.6 and later), registers its creators and takes them away again.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import subprocess
from pathlib import Path

from .build_kernels import PTX_ARCHITECTURE, SOURCES, find_nvcc, run_build, supported

LIBRARY = SOURCES.parent / "tensorrt" / "library.cu"


def tensorrt_version(include: Path) -> tuple[int, int]:
    """Major and minor number of the TensorRT whose headers lie in a folder.

    Raises:
        FileNotFoundError: if they do not.
    """
    text = (include / "NvInferVersion.h").read_text()
    found = [re.search(rf"define (?:NV_TENSORRT|TRT)_{part}(?:_ENTERPRISE)? +(\d+)", text) for part in ("MAJOR", "MINOR")]
    if not all(found):
        raise FileNotFoundError(f"{include / 'NvInferVersion.h'} names no version of TensorRT")
    return int(found[0].group(1)), int(found[1].group(1))


def build(include: Path, output: Path, nvcc: Path | None, architectures: tuple[int, ...] = ()) -> dict[str, object]:
    """Compile the library; it appears under its name only when it is whole.

    Args:
        include: folder with ``NvInfer.h``.
        nvcc: the CUDA compiler; ``None`` for the one of this machine.
        architectures: compute capabilities (``86``); empty for all that the compiler knows, and PTX for what comes later.

    Raises:
        FileNotFoundError: if there are no headers, or there is no compiler.
        subprocess.CalledProcessError: if the compiler refuses something; its words are in ``stderr``.
    """
    major, minor = tensorrt_version(include)
    nvcc = nvcc or find_nvcc()
    chosen = architectures or supported(nvcc)
    targets = [option for arch in chosen for option in ("-gencode", f"arch=compute_{arch},code=sm_{arch}")]
    if not architectures:
        targets += ["-gencode", f"arch=compute_{PTX_ARCHITECTURE},code=compute_{PTX_ARCHITECTURE}"]
    part = output.with_name(f"{output.name}.part")
    command = [nvcc, "-shared", "-std=c++17", "-O3", "-Xcompiler", "-fPIC,-fvisibility=hidden", "-diag-suppress", "997", *targets, "-I", include]
    try:
        subprocess.run([str(word) for word in [*command, "-o", part, LIBRARY]], check=True, capture_output=True, text=True)
        os.replace(part, output)
    finally:
        part.unlink(missing_ok=True)
    digest = hashlib.sha256(output.read_bytes()).hexdigest()
    return {"library": str(output), "sha256": digest, "tensorrt": f"{major}.{minor}", "architectures": list(chosen)}


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code (0 done, 6 no compiler or no headers, 8 the compiler refused)."""
    parser = argparse.ArgumentParser(prog="python -m fathom.trt_plugins.build_plugins", description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--include", type=Path, required=True, help="folder with NvInfer.h of the release that will load the library")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the library to write")
    parser.add_argument("--nvcc", type=Path, help="the CUDA compiler (default: PATH, CUDA_HOME, /usr/local/cuda)")
    parser.add_argument("--arch", type=int, action="append", default=[], help="compute capability, such as 86; may be repeated (default: all)")
    options = parser.parse_args(arguments)
    return run_build(lambda: build(options.include, options.output, options.nvcc, tuple(options.arch)))


if __name__ == "__main__":
    raise SystemExit(main())
