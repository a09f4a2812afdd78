"""The strip below a colour map that says what its colours mean."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw

from ..photo.depth_map import DepthMap
from .colormap import colorize
from .lettering import default_font

PAPER, INK, FAINT, ALARM = (24, 24, 24), (235, 235, 235), (150, 150, 150), (200, 30, 30)


def add_scale_bar(colors: np.ndarray, depth: DepthMap, low: float, high: float, colormap: str) -> Image.Image:
    """Put a scale bar below a coloured map, and a red band above it all if the weights are untrained.

    Args:
        colors: uint8 [H, W, 3].
        low, high: what the two ends of the colours stand for.

    Returns:
        RGB picture, W wide (at least 160) and higher than H.
    """
    image, place = frame_for(depth, low, high, colormap)
    image.paste(Image.fromarray(colors), place)
    return image


def frame_for(depth: DepthMap, low: float, high: float, colormap: str) -> tuple[Image.Image, tuple[int, int]]:
    """The picture of ``add_scale_bar`` without its map, and where the map's top left corner goes (x, y)."""
    height, width = depth.values.shape
    canvas_width = max(width, 160)
    size = min(max(canvas_width // 40, 11), 40)  # of the font, in pixels
    font = default_font(size)
    margin, bar = size, size
    strip = int(margin * 0.6) + bar + int(size * 0.4) + int(size * 3.1)
    lines = _wrap("UNTRAINED WEIGHTS: this depth is meaningless", font, canvas_width - size) if depth.origin.untrained else []
    band = int(size * 1.5) * len(lines)
    image = Image.new("RGB", (canvas_width, band + height + strip), PAPER)
    draw = ImageDraw.Draw(image)
    if lines:
        draw.rectangle((0, 0, canvas_width, band - 1), fill=ALARM)
        for row, line in enumerate(lines):
            draw.text((size // 2, int(size * (1.5 * row + 0.15))), line, fill=(255, 255, 255), font=font)
    left, right, top = 2 * margin, canvas_width - 2 * margin, band + height + int(margin * 0.6)
    ramp = np.broadcast_to(np.linspace(low, high, right - left, dtype=np.float32), (bar, right - left))
    drawn = colorize(ramp, np.ones(ramp.shape, bool), low, high, colormap, reverse=depth.larger_is == "far")
    image.paste(Image.fromarray(drawn), (left, top))
    label_top = top + bar + int(size * 0.4)
    if depth.kind == "mask":
        draw.text((left, label_top), "background", fill=INK, font=font)
        draw.text((right - font.getlength("object"), label_top), "object", fill=INK, font=font)
    else:
        _ticks(draw, font, low, high, (left, right), top + bar, label_top, canvas_width)
    draw.text((left, label_top + int(size * 1.25)), _fit(_meaning(depth), font, right - left), fill=FAINT, font=font)
    return image, ((canvas_width - width) // 2, band)


def ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) in [low, high]; from 2 to ``most`` of them where possible."""
    least = (high - low) / max(most, 1)
    power = 10.0 ** math.floor(math.log10(least))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= least * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


def label(value: float, step: float) -> str:
    """A tick's number with no more decimals than its neighbours need."""
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return f"{value:.{decimals}f}" if decimals <= 6 and abs(value) < 1e6 else f"{value:.3g}"


def _ticks(draw: ImageDraw.ImageDraw, font, low: float, high: float, span: tuple[int, int], bar_bottom: int, label_top: int, width: int) -> None:
    left, right = span
    most = max(2, min(8, (right - left) // int(font.getlength("00.00") * 1.6)))
    marks = ticks(low, high, most)
    if len(marks) < 2:  # one tick shows no scale
        marks = ticks(low, high, 2 * most)
    step = marks[1] - marks[0] if len(marks) > 1 else high - low
    for value in marks:
        x = left + (value - low) / (high - low) * (right - left - 1)
        draw.line((x, bar_bottom, x, bar_bottom + (label_top - bar_bottom) // 2), fill=INK, width=max(1, int(font.getlength("0")) // 6))
        text = label(value, step)
        draw.text((min(max(x - font.getlength(text) / 2, 0), width - font.getlength(text)), label_top), text, fill=INK, font=font)


def _meaning(depth: DepthMap) -> str:
    if depth.kind == "metric":
        words = "depth in metres"
    elif depth.kind == "mask":
        words = "mask"
    else:
        words = "relative depth, no unit; larger is " + ("farther" if depth.larger_is == "far" else "nearer")
    return words if depth.valid.all() else f"{words}; grey: none"


def _fit(text: str, font, room: float) -> str:
    """As many of the clauses as there is room for, at least the first."""
    while font.getlength(text) > room and ";" in text:
        text = text.rsplit(";", 1)[0]
    return text


def _wrap(text: str, font, room: float) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > room:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
