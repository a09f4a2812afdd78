"""One picture to look at: photos, true depth and the depth of several networks, in the same colours, with a bar that says how far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ...datasets.depth_metrics import depth_errors
from ...runtime.outputs.colormap import colorize

PAPER, INK, FAINT, ALARM = (24, 24, 24), (235, 235, 235), (160, 160, 160), (255, 110, 110)
THUMB = (224, 168)
GAP, BAR, TOP, CAPTION = 10, 64, 118, 40


@dataclass(frozen=True)
class Map:
    """What one network says of one photo.

    Args:
        values: float32 [H, W]; metres, or numbers without a unit.
        metric: whether they are metres.
    """

    values: np.ndarray
    metric: bool


@dataclass(frozen=True)
class Row:
    """One photo.

    Args:
        title: below the photo.
        photo: RGB.
        truth_m: float32 [H, W], 0 where unknown; None if there is no truth.
        maps: one for every column, None where a network did not run.
    """

    title: str
    photo: Image.Image
    truth_m: np.ndarray | None
    maps: tuple[Map | None, ...]


@dataclass(frozen=True)
class Column:
    """One network: its name, and what is known of it in a few lines."""

    name: str
    lines: tuple[str, ...]


def draw_sheet(heading: str, notes: Sequence[str], columns: Sequence[Column], rows: Sequence[Row], alarm: bool = False) -> Image.Image:
    """The whole picture.

    Every row has its own range of colours, from the truth (2nd to 98th percentile), else from the first map in metres; its bar is at the
    right. A map without metres is multiplied to the truth's median where there is a truth, and has colours of its own where there is none.

    Args:
        notes: lines below the heading.
        alarm: the notes are a warning.
    """
    large, middle, small = (ImageFont.load_default(size) for size in (22, 15, 12))
    width, height = THUMB
    step, line = width + GAP, height + CAPTION
    sheet = Image.new("RGB", (GAP + step * (2 + len(columns)) + BAR + GAP, TOP + 14 * max(0, len(notes) - 1) + line * len(rows) + GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, 8), heading, fill=INK, font=large)
    for number, note in enumerate(notes):
        draw.text((GAP, 38 + 16 * number), note, fill=ALARM if alarm else FAINT, font=small)
    heads = TOP + 14 * max(0, len(notes) - 1) - 52
    for place, column in enumerate((Column("photo", ()), Column("true depth", ("where it was measured",)), *columns)):
        draw.text((GAP + place * step, heads), column.name, fill=INK, font=middle)
        for number, text in enumerate(column.lines[:2]):
            draw.text((GAP + place * step, heads + 19 + 14 * number), _fit(text, small, width), fill=FAINT, font=small)
    for number, row in enumerate(rows):
        _draw_row(sheet, draw, small, row, TOP + 14 * max(0, len(notes) - 1) + number * line)
    return sheet


def _draw_row(sheet: Image.Image, draw: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont, row: Row, top: int) -> None:
    width, height = THUMB
    step = width + GAP
    low, high = row_range(row)
    _paste(sheet, row.photo, GAP, top)
    draw.text((GAP, top + height + 3), _fit(row.title, font, width), fill=INK, font=font)
    if row.truth_m is None:
        draw.text((GAP + step + width // 2 - 40, top + height // 2 - 8), "no true depth", fill=FAINT, font=font)
    else:
        known = row.truth_m > 0
        _paste(sheet, _coloured(row.truth_m, known, low, high), GAP + step, top)
        draw.text((GAP + step, top + height + 3), _span(row.truth_m[known]), fill=FAINT, font=font)
    for place, found in enumerate(row.maps, start=2):
        left = GAP + place * step
        if found is None:
            draw.text((left + width // 2 - 30, top + height // 2 - 8), "did not run", fill=FAINT, font=font)
            continue
        values, words = said(found, row.truth_m)
        ends = (low, high) if found.metric or row.truth_m is not None else _ends(values)
        _paste(sheet, _coloured(values, values > 0, *ends), left, top)
        for number, text in enumerate(words):
            draw.text((left, top + height + 3 + 15 * number), text, fill=FAINT if number == 0 else INK, font=font)
    _bar(sheet, draw, font, GAP + step * (2 + len(row.maps)), top, low, high)


def row_range(row: Row) -> tuple[float, float]:
    """Metres that the two ends of a row's colours stand for."""
    if row.truth_m is not None:
        return _ends(row.truth_m)
    return next((_ends(found.values) for found in row.maps if found is not None and found.metric), (0.0, 1.0))


def said(found: Map, truth_m: np.ndarray | None) -> tuple[np.ndarray, tuple[str, ...]]:
    """A map as it is drawn, and what is written below it: its range, and how far it is off where the truth is known."""
    values = found.values
    if truth_m is None:
        return values, (_span(values),) if found.metric else ("order only, no metres",)
    known = (truth_m > 0) & np.isfinite(values) & (values > 0)
    if not found.metric:
        values = values * np.float32(np.median(truth_m[known]) / np.median(values[known]))
    errors = depth_errors(values[known], truth_m[known])
    fit = "" if found.metric else ", fitted"
    return values, (_span(values) + fit, f"abs_rel {errors['abs_rel']:.3f}   delta1 {errors['delta1']:.2f}")


def _ends(values: np.ndarray) -> tuple[float, float]:
    known = values[np.isfinite(values) & (values > 0)]
    low, high = (float(v) for v in np.percentile(known, [2, 98])) if known.size else (0.0, 1.0)
    return low, high if high > low else low + 1e-3


def _span(values: np.ndarray) -> str:
    known = values[np.isfinite(values) & (values > 0)]
    return f"{known.min():.1f} to {known.max():.1f} m, median {np.median(known):.1f}" if known.size else "nothing"


def _coloured(values: np.ndarray, known: np.ndarray, low: float, high: float) -> Image.Image:
    known = known & np.isfinite(values)
    return Image.fromarray(colorize(np.where(known, values, 0).astype(np.float32), known, low, high, "turbo", reverse=True))


def _bar(sheet: Image.Image, draw: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont, left: int, top: int, low: float, high: float) -> None:
    """Near at the bottom, as in a room the floor is."""
    height = THUMB[1]
    ramp = np.repeat(np.linspace(high, low, height, dtype=np.float32)[:, None], 14, axis=1)
    sheet.paste(_coloured(ramp, np.ones(ramp.shape, bool), low, high), (left, top))
    for share in (0.0, 0.5, 1.0):
        draw.text((left + 20, top + round((1 - share) * (height - 14))), f"{low + share * (high - low):.1f} m", fill=INK, font=font)


def _paste(sheet: Image.Image, image: Image.Image, left: int, top: int) -> None:
    """Centred in its place, as large as fits; a coloured map is enlarged too, as maps of small photos are small."""
    scale = min(THUMB[0] / image.width, THUMB[1] / image.height)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    image = image.resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BILINEAR)
    sheet.paste(image, (left + (THUMB[0] - size[0]) // 2, top + (THUMB[1] - size[1]) // 2))


def _fit(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    while text and font.getlength(text) > width:
        text = text[:-2].rstrip() + "…"
    return text


@dataclass(frozen=True)
class MaskRow:
    """What a network draws when it is asked: the words, the photo, the true mask and the drawn one, bool [H, W]."""

    words: str
    photo: Image.Image
    truth: np.ndarray
    drawn: np.ndarray


def draw_masks(heading: str, rows: Sequence[MaskRow]) -> Image.Image:
    """Photos with the true and the drawn mask over them, and how much of both they share."""
    large, middle, small = (ImageFont.load_default(size) for size in (22, 15, 12))
    step, line = THUMB[0] + GAP, THUMB[1] + 24
    sheet = Image.new("RGB", (GAP + 3 * step, 74 + line * len(rows) + GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, 8), heading, fill=INK, font=large)
    for place, title in enumerate(("photo", "what the words mean", "what it draws")):
        draw.text((GAP + place * step, 46), title, fill=INK, font=middle)
    for number, row in enumerate(rows):
        top = 74 + number * line
        shared = (row.truth & row.drawn).sum() / max(1, (row.truth | row.drawn).sum())
        for place, picture in enumerate((row.photo, _over(row.photo, row.truth), _over(row.photo, row.drawn))):
            _paste(sheet, picture, GAP + place * step, top)
        draw.text((GAP, top + THUMB[1] + 3), f"“{row.words}”", fill=INK, font=small)
        draw.text((GAP + 2 * step, top + THUMB[1] + 3), f"IoU {shared:.2f}", fill=INK, font=small)
    return sheet


def _over(photo: Image.Image, mask: np.ndarray) -> Image.Image:
    pixels = np.asarray(photo).astype(np.float32) * np.where(mask, 0.45, 0.6)[..., None]
    return Image.fromarray((pixels + mask[..., None] * np.float32(0.55) * np.array([255, 150, 30], np.float32)).astype(np.uint8))
