"""The camera of a photo from its EXIF data, where phones and cameras write their focal length."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import InputError
from ..files import BoundedReader
from .depth_map import SHAPE_TOLERANCE, Intrinsics
from .photo import photo_formats

EXIF = "exif"  # what --intrinsics says for the camera that each photo names
DETAILS = 0x8769  # the directory inside EXIF that these tags are in
FOCAL_35MM, ZOOM, ACROSS, DOWN = 0xA405, 0xA404, 0xA002, 0xA003
FILM_DIAGONAL = math.hypot(36, 24)  # millimetres
BY_HAND = "--intrinsics fx,fy,cx,cy or --intrinsics camera.json"


def exif_camera(path: str | Path, width: int, height: int) -> Intrinsics:
    """The camera that a photo names: its focal length for film of 36x24 mm (``FocalLengthIn35mmFilm``), by the picture's diagonal as CIPA DC-008 defines it.

    The lens is taken to look through the middle of the picture, with square pixels. The tag is a whole number, so the focal length is true to half of
    one, at a phone's 26 to 2 %; a picture that the camera itself cut to another shape may be off by more.

    Args:
        width, height: of the upright photo, pixels.

    Raises:
        InputError: if the photo cannot be read, names no focal length, was cropped since, or was zoomed into by cutting, which cameras count differently.
    """
    wanted, fix = "the focal length that phones write (FocalLengthIn35mmFilm)", f"a photo as it came from the camera, or {BY_HAND}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow's, about odd metadata
            with BoundedReader(path) as file, Image.open(file, formats=photo_formats()) as image:
                tags = image.getexif().get_ifd(DETAILS)
                focal, zoom, across, down = (_number(tags.get(tag, 0)) for tag in (FOCAL_35MM, ZOOM, ACROSS, DOWN))
    except Exception as error:  # Pillow raises nearly anything on broken bytes
        raise InputError(f"the EXIF data of {path} cannot be read ({type(error).__name__}: {error})", wanted=wanted, fix=fix) from error
    if not focal > 0:
        raise InputError(f"{path} does not say what camera took it", wanted=wanted, fix=fix)
    if zoom not in (0, 1):
        raise InputError(f"{path} was zoomed into by {zoom:g}, which some cameras count in the focal length and some do not", fix=BY_HAND)
    if across > 0 and down > 0 and all(abs(math.log(width / height * ratio)) > SHAPE_TOLERANCE for ratio in (down / across, across / down)):
        was = f"{path} has {width}x{height} pixels and was taken with {across:g}x{down:g}, another shape: it was cropped since"
        raise InputError(was, wanted="a photo as it came from the camera", fix=BY_HAND)
    pixels = focal * math.hypot(width, height) / FILM_DIAGONAL
    return Intrinsics(pixels, pixels, (width - 1) / 2, (height - 1) / 2, width, height)


def camera_of(camera: Intrinsics | str | None, path: Path, photo: np.ndarray) -> Intrinsics | None:
    """The camera of a photo uint8 [H, W, 3]: the one that is given for all, or for ``EXIF`` its own; raises as ``exif_camera``."""
    return exif_camera(path, photo.shape[1], photo.shape[0]) if camera == EXIF else camera


def _number(value: Any) -> float:
    """0 where the tag says that nothing is known: 0, or a fraction of zeros."""
    found = float(value)
    return found if math.isfinite(found) else 0.0
