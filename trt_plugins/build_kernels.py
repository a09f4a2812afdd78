"""Compile the kernels of pre- and post-processing and of the operators ahead of time: one fatbin of cubins and one portable PTX each.

``python -m fathom.trt_plugins.build_kernels`` writes them where the runtime looks for them, so no compiler is needed to run them. The
PTX is for GPUs and drivers that the cubins do not fit: it is marked with the oldest PTX version that knows its instructions, because a driver
refuses PTX that is newer than itself even where every instruction is old.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

SOURCES = Path(__file__).parent / "csrc"
OPERATORS = ("bins_expectation", "group_norm_silu", "cross_attention")  # each is one .cuh, which the plugins and the host build read too
KERNELS = ("antialias", "preprocess", "postprocess", *OPERATORS)
ARCHITECTURES = (72, 75, 80, 86, 87, 89, 90, 100, 110, 120)
PTX_ARCHITECTURE, PTX_VERSION = 75, "6.5"
DESTINATION = Path(__file__).parent.parent / "runtime" / "kernels"


def source_sha256() -> str:
    """SHA-256 over all CUDA sources, names and bytes, in the order of their names."""
    digest = hashlib.sha256()
    for path in sorted(SOURCES.iterdir()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def find_nvcc() -> Path:
    """The CUDA compiler: on PATH, in ``CUDA_HOME``, or at its usual place.

    Raises:
        FileNotFoundError: if there is none.
    """
    homes = [os.environ.get("CUDA_HOME", ""), "/usr/local/cuda"]
    for found in (shutil.which("nvcc"), *(shutil.which("nvcc", path=f"{home}/bin") for home in homes if home)):
        if found:
            return Path(found)
    raise FileNotFoundError("nvcc was not found; install the CUDA toolkit (12.8 or later for sm_100 and sm_120), or pass --nvcc")


def supported(nvcc: Path) -> tuple[int, ...]:
    """Those of ``ARCHITECTURES`` that this compiler knows: nvcc 13 starts at 75, Xavier's 72 needs an older one."""
    known = subprocess.run([nvcc, "--list-gpu-arch"], check=True, capture_output=True, text=True).stdout
    return tuple(arch for arch in ARCHITECTURES if re.search(rf"compute_{arch}\b", known))


def build(destination: Path, nvcc: Path) -> dict[str, object]:
    """Compile everything into ``destination`` and describe it in ``kernels.json`` there.

    Raises:
        subprocess.CalledProcessError: if the compiler refuses something; its words are in ``stderr``.
    """
    architectures = supported(nvcc)
    release = re.search(r"release ([0-9.]+)", subprocess.run([nvcc, "--version"], check=True, capture_output=True, text=True).stdout)
    facts: dict[str, object] = {"nvcc": release.group(1) if release else "", "architectures": list(architectures), "ptx": PTX_ARCHITECTURE}
    facts["source_sha256"] = source_sha256()
    help_text = subprocess.run([nvcc, "--help"], check=True, capture_output=True, text=True).stdout
    smaller = ["-compress-mode=size"] if "--compress-mode" in help_text else []  # Xavier's compiler has no such option
    with tempfile.TemporaryDirectory() as scratch:
        for name in KERNELS:
            language = ("-x", "cu", SOURCES / f"{name}.cuh") if name in OPERATORS else (SOURCES / f"{name}.cu",)
            fatbin, ptx = Path(scratch) / f"{name}.fatbin", Path(scratch) / f"{name}.ptx"
            targets = [option for arch in architectures for option in ("-gencode", f"arch=compute_{arch},code=sm_{arch}")]
            _compile([nvcc, "-fatbin", "-O3", *smaller, *targets, "-o", fatbin, *language])
            _compile([nvcc, "-ptx", "-O3", f"-arch=compute_{PTX_ARCHITECTURE}", "-o", ptx, *language])
            text = re.sub(r"^\.version .*$", f".version {PTX_VERSION}", ptx.read_text(), flags=re.MULTILINE)
            ptx.write_text(re.sub(r"^//.*\n", "", text, flags=re.MULTILINE))
            _compile([nvcc, "-cubin", f"-arch=sm_{PTX_ARCHITECTURE}", "-o", Path(scratch) / "proof.cubin", ptx])  # the older mark must hold
            facts[name] = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (fatbin, ptx)}
        destination.mkdir(parents=True, exist_ok=True)
        for name in KERNELS:
            for suffix in (".fatbin", ".ptx"):
                shutil.copyfile(Path(scratch) / (name + suffix), destination / (name + suffix))
    (destination / "kernels.json").write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n")
    return facts


def _compile(command: list[object]) -> None:
    subprocess.run([str(word) for word in command], check=True, capture_output=True, text=True)


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code (0 done, 6 no compiler, 8 the compiler refused)."""
    parser = argparse.ArgumentParser(prog="python -m fathom.trt_plugins.build_kernels", description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("-o", "--output", type=Path, default=DESTINATION, help="directory for the fatbins and the PTX (default: where the runtime looks)")
    parser.add_argument("--nvcc", type=Path, help="the CUDA compiler (default: PATH, CUDA_HOME, /usr/local/cuda)")
    options = parser.parse_args(arguments)
    return run_build(lambda: build(options.output, options.nvcc or find_nvcc()))


def run_build(work: Callable[[], dict[str, Any]]) -> int:
    """Do the work and print its facts as JSON; returns the exit code (0 done, 6 something is not there, 8 the compiler refused)."""
    try:
        facts = work()
    except FileNotFoundError as error:
        print(error, file=sys.stderr)
        return 6
    except subprocess.CalledProcessError as error:
        print(f"nvcc failed: {error.stderr or error}", file=sys.stderr)
        return 8
    print(json.dumps(facts))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
