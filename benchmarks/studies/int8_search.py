"""A whole precision search over a network at full size, on real photos: seconds, memory and the greatest size of its journal. As JSON.

    python -m fathom.benchmarks.studies.int8_search --work DIR --data pairs:DIR [--data images:DIR ...] -o benchmarks/results/int8_search_evp.json

The weights are random: how long it takes, and how much memory and disk, does not depend on them; what is chosen does and says nothing of the trained
network. Photos, regions and trials are the command's own numbers (48 regions a stage, 20 trials). A bundle that lies in DIR already is used.
"""

from __future__ import annotations

import argparse
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

from ...runtime.commands.command import run_command
from ..record.record import study, write_record
from .measured_commands import PACKAGES, measured, system


def main(argv: list[str] | None = None) -> int:
    """Run both steps and write the JSON; returns the exit code."""
    parser = argparse.ArgumentParser("int8_search", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="evp")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--data", action="append", required=True)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--memory", type=float, default=10.0, help="GiB for the observation")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args(argv)
    return run_command(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    arguments.work.mkdir(parents=True, exist_ok=True)
    bundle = arguments.work / "bundle"
    result: dict[str, Any] = {"model": arguments.model, "system": system()}
    if not bundle.exists():
        result["export"] = measured("depth-export", "--model", arguments.model, "--random-init", "-o", str(bundle), threads=arguments.threads)
    data = [word for text in arguments.data for word in ("--data", text)]
    journal = GreatestSize(arguments.work / ".bundle.calibration")
    try:
        found = measured("depth-calibrate", str(bundle), *data, "--images", str(arguments.images), "--memory", str(arguments.memory), threads=arguments.threads)
    finally:
        journal.stop()
    lines = found.pop("result")
    result["calibrate"] = found | {"journal_mb": round(journal.greatest_nbytes / 1e6, 1)}
    result["regions"] = dict(Counter(line["stage"] for line in lines if line["kind"] == "region"))
    result["verdict"] = [line for line in lines if line["kind"] != "region"]
    write_record(arguments.output, study("int8_search", result, PACKAGES), force=True)
    print(f"{found['seconds'] / 60:.0f} min, {found['peak_gib']:.1f} GiB, journal {result['calibrate']['journal_mb']:.0f} MB")
    return 0


class GreatestSize:
    """The greatest sum of a folder's files while other code runs; looked at again and again until ``stop``."""

    def __init__(self, folder: Path, every_s: float = 0.5) -> None:
        self.greatest_nbytes = 0
        self._folder, self._every_s, self._stopped = folder, every_s, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._stopped.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stopped.wait(self._every_s):
            self.greatest_nbytes = max(self.greatest_nbytes, _size(self._folder))


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*") if folder.exists() else ():
        try:
            total += 0 if path.is_dir() else path.stat().st_size
        except FileNotFoundError:  # replaced or removed between the two looks
            continue
    return total


if __name__ == "__main__":
    sys.exit(main())
