"""Every full-size network through export, build and a run on a real photo, with random weights; what it takes, as JSON.

    python -m fathom.benchmarks.studies.networks_fullsize --work DIR --photo FILE -o benchmarks/results/networks_fullsize.json

Parity (each stage alone and in the chain, PyTorch FP32 against ONNX Runtime) is taken from the bundle that the export wrote. The
weights are random: parity, time, memory and size are what is measured; the depth means nothing.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

from ...runtime.commands.command import run_command
from ...runtime.errors import FathomError, UsageError
from ..record.record import read_study, study, write_record
from .evp_fullsize import TARGETS
from .measured_commands import PACKAGES, measured, system

RUNS: dict[str, tuple[str, ...]] = {  # name of the run -> how depth-export is asked for it
    "depthclip": ("--model", "depthclip"),
    "moa-depthclip parity": ("--model", "moa-depthclip", "--variant", "parity"),
    "moa-depthclip quality": ("--model", "moa-depthclip", "--variant", "quality"),
    "llm-mde official": ("--model", "llm-mde", "--variant", "official"),
    "llm-mde paper-metric": ("--model", "llm-mde", "--variant", "paper-metric"),
    "depthblip2 v1": ("--model", "depthblip2", "--variant", "v1"),
    "depthblip2 v2": ("--model", "depthblip2", "--variant", "v2"),
    "vpd": ("--model", "vpd", "--scene", "kitchen"),
    "evp kitti": ("--model", "evp", "--variant", "kitti"),
    "evp-refer": ("--model", "evp-refer"),
}
PROMPT = {"evp-refer": ("--prompt", "the cup on the left")}


def through(name: str, work: Path, photo: Path, threads: int) -> dict[str, Any]:
    """Export, ONNX Runtime plan, TensorRT-RTX FP16 plan, and one photo, each measured; files are removed afterwards.

    Raises:
        FathomError: if a command fails.
    """
    bundle, plan, rtx, out = (str(work / part) for part in ("bundle", "cpu.plan", "rtx.plan", "depth"))
    found: dict[str, Any] = {"system": system()}
    try:
        found["export"] = measured("depth-export", *RUNS[name], "--random-init", "-o", bundle, threads=threads)
        found["onnxruntime"] = measured("depth-build", bundle, "--backend", "onnxruntime", "-o", plan, threads=threads)
        found["run"] = measured("depth-run", "--engine", plan, str(photo), "-o", out, "--quiet", *PROMPT.get(name, ()), threads=threads)
        found["run"]["result"] |= {"photo": photo.name, "files": sorted(found["run"]["result"]["files"])}
        Path(plan).unlink()
        rtx_words = ("--backend", "tensorrt-rtx", "--precision", "fp16", "--target", TARGETS)
        found["rtx"] = measured("depth-build", bundle, *rtx_words, "-o", rtx, threads=threads)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return found


def main(argv: list[str] | None = None) -> int:
    """Run all networks (or those named) and write the JSON after each; returns the exit code."""
    parser = argparse.ArgumentParser(prog="networks_fullsize", description=__doc__.splitlines()[0])
    parser.add_argument("--work", required=True, help="scratch folder, about 12 GB; removed afterwards")
    parser.add_argument("--photo", required=True, help="a photo for depth-run")
    parser.add_argument("-o", "--output", required=True, help="JSON to write; networks that are not run keep what it says")
    parser.add_argument("--only", default=",".join(RUNS), help="comma-separated (default: all of %(default)s)")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args(argv)
    return run_command(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    names = [name.strip() for name in arguments.only.split(",")]
    if unknown := set(names) - set(RUNS):
        raise UsageError(f"there is no run {', '.join(sorted(unknown))}", wanted=", ".join(RUNS))
    output, failed = Path(arguments.output), []
    found = read_study(output)
    for name in names:
        work = Path(arguments.work) / name.replace(" ", "-")
        work.mkdir(parents=True)
        try:
            found[name] = through(name, work, Path(arguments.photo), arguments.threads)
        except FathomError as error:
            failed.append(f"{name}: {error}")
            continue
        output.parent.mkdir(parents=True, exist_ok=True)
        write_record(output, study("networks_fullsize", found, PACKAGES), force=True)
        print(name, {part: found[name][part]["seconds"] for part in ("export", "onnxruntime", "run", "rtx")}, flush=True)
    if failed:
        raise FathomError("; ".join(failed))
    return 0


if __name__ == "__main__":
    sys.exit(main())
