"""How long a network takes, on equal terms: the same tensors, taking turns, every sample kept.

Three boundaries, never mixed: ``device`` (the network alone, between two CUDA events), ``host`` (tensors in host memory to tensors in host
memory) and ``photo`` (a decoded photo to its finished map).
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...runtime.backend import Backend
from ...runtime.errors import FathomError
from ...runtime.pipeline import Pipeline

BOUNDARIES = ("device", "host", "photo")


@dataclass
class Subject:
    """One thing that is timed.

    Args:
        name: of the row.
        backend: runs the tensors; with ``device_times_ms`` also timed on the device.
        pipeline: for the boundary ``photo``, or None.
        memory_mib: device memory that opening and warming up took, if known.
        samples_ms: by boundary.
        error: why it could not be timed, or "".
    """

    name: str
    backend: Backend | None = None
    pipeline: Pipeline | None = None
    memory_mib: float | None = None
    remarks: tuple[str, ...] = ()
    samples_ms: dict[str, list[float]] = field(default_factory=dict)
    error: str = ""

    def close(self) -> None:
        """Free it."""
        if self.pipeline is not None:
            self.pipeline.close()
        elif self.backend is not None:
            self.backend.close()
        self.backend = self.pipeline = None


def take_turns(
    subjects: list[Subject], inputs: dict[str, np.ndarray], photo: np.ndarray, rounds: int, warm_up: int, prompt: str | None = None, seed: int = 0
) -> None:
    """Time every subject once per round, in an order that is shuffled anew each round, so that a warming card disturbs all alike.

    Args:
        inputs: the network's tensors.
        photo: uint8 [H, W, 3].
        rounds: samples per subject and boundary.
        warm_up: rounds before, which do not count.
        prompt: words, for a network that is asked in words.
    """
    order = random.Random(seed)
    for turn in range(-warm_up, rounds):
        waiting = [subject for subject in subjects if not subject.error]
        order.shuffle(waiting)
        for subject in waiting:
            try:
                taken = _once(subject, inputs, photo, prompt)
            except FathomError as error:
                subject.error, subject.samples_ms = str(error), {}
                continue
            if turn >= 0:
                for boundary, ms in taken.items():
                    subject.samples_ms.setdefault(boundary, []).append(ms)


def _once(subject: Subject, inputs: dict[str, np.ndarray], photo: np.ndarray, prompt: str | None) -> dict[str, float]:
    taken = {"host": _wall_ms(lambda: subject.backend.run(inputs))}
    timed = getattr(subject.backend, "device_times_ms", None)
    if timed is not None and (times_ms := timed(inputs, 1)):
        taken["device"] = times_ms[0]
    if subject.pipeline is not None:
        taken["photo"] = _wall_ms(lambda: subject.pipeline.predict(photo, prompt=prompt))
    return taken


def _wall_ms(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1e3


def summary(samples_ms: list[float]) -> dict[str, float]:
    """p50, p90, p99, least, greatest and mean of samples in milliseconds."""
    p50, p90, p99 = np.percentile(samples_ms, [50, 90, 99])
    found = {"p50": p50, "p90": p90, "p99": p99, "min": min(samples_ms), "max": max(samples_ms), "mean": float(np.mean(samples_ms))}
    return {name: round(float(value), 4) for name, value in found.items()}


def to_json(subjects: list[Subject]) -> list[dict[str, Any]]:
    """Every subject with its summaries and all its samples."""
    rows = []
    for subject in subjects:
        row: dict[str, Any] = {"name": subject.name, "memory_mib": subject.memory_mib, "remarks": list(subject.remarks)}
        if subject.error:
            row["error"] = subject.error
        row["summary_ms"] = {boundary: summary(subject.samples_ms[boundary]) for boundary in BOUNDARIES if boundary in subject.samples_ms}
        row["samples_ms"] = {boundary: [round(ms, 4) for ms in samples] for boundary, samples in subject.samples_ms.items()}
        rows.append(row)
    return rows


def table(subjects: list[Subject]) -> str:
    """For people: p50 / p90 / p99 in milliseconds by boundary, and device memory."""
    lines = [f"{'':28} {'device ms p50/p90/p99':>26} {'host ms p50/p90/p99':>26} {'photo ms p50/p90/p99':>26} {'MiB':>8}"]
    for subject in subjects:
        if subject.error:
            lines.append(f"{subject.name:28} {subject.error}")
            continue
        cells = []
        for boundary in BOUNDARIES:
            found = summary(subject.samples_ms[boundary]) if boundary in subject.samples_ms else None
            cells.append(f"{found['p50']:.2f} / {found['p90']:.2f} / {found['p99']:.2f}" if found else "-")
        memory = "-" if subject.memory_mib is None else f"{subject.memory_mib:.0f}"
        lines.append(f"{subject.name:28} {cells[0]:>26} {cells[1]:>26} {cells[2]:>26} {memory:>8}")
    return "\n".join(lines)
