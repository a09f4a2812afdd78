"""Where the time of a photo goes that is shaped and finished on the GPU: what the boundary ``photo`` has beside the network."""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np

from ...runtime.photo.shaped_photo import ShapedPhoto
from ...runtime.pipeline import Pipeline
from .latency import Query


def photo_parts(pipeline: Pipeline, query: Query, runs: int, photo_ms: list[float]) -> dict[str, float]:
    """Medians of ``runs`` in milliseconds: ``copy_in``, ``shaping``, ``network``, ``finishing`` and ``copy_out`` by the device's clock, and ``host``: what the
    median of ``photo_ms``, samples of whole predictions, has beside their sum. Empty where photos are shaped on the CPU."""
    timed = getattr(pipeline.backend, "photo_parts_ms", None)
    if timed is None:
        return {}
    contract, protocol = pipeline.contract, pipeline.protocol(query.protocol)
    shaped = ShapedPhoto(query.photo, contract, protocol)
    text = {name: np.repeat(array, len(shaped.windows), axis=0) for name, array in query.inputs.items() if name != contract.input.tensor}
    found = [timed(shaped.photo, shaped.placed, protocol, pipeline.batch, text) for _ in range(runs)]
    if not all(found):
        return {}
    parts = {name: statistics.median(one[name] for one in found) for name in found[0]}
    return {name: round(ms, 4) for name, ms in {**parts, "host": statistics.median(photo_ms) - sum(parts.values())}.items()}


def photo_parts_lines(rows: list[dict[str, Any]]) -> list[str]:
    """For people: a line for each row of a record that tells of them."""
    told = [(row["name"], row["photo_parts_ms"]) for row in rows if row.get("photo_parts_ms")]
    return [f"{name}: ms of a photo: " + ", ".join(f"{part.replace('_', ' ')} {ms:.2f}" for part, ms in parts.items()) for name, parts in told]
