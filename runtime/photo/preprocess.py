"""From a photo to the network's tensors, as the contract's data says; shared by runtime, calibration, parity and benchmarks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..artefact.contract import MAX_PIXELS_PER_SIDE, Contract, Crop, ImageInput, Pad, Protocol, Require, Resize, Step
from ..errors import InputError
from ..sequences import zip_equal
from .depth_map import Intrinsics
from .interpolate import resize


@dataclass(frozen=True)
class Placed:
    """One step as it was carried out on a picture of a certain size, so that it can be undone.

    Args:
        step: the step.
        before: height and width that it found.
        after: height and width that it left.
        top, left: where a crop was taken, or where a pad has put the picture; else 0.
    """

    step: Step
    before: tuple[int, int]
    after: tuple[int, int]
    top: int = 0
    left: int = 0


@dataclass(frozen=True)
class Window:
    """One window of the network: columns from ``left`` on, mirrored if ``flip``; a ``fill`` window counts only where no other one does."""

    left: int
    flip: bool
    fill: bool


def place_steps(steps: tuple[Step, ...], height: int, width: int) -> tuple[Placed, ...]:
    """Work out sizes and offsets of all steps for a photo of ``height`` x ``width`` pixels.

    Raises:
        InputError: if the photo has another size than required, or is too small for a crop.
    """
    placed: list[Placed] = []
    for step in steps:
        before, top, left = (height, width), 0, 0
        if isinstance(step, Require):
            if before != (step.height, step.width):
                was = f"the picture has {width}x{height} pixels"
                raise InputError(was, wanted=f"exactly {step.width}x{step.height} for this protocol", fix="use such a picture or another --protocol")
        elif isinstance(step, Resize):
            height, width = step.height, step.width or max(step.min_width, int(width * step.height / height + 0.5), 1)
        elif isinstance(step, Crop):
            if step.top + step.height > height or step.left + step.width > width:
                was = f"the picture has {width}x{height} pixels at this step"
                raise InputError(was, wanted=f"at least {step.left + step.width}x{step.top + step.height} for the crop", fix="use a larger picture")
            top = {"top-left": step.top, "center": (height - step.height) // 2, "bottom-center": height - step.height}[step.anchor]
            left = step.left if step.anchor == "top-left" else (width - step.width) // 2
            height, width = step.height, step.width
        elif isinstance(step, Pad):
            top, left = step.top, step.left
            height, width = height + step.top + step.bottom, width + step.left + step.right
        if max(height, width) > MAX_PIXELS_PER_SIDE:
            raise InputError(f"the picture would become {width}x{height} pixels", wanted=f"at most {MAX_PIXELS_PER_SIDE} per side", fix="crop it")
        placed.append(Placed(step, before, (height, width), top, left))
    return tuple(placed)


def shape_camera(camera: Intrinsics, placed: tuple[Placed, ...]) -> Intrinsics:
    """The camera of a photo after the steps that were carried out on it."""
    for place in placed:
        if isinstance(place.step, Resize):
            camera = camera.scaled(place.after[1] / place.before[1], place.after[0] / place.before[0])
        elif isinstance(place.step, Crop):
            camera = Intrinsics(camera.fx, camera.fy, camera.cx - place.left, camera.cy - place.top)
        elif isinstance(place.step, Pad):
            camera = Intrinsics(camera.fx, camera.fy, camera.cx + place.left, camera.cy + place.top)
    return camera


def shape_photo(photo: np.ndarray, placed: tuple[Placed, ...]) -> np.ndarray:
    """Carry the steps out.

    Args:
        photo: uint8 [H, W, 3], RGB.
        placed: from ``place_steps`` for H x W.

    Returns:
        float32 [h, w, 3] in [0, 1].
    """
    picture, scale = photo, np.float32(255)  # bytes for as long as nothing is interpolated: crops cost nothing, Pillow filters bytes
    for place in placed:
        step = place.step
        if isinstance(step, Resize):
            if place.before != place.after:
                picture = resize(picture, *place.after, step.interpolation)
        elif isinstance(step, Crop):
            picture = picture[place.top : place.top + step.height, place.left : place.left + step.width]
        elif isinstance(step, Pad):
            picture = np.pad(picture, ((step.top, step.bottom), (step.left, step.right), (0, 0)))
    return np.divide(picture, scale, dtype=np.float32)


def windows_of(protocol: Protocol) -> tuple[Window, ...]:
    """All windows of a protocol in running order: each window, then its mirror image; filling windows last."""
    flips = (False, True) if protocol.flip else (False,)
    edges = [(left, False) for left in protocol.lefts] + [(left, True) for left in protocol.fill_lefts]
    return tuple(Window(left, flip, fill) for left, fill in edges for flip in flips)


def check_windows(protocol: Protocol, image: ImageInput, height: int, width: int) -> None:
    """Raise InputError unless every window of ``protocol`` lies on a shaped picture of ``height`` x ``width`` and is as high as it."""
    right = max(protocol.lefts + protocol.fill_lefts) + image.window[1]
    if height != image.window[0] or right > width:
        was = f"the protocol {protocol.name} shapes this picture to {width}x{height} pixels"
        raise InputError(was, wanted=f"height {image.window[0]} and a width of at least {right}", fix="use another picture size or --protocol")


def window_tensor(picture: np.ndarray, window: Window, image: ImageInput, out: np.ndarray | None = None) -> np.ndarray:
    """Cut one window and normalise it.

    Args:
        picture: float32 [h, w, 3] in [0, 1], from ``shape_photo``.
        out: float32 [3, canvas height, canvas width] to write into, all zero outside the window; made if None.

    Returns:
        float32 [3, canvas height, canvas width], C-contiguous; 0 outside the window.
    """
    height, width = image.window
    if out is None:
        out = np.zeros((3, *image.canvas), np.float32)
    part = picture[:height, window.left : window.left + width]
    if window.flip:
        part = part[:, ::-1]
    inside = out[:, :height, :width]
    np.subtract(part.transpose(2, 0, 1), np.asarray(image.mean, np.float32)[:, None, None], out=inside)
    inside /= np.asarray(image.std, np.float32)[:, None, None]
    return out


def network_inputs(photo: np.ndarray, contract: Contract, protocol: Protocol, batch: int) -> Iterator[np.ndarray]:
    """The tensors that one photo becomes.

    Args:
        photo: uint8 [H, W, 3], RGB.
        batch: how many windows go together at most.

    Yields:
        float32 [n, 3, canvas height, canvas width], n <= batch, in the order of ``windows_of(protocol)``.

    Raises:
        InputError: if the protocol does not apply to a photo of this size.
    """
    placed = place_steps(protocol.steps, *photo.shape[:2])
    picture = shape_photo(photo, placed)
    check_windows(protocol, contract.input, *picture.shape[:2])
    windows = windows_of(protocol)
    for start in range(0, len(windows), batch):
        some = windows[start : start + batch]
        tensor = np.zeros((len(some), 3, *contract.input.canvas), np.float32)
        for window, out in zip_equal(some, tensor):
            window_tensor(picture, window, contract.input, out)
        yield tensor


def check_photo(photo: np.ndarray) -> np.ndarray:
    """``photo`` itself, if it is a uint8 [H, W, 3] array of an acceptable size.

    Raises:
        ValueError: if it is something else.
    """
    if not isinstance(photo, np.ndarray) or photo.dtype != np.uint8 or photo.ndim != 3 or photo.shape[2] != 3:
        got = f"{photo.dtype} {photo.shape}" if isinstance(photo, np.ndarray) else type(photo).__name__
        raise ValueError(f"a photo is a uint8 array [height, width, 3] in RGB order, got {got}")
    if min(photo.shape[:2]) < 1 or max(photo.shape[:2]) > MAX_PIXELS_PER_SIDE:
        raise ValueError(f"a photo has 1 to {MAX_PIXELS_PER_SIDE} pixels per side, got {photo.shape[1]}x{photo.shape[0]}")
    return photo
