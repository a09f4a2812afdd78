"""The ``--data`` words: one line of text that names a data set."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Protocol

from .kitti import KittiEigen
from .nyu import VARIANTS, NyuFolder, NyuLabeled
from .pairs import PLACES, Images, Pairs
from .rooms.rooms import Rooms
from .sample import Provenance, Sample, fingerprint
from .selection import DataArgumentError, Selected, Selection

GRAMMAR = """\
nyu:FILE.mat[:train|:test|:all][:official|:raw|:inpainted]   the labelled file of NYU Depth v2, splits.mat beside it
nyu-folder:DIR[:LIST.txt]                                    rgb_*.jpg and sync_depth_*.png, all or those of a list
kitti:DIR:LIST.txt[:crop]                                    an Eigen list over raw_data and data_depth_annotated
pairs:DIR[:train|:test][:indoor|:outdoor]                    folders with rgb.png, depth.png, meta.json; manifest.json says use and kind
images:DIR                                                   photos without depth
rooms:N[:SEED][:HEIGHTxWIDTH][:holes]                        synthetic rooms (seed 0, 240x320; holes as a depth sensor has them)
lived-in:N[:SEED][:HEIGHTxWIDTH][:holes]                     rooms with people, clutter and careless photos, to learn from (144x192)
refer:DIR:refcoco[:unc][:val|:testA|:testB|:train]           the RefCOCO family, words and masks, for networks that draw masks
nyu and nyu-folder take a part with [:scene=bedroom+kitchen][:each=N][:count=N][:draw=SEED] at the end"""


class Source(Protocol):
    """What every data set is: a length, samples by number and in order (each read when asked for), and where it comes from."""

    @property
    def provenance(self) -> Provenance:
        """Which samples these are."""

    @property
    def files(self) -> list[Path]:
        """Every file that samples are read from; none where they are rendered."""

    def origin(self, number: int) -> str:
        """What a sample is of, known without reading any file: two samples of the same words show the same thing, whatever else was chosen."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int) -> Sample: ...

    def __iter__(self) -> Iterator[Sample]: ...


class Joined:
    """Several sources one after the other.

    Raises:
        ValueError: if there is none.
    """

    def __init__(self, sources: Sequence[Source]):
        if not sources:
            raise ValueError("at least one source was wanted")
        self.sources = tuple(sources)
        self._ends = list(accumulate(map(len, self.sources)))

    @property
    def provenance(self) -> Provenance:
        """Which samples these are: kinds and names side by side, one fingerprint over all."""
        parts = [source.provenance for source in self.sources]
        skipped = tuple(entry for part in parts for entry in part.skipped)
        kinds = " + ".join(dict.fromkeys(part.kind for part in parts))
        names = " + ".join(part.name + (f", seed {part.seed}" if part.seed is not None else "") for part in parts)
        return Provenance(kinds, names, fingerprint(*(part.sha256 for part in parts)), len(self), None, skipped)

    @property
    def files(self) -> list[Path]:
        return [path for source in self.sources for path in source.files]

    def __len__(self) -> int:
        return self._ends[-1]

    def origin(self, number: int) -> str:
        which, inside = self._place(number)
        return self.sources[which].origin(inside)

    def __getitem__(self, number: int) -> Sample:
        which, inside = self._place(number)
        return self.sources[which][inside]

    def _place(self, number: int) -> tuple[int, int]:
        if not 0 <= number < len(self):
            raise IndexError(f"sample {number} of {len(self)}")
        which = bisect_right(self._ends, number)
        return which, number - (self._ends[which - 1] if which else 0)

    def __iter__(self) -> Iterator[Sample]:
        return (self[number] for number in range(len(self)))


def _take(words: list[str], allowed: tuple[str, ...]) -> str | None:
    """The last word if it is one of ``allowed``; a path keeps its own colons."""
    return words.pop() if len(words) > 1 and words[-1] in allowed else None


def open_source(text: str, default_split: str = "test") -> Source:
    """The data set that a ``--data`` argument names; see ``GRAMMAR``.

    Args:
        default_split: of ``nyu:FILE.mat`` when the text names none: ``test`` where things are measured, ``train`` where they learn.

    Raises:
        DataArgumentError: if the text is not of that form; a ``ValueError``.
        ValueError: if a file is not what it should be.
        OSError: if a file or folder is missing.
        ImportError: if h5py or scipy is not installed and the data needs it.
    """
    kind, _, rest = text.partition(":")
    words = rest.split(":")
    if kind == "refer":
        raise DataArgumentError(f"{text!r}: masks of words hold no depth; depth-bench accuracy measures networks for referring segmentation on them")
    if not rest or kind not in ("nyu", "nyu-folder", "kitti", "pairs", "images", "rooms", "lived-in"):
        raise DataArgumentError(f"{text!r} names no data; wanted one of\n{GRAMMAR}")
    if kind in ("nyu", "nyu-folder") and (selection := Selection.parse(words)) is not None:
        return Selected(open_source(f"{kind}:{':'.join(words)}", default_split), selection)
    if kind == "nyu":
        variant = _take(words, VARIANTS)
        split = _take(words, ("train", "test", "all"))
        return NyuLabeled(":".join(words), split or default_split, variant or "official")
    if kind == "nyu-folder":
        listing = words.pop() if len(words) > 1 and words[-1].endswith(".txt") else None
        return NyuFolder(":".join(words), listing)
    if kind == "kitti":
        crop = _take(words, ("crop",)) is not None
        if len(words) < 2:
            raise DataArgumentError(f"{text!r} names no list; wanted kitti:DIR:LIST.txt[:crop]")
        listing = words.pop()
        return KittiEigen(":".join(words), listing, crop)
    if kind == "pairs":
        place = _take(words, PLACES)
        use = _take(words, ("train", "test"))
        return Pairs(":".join(words), use, place)
    if kind == "images":
        return Images(rest)
    return _rooms(text, words, lived_in=kind == "lived-in")


def _rooms(text: str, words: list[str], lived_in: bool) -> Rooms:
    holes = _take(words, ("holes",)) is not None
    size = (144, 192) if lived_in else (240, 320)
    if len(words) > 1 and "x" in words[-1]:
        height, _, width = words.pop().partition("x")
        if not (_count(height) and _count(width)):
            raise DataArgumentError(f"{text!r}: {height}x{width} is no size; wanted HEIGHTxWIDTH in pixels")
        size = (int(height), int(width))
    if not 1 <= len(words) <= 2 or not all(map(_count, words)):
        raise DataArgumentError(f"{text!r} is not of the form {'lived-in' if lived_in else 'rooms'}:N[:SEED][:HEIGHTxWIDTH][:holes]")
    return Rooms(int(words[0]), int(words[1]) if len(words) == 2 else 0, size, holes, lived_in)


def _count(word: str) -> bool:
    return word.isascii() and word.isdigit() and len(word) <= 9
