"""One photo with what is known of its depth."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True, eq=False)
class Sample:
    """A photo, its depth along the optical axis, and where the depth is known.

    Args:
        rgb: uint8 [H, W, 3].
        depth_m: float32 [H, W], metres, perpendicular to the image plane (not along the ray); 0 where unknown.
        valid: bool [H, W], where ``depth_m`` is a measurement; nowhere for a photo without depth.
        intrinsics: fx, fy, cx, cy in pixels of this photo (centre of the top left pixel is 0, 0), or None.
        id: unique within its source.
        scene: room, drive or folder the photo was taken in, or ``""``.
        caption: what the photo shows, in a sentence, or ``""``.

    Raises:
        ValueError: if a shape or dtype differs, or a valid depth is not a positive finite number.
    """

    rgb: np.ndarray
    depth_m: np.ndarray
    valid: np.ndarray
    intrinsics: tuple[float, float, float, float] | None
    id: str
    scene: str
    caption: str = ""

    def __post_init__(self):
        if self.rgb.dtype != np.uint8 or self.rgb.ndim != 3 or self.rgb.shape[2] != 3 or 0 in self.rgb.shape:
            raise ValueError(f"sample {self.id}: rgb is {self.rgb.dtype} {self.rgb.shape}, wanted uint8 [H, W, 3]")
        size = self.rgb.shape[:2]
        if self.depth_m.dtype != np.float32 or self.depth_m.shape != size:
            raise ValueError(f"sample {self.id}: depth is {self.depth_m.dtype} {self.depth_m.shape}, wanted float32 {size} like the photo")
        if self.valid.dtype != np.bool_ or self.valid.shape != size:
            raise ValueError(f"sample {self.id}: valid is {self.valid.dtype} {self.valid.shape}, wanted bool {size} like the photo")
        known = self.depth_m[self.valid]
        if not (np.isfinite(known).all() and (known > 0).all()):
            raise ValueError(f"sample {self.id}: a pixel marked valid holds no positive finite depth")
        if self.intrinsics is not None and (len(self.intrinsics) != 4 or not all(map(math.isfinite, self.intrinsics)) or min(self.intrinsics[:2]) <= 0):
            raise ValueError(f"sample {self.id}: intrinsics {self.intrinsics}, wanted finite fx, fy, cx, cy with positive fx and fy")

    def digest(self) -> str:
        """SHA-256 over photo and valid depth, hex: two samples with the same digest hold the same numbers."""
        state = hashlib.sha256(repr(self.rgb.shape).encode())
        state.update(np.ascontiguousarray(self.rgb))
        state.update(np.ascontiguousarray(np.where(self.valid, self.depth_m, np.float32(0))))
        return state.hexdigest()


@dataclass(frozen=True)
class Provenance:
    """Which data this was, for the record of every number measured on it.

    Args:
        kind: the word of the ``--data`` grammar (``nyu``, ``pairs``, ``rooms``, ...).
        name: what was asked for, without any folder of this machine.
        sha256: over the names and byte sizes of the files and the choice made among them (for rooms: over the recipe). It
            tells two data sets apart without reading them; ``Sample.digest`` stands for the content.
        count: number of samples.
        seed: of synthetic data, else None.
        skipped: samples of the list that were left out, by reason.
    """

    kind: str
    name: str
    sha256: str
    count: int
    seed: int | None = None
    skipped: tuple[tuple[str, int], ...] = ()

    def to_json(self) -> dict:
        """As JSON values."""
        return {"kind": self.kind, "name": self.name, "sha256": self.sha256, "count": self.count, "seed": self.seed, "skipped": dict(self.skipped)}


def stamps(files: Iterable[Path]) -> list[tuple[str, int, int]]:
    """Path, byte size and modification time (ns) of each file: they change with its content, where names and sizes alone may stay.

    Raises:
        OSError: if a file is gone.
    """
    facts = ((path, path.stat()) for path in files)
    return [(str(path.resolve()), found.st_size, found.st_mtime_ns) for path, found in facts]


def fingerprint(*facts: object) -> str:
    """SHA-256 over the written form of ``facts``, hex."""
    return hashlib.sha256("\n".join(map(repr, facts)).encode()).hexdigest()
