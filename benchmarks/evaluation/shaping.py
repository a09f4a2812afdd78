"""Photo and truth through the same steps before a network sees the photo: the photo as the steps say, the truth by nearest pixel."""

from __future__ import annotations

import numpy as np

from ...runtime.artefact.contract import Crop, Pad, Resize, Step
from ...runtime.photo.interpolate import resize
from ...runtime.photo.preprocess import place_steps, shape_photo


def shape_pair(rgb: np.ndarray, depth_m: np.ndarray, valid: np.ndarray, steps: tuple[Step, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Carry steps out on a photo and its depth.

    Args:
        rgb: uint8 [H, W, 3]. depth_m: float32 [H, W]. valid: bool [H, W].

    Returns:
        rgb uint8 [h, w, 3] (rounded to whole steps), depth_m float32 [h, w], valid bool [h, w].

    Raises:
        InputError: if the steps do not apply to a picture of this size.
    """
    placed = place_steps(steps, *rgb.shape[:2])
    for place in placed:
        step = place.step
        if isinstance(step, Resize):
            depth_m = resize(depth_m, *place.after, "nearest")
            valid = resize(valid.astype(np.uint8), *place.after, "nearest") > 0
        elif isinstance(step, Crop):
            inside = np.s_[place.top : place.top + step.height, place.left : place.left + step.width]
            depth_m, valid = depth_m[inside], valid[inside]
        elif isinstance(step, Pad):
            around = ((step.top, step.bottom), (step.left, step.right))
            depth_m, valid = np.pad(depth_m, around), np.pad(valid, around)
    shaped = np.rint(shape_photo(rgb, placed) * np.float32(255)).astype(np.uint8) if placed else rgb
    return shaped, np.ascontiguousarray(depth_m), np.ascontiguousarray(valid)
