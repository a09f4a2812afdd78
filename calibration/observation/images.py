"""Which images a calibration uses, by number: all of some data sets, or a seeded draw."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ...datasets.kitti import KittiEigen
from ...datasets.nyu import NyuFolder, NyuLabeled
from ...datasets.pairs import Pairs
from ...datasets.sample import Sample
from ...datasets.source import DataArgumentError, Joined, open_source
from ...runtime.errors import InputError, UsageError, missing_package

if TYPE_CHECKING:
    from ...datasets.source import Source

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
