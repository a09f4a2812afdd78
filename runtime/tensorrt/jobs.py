"""Jobs of the GPU thread on tensors; the one on photos is ``device_photos.PhotoJob``."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class RunJob:
    """Tensors in, tensors out; checked already."""

    inputs: dict[str, np.ndarray]
    keep: frozenset[str]


@dataclass(frozen=True)
class StageJob:
    """One stage alone on tensors of its own; ``shapes`` are those of the network's inputs."""

    index: int
    shapes: dict[str, tuple[int, ...]]
    inputs: dict[str, np.ndarray]


@dataclass(frozen=True)
class TimeJob:
    """The same tensors through the network again and again, timed on the device: as a whole, or stage after stage."""

    inputs: dict[str, np.ndarray]
    runs: int
    by_stage: bool = False


@dataclass(frozen=True)
class LayerJob:
    """The same tensors through the network again and again, timed layer by layer by TensorRT's profiler."""

    inputs: dict[str, np.ndarray]
    runs: int
