"""Files that a map is saved as. Every one says what its numbers mean; none shows relative values as metres."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from ..errors import InputError, UsageError, missing_package
from ..files import FULL, disk_full, whole_file
from ..photo.depth_map import DepthMap, Intrinsics
from .colormap import colorize
from .png import write_png
from .scale_bar import add_scale_bar

MAX_MM = 65535


@dataclass(frozen=True)
class Saved:
    """One written file.

    Args:
        path: where it lies.
        warnings: what its format could not hold.
    """

    path: Path
    warnings: tuple[str, ...] = ()


def save_as(kind: str, depth: DepthMap, photo: np.ndarray, path: Path, force: bool, color: tuple[str, float | None, float | None]) -> Saved:
    """A map in one of the kinds of ``depth-run --save``.

    Args:
        kind: ``png16``, ``npy``, ``exr``, ``color`` or ``ply``.
        photo: uint8 [H, W, 3], for the point cloud.
        color: colour map, near and far of ``save_color``.

    Raises:
        InputError, UsageError, EnvironmentMismatchError: what the writer of that kind raises.
        ValueError: if there is no such kind.
    """
    if kind == "color":
        return save_color(depth, path, force, *color)
    if kind == "ply":
        return save_ply(depth, photo, path, force)
    plain = {"png16": save_png16, "npy": save_npy, "exr": save_exr}
    if kind not in plain:
        raise ValueError(f"a map cannot be saved as {kind!r}")
    return plain[kind](depth, path, force)


def save_png16(depth: DepthMap, path: Path, force: bool = False) -> Saved:
    """16-bit PNG, 0 where there is no depth.

    Metric maps in millimetres, rounded to the nearest. Depth over 65.535 m, or under half a millimetre, has no number in this format; such
    pixels become 0, and a warning tells how many. Relative maps are spread over 1 to 65535 from their minimum to their maximum, the
    two ends in the text chunks, and say there that they have no unit. A mask is 0 or 65535.

    Raises:
        InputError: if the file cannot be written.
    """
    facts = _facts(depth)
    warnings: tuple[str, ...] = ()
    if depth.kind == "metric":
        mm = depth.depth_m * np.float32(1000)
        np.rint(mm, out=mm)
        lost = depth.valid & ((mm > MAX_MM) | (mm < 1))
        mm[np.logical_or(~depth.valid, lost)] = 0
        pixels = mm.astype(np.uint16)
        facts.update({"Unit": "millimetre", "Scale": "0.001 m per step", "Invalid": "0"})
        if lost.any():
            warnings = (
                f"{int(lost.sum())} pixels are nearer than 1 mm or farther than 65.535 m and became 0 (invalid) in {path.name}; the NPY file holds them",
            )
            facts["Lost"] = f"{int(lost.sum())} pixels outside 0.001 m to 65.535 m"
    elif depth.kind == "relative":
        low, high = _ends(depth)
        spread = (depth.values - low) * np.float32((MAX_MM - 1) / (high - low)) + 1
        pixels = np.where(depth.valid, np.rint(np.clip(spread, 1, MAX_MM)), 0).astype(np.uint16)
        facts.update({"Unit": "none: relative, no unit", "Scale": f"value = {low!r} + (step - 1) * {(high - low) / (MAX_MM - 1)!r}", "Invalid": "0"})
    else:
        pixels = (depth.values > 0).astype(np.uint16) * np.uint16(MAX_MM)
        facts.update({"Unit": "none: mask", "Scale": "65535 is the object"})
    return _save_png(pixels, path, facts, force, warnings)


def save_npy(depth: DepthMap, path: Path, force: bool = False) -> Saved:
    """NPY, float32 [H, W]: metres, or relative values, or 0 and 1; NaN where there is no depth.

    Raises:
        InputError: if the file cannot be written.
    """
    values = np.where(depth.valid, depth.values, np.float32(np.nan))
    with whole_file(path, force) as part, _writing(part, path) as file:
        np.lib.format.write_array(file, values, allow_pickle=False)
    return Saved(path)


def save_exr(depth: DepthMap, path: Path, force: bool = False) -> Saved:
    """OpenEXR, 32-bit floats in one channel: ``Z`` in metres, or ``Y`` for relative values and masks; NaN where there is no depth.

    What a PNG says in its texts stands in the header's attributes.

    Raises:
        InputError: if the file cannot be written.
        EnvironmentMismatchError: if the package ``OpenEXR`` is not installed.
    """
    exr = require_exr()
    values = np.where(depth.valid, depth.values, np.float32(np.nan)).astype(np.float32)
    unit = {"metric": "metre", "relative": "none: relative, no unit", "mask": "none: mask"}[depth.kind]
    facts = {f"fathom{key.replace('-', '')}": value for key, value in {**_facts(depth), "Unit": unit, "Invalid": "NaN"}.items()}
    header = {"compression": exr.ZIP_COMPRESSION, "type": exr.scanlineimage, **facts}
    with whole_file(path, force) as part:
        try:
            with exr.File(header, {"Z" if depth.kind == "metric" else "Y": np.ascontiguousarray(values)}) as file:
                file.write(str(part))
        except RuntimeError as error:  # a full disk is told by whole_file
            raise InputError(f"{path} cannot be written ({error})", fix="check the disk") from error
    return Saved(path)


def require_exr() -> Any:
    """The package that writes OpenEXR.

    Raises:
        EnvironmentMismatchError: if it is not installed.
    """
    try:
        import OpenEXR
    except ImportError as error:
        raise missing_package("OpenEXR", "exr", "it, for --save exr") from error
    return OpenEXR


def save_color(depth: DepthMap, path: Path, force: bool = False, colormap: str = "turbo", near: float | None = None, far: float | None = None) -> Saved:
    """Colour PNG for people, with a scale bar below; near is the warm (bright) end of the map.

    Args:
        near, far: what the two ends of the bar stand for; by default the range that 98 % of the valid pixels lie in.

    Raises:
        InputError: if the file cannot be written.
        UsageError: if near is not below far.
        ValueError: if there is no such colour map.
    """
    low, high = color_range(depth, near, far)
    colors = colorize(depth.values, depth.valid, low, high, colormap, reverse=depth.larger_is == "far")
    image = add_scale_bar(colors, depth, low, high, colormap)
    facts = {
        **_facts(depth),
        "Unit": "colours, for looking at only",
        "Range": f"{low:.6g} to {high:.6g}{' m' if depth.kind == 'metric' else ', relative, no unit'}",
    }
    return _save_png(np.asarray(image), path, facts, force)


def save_ply(depth: DepthMap, photo: np.ndarray, path: Path, force: bool = False) -> Saved:
    """Binary little-endian PLY point cloud: x right, y down, z forward in metres, with the photo's colours; valid pixels only.

    Args:
        photo: uint8 [H, W, 3], the picture the map was made of.

    Raises:
        InputError: if the map is not metric, or the file cannot be written.
        UsageError: if the intrinsics are not known.
    """
    refuse_ply(depth.kind, depth.intrinsics)
    points = np.empty(int(depth.valid.sum()), np.dtype([("xyz", "<f4", 3), ("rgb", "u1", 3)]))
    points["xyz"], points["rgb"] = depth.points_m(), photo[depth.valid]
    camera = depth.intrinsics
    words = [f"made with fathom by {depth.origin.network or 'a network'}", "unit metre; x right, y down, z forward"]
    words += [f"intrinsics fx {camera.fx:.10g} fy {camera.fy:.10g} cx {camera.cx:.10g} cy {camera.cy:.10g}"] + (
        ["UNTRAINED WEIGHTS"] if depth.origin.untrained else []
    )
    words += [depth.correction] if depth.correction else []
    header = ["ply", "format binary_little_endian 1.0", *(f"comment {line}" for line in words), f"element vertex {len(points)}"]
    header += [f"property float {axis}" for axis in "xyz"] + [f"property uchar {color}" for color in ("red", "green", "blue")] + ["end_header", ""]
    with whole_file(path, force) as part, _writing(part, path) as file:
        file.write("\n".join(header).encode("ascii", "replace"))
        file.write(points.data)
    return Saved(path)


def refuse_ply(kind: str, intrinsics: Intrinsics | None) -> None:
    """Raise the error that ``save_ply`` would raise, before any work is done."""
    if kind != "metric":
        raise InputError(f"the network's output is {kind}, without a unit", wanted="metric depth for a point cloud", fix="leave ply out of --save")
    if intrinsics is None:
        raise UsageError("a point cloud needs the camera's intrinsics", fix="--intrinsics fx,fy,cx,cy or --intrinsics camera.json")


def color_range(depth: DepthMap, near: float | None, far: float | None) -> tuple[float, float]:
    """Ends of the colour scale: what was asked for, else the 1st and 99th percentile of the valid values.

    A map that lies wholly beyond the one end that was asked for is drawn in the colour of that end.

    Raises:
        UsageError: if near and far are given and near is not below far, or one is no finite number.
    """
    if depth.kind == "mask":
        return 0.0, 1.0
    seen = depth.values[depth.valid]
    low, high = (float(value) for value in np.percentile(seen, [1, 99]))
    if not low < high:
        low, high = float(seen.min()), float(seen.max())
    if near is None and far is None and not low < high:
        low, high = low - 0.5 * max(abs(low), 1e-6), low + 0.5 * max(abs(low), 1e-6)  # a flat map is drawn in the middle colour
    return asked_range(low, high, near, far)


def asked_range(low: float, high: float, near: float | None, far: float | None) -> tuple[float, float]:
    """A range with the ends that were asked for. Where it lies wholly beyond the one that was, that end decides alone.

    Raises:
        UsageError: if near and far are given and near is not below far, or one is no finite number.
    """
    if near is not None and far is not None:
        low, high = near, far
    elif near is not None:
        low, high = near, near + abs(near) / 2 + 1e-6 if high <= near else high
    elif far is not None:
        low, high = far - abs(far) / 2 - 1e-6 if low >= far else low, far
    if not -math.inf < low < high < math.inf:
        raise UsageError(f"the colour scale would go from {low:g} to {high:g}", wanted="near below far", fix="change --near or --far")
    return low, high


def _ends(depth: DepthMap) -> tuple[float, float]:
    seen = depth.values[depth.valid]
    low, high = float(seen.min()), float(seen.max())
    return low, high if high > low else low + 1.0


def _facts(depth: DepthMap) -> dict[str, str]:
    facts = {"Software": "Fathom", "Kind": depth.kind, "Network": depth.origin.network, "Manifest-SHA256": depth.origin.sha256, "Protocol": depth.protocol}
    if depth.kind != "mask":
        facts["Larger-Is"] = depth.larger_is
    facts["Camera"], facts["Correction"] = depth.camera, depth.correction
    if depth.origin.untrained:
        facts["Warning"] = "UNTRAINED WEIGHTS: the depth is meaningless"
    if depth.intrinsics is not None:
        facts["Intrinsics"] = json.dumps({name: getattr(depth.intrinsics, name) for name in ("fx", "fy", "cx", "cy")})
    return {key: value for key, value in facts.items() if value}


def _save_png(pixels: np.ndarray, path: Path, facts: dict[str, str], force: bool, warnings: tuple[str, ...] = ()) -> Saved:
    texts = {key if key in ("Software", "Warning") else f"Fathom-{key}": value for key, value in facts.items()}
    with whole_file(path, force) as part, _writing(part, path) as file:
        write_png(file, pixels, texts)
    return Saved(path, warnings)


class _writing:
    """Open a temporary file for writing; the user reads the final name in errors (disk full, for one)."""

    def __init__(self, part: Path, path: Path):
        self._part, self._path, self._file = part, path, None

    def __enter__(self) -> IO[bytes]:
        self._file = open(self._part, "wb")
        return self._file

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        try:
            self._file.close()
        except OSError as closing:
            error = error or closing
        if isinstance(error, OSError):
            if error.errno in FULL or "requested and" in str(error):  # NumPy's words for a short write
                raise disk_full(self._path) from error
            raise InputError(f"{self._path} cannot be written ({error.strerror or error})", fix="check the disk") from error
