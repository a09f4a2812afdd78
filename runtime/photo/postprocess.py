"""From the network's output tensors back to a map on the photo's own pixels."""

from __future__ import annotations

import math

import numpy as np

from ..artefact.contract import Contract, Crop, OutputContract, Pad, Protocol, Resize
from ..errors import AccuracyError, InputError, UsageError
from ..sequences import zip_equal
from .depth_map import Intrinsics
from .interpolate import PILLOW_FILTERS, resize, resize_mask
from .preprocess import Placed, Window, shape_camera


def check_output(tensor: np.ndarray, output: OutputContract) -> None:
    """Refuse what no working network puts out.

    Args:
        tensor: [n, channels, h, w], the output tensor.

    Raises:
        AccuracyError: if a value is NaN or infinite, or one item is the same everywhere; the tensor is named.
        InputError: if the tensor is not of the shape that the contract's kind of output has.
    """
    channels = 2 if output.kind == "mask" else 1
    if tensor.ndim != 4 or tensor.shape[1] != channels:
        was = f"output tensor {output.tensor} has shape {tensor.shape}"
        raise InputError(was, wanted=f"[n, {channels}, h, w] for {output.kind} output", fix="correct the contract and export again")
    for item in tensor:
        low, high = float(item.min()), float(item.max())
        if not np.isfinite(low) or not np.isfinite(high):  # min and max of anything with NaN is NaN
            bad = int(item.size - np.isfinite(item).sum())
            raise AccuracyError(f"output tensor {output.tensor} holds {bad} NaN or infinite values of {item.size}", wanted="finite numbers everywhere")
        if low == high and item.size > channels:
            raise AccuracyError(f"output tensor {output.tensor} is {low:g} everywhere", wanted="values that depend on the picture")


class Assembly:
    """Collects the windows of one photo and puts its map together.

    Args:
        contract, protocol: of the network.
        placed: the steps as they were carried out on this photo.
        photo_size: height and width of the photo.
    """

    def __init__(self, contract: Contract, protocol: Protocol, placed: tuple[Placed, ...], photo_size: tuple[int, int]):
        self._contract = contract
        self._placed, self._map_size = way_back(placed, protocol, contract.input.window)
        size = self._placed[-1].after if self._placed else photo_size
        channels = 2 if contract.output.kind == "mask" else 1
        self._sum = np.zeros((channels, *size), np.float32)
        self._count = np.zeros(size[1], np.float32)  # windows are as high as the picture, so coverage depends on the column only
        self._fill_sum, self._fill_count = (np.zeros_like(self._sum), np.zeros_like(self._count)) if protocol.fill_lefts else (None, None)

    def add(self, window: Window, tensor: np.ndarray) -> None:
        """Take one item of the output tensor.

        Args:
            tensor: [channels, h, w], any size; brought to the size of what the window shows as the contract says.

        Raises:
            AccuracyError: see ``check_output``.
        """
        output = self._contract.output
        check_output(tensor[None], output)
        height, width = self._map_size
        total, count = (self._fill_sum, self._fill_count) if window.fill else (self._sum, self._count)
        for plane, values in zip_equal(total, tensor):
            whole = resize(values.astype(np.float32, copy=False), height, width, output.upsample)
            plane[:, window.left : window.left + width] += whole[:, ::-1] if window.flip else whole
        count[window.left : window.left + width] += 1

    def finish(self) -> tuple[np.ndarray, np.ndarray]:
        """The map on the photo's own pixels.

        Returns:
            values float32 [H, W] (metres or relative values; 0 or 1 for a mask), valid bool [H, W]. Values are 0 where not valid.
        """
        if self._fill_sum is not None:
            holes = self._count == 0
            self._sum[:, :, holes], self._count[holes] = self._fill_sum[:, :, holes], self._fill_count[holes]
        covered = self._count > 0
        picture = self._sum / np.maximum(self._count, 1)
        valid = np.broadcast_to(covered, picture.shape[1:]).copy()
        picture, valid = undo_steps(picture, valid, self._placed)
        if self._contract.output.kind == "mask":
            values = (picture[1] > picture[0]).astype(np.float32)  # argmax; a tie is background, the first class
        else:
            values = picture[0]
        values[~valid] = 0
        return np.ascontiguousarray(values), valid


def way_back(placed: tuple[Placed, ...], protocol: Protocol, window: tuple[int, int]) -> tuple[tuple[Placed, ...], tuple[int, int]]:
    """The steps to undo on the map, and the size that the output of one window is brought to before that.

    Where one window shows the whole picture and the last step shrank it with a filter, the published codes enlarge the network's map in one
    step to the size before that resize; two steps, first to the window, would blur it.
    """
    if placed and _shrunk_whole(placed[-1], protocol, window):
        return placed[:-1], placed[-1].before
    return placed, window


def focal_scale(output: OutputContract, placed: tuple[Placed, ...], camera: Intrinsics | None) -> float:
    """What the network's numbers are multiplied by to be metres: 1, or fx / ``focal_px``, fx in pixels of the shaped picture; 1 also for a camera that
    is not known and may be assumed.

    Args:
        placed: the steps as they were carried out on this photo.
        camera: of the photo.

    Raises:
        UsageError: if the focal length is needed and not known.
    """
    if not output.focal_px or (camera is None and output.focal_assumed):
        return 1.0
    if camera is None:
        was = "this network's metres depend on the focal length of the photo's camera"
        raise UsageError(was, fix="--intrinsics fx,fy,cx,cy or --intrinsics camera.json; for photos of phones and cameras --intrinsics exif")
    return shape_camera(camera, placed).fx / output.focal_px


def assumed_view(output: OutputContract, width: int) -> str:
    """What there is to say about a photo whose camera ``focal_scale`` had to assume; ``width``: of the shaped picture, pixels."""
    across = math.degrees(2 * math.atan(width / 2 / output.focal_px))
    return f"the camera is not known: metres are for one that sees {across:.0f} degrees across; --intrinsics gives those of yours"


def _shrunk_whole(last: Placed, protocol: Protocol, window: tuple[int, int]) -> bool:
    """True if one window shows a whole picture that the last step resized with a filter."""
    filtered = isinstance(last.step, Resize) and last.step.interpolation in PILLOW_FILTERS
    return filtered and protocol.lefts == (0,) and not protocol.fill_lefts and last.after == tuple(window)


def undo_steps(planes: np.ndarray, valid: np.ndarray, placed: tuple[Placed, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Bring a map from the shaped picture back to the photo: resizes back, crops pasted (outside is not valid), pads cut away.

    Args:
        planes: float32 [C, h, w].
        valid: bool [h, w].

    Returns:
        planes float32 [C, H, W] and valid bool [H, W].
    """
    for place in reversed(placed):
        step, (height, width) = place.step, place.before
        if isinstance(step, Resize):
            # Filtering belongs to shrinking a photo; the map is enlarged again without it.
            kind = "bilinear" if step.interpolation in PILLOW_FILTERS else step.interpolation
            planes = np.stack([resize(plane, height, width, kind) for plane in planes])
            valid = resize_mask(valid, height, width, kind)
        elif isinstance(step, Crop):
            here = np.s_[place.top : place.top + step.height, place.left : place.left + step.width]
            whole, mask = np.zeros((len(planes), height, width), np.float32), np.zeros((height, width), bool)
            whole[(slice(None), *here)], mask[here] = planes, valid
            planes, valid = whole, mask
        elif isinstance(step, Pad):
            here = np.s_[place.top : place.top + height, place.left : place.left + width]
            planes, valid = planes[(slice(None), *here)], valid[here]
    return planes, valid
