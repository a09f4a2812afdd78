"""Photos in, maps out: reading, preprocessing and postprocessing, and what a map means."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .photo import read_photo

__all__ = ["read_photo"]


def __getattr__(name: str):
    if name != "read_photo":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .photo import read_photo

    return read_photo
