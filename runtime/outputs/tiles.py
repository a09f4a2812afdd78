"""Photos beside their maps on one picture, for a quick look."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngImageFile

from ..files import whole_file
from ..photo.photo import read_photo
from .lettering import default_font, shortened
from .png import write_png
from .scale_bar import INK, PAPER

MOST = 24  # photos on one picture
SIDE, GAP, LINE = 320, 8, 18  # pixels


def save_tiles(pairs: Sequence[tuple[Path, Path]], path: Path, force: bool = False) -> int:
    """Write a PNG of at most ``MOST`` photos, each with its map at its right and its name below.

    Args:
        pairs: a photo and the colour picture of its map.

    Returns:
        how many are on it.

    Raises:
        InputError: if a picture cannot be read, or the file not be written.
    """
    pairs = list(pairs)[:MOST]
    columns = 1 if len(pairs) < 3 else 2 if len(pairs) < 9 else 3
    step, line = 2 * (SIDE + GAP), SIDE * 3 // 4 + LINE + GAP
    sheet = Image.new("RGB", (GAP + columns * step, GAP + math.ceil(len(pairs) / columns) * line), PAPER)
    draw, font = ImageDraw.Draw(sheet), default_font(13)
    for number, (photo, color) in enumerate(pairs):
        left, top = GAP + number % columns * step, GAP + number // columns * line
        for offset, image in ((0, Image.fromarray(read_photo(photo))), (SIDE + GAP, PngImageFile(color))):  # with its scale bar larger than a photo may be
            scale = min(SIDE / image.width, SIDE * 3 / 4 / image.height)
            image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
            sheet.paste(image, (left + offset + (SIDE - image.width) // 2, top))
        name = shortened(photo.name, font, 2 * SIDE)
        draw.text((left, top + SIDE * 3 // 4 + 1), name.encode("ascii", "replace").decode(), fill=INK, font=font)
    with whole_file(path, force) as part, open(part, "wb") as file:
        write_png(file, np.asarray(sheet), {"Software": "Fathom"})
    return len(pairs)
