"""One picture to look at: photos, true depth, the depth of several networks in the same colours, and where each is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ...runtime.outputs.lettering import shortened
from .pictures import WORST, Row, coloured, drawn, error_map, fitting, row_range, said, span

PAPER, INK, FAINT, ALARM = (24, 24, 24), (235, 235, 235), (160, 160, 160), (255, 110, 110)
THUMB, ERROR = (224, 168), (112, 84)
GAP, BAR, CAPTION, BETWEEN = 10, 72, 40, 26  # BETWEEN: pixels between two groups of columns
GROUP, NAME, LINE, LINES = 22, 20, 15, 3  # heights of the heads


@dataclass(frozen=True)
class Column:
    """One network: its name, what is known of it in a few lines (the last is a warning if ``alarm``), and the group it stands in."""

    name: str
    lines: tuple[str, ...]
    group: str = ""
    alarm: bool = False


def column_lefts(columns: Sequence[Column]) -> list[int]:
    """Where the photo, the truth and every column begin, in pixels; and the bar, last."""
    lefts, x, group = [GAP, GAP + THUMB[0] + GAP], GAP + 2 * (THUMB[0] + GAP), columns[0].group if columns else ""
    for column in columns:
        x, group = x + (BETWEEN if column.group != group else 0), column.group
        lefts.append(x)
        x += THUMB[0] + GAP
    return [*lefts, x]


def head_height(notes: Sequence[str]) -> int:
    """Of everything above the first row, in pixels."""
    return 38 + 16 * len(notes) + 10 + GROUP + NAME + LINE * LINES + 8


def row_height(row: Row) -> int:
    """With its captions, and its error maps where there is a truth."""
    return THUMB[1] + CAPTION + (ERROR[1] + 14 if row.truth_m is not None else 0)


def draw_sheet(heading: str, notes: Sequence[str], columns: Sequence[Column], rows: Sequence[Row], alarm: bool = False) -> Image.Image:
    """The whole picture. Every row has its own range of colours; its bar is at the right.

    Args:
        notes: lines below the heading.
        alarm: the notes are a warning.
    """
    large, middle, small = (ImageFont.load_default(size) for size in (22, 15, 12))
    lefts, top = column_lefts(columns), head_height(notes)
    sheet = Image.new("RGB", (lefts[-1] + BAR + GAP, top + sum(map(row_height, rows)) + GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, 8), heading, fill=INK, font=large)
    for number, note in enumerate(notes):
        draw.text((GAP, 38 + 16 * number), note, fill=ALARM if alarm else FAINT, font=small)
    heads = 38 + 16 * len(notes) + 10
    group = ""
    for left, column in zip(lefts, (Column("photo", ()), Column("true depth", ("where it was measured",)), *columns), strict=False):
        if column.group and column.group != group:
            draw.text((left, heads), column.group, fill=FAINT, font=middle)
        group = column.group
        draw.text((left, heads + GROUP), column.name, fill=INK, font=middle)
        for number, text in enumerate(column.lines[:LINES]):
            fill = ALARM if column.alarm and number == len(column.lines) - 1 else FAINT
            draw.text((left, heads + GROUP + NAME + LINE * number), shortened(text, small, THUMB[0]), fill=fill, font=small)
    for row in rows:
        _draw_row(sheet, draw, small, row, lefts, top)
        top += row_height(row)
    return sheet


def _draw_row(sheet: Image.Image, draw: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont, row: Row, lefts: list[int], top: int) -> None:
    width, height = THUMB
    low, high = row_range(row)
    _paste(sheet, row.photo, lefts[0], top)
    draw.text((lefts[0], top + height + 3), shortened(row.title, font, width), fill=INK, font=font)
    if row.truth_m is None:
        draw.text((lefts[1] + width // 2 - 40, top + height // 2 - 8), "no true depth", fill=FAINT, font=font)
    else:
        known = row.truth_m > 0
        _paste(sheet, coloured(row.truth_m, known, low, high), lefts[1], top)
        draw.text((lefts[1], top + height + 3), span(row.truth_m[known]), fill=FAINT, font=font)
        for number, text in enumerate(("error maps, right: dark is right,", f"bright is {WORST:.0%} off or more")):
            draw.text((lefts[1], top + height + CAPTION + 15 * number), text, fill=FAINT, font=font)
    for left, found in zip(lefts[2:], row.maps, strict=False):
        _paste(sheet, drawn(found, row), left, top)
        for number, text in enumerate(said(found, row.truth_m)[1]):
            draw.text((left, top + height + 3 + 15 * number), text, fill=FAINT if number == 0 else INK, font=font)
        if row.truth_m is not None:
            sheet.paste(fitting(error_map(found, row.truth_m), *ERROR), (left, top + height + CAPTION))
    _bar(sheet, draw, font, lefts[-1], top, low, high)


def _bar(sheet: Image.Image, draw: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont, left: int, top: int, low: float, high: float) -> None:
    """Near at the bottom, as in a room the floor is."""
    height = THUMB[1]
    ramp = np.repeat(np.linspace(high, low, height, dtype=np.float32)[:, None], 14, axis=1)
    sheet.paste(coloured(ramp, np.ones(ramp.shape, bool), low, high), (left, top))
    for share in (0.0, 0.5, 1.0):
        draw.text((left + 20, top + round((1 - share) * (height - 14))), f"{low + share * (high - low):.1f} m", fill=INK, font=font)


def _paste(sheet: Image.Image, image: Image.Image, left: int, top: int) -> None:
    """Centred in its place."""
    image = fitting(image, *THUMB)
    sheet.paste(image, (left + (THUMB[0] - image.width) // 2, top + (THUMB[1] - image.height) // 2))


@dataclass(frozen=True)
class MaskRow:
    """What a network draws when it is asked: the words, the photo, the true mask and the drawn one, bool [H, W]."""

    words: str
    photo: Image.Image
    truth: np.ndarray
    drawn: np.ndarray


def draw_masks(rows: Sequence[MaskRow]) -> Image.Image:
    """Photos with the true and the drawn mask over them, and how much of both they share."""
    middle, small = (ImageFont.load_default(size) for size in (15, 12))
    step, line = THUMB[0] + GAP, THUMB[1] + 24
    sheet = Image.new("RGB", (GAP + 3 * step, 36 + line * len(rows) + GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    for place, title in enumerate(("photo", "what the words mean", "what it draws")):
        draw.text((GAP + place * step, 8), title, fill=INK, font=middle)
    for number, row in enumerate(rows):
        top = 36 + number * line
        shared = (row.truth & row.drawn).sum() / max(1, (row.truth | row.drawn).sum())
        for place, picture in enumerate((row.photo, _over(row.photo, row.truth), _over(row.photo, row.drawn))):
            _paste(sheet, picture, GAP + place * step, top)
        draw.text((GAP, top + THUMB[1] + 3), shortened(f"“{row.words}”", small, 2 * step), fill=INK, font=small)
        draw.text((GAP + 2 * step, top + THUMB[1] + 3), f"IoU {shared:.2f}", fill=INK, font=small)
    return sheet


def _over(photo: Image.Image, mask: np.ndarray) -> Image.Image:
    pixels = np.asarray(photo).astype(np.float32) * np.where(mask, 0.45, 0.6)[..., None]
    return Image.fromarray((pixels + mask[..., None] * np.float32(0.55) * np.array([255, 150, 30], np.float32)).astype(np.uint8))
