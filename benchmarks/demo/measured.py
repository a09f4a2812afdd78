"""What the demo's networks reach and take on this machine: a few rooms, a few rounds, and the page that ``depth-bench report`` draws."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

ROOMS, ROUNDS = "rooms:6:8:120x160", 12
FIRST = "evp-tiny"  # whose bundle is there: PyTorch is measured too


def measure(folder: Path, names: list[str], command: Callable[..., str], threads: int) -> None:
    """Measure the plans ``folder/NAME.plan`` one after the other and draw ``folder/report.html``.

    Args:
        command: runs one of our commands.
        threads: of every command.
    """
    results: list[str] = []
    (folder / "bench").mkdir(exist_ok=True)
    for name in names:
        plan, bundle = str(folder / f"{name}.plan"), str(folder / name)
        accuracy, latency = (str(folder / "bench" / f"{name}-{kind}.json") for kind in ("accuracy", "latency"))
        with_pytorch = name == FIRST and Path(bundle).is_dir()
        reference = ("--reference", bundle) if with_pytorch else ()
        pytorch = (bundle, "--pytorch", "eager-fp32") if with_pytorch else ()
        common = ("--threads", str(threads), "--force", "-q")
        command("depth-bench", "accuracy", *reference, "--engine", plan, "--data", ROOMS, "-o", accuracy, *common, threads=threads)
        command("depth-bench", "latency", *pytorch, "--engine", plan, "--rounds", str(ROUNDS), "--warm-up", "2", "-o", latency, *common, threads=threads)
        results += [accuracy, latency]
    command("depth-bench", "report", *results, "-o", str(folder / "report.html"), "--force", "-q", threads=threads)
