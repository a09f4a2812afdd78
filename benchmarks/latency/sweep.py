"""Batches of growing size: images per second, as long as the artefact takes them."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...runtime.backend import Backend
from ...runtime.errors import FathomError
from .latency import summary, wall_ms

BATCHES = (1, 2, 4, 8, 16, 32)
WARM_UP = 1


def sweep(backend: Backend, inputs: dict[str, np.ndarray], greatest: int, rounds: int, limit_ms: float) -> list[dict[str, Any]]:
    """Time each batch up to the greatest that the artefact takes; a size that fails says why, and larger ones are left out.

    Args:
        inputs: of one window; repeated to the batch.
        greatest: batch that the artefact takes.
        rounds: samples per batch.
        limit_ms: the next batch is not tried if this one took longer.
    """
    found: list[dict[str, Any]] = []
    for batch in (size for size in BATCHES if size <= greatest):
        many = {name: np.repeat(array, batch, axis=0) for name, array in inputs.items()}
        try:
            for _ in range(WARM_UP):
                backend.run(many)
            samples_ms = [wall_ms(lambda many=many: backend.run(many)) for _ in range(rounds)]
        except FathomError as error:
            found.append({"batch": batch, "is_skipped": True, "skip_reason": str(error), "samples_per_second": None})
            break
        taken = summary(samples_ms)
        entry = {"batch": batch, "is_skipped": False, "skip_reason": "", "boundary": "host", "latency_ms": taken}
        found.append(entry | {"samples_per_second": round(1e3 * batch / taken["mean"], 4), "sample_times_ms": [round(ms, 4) for ms in samples_ms]})
        if taken["p50"] > limit_ms:
            break
    return found
