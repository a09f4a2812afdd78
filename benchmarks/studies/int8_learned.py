"""What distillation gives back of the depth that INT8 moves, on small networks with everything in INT8 that can be. As JSON.

    python -m fathom.benchmarks.studies.int8_learned --work DIR -o benchmarks/results/int8_learned.json [--onnx FILE --contract FILE]

Export, calibration and learning are the commands a user gives. The budget is wide open, so that the plan is all INT8, with the observers, the
SmoothQuant and the corrected biases that ``depth-calibrate`` chose. Calibration and learning are given the same synthetic rooms and seed: the rooms that
the result is measured on gave no range, chose nothing and were not learned from. A network that is in the JSON already is not measured again;
``--only NAME`` measures the named ones anew. ``--onnx`` measures somebody else's network as well, under the name of its file.
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
from .tiny_networks import NETWORKS

ROOMS = "rooms:200:1:168x224"
DEFAULT = ("depthclip-tiny", "depthblip2-tiny")
ALL_INT8 = ("--precisions", "fp32,int8", "--budget", "abs_rel=100%,delta1=100pp,moved=100%", "--regions", "1")
KEPT = ("seconds", "peak_gib", "command")


def main(argv: list[str] | None = None) -> int:
    """Measure every network and write the JSON after each; returns the exit code."""
    parser = argparse.ArgumentParser("int8_learned", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--onnx", type=Path, help="another network's file")
    parser.add_argument("--contract", type=Path, help="what its input and output mean")
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
    if (arguments.onnx is None) != (arguments.contract is None):
        raise UsageError("--onnx and --contract go together")
    networks = result.get("networks", {})
    exports = {name: ("--model", name, *NETWORKS[name]) for name in arguments.only or DEFAULT}
    if arguments.onnx is not None:
        exports[arguments.onnx.stem] = ("--onnx", str(arguments.onnx), "--contract", str(arguments.contract))
    for name in [name for name in exports if name in arguments.only or name not in networks]:
        networks[name] = measure(exports[name], arguments.work / name, arguments.steps, arguments.threads)
        write_record(arguments.output, study("int8_learned", {"networks": networks, "system": system()}, PACKAGES), force=True)
        moved = {when: networks[name][when]["disagreement"] for when in ("before", "after", "fp32")}
        print(f"{name}: moved {moved['before']:.3%}, learned {moved['after']:.3%} (closed {networks[name]['closed']:.0%})", flush=True)
    return 0


def measure(export: tuple[str, ...], work: Path, steps: int, threads: int) -> dict[str, Any]:
    """One network through the three commands; ``export`` says which."""
    work.mkdir(parents=True, exist_ok=True)
    bundle, learned = work / "bundle", work / "learned"
    lines = {
        "export": ("depth-export", *export, "-o", str(bundle)),
        "calibrate": ("depth-calibrate", str(bundle), "--data", ROOMS, *ALL_INT8),
        "learn": ("depth-train", "--quantise", str(bundle / "precision_plan.json"), "--data", ROOMS, "--steps", str(steps), "-o", str(learned)),
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
