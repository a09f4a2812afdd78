"""NYU Depth v2: the labelled HDF5 file, and the folders that published code extracts from it or from the raw videos."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .matlab5 import read_arrays
from .reading import below, list_lines, natural, read_depth_png, read_rgb
from .sample import Provenance, Sample, fingerprint

INTRINSICS = (518.8579, 519.46961, 325.58245, 253.73617)  # of the colour camera, 640x480, from the data set's toolbox
VARIANTS = ("official", "raw", "inpainted")
FRAME_ROWS, FRAME_COLUMNS = slice(7, 474), slice(7, 632)
MAX_SIDE, MAX_PAIRS, MAX_LETTERS = 4096, 1_000_000, 1000  # beyond these a file is damaged, and would ask for absurd memory
PREFIXES = ("", "official_splits/test", "official_splits/train", "sync")


class NyuLabeled:
    """The 1449 pairs of ``nyu_depth_v2_labeled.mat``, read one at a time.

    Args:
        path: the file (MATLAB 7.3, that is HDF5, with reversed axes).
        split: ``train`` (795), ``test`` (654) or ``all``.
        variant: ``official`` is what the published extraction writes and every published number was measured on: the photo
            outside rows 7:474, columns 7:632 black and through a JPEG of quality 95, raw depth cut to whole millimetres.
            ``raw`` has photo and raw depth as stored, ``inpainted`` the photo and the filled depth.
        splits: ``splits.mat`` (MATLAB 5, 1-based); the one beside ``path`` if None.

    Raises:
        OSError: if a file is missing.
        ValueError: if a file is not of that form.
        ImportError: if h5py is not installed.
    """

    def __init__(self, path: Path | str, split: str = "test", variant: str = "official", splits: Path | str | None = None):
        self.path = Path(path)
        if split not in ("train", "test", "all") or variant not in VARIANTS:
            raise ValueError(f"nyu: a split of train, test, all and a variant of {', '.join(VARIANTS)} were wanted, got {split!r} and {variant!r}")
        if not self.path.is_file():
            raise OSError(f"{self.path} does not exist; nyu_depth_v2_labeled.mat of NYU Depth v2 was wanted")
        self.split, self.variant = split, variant
        self._file: Any = None
        count = self._check()
        if split == "all":
            self.indices = np.arange(count)
        else:
            self.indices = _split_indices(Path(splits) if splits else self.path.with_name("splits.mat"), split, count)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_file": None}  # an open file does not travel to another process

    def _open(self) -> Any:
        if self._file is None:
            import h5py

            try:
                self._file = h5py.File(self.path, "r")
            except OSError as error:
                raise ValueError(f"{self.path} is no HDF5 file ({error}); the labelled NYU file is MATLAB 7.3") from error
        return self._file

    @contextmanager
    def _damage_told(self) -> Iterator[None]:
        """h5py raises RuntimeError, KeyError and more where the file's inner links or numbers are broken."""
        try:
            yield
        except (ValueError, IndexError, ImportError):
            raise
        except Exception as error:
            raise ValueError(f"{self.path} is damaged ({error}); copy or download it again") from error

    def _check(self) -> int:
        with self._damage_told():
            return self._count()

    def _count(self) -> int:
        file = self._open()
        depth_name = "depths" if self.variant == "inpainted" else "rawDepths"
        for name, kind in (("images", np.uint8), (depth_name, np.float32)):
            if name not in file or not hasattr(file[name], "dtype") or file[name].dtype != kind:
                raise ValueError(f"{self.path} has no {np.dtype(kind).name} array '{name}'; the labelled NYU file was wanted")
        images, depths = file["images"], file[depth_name]
        if images.ndim != 4 or images.shape[1] != 3 or depths.shape != (images.shape[0], *images.shape[2:]):
            raise ValueError(f"{self.path}: images {images.shape} and {depth_name} {depths.shape}, wanted (n, 3, width, height) and (n, width, height)")
        if max(images.shape[2:]) > MAX_SIDE:
            raise ValueError(f"{self.path} holds pictures of {images.shape[3]}x{images.shape[2]}; at most {MAX_SIDE} a side were wanted")
        return images.shape[0]

    @property
    def provenance(self) -> Provenance:
        """Which pairs these are."""
        facts = fingerprint("nyu", self.path.stat().st_size, self.variant, self.indices.tolist())
        return Provenance("nyu", f"{self.path.name}, {self.split}, {self.variant}", facts, len(self))

    @property
    def files(self) -> list[Path]:
        """The one that holds all pairs."""
        return [self.path]

    def scene_of(self, number: int) -> str:
        """The scene of a pair, such as ``bedroom_0021``, without reading the pair."""
        index, file = int(self.indices[number]), self._open()
        with self._damage_told():
            return _text(file, "scenes", index) or _text(file, "sceneTypes", index)

    def origin(self, number: int) -> str:
        """The file and the pair's place in it."""
        return f"{self.path.resolve()}, pair {int(self.indices[number])}"

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[Sample]:
        return (self[number] for number in range(len(self)))

    def __getitem__(self, number: int) -> Sample:
        if not 0 <= number < len(self):
            raise IndexError(f"pair {number} of {len(self)}")
        index = int(self.indices[number])
        file = self._open()
        with self._damage_told():
            rgb = np.ascontiguousarray(file["images"][index].T)  # (3, 640, 480) as stored -> (480, 640, 3)
            depth = np.ascontiguousarray(file["depths" if self.variant == "inpainted" else "rawDepths"][index].T)
        if self.variant == "official":
            rgb = _official_photo(rgb)
            depth = (np.floor(depth.astype(np.float64) * 1000) / 1000).astype(np.float32)
        valid = np.isfinite(depth) & (depth > 0)
        scene = self.scene_of(number)
        intrinsics = INTRINSICS if rgb.shape[:2] == (480, 640) else None
        return Sample(rgb, np.where(valid, depth, np.float32(0)), valid, intrinsics, f"nyu_{index:05d}", scene)


def _official_photo(rgb: np.ndarray) -> np.ndarray:
    framed = np.zeros_like(rgb)
    framed[FRAME_ROWS, FRAME_COLUMNS] = rgb[FRAME_ROWS, FRAME_COLUMNS]
    buffer = io.BytesIO()
    Image.fromarray(framed).save(buffer, "JPEG", quality=95, subsampling="4:2:0")
    return np.array(Image.open(buffer))


def _text(file: Any, name: str, index: int) -> str:
    """A MATLAB cell string: a reference to the codes of its characters."""
    if name not in file:
        return ""
    if file[name].size > MAX_PAIRS:
        raise ValueError(f"{name} has {file[name].size} entries; at most {MAX_PAIRS} were wanted")
    references = np.asarray(file[name]).reshape(-1)
    if index >= len(references):
        return ""
    codes = file[references[index]]
    if codes.size > MAX_LETTERS:
        raise ValueError(f"an entry of {name} has {codes.size} letters; at most {MAX_LETTERS} were wanted")
    return "".join(chr(code) for code in np.asarray(codes).reshape(-1))


def _split_indices(path: Path, split: str, count: int) -> np.ndarray:
    if not path.is_file():
        raise OSError(f"{path} does not exist; splits.mat of NYU Depth v2 says which pairs are for training and which for testing")
    name = "trainNdxs" if split == "train" else "testNdxs"
    try:
        indices = read_arrays(path)[name].reshape(-1).astype(np.int64) - 1
    except (ValueError, KeyError) as error:
        raise ValueError(f"{path} holds no list '{name}' ({error}); splits.mat of NYU Depth v2 was wanted") from error
    if not len(indices) or indices.min() < 0 or indices.max() >= count:
        raise ValueError(f"{path}: '{name}' does not count pairs from 1 to {count}")
    return indices


class NyuFolder:
    """Photos ``rgb_*.jpg`` with ``sync_depth_*.png`` (millimetres), as the ``sync`` and ``official_splits`` folders hold them.

    Args:
        folder: ``nyu_depth_v2`` or a folder below it.
        listing: lines of "photo depth [focal length]", with or without a leading slash, found under the folder itself, its
            ``official_splits/test``, ``official_splits/train`` or ``sync``. Without one, every pair below the folder.

    Raises:
        OSError: if the folder, the list or a file of it is missing.
        ValueError: if there is no pair, or a line does not name two files.
    """

    def __init__(self, folder: Path | str, listing: Path | str | None = None):
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise OSError(f"{self.folder} is no folder")
        self.listing = Path(listing).name if listing else ""
        self.pairs = self._listed(Path(listing)) if listing else self._found()

    def _found(self) -> list[tuple[Path, Path]]:
        pairs = []
        for photo in sorted(self.folder.rglob("rgb_*.*"), key=natural):
            depth = photo.with_name("sync_depth_" + photo.stem.removeprefix("rgb_") + ".png")
            if depth.is_file():
                pairs.append((photo, depth))
        if not pairs:
            raise ValueError(f"{self.folder} holds no rgb_*.jpg with a sync_depth_*.png beside it")
        return pairs

    def _listed(self, listing: Path) -> list[tuple[Path, Path]]:
        pairs = []
        for words in list_lines(listing):
            if len(words) < 2:
                raise ValueError(f"{listing}: the line {' '.join(words)!r} does not name a photo and a depth map")
            found = [below(self.folder, word, PREFIXES) for word in words[:2]]
            if None in found:
                raise OSError(f"{listing} names {words[found.index(None)]}, which is not under {self.folder}")
            pairs.append((found[0], found[1]))
        return pairs

    @property
    def provenance(self) -> Provenance:
        """Which pairs these are."""
        files = [(path.relative_to(self.folder).as_posix(), path.stat().st_size) for path in self.files]
        return Provenance("nyu-folder", f"{self.folder.name}{', ' + self.listing if self.listing else ''}", fingerprint("nyu-folder", files), len(self))

    @property
    def files(self) -> list[Path]:
        """Photo and depth map of each pair."""
        return [path for pair in self.pairs for path in pair]

    def scene_of(self, number: int) -> str:
        """The folder of a pair, such as ``bedroom`` or ``bedroom_0021``."""
        return self.pairs[number][0].parent.name

    def origin(self, number: int) -> str:
        """The photo's file."""
        return str(self.pairs[number][0].resolve())

    def __len__(self) -> int:
        return len(self.pairs)

    def __iter__(self) -> Iterator[Sample]:
        return (self[number] for number in range(len(self)))

    def __getitem__(self, number: int) -> Sample:
        photo, depth_file = self.pairs[number]
        rgb, depth = read_rgb(photo, paired=True), read_depth_png(depth_file, 1000.0)
        intrinsics = INTRINSICS if rgb.shape[:2] == (480, 640) else None
        name = photo.relative_to(self.folder).with_suffix("").as_posix()
        return Sample(rgb, depth, depth > 0, intrinsics, name, photo.parent.name)
