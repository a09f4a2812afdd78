"""What distillation gives back of the depth that INT8 moves, on small networks with everything in INT8 that can be. As JSON.

    python -m fathom.benchmarks.studies.int8_learned --work DIR [--pairs DIR] -o benchmarks/results/int8_learned.json

Export, calibration and learning are the commands a user gives. The budget is wide open, so that the plan is all INT8, with the observers, the
SmoothQuant and the corrected biases that ``depth-calibrate`` chose. Calibration and learning are given the same data and seed: the photos that the
result is measured on are of scenes that gave no range, chose nothing and were not learned from. A network that is in the JSON already is not measured
again; ``--only NAME`` measures the named ones anew.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from ...runtime.commands.command import run_command
from ...runtime.errors import UsageError
from ..record.record import read_study, study, write_record
from .measured_commands import PACKAGES, measured, system
from .tiny_networks import CALIBRATION_ROOMS, NETWORKS

DEFAULT = ("evp-tiny", "vpd-tiny", "moa-depthclip-tiny")
ALL_INT8 = ("--precisions", "fp32,int8", "--budget", "abs_rel=100%,delta1=100pp,moved=100%", "--regions", "1")
KEPT = ("seconds", "peak_gib", "command")


def main(argv: list[str] | None = None) -> int:
    """Measure every network and write the JSON after each; returns the exit code."""
    parser = argparse.ArgumentParser("int8_learned", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--pairs", type=Path, help="folder of real pairs; those marked train are calibrated on and learned from beside the rooms")
    parser.add_argument("--only", action="append", default=[], metavar="NAME")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args(argv)
    return run_command(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    if unknown := [name for name in arguments.only if name not in NETWORKS]:
        raise UsageError(f"--only {unknown[0]}", wanted=", ".join(NETWORKS))
    result: dict[str, Any] = read_study(arguments.output) if arguments.output.exists() else {}
    texts = [CALIBRATION_ROOMS, *([f"pairs:{arguments.pairs}:train"] if arguments.pairs else [])]
    data = [word for text in texts for word in ("--data", text)]
    networks = result.get("networks", {})
    for name in arguments.only or [name for name in DEFAULT if name not in networks]:
        networks[name] = measure(name, arguments.work / name, data, arguments.steps, arguments.threads)
        write_record(arguments.output, study("int8_learned", {"networks": networks, "system": system()}, PACKAGES), force=True)
        moved = {when: networks[name][when]["disagreement"] for when in ("before", "after", "fp32")}
        print(f"{name}: moved {moved['before']:.3%}, learned {moved['after']:.3%} (closed {networks[name]['closed']:.0%})", flush=True)
    return 0


def measure(name: str, work: Path, data: list[str], steps: int, threads: int) -> dict[str, Any]:
    """One network through the three commands."""
    work.mkdir(parents=True, exist_ok=True)
    bundle, learned = work / "bundle", work / "learned"
    lines = {
        "export": ("depth-export", "--model", name, *NETWORKS[name], "-o", str(bundle)),
        "calibrate": ("depth-calibrate", str(bundle), *data, *ALL_INT8),
        "learn": ("depth-train", "--quantise", str(bundle / "precision_plan.json"), *data, "--steps", str(steps), "-o", str(learned)),
    }
    done = {step: measured(*words, threads=threads) for step, words in lines.items()}
    regions = [line for line in done["calibrate"]["result"] if line["kind"] == "region"]
    found = done["learn"]["result"]
    scores = {when: found[when] for when in ("before", "after", "fp32")}
    closed = 1 - scores["after"]["disagreement"] / scores["before"]["disagreement"]
    facts = {"recipe": found["recipe"], "photos": found["photos"], "loss": found["loss"], "choices": sorted({line["choice"] for line in regions})}
    return {**scores, "closed": round(closed, 3), **facts, "steps": {step: {key: facts[key] for key in KEPT} for step, facts in done.items()}}


if __name__ == "__main__":
    sys.exit(main())
