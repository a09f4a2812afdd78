"""How long a user waits before anything happens: imports, ``--help``, and one photo through a tiny plan, as JSON.

    python -m fathom.benchmarks.studies.startup --engine evp-tiny.plan --photo FILE -o benchmarks/results/startup.json

Every run is a process of its own, after one that is not counted and fills the page cache.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

from ...runtime.commands.command import run_command
from ...runtime.errors import FathomError
from ..record.record import study, write_record
from .measured_commands import PACKAGES, system

LIMITS_MS = {"import fathom.runtime": 150, "depth-run --help": 300, "depth-export --help": 300, "depth-build --help": 300, "depth-run, one photo": 2000}


def timed_ms(command: list[str], runs: int) -> list[float]:
    """Wall time of each run of a command, process start to exit, in milliseconds.

    Raises:
        FathomError: if it fails.
    """
    found = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        if subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode:
            raise FathomError(f"this failed: {' '.join(command)}")
        found.append(round((time.perf_counter() - start) * 1000, 1))
    return found[1:]


def main(argv: list[str] | None = None) -> int:
    """Measure and write the JSON; returns the exit code, 9 if a limit was missed."""
    parser = argparse.ArgumentParser(prog="startup", description=__doc__.splitlines()[0])
    parser.add_argument("--engine", required=True, help="a plan of a tiny network for ONNX Runtime")
    parser.add_argument("--photo", required=True)
    parser.add_argument("-o", "--output", required=True)
    parser.add_argument("--runs", type=int, default=15)
    arguments = parser.parse_args(argv)
    return run_command(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    python = [sys.executable]
    with tempfile.TemporaryDirectory() as folder:
        photo = ["--engine", arguments.engine, arguments.photo, "-o", folder, "--force", "--quiet"]
        commands = {
            "import fathom.runtime": [*python, "-c", "import fathom.runtime"],
            "depth-run --help": [*python, "-m", "fathom.runtime.commands.run", "--help"],
            "depth-export --help": [*python, "-m", "fathom.export.commands.export_command", "--help"],
            "depth-build --help": [*python, "-m", "fathom.export.commands.build_command", "--help"],
            "depth-run, one photo": [*python, "-m", "fathom.runtime.commands.run", *photo],
        }
        here: dict[str, Any] = system()
        found = {name: timed_ms(command, arguments.runs) for name, command in commands.items()}
    medians = {name: statistics.median(values) for name, values in found.items()}
    missed = [name for name, value in medians.items() if value > LIMITS_MS[name]]
    results = {"system": here, "limits_ms": LIMITS_MS, "p50_ms": medians, "sample_times_ms": found}
    write_record(arguments.output, study("startup", results, PACKAGES), force=True)
    for name, value in medians.items():
        print(f"{name}: {value:.0f} ms (limit {LIMITS_MS[name]}; {min(found[name]):.0f} to {max(found[name]):.0f}, {arguments.runs} runs)")
    return 9 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
