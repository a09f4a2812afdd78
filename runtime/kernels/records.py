"""The steps of a protocol as one gather, and the structs that the CUDA kernels take.

A kernel computes every pixel straight from the photo, so a protocol suits it if at most one of its steps resamples and nothing was padded
before that; a filtered resize (``antialias``) makes a smaller photo first. Other protocols are shaped on the CPU.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..artefact.contract import ImageInput, OutputContract, Pad, Resize
from ..photo.preprocess import Placed, Window
from .antialias import FILTERS

KINDS = {"bilinear": 0, "bilinear-corners": 1, "nearest": 2}  # as in trt_plugins/csrc/sampling.cuh
_PLACE = [
    *((name, "<i4") for name in ("region_top", "region_left", "region_height", "region_width", "resized_height", "resized_width", "kind")),
    *((name, "<i4") for name in ("shift_top", "shift_left", "visible_top", "visible_left", "visible_bottom", "visible_right")),
]
_WINDOW = [(name, "<i4") for name in ("window_left", "window_height", "window_width", "flip", "canvas_height", "canvas_width", "out_is_half")]
PREPROCESS = np.dtype([("photo", "<u8"), ("out", "<u8"), ("photo_width", "<i4"), *_PLACE, *_WINDOW, ("mean", "<f4", 3), ("std", "<f4", 3)], align=True)
_OUTPUT = [(name, "<i4") for name in ("count", "planes", "height", "width", "tensor_is_half", "upsample", "window_height", "window_width")]
POSTPROCESS = np.dtype(
    [*((name, "<u8") for name in ("tensor", "windows", "values", "valid")), *_OUTPUT, ("photo_height", "<i4"), ("photo_width", "<i4"), *_PLACE], align=True
)
INSPECT = np.dtype([("tensor", "<u8"), ("found", "<u8"), ("items", "<i4"), ("item_size", "<i4"), ("tensor_is_half", "<i4")], align=True)
WINDOW = np.dtype([("left", "<i4"), ("flip", "<i4"), ("fill", "<i4")])


@dataclass(frozen=True)
class Gather:
    """How the shaped picture comes from the photo; all numbers are pixels.

    Args:
        photo: height and width.
        region: top, left, height, width of the part of the photo that is resized.
        resized: height and width that it gets.
        kind: how, see ``KINDS``; ``bilinear`` for the way back from a filtered resize.
        filtered: name of the filter, ``""`` if there is none: the pre-processing kernel then reads the resized part.
        shift: top, left: pixel (y, x) of the resized part lies at (y + top, x + left) of the shaped picture.
        visible: top, left, bottom, right of the part of the shaped picture that shows it; the rest is black.
        shaped: height and width of the shaped picture.
    """

    photo: tuple[int, int]
    region: tuple[int, int, int, int]
    resized: tuple[int, int]
    kind: int
    shift: tuple[int, int]
    visible: tuple[int, int, int, int]
    shaped: tuple[int, int]
    filtered: str = ""

    @property
    def numbers(self) -> tuple[int, ...]:
        """As ``PREPROCESS`` and ``POSTPROCESS`` have them, in the order of ``_PLACE``."""
        return (*self.region, *self.resized, self.kind, *self.shift, *self.visible)


def gather_of(placed: tuple[Placed, ...], photo_size: tuple[int, int]) -> Gather | None:
    """The gather that does what these steps do, or None if they are more than one gather.

    Args:
        placed: from ``place_steps`` for a photo of ``photo_size``.
    """
    size = photo_size
    region, resized, kind, filtered = (0, 0, *photo_size), None, 0, ""
    shift, visible = (0, 0), (0, 0, *photo_size)
    for place in placed:
        if isinstance(place.step, Resize):
            if place.before != place.after:
                if resized is not None or visible != (0, 0, *size):
                    return None
                region, resized, kind = (-shift[0], -shift[1], *size), place.after, KINDS.get(place.step.interpolation, 0)
                filtered = place.step.interpolation if place.step.interpolation in FILTERS else ""
                shift, visible = (0, 0), (0, 0, *place.after)
        else:
            sign = 1 if isinstance(place.step, Pad) else -1
            down, right = sign * place.top, sign * place.left
            shift = (shift[0] + down, shift[1] + right)
            top, left, bottom, end = visible
            visible = (max(top + down, 0), max(left + right, 0), min(bottom + down, place.after[0]), min(end + right, place.after[1]))
        size = place.after
    return Gather(photo_size, region, resized or photo_size, kind, shift, visible, size, filtered)


def preprocess_record(gather: Gather, window: Window, image: ImageInput, photo: int, out: int, is_fp16: bool) -> np.ndarray:
    """The struct for ``fathom_preprocess``: one window, from the photo at one address to [3, canvas height, canvas width] at another.

    Args:
        photo: of the photo's bytes; with a filtered gather of the resized part's, uint8 [resized height, resized width, 3].
    """
    if gather.filtered:
        gather = replace(gather, photo=gather.resized, region=(0, 0, *gather.resized), filtered="")
    looks = (window.left, *image.window, window.flip, *image.canvas, is_fp16)
    return np.array((photo, out, gather.photo[1], *gather.numbers, *looks, image.mean, image.std), PREPROCESS)


def postprocess_record(
    gather: Gather,
    looked_at: tuple[int, int],
    output: OutputContract,
    shape: tuple[int, ...],
    is_fp16: bool,
    tensor: int,
    windows: int,
    values: int,
    valid: int,
) -> np.ndarray:
    """The struct for ``fathom_postprocess``: the outputs [count, planes, h, w] of all windows of one photo, to its own pixels.

    Args:
        gather, looked_at: of what ``postprocess.way_back`` says is to be undone.
        shape: of the output tensor.
        windows: address of ``WINDOW`` records, one for each window and its mirror image.
        values, valid: addresses of float32 and uint8 [H, W].
    """
    facts = (*shape, is_fp16, KINDS[output.upsample], *looked_at)
    return np.array((tensor, windows, values, valid, *facts, *gather.photo, *gather.numbers), POSTPROCESS)
