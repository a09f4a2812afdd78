"""Every small network: the time of its plan on ONNX Runtime over that of PyTorch eager, in turns, as JSON.

    python -m fathom.benchmarks.studies.over_pytorch --work DIR -o benchmarks/results/over_pytorch.json

Exports come first; then only queries run. Results of other processors are kept beside those of this one.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from ...runtime.commands.command import run_command
from ...runtime.errors import FathomError, PerformanceError
from ..bench_command import main as bench
from ..machine.conditions import Conditions
from ..machine.system import host
from ..record.record import read_study, study, write_record
from .measured_commands import measured
from .tiny_networks import NETWORKS

LIMIT = 1.0


def prepare(name: str, work: Path, threads: int) -> tuple[Path, Path]:
    """Export and build, unless that was done before; returns bundle and plan."""
    bundle, plan = work / name, work / f"{name}.plan"
    if not bundle.is_dir():
        measured("depth-export", "--model", name, *NETWORKS[name], "-o", str(bundle), "--quiet", threads=threads)
    if not plan.is_file():
        measured("depth-build", str(bundle), "-o", str(plan), "--quiet", threads=threads)
    return bundle, plan


def in_turns(bundle: Path, plan: Path, rounds: int, threads: int) -> dict[str, Any]:
    """One network's plan and PyTorch; medians, and the ratio of each round at the boundary photo."""
    out = plan.with_suffix(".json")
    words = [str(bundle), "--engine", str(plan), "--pytorch", "eager-fp32", "--rounds", str(rounds), "--threads", str(threads)]
    if bench(["latency", *words, "-o", str(out), "--force", "--quiet"]):
        raise FathomError(f"{plan.stem} could not be timed")
    record = json.loads(out.read_text())
    rows = {row["name"]: row for row in record["rows"]}
    theirs, ours = rows["pytorch eager-fp32"], rows[plan.name]
    times = {name: row["sample_times_ms"]["photo"] for name, row in (("pytorch eager-fp32", theirs), ("onnxruntime", ours))}
    medians = {"pytorch eager-fp32": theirs["latency_ms"]["photo"]["p50"], "onnxruntime": ours["latency_ms"]["photo"]["p50"]}
    return {"boundary": "photo", "p50_ms": medians, "ratio": ours["difference"]["ratio"]["photo"], "sample_times_ms": times}


def main(argv: list[str] | None = None) -> int:
    """Measure and write; returns the exit code, 9 if a network is slower than PyTorch."""
    parser = argparse.ArgumentParser("over_pytorch", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for bundles and plans, about 300 MB; kept")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prepare", action="store_true", help="only export and build what is missing")
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args(argv)
    return run_command(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    arguments.work.mkdir(parents=True, exist_ok=True)
    made = {name: prepare(name, arguments.work, arguments.threads) for name in NETWORKS}
    if arguments.prepare:
        return 0
    old = read_study(arguments.output)
    conditions = Conditions()
    found = {name: in_turns(*paths, arguments.rounds, arguments.threads) for name, paths in made.items()}
    system = host()
    here = {"system": system, "threads": arguments.threads, "conditions": conditions.close(), "networks": found}
    results = old | {system["host_processor_model_name"]: here}
    write_record(arguments.output, study("over_pytorch", results, ("numpy", "onnxruntime", "torch")), force=True)
    slow = [name for name, facts in found.items() if facts["ratio"]["p50"] > LIMIT]
    for name, facts in found.items():
        ratio = facts["ratio"]
        print(f"{name}: {ratio['p50']:.2f} ({ratio['p50_interval'][0]:.2f} to {ratio['p50_interval'][1]:.2f})")
    if slow:
        raise PerformanceError(f"{', '.join(slow)} slower than PyTorch eager", wanted=f"at most {LIMIT} of its time")
    return 0


if __name__ == "__main__":
    sys.exit(main())
