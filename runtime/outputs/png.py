"""PNG files of maps: one fixed filter for each kind of picture, because trying all five for every row costs more than it saves."""

from __future__ import annotations

import struct
import zlib
from typing import IO

import numpy as np

SIGNATURE = b"\x89PNG\r\n\x1a\n"
NONE, UP = 0, 2  # filter types of the PNG specification, section 9.2
ROWS = 64  # that are filtered and compressed at a time

# Depth changes little from row to row: differences. Colours of a table repeat exactly: as they are, which also compresses better.
KINDS = {np.dtype(np.uint16): (16, 0, UP, 1), np.dtype(np.uint8): (8, 2, NONE, 2)}  # bits, colour type, filter, zlib level


def write_png(file: IO[bytes], pixels: np.ndarray, texts: dict[str, str]) -> None:
    """Write a picture.

    Args:
        pixels: uint16 [H, W], grey, or uint8 [H, W, 3], RGB.
        texts: keyword -> text, Latin-1 where that suffices, else UTF-8.
    """
    bits, color, filtering, level = KINDS[pixels.dtype]
    height, width = pixels.shape[:2]
    file.write(SIGNATURE)
    _chunk(file, b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0))
    for keyword, text in texts.items():
        try:
            _chunk(file, b"tEXt", keyword.encode("latin-1") + b"\0" + text.encode("latin-1"))
        except UnicodeEncodeError:
            _chunk(file, b"iTXt", keyword.encode("latin-1") + b"\0\0\0\0\0" + text.encode("utf-8", "replace"))
    packer = zlib.compressobj(level)
    above = np.zeros(pixels[0].nbytes, np.uint8)
    for start in range(0, height, ROWS):
        some = np.ascontiguousarray(pixels[start : start + ROWS].astype(">u2" if bits == 16 else np.uint8, copy=False))
        rows = some.view(np.uint8).reshape(len(some), -1)
        lines = np.empty((len(rows), rows.shape[1] + 1), np.uint8)
        lines[:, 0] = filtering
        if filtering == UP:
            np.subtract(rows[0], above, out=lines[0, 1:])
            np.subtract(rows[1:], rows[:-1], out=lines[1:, 1:])
            above = rows[-1]
        else:
            lines[:, 1:] = rows
        if packed := packer.compress(lines):
            _chunk(file, b"IDAT", packed)
    _chunk(file, b"IDAT", packer.flush())
    _chunk(file, b"IEND", b"")


def _chunk(file: IO[bytes], kind: bytes, content: bytes) -> None:
    file.write(struct.pack(">I", len(content)) + kind)
    file.write(content)
    file.write(struct.pack(">I", zlib.crc32(content, zlib.crc32(kind))))
