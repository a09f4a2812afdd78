"""Which images a calibration looks at, which it keeps back to validate on, and what is odd about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ...datasets.kitti import KittiEigen
from ...datasets.nyu import NyuFolder, NyuLabeled
from ...datasets.pairs import Pairs
from ...datasets.sample import Sample
from ...datasets.source import DataArgumentError, Joined, open_source
from ...runtime.errors import InputError, UsageError, missing_package
from ..ranges.table import FEW_IMAGES, image_warnings
from .observe import Photo

if TYPE_CHECKING:
    from ...datasets.source import Source

VALIDATE_EVERY, VALIDATE_EVERY_OF_FEW = 4, 2
MOST_VALIDATED = 16
DEFAULT_IMAGES = 512


class Chosen:
    """Some samples of one data set or several, by number: all of them, or ``count`` drawn with a seed.

    Args:
        texts: ``--data`` arguments; ``nyu:FILE.mat`` without a split means ``train``.
        count: how many at most, of all together.
        seed: of the draw.

    Raises:
        UsageError: if a text is no ``--data`` argument.
        InputError: if the data cannot be read.
    """

    def __init__(self, *texts: str, count: int = DEFAULT_IMAGES, seed: int = 0):
        sources = [_open(text) for text in texts]
        self.source: Source = sources[0] if len(sources) == 1 else Joined(sources)
        total = len(self.source)
        self.numbers = list(range(total)) if total <= count else sorted(np.random.default_rng(seed).choice(total, count, replace=False).tolist())
        self.drawn = total > count
        self.seed = seed

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, number: int) -> Sample:
        try:
            return self.source[self.numbers[number]]
        except (ValueError, OSError) as error:
            raise InputError(f"an image of the data cannot be read: {error}") from error

    def provenance(self) -> dict[str, Any]:
        """Where the images come from, for the table."""
        facts = self.source.provenance.to_json()
        return {**facts, "count": len(self), "of": len(self.source), "seed": self.seed if self.drawn else facts["seed"]}

    def evaluation_ids(self) -> set[str]:
        """Names of samples that belong to a split on which results are reported."""
        sources = self.source.sources if isinstance(self.source, Joined) else (self.source,)
        return set().union(*map(_evaluation_ids, sources))


def _open(text: str) -> Source:
    try:
        return open_source(text, default_split="train")
    except DataArgumentError as error:
        raise UsageError(f"--data: {error}") from error
    except ValueError as error:
        raise InputError(f"--data {text}: {error}") from error
    except ImportError as error:
        raise missing_package(error.name or "h5py", "bench", "it reads this data") from error
    except OSError as error:
        raise InputError(f"--data {text}: {error}") from error


def _evaluation_ids(source: Source) -> set[str]:
    if isinstance(source, NyuLabeled):
        if source.split == "train":
            return set()
        mine = source if source.split == "test" else NyuLabeled(source.path, "test", source.variant)
        return {_name(mine, number) for number in range(len(mine))}
    if isinstance(source, Pairs):
        if source.use == "train" or not (source.folder / "manifest.json").is_file():
            return set()
        try:
            return {pair.name for pair in Pairs(source.folder, "test").pairs}
        except ValueError:  # the manifest knows no test pairs
            return set()
    if isinstance(source, (NyuFolder, KittiEigen)) and "test" in source.provenance.name.lower():
        return {_name(source, number) for number in range(len(source))}
    return set()


def _name(source: Source, number: int) -> str:
    return source[number].id


@dataclass(frozen=True)
class Split:
    """The images of a calibration.

    Args:
        ranges: photos whose activations give the ranges.
        validation: photos the search is judged on.
        warnings: full sentences.
    """

    ranges: tuple[Photo, ...]
    validation: tuple[Photo, ...]
    warnings: tuple[str, ...]


def split(photos: list[Photo], evaluation: set[str], kind: str, left_out: Sequence[str] = (), most_validated: int = MOST_VALIDATED) -> Split:
    """Every fourth different photo (every second of few) is kept back for validation, at most ``most_validated``; doubles count once.

    Raises:
        InputError: if there are not two different photos.
    """
    first: dict[str, Photo] = {}
    duplicates = []
    for photo in photos:
        if photo.sha256 in first:
            duplicates.append((first[photo.sha256].id, photo.id))
        else:
            first[photo.sha256] = photo
    different = list(first.values())
    if len(different) < 2:
        raise InputError(
            f"the data holds {len(different)} different image", wanted="at least 2: one for the ranges, one to validate on", fix="give more images"
        )
    step = VALIDATE_EVERY if len(different) >= FEW_IMAGES else VALIDATE_EVERY_OF_FEW
    validation = different[step - 1 :: step][:most_validated]
    kept_back = {photo.number for photo in validation}
    ranges = [photo for photo in different if photo.number not in kept_back]
    named = [photo.id for photo in different if photo.id in evaluation]
    return Split(tuple(ranges), tuple(validation), image_warnings(len(different), duplicates, named, kind, left_out))
