"""How long a network takes, on equal terms: the same tensors, taking turns, every sample kept.

Three boundaries, never mixed: ``device`` (the network alone, between two CUDA events), ``host`` (tensors in host memory to tensors in
host memory) and ``photo`` (a decoded photo to its finished map). Stages are timed on the device where there is one, else on the host.
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
from ..record.statistics import LEVEL, RESAMPLES, interval_of_median, interval_of_ratio
from .pacing import fixed_rate

BOUNDARIES = ("device", "host", "photo")
SEED = 0


@dataclass
class Subject:
    """One thing that is timed.

    Args:
        name: of the row.
        backend: runs the tensors; with ``device_times_ms`` also timed on the device, with ``stage_times_ms`` stage by stage.
        pipeline: for the boundary ``photo``, or None.
        artefact: plan or bundle that it was opened from.
        facts: what identifies it (network, manifest, backend, precision, device, threads).
        remarks: of the backend, in words.
        open_ms: how long opening took in this process.
        memory: bytes by place, None where it is not known.
        details: further parts of its row (sweep, cold start, energy).
        samples_ms: by boundary.
        stages_ms: samples by stage.
        skip_reason: why it could not be timed, or "".
        skip_code: the exit code of that reason.
    """

    name: str
    backend: Backend | None = None
    pipeline: Pipeline | None = None
    artefact: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    open_ms: float | None = None
    memory: dict[str, int | None] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    samples_ms: dict[str, list[float]] = field(default_factory=dict)
    stages_ms: dict[str, list[float]] = field(default_factory=dict)
    skip_reason: str = ""
    skip_code: int = 0

    def close(self) -> None:
        """Free it."""
        if self.pipeline is not None:
            self.pipeline.close()
        elif self.backend is not None:
            self.backend.close()
        self.backend = self.pipeline = None


@dataclass(frozen=True)
class Query:
    """What every subject is asked.

    Args:
        inputs: the network's tensors.
        photo: uint8 [H, W, 3].
        camera: fx, fy, cx, cy of the photo.
        prompt: words, for a network that is asked in words.
        protocol: how the photo is shown; None for the artefact's first.
        stages: also time the stages one by one.
    """

    inputs: dict[str, np.ndarray]
    photo: np.ndarray | None = None
    camera: tuple[float, float, float, float] | None = None
    prompt: str | None = None
    protocol: str | None = None
    stages: bool = False

    def ask(self, pipeline: Pipeline) -> None:
        """The boundary ``photo``: from the photo to its map."""
        pipeline.predict(self.photo, self.protocol, self.camera, self.prompt)


def take_turns(subjects: list[Subject], query: Query, rounds: int, warm_up: int, on_round: Callable[[], None] = lambda: None) -> None:
    """Time every subject once per round, in an order that is shuffled anew each round, so that a warming card disturbs all alike.

    Args:
        rounds: samples per subject and boundary.
        warm_up: rounds before, which do not count.
        on_round: called between rounds.
    """
    order = random.Random(SEED)
    for turn in range(-warm_up, rounds):
        waiting = [subject for subject in subjects if not subject.skip_reason]
        order.shuffle(waiting)
        for subject in waiting:
            try:
                taken, stages = _once(subject, query)
            except FathomError as error:
                subject.skip_reason, subject.skip_code, subject.samples_ms, subject.stages_ms = str(error), error.exit_code, {}, {}
                continue
            if turn >= 0:
                for boundary, ms in taken.items():
                    subject.samples_ms.setdefault(boundary, []).append(ms)
                for stage, ms in stages.items():
                    subject.stages_ms.setdefault(stage, []).append(ms)
        on_round()


def _once(subject: Subject, query: Query) -> tuple[dict[str, float], dict[str, float]]:
    taken, stages = {"host": wall_ms(lambda: subject.backend.run(query.inputs))}, {}
    timed = getattr(subject.backend, "device_times_ms", None)
    if timed is not None and (times_ms := timed(query.inputs, 1)):
        taken["device"] = times_ms[0]
    by_stage = getattr(subject.backend, "stage_times_ms", None) if query.stages else None
    if by_stage is not None:
        stages = {stage: times_ms[0] for stage, times_ms in by_stage(query.inputs, 1).items()}
    if subject.pipeline is not None:
        taken["photo"] = wall_ms(lambda: query.ask(subject.pipeline))
    return taken, stages


def wall_ms(work: Callable[[], Any]) -> float:
    """Milliseconds that some work takes by the clock."""
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1e3


def summary(samples_ms: list[float]) -> dict[str, Any]:
    """Of samples in milliseconds: percentiles, mean, spread, ``jitter`` (p99 - p50), and where the median lies with 95 % confidence."""
    p50, p90, p99 = np.percentile(samples_ms, [50, 90, 99])
    found = {"p50": p50, "p90": p90, "p99": p99, "min": min(samples_ms), "max": max(samples_ms), "mean": float(np.mean(samples_ms))}
    found |= {"stdev": float(np.std(samples_ms, ddof=1)) if len(samples_ms) > 1 else 0.0, "jitter": p99 - p50}
    rounded: dict[str, Any] = {name: round(float(value), 4) for name, value in found.items()}
    return {"sample_size": len(samples_ms), **rounded, "p50_interval": [round(end, 4) for end in interval_of_median(samples_ms)]}


def to_json(subjects: list[Subject]) -> list[dict[str, Any]]:
    """Every subject with its summaries and all its samples; differences are to the first that could be timed."""
    base = next((subject for subject in subjects if subject.samples_ms), None)
    return [_row(subject, base) for subject in subjects]


def _row(subject: Subject, base: Subject | None) -> dict[str, Any]:
    samples = {boundary: subject.samples_ms[boundary] for boundary in BOUNDARIES if boundary in subject.samples_ms}
    row: dict[str, Any] = {"name": subject.name, **subject.facts, "remarks": list(subject.remarks)}
    row |= {"is_skipped": not samples, "skip_reason": subject.skip_reason, "skip_code": subject.skip_code}
    row |= {"open_ms": subject.open_ms, "memory": subject.memory}
    row["latency_ms"] = {boundary: summary(values) for boundary, values in samples.items()}
    row["samples_per_second"] = {boundary: round(1e3 / found["mean"], 4) for boundary, found in row["latency_ms"].items() if found["mean"] > 0}
    if "photo" in samples:
        row["fixed_rate"] = fixed_rate(samples["photo"])
    where = "device" if "device" in samples else "host"
    row["stages"] = [
        {"name": stage, "boundary": where, "latency_ms": summary(values), "sample_times_ms": _rounded(values)} for stage, values in subject.stages_ms.items()
    ]
    row |= subject.details
    row["difference"] = None
    if samples and base is not None and subject is not base:
        shared = [boundary for boundary in samples if boundary in base.samples_ms]
        row["difference"] = {"to": base.name, "ratio": {boundary: _ratio(samples[boundary], base.samples_ms[boundary]) for boundary in shared}}
    row["sample_times_ms"] = {boundary: _rounded(values) for boundary, values in samples.items()}
    return row


def _ratio(samples_ms: list[float], base_ms: list[float]) -> dict[str, Any]:
    """Median of the ratios of one round each, and where it lies."""
    ratios = [ours / theirs for ours, theirs in zip(samples_ms, base_ms, strict=True)]
    low, high = interval_of_ratio(samples_ms, base_ms)
    found = {"p50": float(np.median(ratios)), "min": min(ratios), "max": max(ratios)}
    return {name: round(value, 4) for name, value in found.items()} | {"p50_interval": [round(low, 4), round(high, 4)]}


def confidence() -> dict[str, Any]:
    """How the intervals of a record were made."""
    return {"level": LEVEL, "resamples": RESAMPLES, "seed": SEED, "method": "percentile bootstrap over rounds"}


def _rounded(samples_ms: list[float]) -> list[float]:
    return [round(ms, 4) for ms in samples_ms]


def table(rows: list[dict[str, Any]]) -> str:
    """For people: p50 / p90 / p99 in milliseconds by boundary, and device memory."""
    lines = [f"{'':28} {'device ms p50/p90/p99':>26} {'host ms p50/p90/p99':>26} {'photo ms p50/p90/p99':>26} {'MiB':>8}"]
    for row in rows:
        if row["is_skipped"]:
            lines.append(f"{row['name']:28} {row['skip_reason']}")
            continue
        cells = []
        for boundary in BOUNDARIES:
            found = row["latency_ms"].get(boundary)
            cells.append(f"{found['p50']:.2f} / {found['p90']:.2f} / {found['p99']:.2f}" if found else "-")
        taken = row["memory"].get("device_nbytes")
        lines.append(f"{row['name']:28} {cells[0]:>26} {cells[1]:>26} {cells[2]:>26} {'-' if taken is None else f'{taken / 2**20:.0f}':>8}")
    return "\n".join(lines)
