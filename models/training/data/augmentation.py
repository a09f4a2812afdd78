"""What is done to training pictures. Whatever moves the photo moves its depth with it.

Three habits of the published training code are left out on purpose: a photo mirrored without its depth (DepthBLIP-2), a photo cropped
while its depth is stretched (the code before MoA-DepthCLIP), and CutDepth that writes millimetres into bytes, where they wrap around
(EVP, VPD): here the strip shows depth as a grey from 0 to 1.

Nothing here enlarges a photo. Enlarged parts say too much about whole photos under the depths of the whole, and under depths that are nearer by as
much they move what a network expects where a size is in doubt: evp-tiny said 8 % too much by the first and 5 % too little by the second.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ....datasets.careless import blurred, compressed, exposed, noisy, shaken
from ....datasets.sample import Sample


@dataclass(frozen=True)
class Augmentation:
    """Chances and strengths.

    Args:
        flip: chance that photo and depth are mirrored.
        colour: chance of each of three changes of colour: brightness with contrast, gamma, hue with saturation.
        brightness, contrast: largest change, as a share.
        gamma: largest change of the exponent.
        hue: largest turn, in degrees.
        saturation: largest change, as a share.
        cut_depth: chance that a full-height strip of the photo shows its own depth (vertical CutDepth).
        cut_width: largest width of that strip, as a share.
        turn: largest rotation of photo and depth about the middle, in degrees; 0 for none.
        frame: chance that the photo has a white or black border, as NYU Depth v2 has; nothing is known below it.
        careless: chance of each of five faults: exposure and warmth, blur, a shaken camera, noise, JPEG.

    Raises:
        ValueError: if a chance is not between 0 and 1, or a strength is not between 0 and 1 (hue: 180, turn: 45).
    """

    flip: float = 0.5
    colour: float = 0.5
    brightness: float = 0.2
    contrast: float = 0.2
    gamma: float = 0.2
    hue: float = 40.0
    saturation: float = 0.12
    cut_depth: float = 0.25
    cut_width: float = 0.75
    turn: float = 0.0
    frame: float = 0.0
    careless: float = 0.0

    def __post_init__(self):
        shares = (self.flip, self.colour, self.cut_depth, self.cut_width, self.brightness, self.contrast, self.gamma, self.saturation)
        shares += (self.frame, self.careless)
        if not all(0 <= share <= 1 for share in shares) or not 0 <= self.hue <= 180 or not 0 <= self.turn <= 45:
            raise ValueError(f"chances and strengths from 0 to 1 were wanted, got {self}")


def mirrored(sample: Sample) -> Sample:
    """Photo, depth and validity seen in a mirror; the principal point moves with them."""
    intrinsics = sample.intrinsics
    if intrinsics is not None:
        fx, fy, cx, cy = intrinsics
        intrinsics = (fx, fy, sample.rgb.shape[1] - 1 - cx, cy)
    turned = (np.ascontiguousarray(part[:, ::-1]) for part in (sample.rgb, sample.depth_m, sample.valid))
    return Sample(*turned, intrinsics, sample.id, sample.scene, sample.caption)


def framed(sample: Sample, draw: np.random.Generator) -> Sample:
    """With a border of up to 3 % of the photo's height, nearly white or black; nothing is known below it."""
    height, width = sample.depth_m.shape
    wide = draw.uniform(0.004, 0.03, 4) * height
    top, bottom, left, right = (round(float(each)) for each in wide)
    inside = np.zeros((height, width), bool)
    inside[top : height - bottom, left : width - right] = True
    tone = int(draw.integers(235, 256)) if draw.random() < 0.7 else int(draw.integers(0, 20))
    rgb = np.where(inside[..., None], sample.rgb, np.uint8(tone))
    valid = sample.valid & inside
    return Sample(rgb, np.where(valid, sample.depth_m, np.float32(0)), valid, sample.intrinsics, sample.id, sample.scene, sample.caption)


def carelessly_taken(rgb: np.ndarray, chance: float, draw: np.random.Generator) -> np.ndarray:
    """A photo uint8 [H, W, 3] with each of five faults at that chance, in the order in which a camera makes them; lengths are for a photo 200 pixels wide."""
    scale = rgb.shape[1] / 200
    if draw.random() < chance:
        rgb = exposed(rgb, float(draw.normal(0, 0.7)), float(draw.normal(0, 0.35)))
    if draw.random() < chance:
        rgb = blurred(rgb, scale * float(draw.uniform(0.3, 1.3)))
    if draw.random() < chance / 2:
        rgb = shaken(rgb, max(2, round(scale * draw.uniform(2, 7))), float(draw.uniform(0, math.pi)))
    if draw.random() < chance:
        rgb = noisy(rgb, float(draw.gamma(2.0, 2.5)), draw)
    if draw.random() < chance:
        rgb = compressed(rgb, int(draw.integers(25, 95)))
    return rgb


def turned(sample: Sample, degrees: float) -> Sample:
    """Photo, depth and validity turned about the middle (counterclockwise, degrees), the photo bilinearly, depths never mixed; the corners
    that come from outside are black and not valid. The principal point moves with them; pixels are taken for square."""
    height, width = sample.depth_m.shape
    angle = math.radians(degrees)
    y, x = np.meshgrid(np.arange(height) - (height - 1) / 2, np.arange(width) - (width - 1) / 2, indexing="ij")
    column, row = math.cos(angle) * x - math.sin(angle) * y + (width - 1) / 2, math.sin(angle) * x + math.cos(angle) * y + (height - 1) / 2
    nearest_row, nearest_column = np.rint(row).astype(np.int64), np.rint(column).astype(np.int64)
    inside = (nearest_row >= 0) & (nearest_row < height) & (nearest_column >= 0) & (nearest_column < width)
    at = nearest_row.clip(0, height - 1), nearest_column.clip(0, width - 1)
    top, left = np.floor(row).astype(np.int64).clip(0, height - 2), np.floor(column).astype(np.int64).clip(0, width - 2)
    down, right = (row - top).clip(0, 1)[..., None], (column - left).clip(0, 1)[..., None]
    rgb = sample.rgb.astype(np.float32)
    above = rgb[top, left] * (1 - right) + rgb[top, left + 1] * right
    below = rgb[top + 1, left] * (1 - right) + rgb[top + 1, left + 1] * right
    photo = np.rint(above * (1 - down) + below * down).astype(np.uint8) * inside[..., None]
    valid = sample.valid[at] & inside
    intrinsics = sample.intrinsics
    if intrinsics is not None:
        fx, fy, cx, cy = intrinsics
        x, y = cx - (width - 1) / 2, cy - (height - 1) / 2
        turned_x, turned_y = math.cos(angle) * x + math.sin(angle) * y, math.cos(angle) * y - math.sin(angle) * x
        intrinsics = (fx, fy, turned_x + (width - 1) / 2, turned_y + (height - 1) / 2)
    return Sample(photo, np.where(valid, sample.depth_m[at], 0).astype(sample.depth_m.dtype), valid, intrinsics, sample.id, sample.scene, sample.caption)


def recoloured(picture: np.ndarray, augmentation: Augmentation, draw: np.random.Generator) -> np.ndarray:
    """A picture float32 [H, W, 3] in [0, 1] in other colours, still in [0, 1]; its geometry stays."""

    def up_to(limit: float) -> float:
        return float(draw.uniform(-limit, limit))

    if draw.random() < augmentation.colour:
        contrast, brightness = 1 + up_to(augmentation.contrast), up_to(augmentation.brightness)
        picture = picture * np.float32(contrast) + np.float32(brightness)
    if draw.random() < augmentation.colour:
        picture = np.clip(picture, 0, 1) ** np.float32(1 + up_to(augmentation.gamma))
    if draw.random() < augmentation.colour:
        turn, saturation = math.radians(up_to(augmentation.hue)), 1 + up_to(augmentation.saturation)
        picture = picture @ hue_matrix(turn, saturation).T
    return np.clip(picture, 0, 1).astype(np.float32, copy=False)


def hue_matrix(turn: float, saturation: float) -> np.ndarray:
    """[3, 3] over RGB: colours turned about the grey axis and stretched from it; greys stay as they are."""
    grey = np.ones(3) / math.sqrt(3)
    cross = np.array([[0, -grey[2], grey[1]], [grey[2], 0, -grey[0]], [-grey[1], grey[0], 0]])
    along = np.outer(grey, grey)
    rotation = math.cos(turn) * (np.eye(3) - along) + math.sin(turn) * cross
    return (along + saturation * rotation).astype(np.float32)


def cut_depth(picture: np.ndarray, truth_m: np.ndarray, far_m: float, augmentation: Augmentation, draw: np.random.Generator) -> np.ndarray:
    """The picture with a full-height strip replaced by its depth as grey, 0 for nothing known and 1 for ``far_m`` (arXiv 2107.07684)."""
    width = picture.shape[1]
    strip = max(1, int(width * augmentation.cut_width * draw.random()))
    left = int(draw.integers(0, width - strip + 1))
    picture = picture.copy()
    grey = np.clip(truth_m[:, left : left + strip] / np.float32(far_m), 0, 1)
    picture[:, left : left + strip] = grey[..., None]
    return picture
