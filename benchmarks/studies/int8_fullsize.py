"""A network at full size through calibration and INT8: seconds, memory and engine sizes of every step, as JSON.

    python -m fathom.benchmarks.studies.int8_fullsize --work DIR -o benchmarks/results/int8_fullsize_evp.json

The weights are random and the budget is wide open: time, memory and sizes do not depend on them, accuracy is not looked at. Needs the
export and rtx extras, 12 GiB of memory and 20 GB of disk.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from ...runtime.commands.command import run_command
from ..record.record import study, write_record
from .measured_commands import PACKAGES, measured, system

WIDE = ("--budget", "abs_rel=100%,delta1=100pp,moved=100%")
ONE_LOOK = ("--precisions", "fp32,fp16,int8", "--regions", "1")
RTX = ("--backend", "tensorrt-rtx", "--target", "sm86")


def main(argv: list[str] | None = None) -> int:
    """Run all steps and write the JSON after each; returns the exit code."""
    parser = argparse.ArgumentParser("int8_fullsize", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="evp")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--data", default="rooms:2:0:480x640")
    parser.add_argument("--memory", type=float, default=12.0, help="GiB for the calibration")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args(argv)
    return run_command(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    work, threads = arguments.work, arguments.threads
    work.mkdir(parents=True, exist_ok=True)
    bundle = str(work / "bundle")
    steps = {
        "export": ("depth-export", "--model", arguments.model, "--random-init", "-o", bundle),
        "calibrate": ("depth-calibrate", bundle, "--data", arguments.data, *WIDE, *ONE_LOOK, "--memory", str(arguments.memory)),
        "fp16": ("depth-build", bundle, *RTX, "--precision", "fp16", "-o", str(work / "fp16.plan")),
        "int8": ("depth-build", bundle, *RTX, "--precision", "int8", "-o", str(work / "int8.plan")),
    }
    result: dict[str, Any] = {"model": arguments.model, "data": arguments.data, "system": system()}
    for step, words in steps.items():
        result[step] = measured(*words, threads=threads)
        if step == "int8":
            result["int8_over_fp16"] = ratios(result["int8"]["result"]["stages"], result["fp16"]["result"]["stages"])
        write_record(arguments.output, study("int8_fullsize", result, PACKAGES), force=True)
        print(f"{step}: {result[step]['seconds']:.0f} s, {result[step]['peak_gib']:.1f} GiB", flush=True)
    return 0


def ratios(low: list[dict[str, Any]], high: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Per stage that has INT8 layers: its engine, and the weights in it, over those of the FP16 build."""
    before = {stage["name"]: stage for stage in high}
    return {
        stage["name"]: {part: round(stage[f"{part}_nbytes"] / before[stage["name"]][f"{part}_nbytes"], 3) for part in ("engine", "weights")}
        for stage in low
        if stage["layers"].get("int8")
    }


if __name__ == "__main__":
    sys.exit(main())
