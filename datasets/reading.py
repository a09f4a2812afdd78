"""Photos and depth maps from files, with errors that name the file; never a silent repair."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

PHOTO_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")


def _open(path: Path) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            image = Image.open(path)
            image.load()
        except (UnidentifiedImageError, Image.DecompressionBombError, Image.DecompressionBombWarning, SyntaxError, ValueError) as error:
            raise ValueError(f"{path} is no picture that can be read: {error}") from error
        except OSError as error:
            if isinstance(error, FileNotFoundError | IsADirectoryError | PermissionError):
                raise OSError(f"{path} cannot be read: {error.strerror}") from error
            raise ValueError(f"{path} is broken: {error}") from error
    return image


def read_rgb(path: Path) -> np.ndarray:
    """A photo as uint8 [H, W, 3], turned upright as its EXIF data say.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is no picture, broken, or of implausible size.
    """
    return np.array(ImageOps.exif_transpose(_open(path)).convert("RGB"))


def read_depth_png(path: Path, scale: float) -> np.ndarray:
    """A 16-bit grey PNG divided by ``scale``: metres, float32 [H, W]; 0 stays 0 and means unknown.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is no picture or has no single 16-bit channel.
    """
    image = _open(path)
    if image.mode not in ("I;16", "I;16B", "I"):
        raise ValueError(f"{path} is a picture of mode {image.mode}; depth is a 16-bit grey PNG")
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError(f"{path} holds values from {values.min()} to {values.max()}; depth is a 16-bit grey PNG")
    return (values / np.float64(scale)).astype(np.float32)


def natural(path: Path) -> list:
    """A sort key in which ``2.png`` comes before ``10.png``."""
    return [int(word) if word.isdigit() else word for word in re.split(r"(\d+)", path.as_posix())]


def list_lines(path: Path) -> list[list[str]]:
    """The words of every line of a list file that is not empty.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is not text or holds no line.
    """
    try:
        lines = [line.split() for line in path.read_text("utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no list of files: {error}") from error
    if not lines:
        raise ValueError(f"{path} is an empty list")
    return lines


def below(folder: Path, name: str, prefixes: tuple[str, ...]) -> Path | None:
    """The file that a list calls ``name`` (a leading slash counts for nothing), tried under each prefix of ``folder``.

    Raises:
        ValueError: if the name leads out of the folder.
    """
    relative = Path(name.lstrip("/"))
    if ".." in relative.parts or relative.is_absolute():
        raise ValueError(f"the list names {name!r}, which lies outside {folder}")
    return next((path for prefix in prefixes if (path := folder / prefix / relative).is_file()), None)
