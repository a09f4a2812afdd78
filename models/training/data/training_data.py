"""Samples as a network learns from them: shaped as at inference, the truth beside the picture pixel by pixel."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ....datasets.sample import Sample
from ....runtime.artefact.contract import Contract, Pad, Resize, Step
from ....runtime.errors import InputError
from ....runtime.photo.depth_map import Intrinsics
from ....runtime.photo.postprocess import focal_scale
from ....runtime.photo.preprocess import Placed, Window, place_steps, shape_photo, window_tensor
from .augmentation import Augmentation, carelessly_taken, cut_depth, framed, mirrored, recoloured, turned
from .kept_samples import KeptSamples


@dataclass(frozen=True)
class Batch:
    """What one step learns from.

    Args:
        image: [B, 3, canvas height, canvas width], normalised.
        truth_m: [B, 1, window height, window width]; 0 where unknown.
        valid: bool, like ``truth_m``: known, and not farther than the network can say.
        metres: [B, 1, 1, 1], of one unit of the network's depth: 1, or what the camera makes of it (``postprocess.focal_scale``).
        scenes: kind of room of each picture, or "".
        captions: of each picture, or "".
    """

    image: Tensor
    truth_m: Tensor
    valid: Tensor
    metres: Tensor
    scenes: tuple[str, ...]
    captions: tuple[str, ...] = ()

    def to(self, device: torch.device) -> Batch:
        """The same on another device, its pictures channels last."""
        moved = {name: getattr(self, name).to(device) for name in ("truth_m", "valid", "metres")}
        return replace(self, image=self.image.to(device, memory_format=torch.channels_last), **moved)


class Examples:
    """Samples shaped for one contract.

    Args:
        samples: where they come from.
        contract: of the network (its input, its farthest depth, its single-image protocol).
        geometry: ``protocol``: the whole photo, as the single-image protocol shapes it; ``window``: the photo at the window's height,
            and a random window of it (its middle without a random generator), as EVP and VPD were trained; ``kitti``: a random window of
            the benchmark's crop, as EVP was trained on KITTI.

    Raises:
        ValueError: for another geometry.
    """

    def __init__(self, samples: KeptSamples, contract: Contract, geometry: str = "protocol"):
        if geometry not in ("protocol", "window", "kitti"):
            raise ValueError(f"unknown geometry {geometry!r}, wanted protocol, window or kitti")
        self.samples, self.contract, self.geometry = samples, contract, geometry
        self.far_m = contract.output.far if contract.output.unit == "m" else np.inf

    def example(self, number: int, draw: np.random.Generator | None = None, augmentation: Augmentation | None = None) -> tuple[np.ndarray, ...]:
        """image float32 [3, canvas], truth_m float32 [window], valid bool [window], metres, scene and caption of a sample, changed at random if asked to.

        Raises:
            InputError: if a photo does not fit the protocol, or is narrower than the window at its height; with a random generator, which is to learn
                from it, also if it has no known depth.
        """
        sample, image = self.samples[number], self.contract.input
        if draw is not None and not sample.valid.any():
            raise InputError(f"sample {sample.id} has no known depth", wanted="pictures with depth to learn from", fix="leave it out of --data")
        if augmentation is not None and draw.random() < augmentation.flip:
            sample = mirrored(sample)
        if augmentation is not None and augmentation.turn:
            sample = turned(sample, float(draw.uniform(-augmentation.turn, augmentation.turn)))
        if augmentation is not None and augmentation.careless:
            sample = replace(sample, rgb=carelessly_taken(sample.rgb, augmentation.careless, draw))
        if augmentation is not None and augmentation.frame and draw.random() < augmentation.frame:
            sample = framed(sample, draw)
        steps = self._steps(sample)
        placed = place_steps(steps, *sample.rgb.shape[:2])
        picture = shape_photo(sample.rgb, placed)
        truth, valid = shape_truth(sample.depth_m, sample.valid, placed)
        room = picture.shape[1] - image.window[1]
        if room < 0 or picture.shape[0] != image.window[0]:
            was = f"sample {sample.id} becomes {picture.shape[1]}x{picture.shape[0]} pixels"
            raise InputError(was, wanted=f"height {image.window[0]} and a width of at least {image.window[1]}")
        left = room // 2 if draw is None else int(draw.integers(0, room + 1))
        if self.geometry == "protocol":
            left = self.contract.protocols[0].lefts[0]
        columns = slice(left, left + image.window[1])
        camera = None if sample.intrinsics is None else Intrinsics(*sample.intrinsics)
        metres = focal_scale(self.contract.output, placed, camera)
        truth, valid = truth[:, columns], valid[:, columns] & (truth[:, columns] <= self.far_m * metres)
        if augmentation is not None:
            shown = recoloured(picture[:, columns], augmentation, draw)
            if draw.random() < augmentation.cut_depth:
                far_m = self.far_m if np.isfinite(self.far_m) else max(float(truth.max()), 1.0)
                shown = cut_depth(shown, np.where(valid, truth, 0), far_m, augmentation, draw)
            picture = _blacken(shown, placed)
            left = 0
        truth, metres = np.where(valid, truth, np.float32(0)), np.full((1, 1, 1), metres, np.float32)
        return window_tensor(picture, Window(left, False, False), image), truth, valid, metres, sample.scene, sample.caption

    def _steps(self, sample: Sample) -> tuple[Step, ...]:
        if self.geometry == "protocol":
            return self.contract.protocols[0].steps
        if self.geometry == "kitti":
            return next(protocol.steps for protocol in self.contract.protocols if protocol.name == "kitti-benchmark")
        height, width = sample.rgb.shape[:2]
        rows, columns = self.contract.input.window
        return (Resize(rows, max(columns, round(width * rows / height)), "bilinear-antialias"),)

    def batch(self, numbers: list[int], draws: list[np.random.Generator] | None = None, augmentation: Augmentation | None = None) -> Batch:
        """Several examples as tensors; ``draws``: one random generator per number.

        Raises:
            InputError: as ``example``; with ``draws``, also if no window has a known depth.
        """
        parts = [self.example(number, draws[place] if draws else None, augmentation) for place, number in enumerate(numbers)]
        image, truth, valid, metres = (torch.from_numpy(np.stack([part[k] for part in parts])) for k in range(4))
        if draws and not bool(valid.any()):
            names = ", ".join(self.samples[number].id for number in numbers)
            far = f" of at most {self.far_m:g} m" if np.isfinite(self.far_m) else ""
            was = f"there is no known depth{far} in the windows of {names}"
            raise InputError(was, wanted="some to learn from", fix="take a larger --batch, or leave them out")
        return Batch(image, truth[:, None], valid[:, None], metres, tuple(part[4] for part in parts), tuple(part[5] for part in parts))


def shape_truth(depth_m: np.ndarray, valid: np.ndarray, placed: tuple[Placed, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Depth and validity [H, W] through the same steps as the photo; where it is resized, every pixel takes its nearest measurement.

    Depths are never mixed: between a chair and the wall behind it there is nothing. Padding is not valid.
    """
    for place in placed:
        step, (height, width) = place.step, place.after
        if isinstance(step, Resize):
            corners = step.interpolation == "bilinear-corners"
            rows, columns = (_nearest(now, then, corners) for now, then in zip(place.after, place.before, strict=True))
            depth_m, valid = depth_m[np.ix_(rows, columns)], valid[np.ix_(rows, columns)]
        elif isinstance(step, Pad):
            around = ((step.top, step.bottom), (step.left, step.right))
            depth_m, valid = np.pad(depth_m, around), np.pad(valid, around)
        else:
            inside = (slice(place.top, place.top + height), slice(place.left, place.left + width))
            depth_m, valid = depth_m[inside], valid[inside]
    return depth_m, valid


def _nearest(count: int, source: int, corners: bool) -> np.ndarray:
    if corners:
        position = np.arange(count) * ((source - 1) / max(1, count - 1))
        return np.floor(position + 0.5).astype(np.int64)
    return np.minimum(((np.arange(count) + 0.5) * (source / count)).astype(np.int64), source - 1)


def _blacken(picture: np.ndarray, placed: tuple[Placed, ...]) -> np.ndarray:
    """Bars that the protocol padded stay black whatever happened to the colours."""
    for place in placed:
        if isinstance(place.step, Pad):
            step = place.step
            picture[: step.top] = 0
            picture[picture.shape[0] - step.bottom :] = 0
            picture[:, : step.left] = 0
            picture[:, picture.shape[1] - step.right :] = 0
    return picture
