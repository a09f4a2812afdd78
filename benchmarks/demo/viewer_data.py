"""What the page's viewer reads: pictures as files, and depth on a coarse grid for a point cloud that can be turned."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .photos import Photo
from .pictures import Row, coloured, drawn, error_map, fitting, row_range, said, span

SHOWN = (480, 360)  # largest size of a picture, in pixels
GRID = 112  # points along the longer side
ASSUMED_FOCAL = 0.866  # of the width, where the camera is not known: a field of view of 60 degrees
TRUTH = "true depth"


def write_pictures(folder: Path, names: Sequence[str], photos: Sequence[Photo], rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Write ``folder/STEM/NAME.png`` and ``NAME-error.png`` for every photo and network, ``photo.jpg``, ``truth.png`` and ``bar.png``.

    Returns:
        for each photo what the page says of it: ``title``, ``folder``, ``near``, ``far`` (metres at the ends of its colours), ``assumed``
        (the camera is not known), ``maps`` (name -> ``file``, ``error`` or None, ``words``, ``metres``), and ``cloud``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ramp = np.repeat(np.linspace(0, 1, 256, dtype=np.float32)[None], 8, axis=0)
    coloured(ramp, np.ones(ramp.shape, bool), 0.0, 1.0).save(folder / "bar.png")
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # most of it is compression, which threads do at the same time
        return list(pool.map(lambda photo, row: _one(folder / photo.path.stem, names, photo, row), photos, rows))


def _one(folder: Path, names: Sequence[str], photo: Photo, row: Row) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    fitting(row.photo, *SHOWN).save(folder / "photo.jpg", quality=88)
    low, high = row_range(row)
    maps: dict[str, dict[str, Any]] = {}
    depths: dict[str, np.ndarray] = {}
    if row.truth_m is not None:
        fitting(coloured(row.truth_m, row.truth_m > 0, low, high), *SHOWN).save(folder / "truth.png")
        maps[TRUTH] = {"file": f"{folder.name}/truth.png", "error": None, "words": [span(row.truth_m)], "metres": True}
        depths[TRUTH] = row.truth_m
    for name, found in zip(names, row.maps, strict=True):
        fitting(drawn(found, row), *SHOWN).save(folder / f"{name}.png")
        values, words = said(found, row.truth_m)
        error = None
        if row.truth_m is not None:
            error = f"{folder.name}/{name}-error.png"
            fitting(error_map(found, row.truth_m), *SHOWN).save(folder.parent / error)
        maps[name] = {"file": f"{folder.name}/{name}.png", "error": error, "words": list(words), "metres": found.metric or row.truth_m is not None}
        positive = values[np.isfinite(values) & (values > 0)]
        no_metres = not found.metric and row.truth_m is None and positive.size
        depths[name] = values * np.float32(2 / np.median(positive)) if no_metres else values  # 2 m in the middle: only its shape is shown
    facts = {"title": photo.title, "folder": folder.name, "near": round(low, 2), "far": round(high, 2), "assumed": photo.focal_px is None, "maps": maps}
    return {**facts, "cloud": cloud(row.photo, depths, photo.focal_px)}


def cloud(photo: Image.Image, depths: dict[str, np.ndarray], focal_px: float | None) -> dict[str, Any]:
    """Points of one photo on a grid of at most ``GRID`` by ``GRID``, seen by a pinhole camera whose axis goes through its middle.

    Args:
        depths: name -> metres, float32 [h, w] of any size that covers the whole photo; 0 where unknown.
        focal_px: in pixels of the photo; None for a field of view of 60 degrees.

    Returns:
        ``w``, ``h``, ``focal`` (in grid steps), ``rgb`` (base64 of h*w*3 bytes) and ``mm`` (name -> base64 of h*w uint16, little endian,
        millimetres, 0 where unknown or beyond 65.535 m).
    """
    scale = GRID / max(photo.size)
    w, h = max(1, round(photo.width * scale)), max(1, round(photo.height * scale))
    mm = {}
    for name, values in depths.items():
        lines = np.minimum(((np.arange(h) + 0.5) * values.shape[0] / h).astype(int), values.shape[0] - 1)
        columns = np.minimum(((np.arange(w) + 0.5) * values.shape[1] / w).astype(int), values.shape[1] - 1)
        found = np.rint(np.nan_to_num(values[np.ix_(lines, columns)], posinf=0, neginf=0) * 1000)
        mm[name] = _base64(np.where((found > 0) & (found <= 65535), found, 0).astype("<u2"))
    focal = (focal_px or ASSUMED_FOCAL * photo.width) * w / photo.width
    pixels = np.asarray(photo.resize((w, h), Image.Resampling.LANCZOS).convert("RGB"))
    return {"w": w, "h": h, "focal": round(focal, 3), "rgb": _base64(pixels), "mm": mm}


def _base64(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode("ascii")


def script(photos: Sequence[dict[str, Any]], groups: Sequence[tuple[str, Sequence[str]]]) -> str:
    """JavaScript that defines ``DEMO``; a script may be read from a file without a server, a JSON file may not.

    Args:
        groups: title and names of the networks that stand together.
    """
    return "const DEMO = " + json.dumps({"photos": list(photos), "groups": [[title, list(names)] for title, names in groups]}) + ";\n"
