"""Time and memory of a network's plan on ONNX Runtime over those of PyTorch eager, in turns, as JSON.

    python -m fathom.benchmarks.studies.over_pytorch --work DIR -o benchmarks/results/over_pytorch.json
    python -m fathom.benchmarks.studies.over_pytorch --work DIR -o … --networks evp,llm-mde --rounds 5

The small networks by default; full-size ones get random weights, 12 GB of disk and up to 12 GiB of memory. Exports come first; then only
queries run. Results of other processors, and of networks that are not named, are kept.
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
from ..latency.first_query import first_query
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
        words = NETWORKS.get(name, ("--random-init",))
        measured("depth-export", "--model", name, *words, "-o", str(bundle), "--quiet", threads=threads)
    if not plan.is_file():
        measured("depth-build", str(bundle), "-o", str(plan), "--quiet", threads=threads)
    return bundle, plan


def in_turns(bundle: Path, plan: Path, rounds: int, threads: int) -> dict[str, Any]:
    """One network's plan and PyTorch; medians, and the ratio of each round at the boundary photo."""
    out = plan.with_suffix(".json")
    words = [str(bundle), "--engine", str(plan), "--pytorch", "eager-fp32", "--rounds", str(rounds), "--threads", str(threads)]
    words += [] if bundle.name in NETWORKS else ["--warm-up", "1"]  # a round of a full-size network takes minutes
    if bench(["latency", *words, "-o", str(out), "--force", "--quiet"]):
        raise FathomError(f"{plan.stem} could not be timed")
    record = json.loads(out.read_text())
    rows = {row["name"]: row for row in record["rows"]}
    theirs, ours = rows["pytorch eager-fp32"], rows[plan.name]
    times = {name: row["sample_times_ms"]["photo"] for name, row in (("pytorch eager-fp32", theirs), ("onnxruntime", ours))}
    medians = {"pytorch eager-fp32": theirs["latency_ms"]["photo"]["p50"], "onnxruntime": ours["latency_ms"]["photo"]["p50"]}
    return {"boundary": "photo", "p50_ms": medians, "ratio": ours["difference"]["ratio"]["photo"], "sample_times_ms": times}


def peaks(bundle: Path, plan: Path, threads: int) -> dict[str, Any]:
    """Peak memory of a process that opens one of the two and answers one photo: all of it, mapped weights included."""
    theirs, ours = first_query(str(bundle), "cpu", threads, mode="eager-fp32"), first_query(str(plan), None, threads)
    found = {"pytorch eager-fp32": theirs["host_peak_nbytes"], "onnxruntime": ours["host_peak_nbytes"]}
    return {"host_peak_nbytes": found, "host_peak_ratio": round(found["onnxruntime"] / found["pytorch eager-fp32"], 3)}


def main(argv: list[str] | None = None) -> int:
    """Measure and write; returns the exit code, 9 if a network takes more time or memory than PyTorch."""
    parser = argparse.ArgumentParser("over_pytorch", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for bundles and plans, about 300 MB for the small networks; kept")
    parser.add_argument("--networks", default=",".join(NETWORKS), metavar="NAME,NAME", help="of the catalog (default: the small ones)")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prepare", action="store_true", help="only export and build what is missing")
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args(argv)
    return run_command(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    arguments.work.mkdir(parents=True, exist_ok=True)
    made = {name: prepare(name, arguments.work, arguments.threads) for name in arguments.networks.split(",")}
    if arguments.prepare:
        return 0
    found: dict[str, Any] = {}
    for name, paths in made.items():
        conditions = Conditions()
        memory = peaks(*paths, arguments.threads)
        found[name] = {**in_turns(*paths, arguments.rounds, arguments.threads), **memory, "conditions": conditions.close()}
        ratio = found[name]["ratio"]
        print(f"{name}: time {ratio['p50']:.2f} ({ratio['p50_interval'][0]:.2f} to {ratio['p50_interval'][1]:.2f}), memory {memory['host_peak_ratio']:.2f}")
        write_record(arguments.output, study("over_pytorch", _merged(arguments, found), ("numpy", "onnxruntime", "torch")), force=True)
    missed = [name for name, facts in found.items() if max(facts["ratio"]["p50"], facts["host_peak_ratio"]) > LIMIT]
    if missed:
        raise PerformanceError(f"{', '.join(missed)} take more than PyTorch eager", wanted=f"at most {LIMIT} of its time and memory")
    return 0


def _merged(arguments: argparse.Namespace, found: dict[str, Any]) -> dict[str, Any]:
    """What was measured beside what the record holds of other processors and networks."""
    system, old = host(), read_study(arguments.output)
    here = old.get(system["host_processor_model_name"], {"networks": {}})
    return old | {system["host_processor_model_name"]: {"system": system, "threads": arguments.threads, "networks": here["networks"] | found}}


if __name__ == "__main__":
    sys.exit(main())
