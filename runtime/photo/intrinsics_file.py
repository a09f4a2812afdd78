"""A camera's intrinsics from the command line: four numbers, a JSON file that holds them, or the word for what each photo says."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from ..errors import InputError, UsageError
from ..files import read_text
from .depth_map import Intrinsics
from .exif_camera import EXIF

MAX_BYTES = 1 << 20
NAMES = ("fx", "fy", "cx", "cy")
LISTS = ("intrinsics_fx_fy_cx_cy", "intrinsics", "camera_matrix", "K", "k")  # the last ones are OpenCV's and ROS'
SIZES = (("width", "height"), ("image_width", "image_height"))


def read_intrinsics(argument: str) -> Intrinsics | str:
    """Understand ``fx,fy,cx,cy``, the path of a JSON file, or ``EXIF``, which is given back: each photo will say its own.

    The file holds a list of the four numbers, or an object with the keys ``fx``, ``fy``, ``cx``, ``cy``, or an object whose key
    ``intrinsics_fx_fy_cx_cy``, ``intrinsics``, ``camera_matrix`` or ``K`` is one of these (other keys are left alone), or a 3 x 3 matrix in their
    place, in rows or one after the other. An object with ``width`` and ``height`` (or ``image_width`` and ``image_height``), be it this one or one in
    it that the numbers are from, says which pictures the camera is for: photos of another size then get it scaled.

    Raises:
        UsageError: if it is neither four numbers nor the name of a file.
        InputError: if the file holds no intrinsics.
    """
    if argument == EXIF:
        return EXIF
    wanted = "fx,fy,cx,cy in pixels, a JSON file, or exif"
    path = Path(argument)
    if not path.is_file():
        try:
            return _four(list(map(float, argument.split(","))))
        except (ValueError, TypeError) as error:
            why = "there is no such file" if "," not in argument else error
            raise UsageError(f"--intrinsics {argument}: neither four numbers nor a file ({why})", wanted=wanted) from error
    try:
        data = json.loads(read_text(path, MAX_BYTES))
        values, sizes = _find(data)
        if any(size != sizes[0] for size in sizes):
            raise ValueError(f"it says that its pictures are {' and '.join(f'{width}x{height}' for width, height in sizes)}")
        return dataclasses.replace(_four(values), **dict(zip(("width", "height"), sizes[0]))) if sizes else _four(values)
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is no JSON", wanted=wanted, fix='write {"fx": 518.9, "fy": 519.5, "cx": 325.6, "cy": 253.7}') from error
    except (OSError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise InputError(f"{path} holds no intrinsics ({error})", wanted=wanted, fix='write {"fx": 518.9, "fy": 519.5, "cx": 325.6, "cy": 253.7}') from error


def _find(data: Any) -> tuple[Any, list[tuple[Any, Any]]]:
    """The four numbers, and the sizes of pictures that the objects around them tell of."""
    if isinstance(data, dict):
        sizes = [(data.get(width, 0), data.get(height, 0)) for width, height in SIZES if width in data or height in data]
        inside = next((data[key] for key in LISTS if key in data), data["data"] if isinstance(data.get("data"), list) else None)
        if inside is None:
            return [data.get(name) for name in NAMES], sizes
        values, more = _find(inside)
        return values, sizes + more
    if isinstance(data, list) and len(data) == 9:
        data = [data[0:3], data[3:6], data[6:9]]
    if isinstance(data, list) and len(data) == 3 and all(isinstance(row, list) and len(row) == 3 for row in data):
        (fx, skew, cx), (zero, fy, cy), last = data
        if skew or zero or last != [0, 0, 1]:
            raise ValueError(f"the matrix {data} is no pinhole camera without skew")
        return [fx, fy, cx, cy], []
    return data, []


def _four(values: Any) -> Intrinsics:
    if not isinstance(values, list) or len(values) != 4:
        raise ValueError(f"four numbers were wanted, got {values!r}")
    return Intrinsics(*values)
