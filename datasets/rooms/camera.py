"""The colour and the depth camera of a synthetic frame: their pose, the colour camera's exposure and noise, where the depth camera has a value."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .raycast import View, cast
from .walls import Scene

BASELINE_M = 0.075  # between the infrared projector and its camera, as in the Kinect of NYU Depth v2
SENSOR_FAR_M = 9.5


@dataclass(frozen=True)
class Stance:
    """How a camera is held.

    Args:
        tall: mean and spread of its height, metres; never below ``low``.
        low: metres.
        down: mean and spread of how far it looks down, degrees, and the least and most.
        roll: spread of its turn about the optical axis, degrees.
        middle: a picture is better if its median depth is not below this, metres.
    """

    tall: tuple[float, float] = (1.4, 0.22)
    low: float = 0.7
    down: tuple[float, float, float, float] = (14, 9, -8, 42)
    roll: float = 1.8
    middle: float = 1.5


def _look(position: np.ndarray, target: np.ndarray, roll: float) -> np.ndarray:
    forward = (target - position) / np.linalg.norm(target - position)
    right = np.cross(forward, [0, 0, 1.0])
    right /= np.linalg.norm(right)
    down = np.cross(forward, right)
    c, s = np.cos(roll), np.sin(roll)
    return np.stack([c * right + s * down, -s * right + c * down, forward])


def _intrinsics(draw: np.random.Generator, height: int, width: int) -> tuple[float, float, float, float]:
    field_of_view = np.radians(draw.normal(62.5, 4.0) if draw.random() < 0.75 else draw.uniform(48, 78))
    f = width / 2 / np.tan(field_of_view / 2)
    return (
        float(f),
        float(f * draw.normal(1, 0.002)),
        float((width - 1) / 2 + draw.normal(0, 0.008) * width),
        float((height - 1) / 2 + draw.normal(0, 0.012) * height),
    )


def stand(scene: Scene, draw: np.random.Generator, height: int, width: int, stance: Stance = Stance()) -> View:
    """A view of the room as a person with a camera would take it.

    Places are tried until the middle of the picture is neither too near nor filled by one thing; the best of twelve is
    taken otherwise.
    """
    size = scene.rooms[0][1]
    fx, fy, cx, cy = _intrinsics(draw, height, width)
    best: tuple[float, View] | None = None
    for _ in range(12):
        tall = float(np.clip(draw.normal(*stance.tall), stance.low, min(2.0, size[2] - 0.3)))
        x, y = draw.uniform(0.25, size[0] - 0.25), draw.uniform(0.25, size[1] - 0.25)
        target = np.array([draw.uniform(0.15, 0.85) * size[0], draw.uniform(0.15, 0.85) * size[1], 0.0])
        gap = np.hypot(target[0] - x, target[1] - y)
        target[2] = tall - gap * np.tan(np.radians(float(np.clip(draw.normal(*stance.down[:2]), *stance.down[2:]))))
        roll = np.radians(draw.normal(0, stance.roll))
        if gap < 0.7 or any(a - 0.12 < x < b + 0.12 and c - 0.12 < y < d + 0.12 for a, b, c, d in scene.footprints):
            continue
        position = np.array([x, y, tall])
        rotation = _look(position, target, roll)
        small = View(position, rotation, (fx * 32 / width, fy * 24 / height, (cx + 0.5) * 32 / width - 0.5, (cy + 0.5) * 24 / height - 0.5), 24, 32)
        depth, index = cast(small, scene.groups)
        owners = np.repeat(np.arange(len(scene.groups)), [len(group.shapes) for group in scene.groups])[np.maximum(index, 0)]
        crowd = np.bincount(owners[owners > 0].reshape(-1), minlength=2)
        near, middle = np.quantile(depth, 0.03), np.median(depth)
        faults = 4 * max(0.0, 0.55 - near) + max(0.0, stance.middle - middle) + max(0.0, middle - 5) + 2 * max(0.0, crowd.max() / depth.size - 0.4)
        faults += 0.15 * max(0, 5 - int((crowd > 4).sum())) + 2 * float((~np.isfinite(depth)).mean())
        view = View(position, rotation, (fx, fy, cx, cy), height, width)
        if best is None or faults < best[0]:
            best = (faults, view)
        if faults < 0.2:
            break
    if best is None:  # furniture everywhere: stand in the corner and look across, above the furniture
        position = np.array([0.2, 0.2, min(1.9, size[2] - 0.2)])
        best = (0.0, View(position, _look(position, np.array([size[0], size[1], 0.6]), 0.0), (fx, fy, cx, cy), height, width))
    return best[1]


def develop(radiance: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Lens, exposure, white balance, noise and tone curve: linear float32 [H, W, 3] to uint8."""
    from scipy import ndimage  # here, so that data sets without rooms need no scipy

    height, width = radiance.shape[:2]
    picture = ndimage.gaussian_filter(radiance, (sigma := float(draw.uniform(0.35, 0.8)) * width / 320, sigma, 0), mode="nearest")
    brightness = np.exp(np.log(picture.mean(2) + 1e-4).mean())
    picture *= np.float32(np.exp(draw.uniform(np.log(0.06), np.log(0.24))) / brightness)
    warmth = draw.normal(0, 0.1)
    picture *= np.array([1 + warmth, 1.0 + draw.normal(0, 0.02), 1 - warmth], np.float32)
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    picture *= (1 - draw.uniform(0, 0.3) * (x * x + y * y) / 2).astype(np.float32)[..., None]
    noise = draw.standard_normal(picture.shape, np.float32)
    picture += noise * np.sqrt(np.float32(draw.uniform(0.001, 0.01)) ** 2 + np.float32(draw.uniform(1e-5, 6e-4)) * np.maximum(picture, 0))
    curve = np.float32(draw.uniform(1.0, 1.7))
    tone = (1 - np.exp(-curve * np.maximum(picture, 0))) / (1 - np.exp(-curve))
    return np.clip(255 * np.clip(tone, 0, 1) ** np.float32(1 / 2.2) + 0.5, 0, 255).astype(np.uint8)


def sensor_sees(depth: np.ndarray, facing: np.ndarray, glow: np.ndarray, focal: float, draw: np.random.Generator) -> np.ndarray:
    """Where a structured-light sensor gives a depth.

    Missing are: the shadow that near things throw in the projector's light, surfaces seen at a grazing angle, lamps and
    windows, the far end, the frame that two cameras do not share, and patches.

    Args:
        depth: metres, float32 [H, W].
        facing: cosine between the surface normal and the ray, float32 [H, W].
        glow: bool [H, W], whether the surface shines.
        focal: in pixels.
        draw: the source of the patches.

    Returns:
        bool [H, W], True where it gives one.
    """
    from scipy import ndimage

    height, width = depth.shape
    with np.errstate(divide="ignore"):
        place = np.arange(width) + focal * BASELINE_M / depth
    shadow = np.maximum.accumulate(place, 1) > place + 0.5
    patches = ndimage.zoom(draw.random((height // 8 + 2, width // 8 + 2), np.float32), 8, order=1)[:height, :width]
    seen = np.isfinite(depth) & (depth < SENSOR_FAR_M) & ~shadow & (facing > 0.1 + 0.12 * patches) & ~glow
    seen &= patches > 0.04 + 0.06 * np.clip(depth / 8, 0, 1)
    top, side = max(1, round(height * 0.015)), max(1, round(width * 0.013))
    frame = np.zeros_like(seen)
    frame[top : height - top, side : width - side] = True
    return seen & frame
