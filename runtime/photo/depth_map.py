"""What comes out: one photo's map with its meaning."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ..artefact.contract import OutputContract
from ..errors import AccuracyError, InputError
from .depth_edges import flying

SHAPE_TOLERANCE = 0.01  # of width over height: resizing rounds to whole pixels


@dataclass(frozen=True)
class Intrinsics:
    """A pinhole camera in pixels of the upright photo; pixel centres have whole coordinates.

    Args:
        fx, fy: focal lengths.
        cx, cy: principal point.
        width, height: of the pictures it was calibrated on; 0 if that is not known.
    """

    fx: float
    fy: float
    cx: float
    cy: float
    width: int = 0
    height: int = 0

    def __post_init__(self):
        for name in ("fx", "fy", "cx", "cy"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
                raise ValueError(f"intrinsics.{name}: a finite number was wanted, got {value!r}")
        if self.fx <= 0 or self.fy <= 0:
            raise ValueError(f"intrinsics: fx and fy are positive, got {self.fx} and {self.fy}")
        sizes = (self.width, self.height)
        if not all(isinstance(size, int) and not isinstance(size, bool) and size >= 0 for size in sizes) or (0 in sizes and any(sizes)):
            raise ValueError(f"intrinsics: width and height are both whole numbers above 0, or neither is given, got {sizes}")

    @classmethod
    def of_photo(cls, camera: Intrinsics | Sequence[float] | None, photo: np.ndarray) -> Intrinsics | None:
        """The camera, given as such or as fx, fy, cx, cy, for a photo [H, W, 3]; see ``on``.

        Raises:
            ValueError: if there are not four numbers, or they are those of no camera.
            InputError: if it cannot be this photo's.
        """
        if camera is None:
            return None
        if not isinstance(camera, cls):
            if len(camera) != 4:
                raise ValueError(f"intrinsics: fx, fy, cx and cy were wanted, got {len(camera)} numbers")
            camera = cls(*map(float, camera))
        return camera.on(photo.shape[1], photo.shape[0])

    def on(self, width: int, height: int) -> Intrinsics:
        """The same camera for a photo of another size that shows the same.

        Raises:
            InputError: if the photo has another shape than the pictures the camera was calibrated on, or its principal point lies outside.
        """
        camera, across, down = self, width / (self.width or width), height / (self.height or height)
        if self.width and (width, height) != (self.width, self.height):
            if abs(across / down - 1) > SHAPE_TOLERANCE:
                raise InputError(
                    f"the photo has {width}x{height} pixels and the camera was calibrated on {self.width}x{self.height}, another shape",
                    wanted="the camera of this photo",
                    fix="give the intrinsics of the crop, or photos that are not cropped",
                )
            camera = self.scaled(across, down)
        if not (-0.5 <= camera.cx <= width - 0.5 and -0.5 <= camera.cy <= height - 0.5):
            raise InputError(
                f"the principal point {camera.cx:g}, {camera.cy:g} lies outside the photo of {width}x{height} pixels",
                wanted="intrinsics in pixels of this photo",
                fix=f"scale them to {width}x{height}, or say in the JSON file which width and height they are for",
            )
        return camera

    def scaled(self, across: float, down: float) -> Intrinsics:
        """The camera of the same picture at so many times its width and height; pixel centres have whole coordinates, so its edge is at -0.5."""
        return Intrinsics(self.fx * across, self.fy * down, (self.cx + 0.5) * across - 0.5, (self.cy + 0.5) * down - 0.5)


@dataclass(frozen=True)
class Origin:
    """Which network made a map.

    Args:
        network: name and variant.
        sha256: of the manifest (``plan.json`` or ``bundle.json``), which names every other file's.
        untrained: the weights are random; the map means nothing.
        scene: the kind of room that is built into the network, if any.
    """

    network: str = ""
    sha256: str = ""
    untrained: bool = False
    scene: str = ""


@dataclass(frozen=True)
class DepthMap:
    """One map on the photo's own pixels.

    Args:
        values: float32 [H, W]; metres if ``kind`` is ``metric``, numbers without a unit if ``relative``, 0 or 1 if ``mask``;
            0 where not valid.
        valid: bool [H, W]; False outside a protocol's crop, and where metric depth is not above zero.
        kind, unit, near, far, larger_is: as in ``contract.OutputContract``.
        intrinsics: of the camera, if the caller gave them.
        camera: where metres hang on the camera's focal length, ``"told"`` or ``"assumed"``; else empty.
        correction: the camera's scale and shift in words, if the values were corrected by one.
        protocol: name of the protocol that was followed.
        origin: the network.
        below_near, above_far: how many valid pixels leave the range the network was trained for; they are reported, not clamped.
        not_positive: how many pixels of metric output were zero or negative, and therefore are not valid.
        network_ms: what the network took for this photo: its share of the runs it was part of, on the device's clock where there is one.
        waiting_ms: time queued for the network, and spent on copies from and to the device.
    """

    values: np.ndarray
    valid: np.ndarray
    kind: str
    unit: str
    near: float
    far: float
    larger_is: str
    intrinsics: Intrinsics | None = None
    camera: str = ""
    correction: str = ""
    protocol: str = ""
    origin: Origin = field(default_factory=Origin)
    below_near: int = 0
    above_far: int = 0
    not_positive: int = 0
    network_ms: float = 0.0
    waiting_ms: float = 0.0

    @classmethod
    def of(cls, values: np.ndarray, valid: np.ndarray, output: OutputContract, **facts: object) -> DepthMap:
        """Make a map and check it against its contract.

        Args:
            values, valid: from ``postprocess.Assembly.finish``; taken over, not copied.
            facts: ``intrinsics``, ``camera``, ``protocol``, ``origin``, ``network_ms``, ``waiting_ms``.

        Raises:
            AccuracyError: if a valid value is not finite, or no pixel is valid; the output tensor is named.
        """
        chosen = values if valid.all() else values[valid]
        least, greatest = (chosen.min(), chosen.max()) if chosen.size else (np.float32(0), np.float32(0))  # NaN goes through both
        if not (np.isfinite(least) and np.isfinite(greatest)):
            raise AccuracyError(f"the map from output tensor {output.tensor} holds NaN or infinite values", wanted="finite numbers everywhere")
        not_positive = 0
        if output.kind == "metric" and least <= 0:
            wrong = valid & (values <= 0)
            not_positive = int(wrong.sum())
            if not_positive:
                valid = valid & ~wrong
                values[wrong] = 0
        if not chosen.size or not valid.any():
            raise AccuracyError(f"the map from output tensor {output.tensor} has no valid pixel", wanted="depth above zero somewhere")
        below = above = 0
        if output.kind != "mask":  # counted only where the extremes say that there are any
            below = int(np.count_nonzero(valid & (values < output.near))) if least < output.near else 0
            above = int(np.count_nonzero(valid & (values > output.far))) if greatest > output.far else 0
        return cls(
            values,
            valid,
            output.kind,
            output.unit,
            output.near,
            output.far,
            output.larger_is,
            below_near=below,
            above_far=above,
            not_positive=not_positive,
            **facts,
        )

    def without_flying(self) -> DepthMap:
        """The same map with flying pixels not valid; see ``depth_edges.flying``. Maps that are not metric stay as they are."""
        if self.kind != "metric":
            return self
        valid = self.valid & ~flying(self.values)
        if not valid.any():
            return self
        return dataclasses.replace(self, values=np.where(valid, self.values, np.float32(0)), valid=valid)

    def corrected(self, scale: float, shift_m: float, words: str) -> DepthMap:
        """The same map with ``scale * value + shift_m``; pixels that are not above zero then are not valid.

        ``below_near`` and ``above_far`` still count the network's own output.

        Raises:
            ValueError: if the map is not metric.
            AccuracyError: if no pixel is left.
        """
        values = self.depth_m * np.float32(scale) + np.float32(shift_m)
        valid = self.valid & (values > 0)
        if not valid.any():
            raise AccuracyError(f"the correction {words} leaves no depth above zero", wanted="the correction of this camera and network")
        values[~valid] = 0
        lost = int(self.valid.sum() - valid.sum())
        return dataclasses.replace(self, values=values, valid=valid, correction=words, not_positive=self.not_positive + lost)

    @property
    def depth_m(self) -> np.ndarray:
        """float32 [H, W], metres, 0 where not valid.

        Raises:
            ValueError: if the map is not metric: relative values are not metres.
        """
        if self.kind != "metric":
            raise ValueError(f"this is a {self.kind} map without a unit; use .values")
        return self.values

    def summary(self) -> dict[str, float | int]:
        """Minimum, median and maximum of the valid values (seven digits, as many as float32 holds), share of valid pixels, what left the trained range."""
        seen = self.values[self.valid]
        return {
            "min": float(f"{float(seen.min()):.7g}"),
            "median": float(f"{float(np.median(seen)):.7g}"),
            "max": float(f"{float(seen.max()):.7g}"),
            "valid_share": round(float(self.valid.mean()), 6),
            "below_near": self.below_near,
            "above_far": self.above_far,
            "not_positive": self.not_positive,
        }

    def points_m(self) -> np.ndarray:
        """float32 [N, 3]: x right, y down, z forward in metres, for the valid pixels row by row.

        Raises:
            ValueError: if the map is not metric, or the intrinsics are not known.
        """
        if self.intrinsics is None:
            raise ValueError("points need the camera's intrinsics")
        z = self.depth_m[self.valid]
        rows, columns = np.nonzero(self.valid)
        camera = self.intrinsics
        x = (columns - camera.cx) / camera.fx * z
        y = (rows - camera.cy) / camera.fy * z
        return np.stack([x, y, z], axis=1).astype(np.float32)
