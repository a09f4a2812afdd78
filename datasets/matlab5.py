"""Arrays of numbers from MATLAB 5 files (``splits.mat``): the few bytes of that format that hold them, each length checked before it is believed.

After MathWorks' "MAT-File Format": a header of 128 bytes, then elements of a type, a length and data padded to 8 bytes, compressed ones
holding one more element each.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from itertools import islice
from math import prod
from pathlib import Path

import numpy as np

HEADER_NBYTES, MAX_NBYTES = 128, 64 << 20
MATRIX, COMPRESSED = 14, 15
NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
CLASSES = range(6, 16)  # arrays of double to uint64; below are cells, structures and text


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of real numbers by name; other variables are passed over.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is no MATLAB 5 file, or broken.
    """
    if path.stat().st_size > MAX_NBYTES:
        raise ValueError(f"it has more than {MAX_NBYTES} bytes")
    raw = path.read_bytes()
    order = {b"IM": "<", b"MI": ">"}.get(raw[126:128])
    if len(raw) < HEADER_NBYTES or order is None or struct.unpack(f"{order}H", raw[124:126])[0] != 0x0100:
        raise ValueError("it does not begin like a MATLAB 5 file")
    found = {}
    for kind, data in _elements(raw[HEADER_NBYTES:], order):
        if kind == COMPRESSED:
            unpacker = zlib.decompressobj()
            try:
                unpacked = unpacker.decompress(data, MAX_NBYTES)
            except zlib.error as error:
                raise ValueError(f"a compressed variable is broken ({error})") from error
            kind, data = next(_elements(unpacked, order), (0, b""))
        if kind == MATRIX and (named := _array(data, order)) is not None:
            found[named[0]] = named[1]
    return found


def _elements(raw: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """Type and data of one element after the other."""
    at = 0
    while at + 8 <= len(raw):
        kind, nbytes = struct.unpack_from(f"{order}II", raw, at)
        if kind >> 16:  # the short form: length and type in one word, four bytes of data in the next
            kind, nbytes, begin, after = kind & 0xFFFF, kind >> 16, at + 4, at + 8
            if nbytes > 4:
                raise ValueError(f"a short element of {nbytes} bytes")
        else:
            begin = at + 8
            after = begin + nbytes + (0 if kind == COMPRESSED else -nbytes % 8)
        if begin + nbytes > len(raw):
            raise ValueError("it is cut short")
        yield kind, raw[begin : begin + nbytes]
        at = after


def _array(data: bytes, order: str) -> tuple[str, np.ndarray] | None:
    parts = list(islice(_elements(data, order), 4))
    if len(parts) < 4 or len(parts[0][1]) < 8:
        return None
    (_, flags), (_, sizes), (_, name), (kind, numbers) = parts
    if struct.unpack_from(f"{order}I", flags)[0] & 0xFF not in CLASSES or kind not in NUMBERS or len(sizes) % 4:
        return None
    shape = tuple(int(size) for size in np.frombuffer(sizes, f"{order}i4"))
    dtype = np.dtype(order + NUMBERS[kind])
    if min(shape, default=-1) < 0 or prod(shape) * dtype.itemsize != len(numbers):
        raise ValueError(f"an array of shape {shape} in {len(numbers)} bytes")
    return name.decode("ascii", "replace"), np.frombuffer(numbers, dtype).reshape(shape, order="F")
