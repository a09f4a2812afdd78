"""A network at full size through calibration and INT8: seconds, memory and engine sizes of every step, as JSON.

    python -m fathom.benchmarks.int8_fullsize --model evp --work DIR -o benchmarks/results/int8_fullsize_evp.json

The weights are random and the budget is wide open: time, memory and sizes do not depend on them, accuracy is not looked at. Needs the
export and rtx extras, 12 GiB of memory and 20 GB of disk.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from .evp_fullsize import TreeMemory

GIB = 1 << 30
STEPS = ("export", "calibrate", "fp16", "int8")


def commands(options: argparse.Namespace) -> dict[str, list[str]]:
    """Module and arguments of every step."""
    work, bundle = options.work, str(options.work / "bundle")
    build = ["export.build_command", bundle, "--backend", "tensorrt-rtx", "--target", "sm86", "--json", "--force"]
    wide = "abs_rel=100%,delta1=100pp,moved=100%"
    return {
        "export": ["export.export_command", "--model", options.model, "--random-init", "-o", bundle, "--force"],
        "calibrate": [
            *("calibration.calibrate_command", bundle, "--data", options.data, "--budget", wide, "--precisions", "fp32,fp16,int8"),
            *("--regions", "1", "--memory", str(options.memory), "--json", "--force"),
        ],
        "fp16": [*build, "--precision", "fp16", "-o", str(work / "fp16.plan")],
        "int8": [*build, "--precision", "int8", "-o", str(work / "int8.plan")],
    }


def run(arguments: list[str]) -> dict[str, Any]:
    """One command in a process of its own: seconds, greatest memory of it and its children, exit code, JSON lines it printed."""
    package = (__package__ or "").rpartition(".")[0]
    module, *rest = arguments
    code = f"import sys; from {package}.{module} import main; sys.exit(main(sys.argv[1:]))"
    start = time.monotonic()
    process = subprocess.Popen([sys.executable, "-c", code, *rest], stdout=subprocess.PIPE, text=True)
    memory = TreeMemory(process.pid)
    out, _ = process.communicate()
    memory.stop()
    lines = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    facts = {"seconds": time.monotonic() - start, "peak_gib": memory.peak_nbytes / GIB, "peak_anonymous_gib": memory.peak_anonymous_nbytes / GIB}
    return {**facts, "code": process.returncode, "lines": lines}


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser("int8_fullsize", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="evp")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--data", default="rooms:2:0:480x640")
    parser.add_argument("--memory", type=float, default=12.0, help="GiB for the calibration")
    parser.add_argument("--steps", default=",".join(STEPS), help="some of them, on a work folder that has the others' results")
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = json.loads(options.output.read_text()) if options.output.exists() else {"model": options.model, "data": options.data}
    for step, arguments in commands(options).items():
        if step not in options.steps.split(","):
            continue
        result[step] = run(arguments)
        options.output.write_text(json.dumps(result, indent=1) + "\n")
        print(f"{step}: {result[step]['seconds']:.0f} s, {result[step]['peak_gib']:.1f} GiB, exit code {result[step]['code']}", flush=True)
        if result[step]["code"]:
            return result[step]["code"]
    return 0


if __name__ == "__main__":
    sys.exit(main())
