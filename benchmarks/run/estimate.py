"""How much will be measured and how long that takes, from one query to each subject."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from ...runtime.errors import FathomError
from ...runtime.pipeline import Pipeline
from ..latency.opening import any_camera, made_up_photo
from ..record.statistics import LEAST

IMAGES, ROUNDS, WARM_UP = 50, 100, 5
QUICK_S = 60.0
QUICK_IMAGES, QUICK_ROUNDS, QUICK_WARM_UP = 12, 24, 2
LEAST_ROUNDS = 12  # fewer cannot be compared
COMPILE_S = 90.0
SWEEP_QUERIES = 30.0


@dataclass(frozen=True)
class Probe:
    """One subject: seconds until it was open, seconds of a query once it is warm, and whether it has stages to time."""

    name: str
    open_s: float
    query_s: float


@dataclass(frozen=True)
class Plan:
    """How much is measured, and how long that is expected to take.

    Args:
        images: of the data. 0: no accuracy.
        rounds, warm_up: of the latency.
        accuracy_s, latency_s: expected.
    """

    images: int
    rounds: int
    warm_up: int
    accuracy_s: float
    latency_s: float

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    def words(self) -> str:
        """For people."""
        accuracy = f"accuracy {_duration(self.accuracy_s)} ({self.images} images), " if self.images else ""
        return f"about {_duration(self.accuracy_s + self.latency_s)}: {accuracy}latency {_duration(self.latency_s)} ({self.rounds} rounds)"


def probe(name: str, opened: Callable[[], Pipeline], protocol: str, prompt: str | None) -> Probe | None:
    """Open a subject and ask it twice by that protocol; None if it cannot be used here."""
    start = time.perf_counter()
    try:
        with opened() as pipeline:
            photo = made_up_photo(pipeline.protocol(protocol))
            pipeline.predict(photo, protocol, any_camera(photo), prompt)
            warm = time.perf_counter()
            pipeline.predict(photo, protocol, any_camera(photo), prompt)
            end = time.perf_counter()
    except FathomError:
        return None
    return Probe(name, warm - start, end - warm)


def plan(probes: list[Probe], images: int, quick: bool, compiled: int = 0) -> Plan:
    """How much to measure: all of it, or what fits into a minute.

    Args:
        images: that the data has; 0 for no accuracy.
        compiled: modes of PyTorch that are compiled first.
    """
    queries = sum(found.query_s for found in probes)
    opening = sum(found.open_s for found in probes)
    wanted = (min(images, QUICK_IMAGES), QUICK_ROUNDS, QUICK_WARM_UP) if quick else (min(images, IMAGES), ROUNDS, WARM_UP)
    share = 1.0
    if quick:
        fixed = 4 * opening + 5 * queries + SWEEP_QUERIES * queries / 3
        work = wanted[0] * queries + 3 * (wanted[1] + wanted[2]) * queries
        share = min(1.0, max(0.0, QUICK_S - fixed) / max(work, 1e-9))
    count = max(LEAST, int(wanted[0] * share)) if images else 0
    rounds, warm_up = max(LEAST_ROUNDS, int(wanted[1] * share)), wanted[2]
    accuracy_s = (count + 5) * queries + 2 * opening if images else 0.0
    sweep = SWEEP_QUERIES * queries * (1 if not quick else 1 / 3)
    latency_s = 2 * opening + 3 * (rounds + warm_up) * queries + sweep + compiled * COMPILE_S
    return Plan(min(count, images), rounds, warm_up, round(accuracy_s, 1), round(latency_s, 1))


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
