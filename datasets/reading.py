"""Photos and depth maps from files, with errors that name the file; never a silent repair."""

from __future__ import annotations

import io
import os
import re
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

PHOTO_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
# What depth-run reads (runtime.photo), and nothing else: other formats that Pillow knows start outside programs (EPS) or take any bytes.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "AVIF", "TIFF", "BMP", "DIB", "GIF", "PPM", "JPEG2000")
PNG_PIXELS_PER_BYTE = 8 * 1032  # deflate makes at best 1032 bytes of one, and a pixel may be a bit: a header that says more would only cost memory
BITS, WHITE, PLANES = 258, 262, 284  # tags of TIFF
ORIENTATION, UPRIGHT = 274, 1  # tag of EXIF, and its value where nothing is turned
WHITE_IS_ZERO, SEPARATE, PACKED_BITS = 0, 2, 12
MAX_LIST_NBYTES, MAX_LINE = 256 << 20, 4096


class _BoundedReader(io.BufferedReader):
    """A file that gives no more than it has: Pillow asks for as many bytes as a damaged header says, and Python makes room for them first."""

    def __init__(self, path: Path):
        super().__init__(io.FileIO(path))
        self._nbytes = os.fstat(self.fileno()).st_size

    def read(self, count: int | None = -1) -> bytes:
        left = max(self._nbytes - self.tell(), 0)
        return super().read(left if count is None or count < 0 else min(count, left))


def _open(path: Path, paired: bool) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow's, about odd metadata and sizes below its limit
        try:
            Image.init()
            with _BoundedReader(path) as file:
                image = Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN])
                if image.format == "PNG" and image.width * image.height > PNG_PIXELS_PER_BYTE * path.stat().st_size:
                    raise ValueError(f"its header says {image.width}x{image.height} pixels, which {path.stat().st_size} bytes cannot hold")
                if paired and (turn := _orientation(image)) not in (0, UPRIGHT):  # asked before TIFF is loaded, which turns it
                    raise ValueError(
                        f"it is to be shown turned (EXIF orientation {turn}), and a photo and its depth map are read pixel by pixel as they are stored; "
                        "wanted both stored upright, without that orientation"
                    )
                image.load()
        except UnidentifiedImageError as error:
            raise ValueError(f"{path} is no picture that can be read; wanted {', '.join(FORMATS)}") from error
        except (Image.DecompressionBombError, SyntaxError, ValueError) as error:
            raise ValueError(f"{path} is no picture that can be read: {error}") from error
        except OSError as error:
            if isinstance(error, FileNotFoundError | IsADirectoryError | PermissionError):
                raise OSError(f"{path} cannot be read: {error.strerror}") from error
            raise ValueError(f"{path} is broken: {error}") from error
    return image


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ORIENTATION, UPRIGHT))
    except Exception:  # unreadable EXIF says nothing about which way is up
        return UPRIGHT


def read_rgb(path: Path, paired: bool = False, upright: bool = True) -> np.ndarray:
    """A photo as uint8 [H, W, 3], just as ``depth-run`` sees it: upright by its EXIF data, 16-bit grey divided by 257, transparency over black.

    Args:
        paired: whether a depth map belongs to it: of a photo that EXIF turns nobody knows which way its depth map is up.
        upright: turn it as EXIF says; False: leave it as it is stored.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is no picture, broken, of floating-point pixels, or of implausible size; if paired, also if EXIF turns it.
    """
    whole = _open(path, paired)
    try:
        image = ImageOps.exif_transpose(whole) if upright else whole
    except Exception:  # unreadable EXIF says nothing about which way is up
        image = whole
    if image.mode == "F":
        raise ValueError(f"{path} holds floating-point pixels, whose white is unknown")
    if image.mode.startswith("I"):
        deep = np.asarray(image).astype(np.int64)
        if deep.min() < 0 or deep.max() > 65535:
            raise ValueError(f"{path} holds pixels from {deep.min()} to {deep.max()}; a photo has 8 or 16 bits")
        grey = ((_full_scale(whole, deep) + 128) // 257).astype(np.uint8)
        if whole.format == "PNG" and "transparency" in whole.info:
            grey[deep == whole.info["transparency"]] = 0
        image = Image.fromarray(grey)
    elif whole.format == "TIFF" and whole.tag_v2.get(PLANES) == SEPARATE and max(_bits(whole)) > 8:
        raise ValueError(f"{path} holds its colours one after the other, in {max(_bits(whole))} bits; wanted 8-bit pixels")
    clear = image.info.get("transparency")
    if isinstance(clear, tuple) and max(clear) > 0xFF:  # Pillow reads 16-bit colours as 8 bits, but not the one that is transparent
        image.info["transparency"] = tuple(value >> 8 for value in clear)
    if "transparency" in image.info or {"A", "a"} & set(image.getbands()):
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, (0, 0, 0, 255)), layer)
    return np.array(image.convert("RGB"))


def _full_scale(image: Image.Image, deep: np.ndarray) -> np.ndarray:
    if image.format != "TIFF":
        return deep
    if _bits(image) == (PACKED_BITS,):
        deep = deep * 65535 // ((1 << PACKED_BITS) - 1)
    return 65535 - deep if image.tag_v2.get(WHITE) == WHITE_IS_ZERO else deep


def _bits(image: Image.Image) -> tuple[int, ...]:
    return tuple(image.tag_v2.get(BITS, (1,)))


def read_depth_png(path: Path, scale: float) -> np.ndarray:
    """A 16-bit grey PNG divided by ``scale``: metres, float32 [H, W]; 0 stays 0 and means unknown.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is no picture, has no single 16-bit channel, or is turned by EXIF.
    """
    image = _open(path, paired=True)
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
    """The words of every line of a list file that is neither empty nor a comment (#).

    Read as people save them: UTF-8 or UTF-16 with or without a byte-order mark, any line ends, back slashes, words apart by blanks, tabs or commas,
    in quotation marks or not.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is not text or holds no line.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder; wanted a list, a text file")
    if path.stat().st_size > MAX_LIST_NBYTES:
        raise ValueError(f"{path} is no list of files: it has {path.stat().st_size:,} bytes")
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ValueError(f"{path} is no list of files, or not saved as UTF-8: line {line} holds bytes that are no UTF-8") from error
    if "\0" in text:
        raise ValueError(f"{path} is no list of files: it holds null characters")
    found = [line.replace("\\", "/").strip() for line in text.splitlines()]
    lines = [(line if any(gap in line for gap in " \t") else line.replace(",", " ")).split() for line in found if line and not line.startswith("#")]
    if not lines:
        raise ValueError(f"{path} is an empty list")
    if long := next((number for number, words in enumerate(lines, 1) if sum(map(len, words)) > MAX_LINE), 0):
        raise ValueError(f"{path} is no list of files: its line {long} has more than {MAX_LINE} characters")
    return [[word.strip('"') for word in words] for words in lines]


def below(folder: Path, name: str, prefixes: tuple[str, ...]) -> Path | None:
    """The file that a list calls ``name``, tried under each prefix of ``folder``. A leading slash counts for nothing, unless the whole path of the
    folder follows it.

    Raises:
        ValueError: if the name leads out of the folder.
    """
    whole = next((root for root in (folder.absolute(), folder.resolve()) if Path(name).is_relative_to(root)), None)
    relative = Path(name).relative_to(whole) if whole else Path(name.lstrip("/"))
    if ".." in relative.parts or relative.is_absolute():
        raise ValueError(f"the list names {name!r}, which lies outside {folder}")
    for suffix in (relative.suffix, *{".png": (".jpg",), ".jpg": (".png",)}.get(relative.suffix.lower(), ())):  # data sets are converted often
        name = relative.with_suffix(suffix)
        if found := next((path for prefix in prefixes if (path := folder / prefix / name).is_file()), None):
            return found
    return None
