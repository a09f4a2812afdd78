"""Words on pictures: the font that ships with Pillow, and texts cut to their room."""

from __future__ import annotations

from PIL import ImageFont


def default_font(size: int):
    """Pillow's own font at a size in pixels; one small fixed font where Pillow is older than 10.1 or built without FreeType."""
    try:
        return ImageFont.load_default(size)
    except (TypeError, ImportError, OSError):
        return ImageFont.load_default()


def shortened(text: str, font, room: float) -> str:
    """The text, cut and ended with an ellipsis if it is wider than ``room`` pixels."""
    while len(text) > 1 and font.getlength(text) > room:
        text = text[:-2].rstrip() + "…"
    return text
