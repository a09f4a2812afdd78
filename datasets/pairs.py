"""Plain folders: photo and depth pairs described by a ``meta.json`` each, and photos without depth."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from .reading import PHOTO_SUFFIXES, natural, read_depth_png, read_rgb
from .sample import Provenance, Sample, fingerprint

MOST = 1e12
PLACES = ("indoor", "outdoor")
NYU_CLIP_M = 9.99  # where the sensor of NYU Depth v2 stops counting: such a pixel says "far", not a depth


class Pairs:
    """A folder of folders, each with ``rgb.png`` or ``rgb.jpg``, a 16-bit ``depth.png`` and a ``meta.json``.

    ``meta.json`` gives ``depth_scale`` (metres = value / scale, so at least 1) and may give ``intrinsics_fx_fy_cx_cy``, ``size``
    (width, height) and ``dataset``; the sensor's clip of NYU Depth v2 (9.99 m and more) counts as unknown. A ``manifest.json``
    beside the folders may order them and say for each whether its ``use`` is ``train`` or ``test``, and whether its ``kind`` is ``indoor`` or
    ``outdoor``.

    Args:
        folder: of the pairs, or one pair.
        use, place: only the pairs of that use and of that kind; they need the manifest.

    Raises:
        OSError: if something is missing.
        ValueError: if a JSON file or the choice is not of that form.
    """

    def __init__(self, folder: Path | str, use: str | None = None, place: str | None = None):
        self.folder, self.use, self.place = Path(folder), use, place
        wanted = {key: value for key, value in (("use", use), ("kind", place)) if value}
        chosen = " and ".join(wanted.values())
        if use not in (None, "train", "test"):
            raise ValueError(f"pairs: a use of train or test was wanted, got {use!r}")
        if place not in (None, *PLACES):
            raise ValueError(f"pairs: {' or '.join(PLACES)} was wanted, got {place!r}")
        if not self.folder.is_dir():
            raise OSError(f"{self.folder} is no folder")
        manifest = self.folder / "manifest.json"
        if manifest.is_file():
            entries = _json(manifest, list)
            if not all(isinstance(entry, dict) and isinstance(entry.get("name"), str) for entry in entries):
                raise ValueError(f"{manifest}: a list of objects with a name was wanted")
            names = [entry["name"] for entry in entries if all(entry.get(key) == value for key, value in wanted.items())]
            if any(Path(name).name != name or name in ("", "..") for name in names):
                raise ValueError(f"{manifest} names a pair outside its folder")
            self.pairs = [self.folder / name for name in names]
        elif wanted:
            raise OSError(f"{manifest} does not exist; it says which pairs are {chosen}")
        elif (self.folder / "meta.json").is_file():
            self.pairs = [self.folder]
        else:
            self.pairs = sorted((path.parent for path in self.folder.glob("*/meta.json")), key=natural)
        if not self.pairs:
            raise ValueError(f"{self.folder} holds no pair{chosen and f' of kind {chosen}'}: folders with rgb.png, depth.png and meta.json were wanted")
        for pair in self.pairs:
            if not (pair / "meta.json").is_file():
                raise OSError(f"{pair / 'meta.json'} does not exist")

    @property
    def provenance(self) -> Provenance:
        """Which pairs these are."""
        files = [(path.parent.name, path.name, path.stat().st_size) for path in self.files]
        return Provenance(
            "pairs",
            f"{self.folder.name}{f', use {self.use}' if self.use else ''}{f', {self.place}' if self.place else ''}",
            fingerprint("pairs", files),
            len(self),
        )

    @property
    def files(self) -> list[Path]:
        """Photo, depth map and description of each pair."""
        return [path for pair in self.pairs for path in (_photo(pair), pair / "depth.png", pair / "meta.json")]

    def origin(self, number: int) -> str:
        """The pair's folder."""
        return str(self.pairs[number].resolve())

    def __len__(self) -> int:
        return len(self.pairs)

    def __iter__(self) -> Iterator[Sample]:
        return (self[number] for number in range(len(self)))

    def __getitem__(self, number: int) -> Sample:
        pair = self.pairs[number]
        meta = _json(pair / "meta.json", dict)
        scale = meta.get("depth_scale")
        if not _plain(scale) or scale < 1:
            raise ValueError(f"{pair / 'meta.json'}: depth_scale {scale!r}, wanted a positive number of steps to a metre, at least 1 (metres = value / scale)")
        rgb, depth = read_rgb(_photo(pair), paired=True), read_depth_png(pair / "depth.png", scale)
        if depth.shape != rgb.shape[:2]:
            raise ValueError(f"{pair}: depth is {depth.shape[0]}x{depth.shape[1]}, the photo {rgb.shape[0]}x{rgb.shape[1]}")
        if meta.get("size") not in (None, [rgb.shape[1], rgb.shape[0]]):
            raise ValueError(f"{pair}: meta.json says {meta['size']} (width, height), the photo is {[rgb.shape[1], rgb.shape[0]]}")
        intrinsics = meta.get("intrinsics_fx_fy_cx_cy")
        if intrinsics is not None and not (isinstance(intrinsics, list) and all(map(_plain, intrinsics))):
            raise ValueError(f"{pair / 'meta.json'}: intrinsics_fx_fy_cx_cy {intrinsics!r}, wanted four numbers or null")
        valid = depth > 0
        if str(meta.get("dataset", "")).startswith("NYU"):
            valid &= depth < NYU_CLIP_M
        return Sample(rgb, np.where(valid, depth, np.float32(0)), valid, tuple(intrinsics) if intrinsics else None, pair.name, str(meta.get("dataset", "")))


def _plain(value: object) -> bool:
    """Whether it is a number that a camera or a scale may have."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -MOST < value < MOST


class Images:
    """Photos without depth, in all folders below one, or a single photo.

    Raises:
        OSError: if the folder is missing.
        ValueError: if it holds no photo.
    """

    def __init__(self, folder: Path | str):
        self.folder = Path(folder)
        if self.folder.is_file():
            self.photos, self.folder = [self.folder], self.folder.parent
        elif self.folder.is_dir():
            self.photos = sorted((path for path in self.folder.rglob("*") if path.suffix.lower() in PHOTO_SUFFIXES and path.is_file()), key=natural)
        else:
            raise OSError(f"{self.folder} does not exist")
        if not self.photos:
            raise ValueError(f"{self.folder} holds no photo ({', '.join(PHOTO_SUFFIXES)})")

    @property
    def provenance(self) -> Provenance:
        """Which photos these are."""
        files = [(photo.relative_to(self.folder).as_posix(), photo.stat().st_size) for photo in self.photos]
        return Provenance("images", self.folder.name, fingerprint("images", files), len(self))

    @property
    def files(self) -> list[Path]:
        """The photos."""
        return self.photos

    def origin(self, number: int) -> str:
        """The photo's file."""
        return str(self.photos[number].resolve())

    def __len__(self) -> int:
        return len(self.photos)

    def __iter__(self) -> Iterator[Sample]:
        return (self[number] for number in range(len(self)))

    def __getitem__(self, number: int) -> Sample:
        photo = self.photos[number]
        rgb = read_rgb(photo)
        relative = photo.relative_to(self.folder)
        nothing = np.zeros(rgb.shape[:2], np.float32)
        return Sample(rgb, nothing, nothing > 0, None, relative.as_posix(), relative.parent.name)


def _photo(pair: Path) -> Path:
    for suffix in (".png", ".jpg", ".jpeg"):
        if (path := pair / f"rgb{suffix}").is_file():
            return path
    raise OSError(f"{pair} holds neither rgb.png nor rgb.jpg")


def _json(path: Path, kind: type):
    try:
        data = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(data, kind):
        raise ValueError(f"{path} holds a {type(data).__name__}, wanted a {kind.__name__}")
    return data
