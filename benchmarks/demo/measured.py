"""What the demo's networks reach and take on this machine: a few rooms, a few rounds, and the page that ``depth-bench report`` draws."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from .plans import accuracy_file, latency_file

ROOMS, ROUNDS = "rooms:6:8:120x160", 6


def accuracy(folder: Path, name: str, run: Callable[..., str]) -> None:
    """Measure the plan ``folder/NAME.plan``, and PyTorch where its bundle ``folder/NAME`` is there, on a few rooms.

    Args:
        run: runs one of our commands.
    """
    reference = ("--reference", str(folder / name)) if (folder / name).is_dir() else ()
    words = ("--engine", str(folder / f"{name}.plan"), "--data", ROOMS, "-o", str(folder / accuracy_file(name)), "--threads", "1")
    run("depth-bench", "accuracy", *reference, *words, "--force", "-q")


def latency(folder: Path, name: str, run: Callable[..., str], threads: int) -> None:
    """Time the plan ``folder/NAME.plan``, and PyTorch where its bundle is there; nothing else may run meanwhile."""
    bundle = folder / name
    pytorch = (str(bundle), "--pytorch", "eager-fp32") if bundle.is_dir() else ()
    place = folder / latency_file(name)
    words = ("--engine", str(folder / f"{name}.plan"), "--rounds", str(ROUNDS), "--warm-up", "1", "-o", str(place), "--threads", str(threads))
    run("depth-bench", "latency", *pytorch, *words, "--force", "-q")


def report(folder: Path, names: Sequence[str], run: Callable[..., str]) -> None:
    """Draw ``folder/report.html`` of the accuracies and latencies of the plans."""
    results = [str(folder / file(name)) for name in names for file in (accuracy_file, latency_file)]
    run("depth-bench", "report", *results, "-o", str(folder / "report.html"), "--force", "-q")
