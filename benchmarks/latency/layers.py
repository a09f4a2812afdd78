"""The layers of engines by how long they take, for finding the slow ones."""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np

SHOWN = 3


def layer_rows(backend: Any, inputs: dict[str, np.ndarray], runs: int) -> list[dict[str, Any]]:
    """Every layer with its stage, the median of its milliseconds, and its ``share`` of all layers' sum, longest first; none where nothing tells of layers.

    Args:
        backend: with ``layer_times_ms`` where its compiler has a profiler.
        inputs: the network's tensors.
        runs: of the network.
    """
    profiled = getattr(backend, "layer_times_ms", None)
    if profiled is None:
        return []
    found = [(stage, layer, statistics.median(taken)) for stage, layers in profiled(inputs, runs).items() for layer, taken in layers.items()]
    whole = sum(ms for _, _, ms in found) or 1.0
    found.sort(key=lambda row: -row[2])
    return [{"stage": stage, "name": layer, "p50_ms": round(ms, 5), "share": round(ms / whole, 5)} for stage, layer, ms in found]


def layer_lines(rows: list[dict[str, Any]]) -> list[str]:
    """For people: the longest layers of each row of a record."""
    lines = []
    for row in rows:
        shown = [f"{100 * layer['share']:.1f} % {layer['stage']}: {layer['name'][:60]}" for layer in row.get("layers", ())[:SHOWN]]
        if shown:
            lines.append(f"{row['name']}: of the time of all {len(row['layers'])} layers " + "; ".join(shown))
    return lines
