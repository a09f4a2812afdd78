"""Full-size EVP on a CPU: export, TensorRT-RTX build, ONNX Runtime against PyTorch eager; what it takes, as JSON.

    python -m fathom.benchmarks.evp_fullsize --work DIR -o benchmarks/results/evp_fullsize.json

Needs the export and rtx extras, 12 GiB of memory and 12 GB of disk. The weights are random: time and memory do not depend on them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from ..runtime.command import run_command
from ..runtime.errors import FathomError

GIB = 1 << 30
EVERY_S = 0.1
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


class TreeMemory:
    """Largest memory of a process and its descendants together, sampled; pages of mapped files count once per process."""

    def __init__(self, pid: int):
        self.peak_nbytes, self.peak_anonymous_nbytes = 0, 0
        self._pid, self._stop = pid, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stop.wait(EVERY_S):
            total = anonymous = 0
            for pid in _tree(self._pid):
                all_of_it, own = _resident(pid)
                total, anonymous = total + all_of_it, anonymous + own
            self.peak_nbytes = max(self.peak_nbytes, total)
            self.peak_anonymous_nbytes = max(self.peak_anonymous_nbytes, anonymous)

    def stop(self) -> None:
        """No more samples."""
        self._stop.set()
        self._thread.join()


def _tree(root: int) -> list[int]:
    parents: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                parents[int(entry)] = int(Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError, ValueError):
                continue
    found = [root]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found


def _resident(pid: int) -> tuple[int, int]:
    try:
        facts = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
        return tuple(int(facts[key].split()[0]) * 1024 for key in ("VmRSS", "RssAnon"))
    except (OSError, KeyError, ValueError):
        return 0, 0


def measured(program: str, *arguments: str, threads: int) -> dict[str, Any]:
    """Run one of our commands and record time, peak memory of its process tree and its JSON result.

    Raises:
        FathomError: if it fails.
    """
    module = {"depth-export": "export.export_command", "depth-build": "export.build_command", "depth-run": "runtime.run"}[program]
    command = [sys.executable, "-m", f"{__package__.rpartition('.')[0]}.{module}", *arguments, "--json", "--force"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
    memory = TreeMemory(process.pid)
    output = process.stdout.read()
    code = process.wait()
    seconds = time.monotonic() - start
    memory.stop()
    if code:
        raise FathomError(f"{program} ended with exit code {code}")
    return {
        "command": f"{program} {' '.join(_short(a) for a in arguments)}",
        "seconds": round(seconds, 1),
        "peak_gib": round(memory.peak_nbytes / GIB, 2),
        "peak_anonymous_gib": round(memory.peak_anonymous_nbytes / GIB, 2),
        "result": {key: _short(value) if isinstance(value, str) else value for key, value in json.loads(output).items()},
    }


def _short(argument: str) -> str:
    return Path(argument).name if os.sep in argument else argument


def forward(plan: Path, runs: int, threads: int) -> dict[str, Any]:
    """ONNX Runtime and PyTorch eager on the same picture, in turns, with the same number of threads."""
    import torch

    from ..models.catalog import load
    from ..runtime.onnxruntime_backend import OnnxRuntimeBackend
    from ..runtime.plan import PlanFile

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
        "seconds": seconds,
        "median_seconds": {name: round(statistics.median(values), 3) for name, values in seconds.items()},
        "ratio": {"median": round(statistics.median(ratios), 3), "least": round(ratios[0], 3), "greatest": round(ratios[-1], 3)},
        "depth_abs_rel": float(np.mean(difference / np.abs(wanted))),
        "depth_max_abs_m": float(difference.max()),
    }


def machine() -> dict[str, Any]:
    """Processor, memory, Python and package versions."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    memory = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal"))
    versions = {}
    for package in ("torch", "onnx", "onnxruntime", "tensorrt-rtx", "diffusers", "numpy"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "processor": next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine()),
        "cores": os.cpu_count(),
        "load_at_start": round(os.getloadavg()[0], 2),
        "memory_gib": round(int(memory.split()[1]) / (1 << 20), 1),
        "python": platform.python_version(),
        "versions": versions,
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
    found = json.loads(output.read_text()) if output.exists() else {}
    bundle, rtx, plan = (str(work / name) for name in ("evp", "evp-rtx-fp16.plan", "evp.plan"))
    jobs = {
        "export": lambda: measured("depth-export", "--model", "evp", "--random-init", "-o", bundle, threads=threads),
        "rtx": lambda: measured("depth-build", bundle, "--backend", "tensorrt-rtx", "--precision", "fp16", "--target", TARGETS, "-o", rtx, threads=threads),
        "onnxruntime": lambda: measured("depth-build", bundle, "--backend", "onnxruntime", "-o", plan, threads=threads),
        "forward": lambda: forward(Path(plan), arguments.runs, threads),
    }
    for part in arguments.parts.split(","):
        here = machine()
        found[part] = {**jobs[part](), "machine": here}
        found["checks"] = checks(found)
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps({"command": "python -m fathom.benchmarks.evp_fullsize", "limits": LIMITS, **found}, indent=1) + "\n")
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
        values |= {"onnxruntime_over_eager": found["forward"]["ratio"]["median"], "depth_abs_rel": found["forward"]["depth_abs_rel"]}
    return {name: value <= LIMITS[name] for name, value in values.items()}


if __name__ == "__main__":
    sys.exit(main())
