"""Reading photos from files, whatever they are stored as, and finding them on the command line."""

from __future__ import annotations

import glob
import io
import os
import re
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np
from PIL import Image

from ..artefact.contract import MAX_PIXELS_PER_SIDE
from ..errors import InputError, OutOfMemoryError
from ..files import BoundedReader
from ..sequences import zip_equal

# Formats of photographs. Others that Pillow knows are left out: some call outside programs (EPS), TGA would take nearly any bytes for a picture.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "AVIF", "TIFF", "BMP", "DIB", "GIF", "PPM", "JPEG2000")
PNG_PIXELS_PER_BYTE = 8 * 1032  # deflate makes at best 1032 bytes of one, and a pixel may be a bit: a header that says more would only cost memory
ORIENTATION = 0x0112
BITS, WHITE, PLANES = 258, 262, 284  # tags of TIFF
WHITE_IS_ZERO, SEPARATE, PACKED_BITS = 0, 2, 12
OTHER_KINDS = (  # what is often called .jpg or .png: where its first bytes are, what they are, what it is, fix
    (4, (b"ftyphei", b"ftyphev", b"ftypmif1", b"ftypmsf1"), "a HEIC picture", "convert it to JPEG or PNG"),
    (0, (b"version https://git-lfs",), "a Git LFS pointer, not the picture", "git lfs pull, or download the file itself"),
    (0, (b"<!DOCTYPE", b"<!doctype", b"<html", b"<HTML"), "a web page", "download the picture itself"),
    (0, (b"%PDF",), "a PDF", "convert it to JPEG or PNG"),
)
UNREAD = (".heic", ".heif", ".hif", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".raw", ".jxl", ".psd", ".svg", ".exr", ".hdr")
OWN = (33, b"\0\0\0\x0ftEXtSoftware\0Fathom")  # where in a PNG of depth-run, and how, it says whose it is: its first text, right behind the header
DEPTH = re.compile(r"(.+)_depth\.(png|exr)")  # depth beside its photo: of depth-run, or of a depth camera
TILES = "depth-run-show.png"  # and for --show beside them all
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class PhotoFile:
    """One photo to work on.

    Args:
        path: where it is read from.
        stem: relative path, without suffix, that its outputs are named after; unique within one run.
    """

    path: Path
    stem: str


def read_photo(path: str | Path) -> np.ndarray:
    """Read a photo as RGB, turned upright as its EXIF says.

    EXIF orientation is applied. Grey becomes three equal channels; 16-bit grey is divided by 257, so that full scale stays full
    scale. Palette and CMYK are converted. Where a picture is transparent it is laid over black, the value that padding has too:
    what lies hidden under full transparency is leftover, not picture. Of an animation the first frame is taken. Colour profiles
    are not applied, as they were not when the networks were trained.

    Returns:
        uint8 [H, W, 3], RGB.

    Raises:
        InputError: if the file is missing, no picture of a known format, truncated, broken, or larger than 16384 pixels per side.
    """
    return _read(lambda: BoundedReader(path), Path(path))


def decode_photo(raw: bytes, name: str = "the photo", upright: bool = True) -> np.ndarray:
    """As ``read_photo``, from the bytes of a file; ``name`` stands for it in errors. Without ``upright`` the pixels stay as they are stored."""
    return _read(lambda: io.BytesIO(raw), Path(name), upright)


def _read(opened: Callable[[], BinaryIO], path: Path, upright: bool = True) -> np.ndarray:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow's, about odd metadata and about sizes that are checked here
            with opened() as file, Image.open(file, formats=photo_formats()) as image:
                _check_size(path, image, file)
                image.load()
                orientation = _orientation(image) if upright else 1
                photo = _to_rgb(path, image)
        if orientation in UPRIGHT:
            photo = photo.transpose(UPRIGHT[orientation])
        return np.array(photo, dtype=np.uint8)
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist", wanted="a photo") from error
    except IsADirectoryError as error:
        raise InputError(f"{path} is a folder", wanted="a photo") from error
    except PermissionError as error:
        raise InputError(f"{path} cannot be read (permission denied)", fix="change its permissions") from error
    except Image.UnidentifiedImageError as error:
        what, fix = _other_kind(opened)
        raise InputError(f"{path} is {what}", wanted="JPEG, PNG, WebP, TIFF or another photo format", fix=fix) from error
    except Image.DecompressionBombError as error:
        raise InputError(f"{path} would unpack to an absurd size", wanted=f"at most {2 * Image.MAX_IMAGE_PIXELS} pixels") from error
    except MemoryError as error:
        raise OutOfMemoryError(f"no memory is left to read {path}", fix="use a smaller picture, or free memory") from error
    except Exception as error:  # Pillow's decoders raise nearly anything on broken bytes (OSError, SyntaxError, struct.error, KeyError, ...)
        raise InputError(f"{path} is a broken or truncated picture ({type(error).__name__}: {error})", fix="copy or save it again") from error


def photo_formats() -> list[str]:
    """Pillow's names of the formats that are read here."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]  # AVIF came to Pillow late, and some builds lack JPEG2000


def _other_kind(opened: Callable[[], BinaryIO]) -> tuple[str, str]:
    """What a file is that is no photo, and what to do about it."""
    with opened() as file:
        start = file.read(32)
    if not start:
        return "empty", "copy it again"
    found = ((what, fix) for offset, magic, what, fix in OTHER_KINDS if start[offset:].startswith(magic))
    return next(found, ("not a picture of a known format", ""))


def _check_size(path: Path, image: Image.Image, file: BinaryIO) -> None:
    if image.format == "PNG" and image.width * image.height > PNG_PIXELS_PER_BYTE * (nbytes := _nbytes(file)):
        was = f"{path} says that it has {image.size[0]}x{image.size[1]} pixels, which {nbytes} bytes cannot hold"
        raise InputError(was, wanted="a whole picture", fix="copy or save it again")
    if max(image.size) > MAX_PIXELS_PER_SIDE or min(image.size) < 1:
        was = f"{path} has {image.size[0]}x{image.size[1]} pixels"
        raise InputError(was, wanted=f"1 to {MAX_PIXELS_PER_SIDE} per side", fix="resize it first")


def _nbytes(file: BinaryIO) -> int:
    place = file.tell()
    nbytes = file.seek(0, io.SEEK_END)
    file.seek(place)
    return nbytes


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # unreadable EXIF says nothing about which way is up, and the pixels are fine
        return 1


def _to_rgb(path: Path, image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise InputError(f"{path} holds floating-point pixels, whose white is unknown", wanted="8-bit or 16-bit pixels", fix="save it as 8-bit RGB")
    if image.mode.startswith("I"):  # I;16, I;16B, I;16L, I;16N; older Pillow opens 16-bit PNG as I
        deep = np.asarray(image).astype(np.int64)
        if deep.min() < 0 or deep.max() > 0xFFFF:
            raise InputError(f"{path} holds pixels from {deep.min()} to {deep.max()}", wanted="8-bit or 16-bit pixels", fix="save it as 8-bit RGB")
        grey = ((_full_scale(image, deep) + 128) // 257).astype(np.uint8)
        if image.format == "PNG" and "transparency" in image.info:
            grey[deep == image.info["transparency"]] = 0
        image = Image.fromarray(grey)
    elif image.format == "TIFF" and image.tag_v2.get(PLANES) == SEPARATE and max(_bits(image)) > 8:  # Pillow reads these with every value in two pixels
        raise InputError(f"{path} holds its colours one after the other, in {max(_bits(image))} bits", wanted="8-bit pixels", fix="save it as 8-bit RGB")
    clear = image.info.get("transparency")
    if isinstance(clear, tuple) and max(clear) > 0xFF:  # Pillow reads 16-bit colours as 8 bits, but not the one that is transparent
        image.info["transparency"] = tuple(value >> 8 for value in clear)
    if "transparency" in image.info or {"A", "a"} & set(image.getbands()):
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, (0, 0, 0, 255)), layer).convert("RGB")
    return image.convert("RGB")


def _full_scale(image: Image.Image, deep: np.ndarray) -> np.ndarray:
    """Deep grey so that white is 65535: a TIFF may have 12 bits, and its white may be 0."""
    if image.format != "TIFF":
        return deep
    if _bits(image) == (PACKED_BITS,):
        deep = deep * 0xFFFF // ((1 << PACKED_BITS) - 1)
    return 0xFFFF - deep if image.tag_v2.get(WHITE) == WHITE_IS_ZERO else deep


def _bits(image: Image.Image) -> tuple[int, ...]:
    return tuple(image.tag_v2.get(BITS, (1,)))


def find_photos(arguments: list[str], on_message: Callable[[str], None] = lambda text: None) -> list[PhotoFile]:
    """Turn command-line inputs into photos, each once, in the order given.

    A file is taken as it is. Of a folder, the files directly in it that have the suffix of a photo are taken, in natural order
    (``2.jpg`` before ``10.jpg``), hidden ones left out; use a glob with ``**`` to go deeper. A glob is expanded here too, for shells that do not.
    Stems are relative to the folder, or to the part of a glob before its first wildcard; where two photos would get the same one, the
    suffix is kept; if that is not enough, as many parent folders as it takes. Pictures that depth-run wrote are left out wherever they are, for
    a shell that expands globs names them too; of a folder or glob also NAME_depth.png beside a photo NAME, and what cannot be read here (HEIC, raw).

    Args:
        on_message: called with a sentence that says how many were left out, and why.

    Raises:
        InputError: if an argument names nothing, a folder or glob holds no photo, or there is nothing but results of depth-run.
    """
    own: list[Path] = []
    found: dict[str, tuple[Path, str]] = {}
    for argument in arguments:
        path = Path(argument)
        if path.is_dir():
            files, base = _choose(sorted(path.iterdir()), on_message), path
            if not files:
                unread = sum(item.suffix.lower() in UNREAD for item in path.iterdir())
                was = f"the folder {argument} holds no photos" + (f" that can be read here, only {unread} of {_endings(path.iterdir())}" if unread else "")
                fix = "convert them to JPEG or PNG" if unread else f"for folders in it: '{argument}/**/*.jpg'"
                raise InputError(was, wanted="files like .jpg or .png directly in it", fix=fix)
        elif path.exists() or not glob.has_magic(argument):
            if not path.exists():
                raise InputError(f"{argument} does not exist", wanted="a photo, a folder or a glob")
            if not path.is_file():  # a pipe or a device may keep its reader waiting for good
                raise InputError(f"{argument} is no plain file", wanted="a photo, a folder or a glob", fix="write it to a file first")
            files, base = [path], path.parent
        else:
            parts = path.parts
            base = Path(*parts[: next(i for i, part in enumerate(parts) if glob.has_magic(part))])
            files = _choose([Path(name) for name in sorted(glob.iglob(argument, recursive=True))], on_message)
            if not files:
                raise InputError(f"nothing matches {argument}", wanted="photos")
        for file in sorted(files, key=lambda item: natural_key(item.as_posix())):
            if is_own_result(file):
                own.append(file)
            else:
                found.setdefault(os.path.realpath(file), (file, file.relative_to(base).as_posix()))
    if own and not found:
        raise InputError(f"{own[0]} is a result of depth-run", wanted="a photo", fix="name the photos, or the folder that they are in")
    if own:
        on_message(f"{len(own)} results of an earlier run are not taken for photos ({own[0].name})")
    return [PhotoFile(path, stem) for (path, _), stem in zip_equal(found.values(), unique_stems([(real, relative) for real, (_, relative) in found.items()]))]


def is_named_as_photo(path: Path) -> bool:
    """Whether its ending is that of a photo format, and it is not hidden."""
    return Image.registered_extensions().get(path.suffix.lower()) in FORMATS and not path.name.startswith(".")


def is_own_result(path: Path) -> bool:
    """Whether depth-run wrote this picture, which it says in its first bytes: names would not tell it from somebody's photo."""
    try:
        with open(path, "rb") as file:
            return file.read(OWN[0] + len(OWN[1]))[OWN[0] :] == OWN[1]
    except OSError:
        return False  # its reader will say what is wrong with it


def refuse_as_results(photos: set[str], results: Iterable[tuple[object, Iterable[Path]]]) -> None:
    """A photo called ``a_color.png`` in the folder of the results is where those of ``a.png`` would go: --force does not mean that.

    Args:
        photos: their real paths.
        results: each photo's name, and the files that are to be made of it.

    Raises:
        InputError: if one of these files is a photo.
    """
    for name, files in results:
        if taken := next((path for path in files if os.path.realpath(path) in photos), None):
            raise InputError(f"{taken}, a result of {name}, is itself one of the photos", wanted="another name", fix="another --output")


def _choose(items: list[Path], on_message: Callable[[str], None]) -> list[Path]:
    """The photos among the files of a folder or glob."""
    photos = [item for item in items if is_named_as_photo(item) and item.is_file()]
    stems = {(item.parent, item.stem) for item in photos}
    depth = [item for item in photos if (match := DEPTH.fullmatch(item.name)) and (item.parent, match[1]) in stems and not is_own_result(item)]
    if depth:
        on_message(f"{len(depth)} pictures of depth beside a photo are not taken for photos ({depth[0].name}); to have their depth all the same, name them")
    unread = [item for item in items if item.suffix.lower() in UNREAD and item.is_file() and not DEPTH.fullmatch(item.name)]
    if unread and photos:
        on_message(f"{len(unread)} files are pictures that cannot be read here ({_endings(unread)}): convert them to JPEG or PNG")
    return [item for item in photos if item not in set(depth)]


def _endings(items: Iterable[Path]) -> str:
    return ", ".join(sorted({item.suffix.lower().lstrip(".").upper() for item in items if item.suffix.lower() in UNREAD}))


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """A sort key of a file name by which numbers count as numbers: ``photo2`` comes before ``photo10``."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", name) if part]


def unique_stems(found: list[tuple[str, str]]) -> list[str]:
    """One name per photo, as short as uniqueness allows; letter case does not count, for file systems that ignore it.

    Args:
        found: for each photo its whole path, and the part of it to be named after.
    """
    ladders = []
    for real, relative in found:
        parents = PurePosixPath(Path(real).as_posix()).parts[1:-1]
        inside = PurePosixPath(relative)
        longer = [PurePosixPath(*parents[-k:], inside.name) for k in range(1, len(parents) + 1)]
        ladders.append([str(name) for path in (inside, *longer) for name in (path.with_suffix(""), path)])
    rung = [0] * len(ladders)
    while True:
        names: dict[str, list[int]] = {}
        for index, ladder in enumerate(ladders):
            names.setdefault(ladder[rung[index]].casefold(), []).append(index)
        clashes = [index for same in names.values() if len(same) > 1 for index in same if rung[index] + 1 < len(ladders[index])]
        if not clashes:
            break
        for index in clashes:
            rung[index] += 1
    for same in names.values():  # what is left differs by letter case only: a number tells it apart
        for number, index in enumerate(same[1:], start=2):
            ladders[index][rung[index]] += f"-{number}"
    return [_safe(ladder[step]) for ladder, step in zip_equal(ladders, rung)]


def _safe(stem: str) -> str:
    """No output leaves its folder, whatever the input is called."""
    return "/".join(part for part in stem.split("/") if part not in ("", ".", ".."))
