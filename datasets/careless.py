"""What cheap cameras, careless hands and files do to a photo, for pictures to learn from."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageFilter


def blurred(rgb: np.ndarray, radius: float) -> np.ndarray:
    """Out of focus by a Gaussian of that standard deviation in pixels; uint8 [H, W, 3]."""
    return np.asarray(Image.fromarray(rgb).filter(ImageFilter.GaussianBlur(radius)))


def shaken(rgb: np.ndarray, length: int, angle: float) -> np.ndarray:
    """The mean over ``length`` places along a line at ``angle`` (radians), 1 pixel apart: a camera that moved; uint8 [H, W, 3]."""
    total = np.zeros(rgb.shape, np.float32)
    height, width = rgb.shape[:2]
    for step in range(length):
        away = step - (length - 1) / 2
        rows = np.clip(np.arange(height) + round(away * np.sin(angle)), 0, height - 1)
        columns = np.clip(np.arange(width) + round(away * np.cos(angle)), 0, width - 1)
        total += rgb[rows][:, columns]
    return (total / length + 0.5).astype(np.uint8)


def compressed(rgb: np.ndarray, quality: int) -> np.ndarray:
    """Written as a JPEG of that quality (1 to 95) and read again; uint8 [H, W, 3]."""
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file).convert("RGB"))


def exposed(rgb: np.ndarray, stops: float, warmth: float) -> np.ndarray:
    """Brighter by ``stops`` (factors of two of light), red by ``warmth`` stops more and blue by as much less, clipped as a sensor clips; gamma 2.2."""
    gain = 2.0 ** (np.array([stops + warmth, stops, stops - warmth]) / 2.2)
    table = np.minimum(np.arange(256)[:, None] * gain + 0.5, 255).astype(np.uint8)
    return np.stack([table[rgb[..., k], k] for k in range(3)], axis=2)


def noisy(rgb: np.ndarray, strength: float, draw: np.random.Generator) -> np.ndarray:
    """With Gaussian noise of that standard deviation in grey levels; uint8 [H, W, 3]."""
    noise = draw.standard_normal(rgb.shape, np.float32)
    return np.clip(rgb + np.float32(strength) * noise + 0.5, 0, 255).astype(np.uint8)
