"""Full-size EVP on a CPU: export, TensorRT-RTX build, ONNX Runtime against PyTorch eager; what it takes, as JSON.

    python -m fathom.benchmarks.studies.evp_fullsize --work DIR -o benchmarks/results/evp_fullsize.json

Needs the export and rtx extras, 12 GiB of memory and 12 GB of disk. The weights are random: time and memory do not depend on them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from ...runtime.commands.command import run_command
from ..record.record import read_study, study, write_record
from .measured_commands import PACKAGES, measured, system

TARGETS = "sm86,sm89,sm120"
LIMITS = {
    "export_seconds": 360,
    "export_peak_gib": 8,
    "build_seconds": 300,
    "build_peak_gib": 9,
    "plan_over_fp16_weights": 1.08,
    "onnxruntime_over_eager": 1.0,
    "depth_abs_rel": 1e-3,
}


def forward(plan: Path, runs: int, threads: int) -> dict[str, Any]:
    """ONNX Runtime and PyTorch eager on the same picture, in turns, with the same number of threads."""
    import torch

    from ...models.catalog import load
    from ...runtime.artefact.plan import PlanFile
    from ...runtime.onnxruntime.backend import OnnxRuntimeBackend

    torch.set_num_threads(threads)
    network = load("evp", random_init=True)
    inputs = network.example_inputs()
    arrays = {name: tensor.numpy() for name, tensor in inputs.items()}
    output = network.contract.output.tensor

    def eager() -> np.ndarray:
        with torch.inference_mode():
            return network.boundaries(inputs)[output].numpy()

    seconds: dict[str, list[float]] = {"eager": [], "onnxruntime": []}
    with PlanFile.open(plan, verify=False) as artefact:
        backend = OnnxRuntimeBackend(artefact, "cpu", threads)
        wanted, got = eager(), backend.run(arrays)[output]  # not timed: both sides touch their weights for the first time
        for _ in range(runs):
            for name, run in (("eager", eager), ("onnxruntime", lambda: backend.run(arrays))):
                start = time.perf_counter()
                run()
                seconds[name].append(round(time.perf_counter() - start, 3))
        backend.close()
    ratios = sorted(ours / theirs for ours, theirs in zip(seconds["onnxruntime"], seconds["eager"], strict=True))
    difference = np.abs(got.astype(np.float64) - wanted)
    return {
        "threads": threads,
        "sample_times_s": seconds,
        "p50_s": {name: round(statistics.median(values), 3) for name, values in seconds.items()},
        "ratio": {"p50": round(statistics.median(ratios), 3), "min": round(ratios[0], 3), "max": round(ratios[-1], 3)},
        "depth_abs_rel": float(np.mean(difference / np.abs(wanted))),
        "depth_max_abs_m": float(difference.max()),
    }


def main(argv: list[str] | None = None) -> int:
    """Run all parts (or those of ``--parts``) and write the JSON; returns the exit code, 9 if a limit was missed."""
    parser = argparse.ArgumentParser(prog="evp_fullsize", description="Time and memory of full-size EVP on a CPU.")
    parser.add_argument("--work", required=True, help="folder for bundle and plans, about 12 GB")
    parser.add_argument("-o", "--output", required=True, help="JSON to write; parts that are not run keep what it says")
    parser.add_argument("--parts", default="export,rtx,onnxruntime,forward", help="comma-separated (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args(argv)
    return run_command(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    work, output, threads = Path(arguments.work), Path(arguments.output), arguments.threads
    work.mkdir(parents=True, exist_ok=True)
    found = read_study(output)
    bundle, rtx, plan = (str(work / name) for name in ("evp", "evp-rtx-fp16.plan", "evp.plan"))
    jobs = {
        "export": lambda: measured("depth-export", "--model", "evp", "--random-init", "-o", bundle, threads=threads),
        "rtx": lambda: measured("depth-build", bundle, "--backend", "tensorrt-rtx", "--precision", "fp16", "--target", TARGETS, "-o", rtx, threads=threads),
        "onnxruntime": lambda: measured("depth-build", bundle, "--backend", "onnxruntime", "-o", plan, threads=threads),
        "forward": lambda: forward(Path(plan), arguments.runs, threads),
    }
    for part in arguments.parts.split(","):
        here = system()
        found[part] = {**jobs[part](), "system": here}
        found["checks"] = checks(found)
        output.parent.mkdir(parents=True, exist_ok=True)
        write_record(output, study("evp_fullsize", {**found, "limits": LIMITS}, PACKAGES), force=True)
        print(json.dumps({part: {key: value for key, value in found[part].items() if key != "result"}}))
    missed = [name for name, ok in found["checks"].items() if not ok]
    if missed:
        print(f"limits missed: {', '.join(missed)}", file=sys.stderr)
    return 9 if missed else 0


def checks(found: dict[str, Any]) -> dict[str, bool]:
    """Which limits hold, for the parts that were run."""
    values: dict[str, float] = {}
    if "export" in found:
        values |= {"export_seconds": found["export"]["seconds"], "export_peak_gib": found["export"]["peak_gib"]}
    if "rtx" in found:
        result = found["rtx"]["result"]
        weights = sum(stage["weights_nbytes"] for stage in result["stages"])
        values |= {"build_seconds": found["rtx"]["seconds"], "build_peak_gib": found["rtx"]["peak_gib"], "plan_over_fp16_weights": result["nbytes"] / weights}
    if "forward" in found:
        values |= {"onnxruntime_over_eager": found["forward"]["ratio"]["p50"], "depth_abs_rel": found["forward"]["depth_abs_rel"]}
    return {name: value <= LIMITS[name] for name, value in values.items()}


if __name__ == "__main__":
    sys.exit(main())
