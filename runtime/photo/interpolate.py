"""Resampling of pictures and maps: the one implementation that preprocessing and postprocessing share.

The two-tap kinds reproduce ``torch.nn.functional.interpolate`` on CPU (source positions in float32, as there); the ``-antialias``
kinds are Pillow's filters, because the networks that ask for them were trained on pictures that Pillow had shrunk.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image

from ..artefact.contract import INTERPOLATIONS
from ..sequences import zip_equal

PILLOW_FILTERS = {"bilinear-antialias": Image.Resampling.BILINEAR, "bicubic-antialias": Image.Resampling.BICUBIC}


def resize(values: np.ndarray, height: int, width: int, interpolation: str) -> np.ndarray:
    """Resample to ``height`` x ``width``.

    Args:
        values: [H, W] or [H, W, C], float32 or uint8.
        interpolation: one of ``contract.INTERPOLATIONS``.

    Returns:
        Float32 of the same rank, in the scale of ``values`` (0 to 255 for uint8). The ``-antialias`` kinds work on bytes when they
        are given bytes and then round to whole steps, exactly as Pillow does to a photo; float32 goes through Pillow's mode F.

    Raises:
        ValueError: if the rank, the dtype, a size or the kind is not of that form.
    """
    if values.ndim not in (2, 3) or values.dtype not in (np.float32, np.uint8) or 0 in values.shape:
        raise ValueError(f"float32 or uint8 of [H, W] or [H, W, C] was wanted, got {values.dtype} {values.shape}")
    if height < 1 or width < 1:
        raise ValueError(f"a size of at least 1 x 1 was wanted, got {height} x {width}")
    if interpolation not in INTERPOLATIONS:
        raise ValueError(f"unknown interpolation {interpolation!r}, wanted one of {', '.join(INTERPOLATIONS)}")
    if values.shape[:2] == (height, width):
        return values.astype(np.float32)
    if interpolation in PILLOW_FILTERS:
        return _with_pillow(values, height, width, PILLOW_FILTERS[interpolation])
    if interpolation == "nearest":
        return _nearest(values, height, width).astype(np.float32)
    corners = interpolation == "bilinear-corners"
    # The axis that shrinks more goes first: the second pass then touches fewer pixels.
    if height * values.shape[1] <= width * values.shape[0]:
        return _lerp_columns(_lerp_rows(values, height, corners), width, corners)
    return _lerp_rows(_lerp_columns(values, width, corners), height, corners)


def resize_mask(mask: np.ndarray, height: int, width: int, interpolation: str) -> np.ndarray:
    """Resample a bool mask [H, W] so that a pixel is True only if no False pixel had a part in it."""
    if mask.all() or not mask.any():
        return np.full((height, width), bool(mask.flat[0]))
    kind = "bilinear" if interpolation in PILLOW_FILTERS else interpolation
    return resize(mask.astype(np.float32), height, width, kind) > 1 - 1e-6


def _lerp_rows(values: np.ndarray, height: int, corners: bool) -> np.ndarray:
    low, high, weight = _taps(values.shape[0], height, corners)
    weight = weight.reshape(-1, *(1,) * (values.ndim - 1))
    below = values[low].astype(np.float32, copy=False)
    step = values[high].astype(np.float32, copy=False)
    step = np.subtract(step, below, out=step)
    return np.add(below, np.multiply(step, weight, out=step), out=step)


def _lerp_columns(values: np.ndarray, width: int, corners: bool) -> np.ndarray:
    low, high, weight = _taps(values.shape[1], width, corners)
    weight = weight.reshape(1, -1, *(1,) * (values.ndim - 2))
    below = np.take(values, low, axis=1).astype(np.float32, copy=False)
    step = np.take(values, high, axis=1).astype(np.float32, copy=False)
    step = np.subtract(step, below, out=step)
    return np.add(below, np.multiply(step, weight, out=step), out=step)


@lru_cache(maxsize=256)
def _taps(size: int, wanted: int, corners: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lower tap, upper tap, weight of the upper tap, for each wanted position; positions in float32 as in PyTorch."""
    index = np.arange(wanted, dtype=np.float64)
    if corners:
        scale = np.float32(size - 1) / np.float32(wanted - 1) if wanted > 1 else np.float32(0)
        source = (index * scale).astype(np.float32)
    else:
        scale = np.float32(size) / np.float32(wanted)
        source = np.maximum((index + 0.5) * scale - 0.5, 0).astype(np.float32)  # rounded once: PyTorch's multiply-add is fused
    low = np.minimum(source.astype(np.int64), size - 1)
    high = np.minimum(low + 1, size - 1)
    weight = np.clip(source - low.astype(np.float32), 0, 1)
    for table in (low, high, weight):
        table.flags.writeable = False
    return low, high, weight


def _nearest(values: np.ndarray, height: int, width: int) -> np.ndarray:
    rows, columns = (
        np.minimum((np.arange(wanted, dtype=np.float32) * (np.float32(size) / np.float32(wanted))).astype(np.int64), size - 1)
        for size, wanted in zip_equal(values.shape[:2], (height, width))
    )
    return np.take(values[rows], columns, axis=1)


def _with_pillow(values: np.ndarray, height: int, width: int, filter_: Image.Resampling) -> np.ndarray:
    if values.dtype == np.uint8 and (values.ndim == 2 or values.shape[2] == 3):
        return np.asarray(Image.fromarray(values).resize((width, height), filter_), dtype=np.float32)
    planes = values.astype(np.float32, copy=False).reshape(*values.shape[:2], -1)
    done = [np.asarray(Image.fromarray(np.ascontiguousarray(planes[..., c])).resize((width, height), filter_)) for c in range(planes.shape[2])]
    return np.stack(done, axis=-1).reshape(height, width, *values.shape[2:])
