"""What was measured: a CSV of distances at pixels, and of a depth camera's pictures."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..files import read_text
from ..photo.depth_map import DepthMap

MAX_BYTES = 1 << 24
AROUND = 2  # pixels in each direction that a measured pixel's depth is the median of
BINS = 6  # points that a whole depth picture becomes, near to far
LEAST_PIXELS = 100


@dataclass(frozen=True)
class Measured:
    """One line: a distance at a pixel, or the depth picture of a whole photo.

    Args:
        photo: file.
        column, row: of the pixel in the upright photo, from 0; None for a depth picture.
        distance_m: there, metres.
        depth_file: 16-bit PNG in millimetres (0 = unknown) or NPY in metres (NaN or 0 = unknown), of the photo's size.
    """

    photo: Path
    column: int | None = None
    row: int | None = None
    distance_m: float = 0.0
    depth_file: Path | None = None


def read_measurements(path: str | Path) -> list[Measured]:
    """Lines of ``photo,column,row,metres`` or ``photo,depth.png``; paths are relative to the file; ``#`` begins a comment.

    Raises:
        InputError: if it cannot be read, holds nothing, or a line is not of these forms; the line is named.
    """
    path, found = Path(path), []
    wanted = "lines of photo,column,row,metres or photo,depth.png"
    try:
        rows = list(csv.reader(io.StringIO(read_text(path, MAX_BYTES)), skipinitialspace=True))
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{path} cannot be read ({error})", wanted=wanted) from error
    for number, row in enumerate(rows, 1):
        cells = [cell.strip() for cell in row]
        if not any(cells) or cells[0].startswith("#"):
            continue
        photo = path.parent / cells[0]
        if len(cells) == 2 and cells[1]:
            found.append(Measured(photo, depth_file=path.parent / cells[1]))
            continue
        try:
            column, line, distance = int(cells[1]), int(cells[2]), float(cells[3])
            if len(cells) != 4 or min(column, line) < 0 or not (math.isfinite(distance) and 0 < distance < 1000):
                raise ValueError("out of range")
        except (ValueError, IndexError) as error:
            raise InputError(f"{path}, line {number}: {','.join(row)!r} ({error})", wanted=wanted) from error
        found.append(Measured(photo, column, line, distance))
    if not found:
        raise InputError(f"{path} holds no measurement", wanted=wanted)
    return found


def compare(measured: Measured, depth: DepthMap, ray: bool = False) -> list[tuple[float, float]]:
    """Pairs of (the network's depth, measured depth), metres along the optical axis.

    Args:
        depth: of the photo, without a correction.
        ray: distances at pixels run from the lens to the point, as a tape does, and not along the optical axis; needs intrinsics.

    Raises:
        InputError: if the pixel lies outside the photo or has no depth, or the depth picture does not fit.
        ValueError: if ``ray`` is asked for and the map has no intrinsics.
    """
    if measured.depth_file is not None:
        return _binned(measured, depth)
    height, width = depth.values.shape
    column, row, z = measured.column, measured.row, measured.distance_m
    if not (column < width and row < height):
        raise InputError(f"{measured.photo}: pixel {column},{row} lies outside its {width}x{height}", wanted="column,row in the upright photo")
    here = np.s_[max(row - AROUND, 0) : row + AROUND + 1, max(column - AROUND, 0) : column + AROUND + 1]
    seen = depth.depth_m[here][depth.valid[here]]
    if not seen.size:
        raise InputError(f"{measured.photo}: there is no depth at pixel {column},{row}", fix="measure another pixel, or use a protocol without a crop")
    if ray:
        if depth.intrinsics is None:
            raise ValueError("distances along a ray need the camera's intrinsics")
        camera = depth.intrinsics
        z /= math.sqrt(1 + ((column - camera.cx) / camera.fx) ** 2 + ((row - camera.cy) / camera.fy) ** 2)
    return [(float(np.median(seen)), z)]


def _binned(measured: Measured, depth: DepthMap) -> list[tuple[float, float]]:
    truth = _read_depth(measured.depth_file)
    if truth.shape != depth.values.shape:
        was = f"{measured.depth_file} has {truth.shape[1]}x{truth.shape[0]} pixels and {measured.photo} {depth.values.shape[1]}x{depth.values.shape[0]}"
        raise InputError(was, wanted="depth registered to the photo, of its size")
    known = np.isfinite(truth) & (truth > 0) & depth.valid
    if known.sum() < LEAST_PIXELS:
        raise InputError(f"{measured.depth_file}: {int(known.sum())} pixels have depth", wanted=f"at least {LEAST_PIXELS}")
    said, real = depth.depth_m[known].astype(np.float64), truth[known].astype(np.float64)
    order = np.argsort(real, kind="stable")  # by the quantity with the smaller error: the other way would bend the relation (regression to the mean)
    return [(float(np.exp(np.log(said[some]).mean())), float(np.exp(np.log(real[some]).mean()))) for some in np.array_split(order, BINS)]


def _read_depth(path: Path) -> np.ndarray:
    """float32 [H, W] in metres; 0 or NaN where unknown."""
    from PIL import Image

    try:
        if path.suffix.lower() == ".npy":
            values = np.load(path, allow_pickle=False)
            if values.ndim != 2 or values.dtype.kind != "f":
                raise ValueError(f"{values.dtype} {values.shape}; floats [H, W] in metres were wanted")
            return values.astype(np.float32)
        with Image.open(path) as image:
            if image.mode not in ("I;16", "I;16B", "I"):
                raise ValueError(f"mode {image.mode}; 16 bits were wanted")
            return np.asarray(image).astype(np.float32) / np.float32(1000)
    except MemoryError:
        raise
    except Exception as error:  # Pillow and NumPy raise nearly anything on broken bytes
        raise InputError(f"{path} holds no depth ({error})", wanted="a 16-bit PNG in millimetres, or NPY in metres") from error
