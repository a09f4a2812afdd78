"""Small damages: to bytes, to JSON values, to the members of a zip. The same seed always damages in the same way."""

from __future__ import annotations

import copy
import io
import json
import random
import struct
import zipfile
from typing import Any

ODD_NUMBERS = (0, 1, -1, 2, 127, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**63), 10**400)
ODD_FLOATS = (0.0, -0.0, 1e-320, 1e308, 1e400, -1e400, float("nan"), 0.1, 1.5)
ODD_WORDS = (
    *("", " ", "0", "\0", "a" * 300, "../../etc/passwd", "/etc/passwd", "..", ".", "a/../b", "C:\\x", "nan", "ü", "\ud800", "%s%n", "(a+)+$", "x" * 100_000),
    *("float16", "int4", "string", "metric", "mask", "batch", "-1"),
)
MAGICS = (b"PK\x03\x04", b"PK\x05\x06", b"PK\x01\x02", b"\x89PNG\r\n\x1a\n", b"IHDR", b"\x89HDF\r\n\x1a\n", b"{", b"[" * 5000, b"\x00" * 64, b"\xff" * 16)
PICKLE_TOKENS = (
    b"cos\nsystem\n",
    b"cbuiltins\neval\n",
    b"cposix\nsystem\n",
    b"X\x02\x00\x00\x00id",
    b"\x85R",
    b"R",
    b"b",
    b"Q",
    b"(",
    b"t",
    b"0",
    b"2",
    b"\x94",
)


def damage_bytes(draw: random.Random, data: bytes, tokens: tuple[bytes, ...] = MAGICS) -> bytes:
    """One to four of: bits turned, a number overwritten, a piece cut out, doubled, moved, or put in, the end cut off."""
    raw = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        if not raw:
            return bytes(raw)
        at = draw.randrange(len(raw))
        # The first and last pages hold what the rest hangs on: hit them more often.
        at = draw.choice((at, min(at % 512, len(raw) - 1), max(0, len(raw) - 1 - at % 512)))
        length = draw.choice((1, 2, 4, 8, 64, 1024))
        kind = draw.randrange(8)
        if kind == 0:
            raw[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            raw[at] = draw.choice((0, 1, 0x7F, 0x80, 0xFF, draw.randrange(256)))
        elif kind == 2:
            number = draw.choice(ODD_NUMBERS[:-1]) & (2**64 - 1)
            form, mask = draw.choice((("<H", 2**16 - 1), (">H", 2**16 - 1), ("<I", 2**32 - 1), (">I", 2**32 - 1), ("<Q", 2**64 - 1)))
            word = struct.pack(form, number & mask)
            raw[at : at + len(word)] = word
        elif kind == 3:
            del raw[at : at + length]
        elif kind == 4:
            raw[at:at] = raw[at : at + length]
        elif kind == 5:
            to = draw.randrange(len(raw))
            raw[to : to + length] = raw[at : at + length]
        elif kind == 6:
            raw[at:at] = draw.choice(tokens)
        else:
            del raw[draw.choice((at, len(raw) - 1, len(raw) // 2)) :]
    return bytes(raw)


def _places(value: Any, place: tuple = ()) -> list[tuple]:
    found = [place]
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        found += _places(inner, (*place, key))
    return found


def _odd(draw: random.Random, value: Any) -> Any:
    if draw.random() < 0.4:  # of the same kind: gets further
        if isinstance(value, bool):
            return not value
        if isinstance(value, int):
            return draw.choice((value + 1, value - 1, -value, value * 2, *ODD_NUMBERS))
        if isinstance(value, float):
            return draw.choice((value * 2, -value, 1 / value if value else 1.0, *ODD_FLOATS))
        if isinstance(value, str):
            return draw.choice((value + "x", value[:-1], value.upper(), *ODD_WORDS))
    kinds = (draw.choice(ODD_NUMBERS), draw.choice(ODD_FLOATS), draw.choice(ODD_WORDS), None, True, [], {}, [value], {"x": value}, [0] * 1000)
    return draw.choice(kinds)


def damage_json(draw: random.Random, value: Any) -> Any:
    """One to three of: a value made odd, a key left out, doubled or renamed, two values exchanged."""
    value = copy.deepcopy(value)
    for _ in range(draw.choice((1, 1, 2, 3))):
        places = _places(value)
        place = draw.choice(places)
        if not place:
            if draw.random() < 0.05:
                value = _odd(draw, value)
            continue
        holder = value
        for key in place[:-1]:
            holder = holder[key]
        key, kind = place[-1], draw.randrange(6)
        if kind == 0:
            del holder[key]
        elif kind == 1 and isinstance(holder, dict):
            holder[draw.choice((*ODD_WORDS, f"{key}x"))] = holder.pop(key)
        elif kind == 1:
            holder.insert(key, copy.deepcopy(holder[key]))
        elif kind == 2:
            other = draw.choice(places)
            taken = value
            for step in other:
                try:
                    taken = taken[step]
                except (LookupError, TypeError):
                    break
            holder[key] = copy.deepcopy(taken)
        else:
            holder[key] = _odd(draw, holder[key])
    return value


def json_bytes(draw: random.Random, value: Any) -> bytes:
    """As text, now and then in an odd encoding or with a constant that is no JSON."""
    text = json.dumps(value, allow_nan=True)
    return draw.choice((text.encode("utf-8", "surrogatepass"),) * 12 + (b"\xef\xbb\xbf" + text.encode(), text.encode("utf-16", "surrogatepass")))


def damage_zip(draw: random.Random, members: dict[str, bytes], tokens: tuple[bytes, ...] = MAGICS) -> bytes:
    """A zip whose members, names or directory are damaged while its checksums are right."""
    items = list(members.items())
    at = draw.randrange(len(items))
    name, data = items[at]
    kind = draw.randrange(8)
    if kind < 4:
        items[at] = (name, damage_bytes(draw, data, tokens))
    elif kind == 4:
        items[at] = (
            draw.choice((*(word for word in ODD_WORDS if "\0" not in word and "\ud800" not in word and len(word) < 1000), name + "/x", f"/{name}")),
            data,
        )
    elif kind == 5:
        del items[at]
    elif kind == 6:
        items.append((name, damage_bytes(draw, data, tokens)))
    else:
        other = draw.randrange(len(items))
        items[at], items[other] = (name, items[other][1]), (items[other][0], data)
    return zipped(items, zipfile.ZIP_DEFLATED if draw.random() < 0.1 else zipfile.ZIP_STORED)


def zipped(items: list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> bytes:
    """Members to a zip; two may have one name."""
    import warnings

    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", method) as archive:
        warnings.simplefilter("ignore")
        for name, data in items:
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return buffer.getvalue()


def unzipped(data: bytes) -> dict[str, bytes]:
    """All members of a zip."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}
