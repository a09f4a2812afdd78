"""One image of the data of a calibration, known by its pixels."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from ...datasets.sample import Sample


@dataclass(frozen=True)
class Photo:
    """One image of the data: its place there, its name, a hash of its pixels, how many windows it becomes, and the scene it shows."""

    number: int
    id: str
    sha256: str
    windows: int
    scene: str = ""


def photo_sha256(sample: Sample) -> str:
    """SHA-256 over size and pixels of a photo."""
    return hashlib.sha256(repr(sample.rgb.shape).encode() + np.ascontiguousarray(sample.rgb).tobytes()).hexdigest()
