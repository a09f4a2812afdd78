"""A caption for every photo of a data set, out of a JSON file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from .reading import PHOTO_SUFFIXES
from .sample import Provenance, Sample, fingerprint

if TYPE_CHECKING:
    from .source import Source

MAX_NBYTES = 1 << 28
ENDINGS = (*PHOTO_SUFFIXES, ".ppm")  # the last one is of NYU's raw photos


class Captioned:
    """A source whose samples carry captions.

    Args:
        source: the photos.
        path: a JSON object from photos to sentences. A photo is named by its sample's id, or by a path that ends with it; a photo file's ending does not
            count, unless photos differ in nothing else. What names several photos names none.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is of another form.
    """

    def __init__(self, source: Source, path: str | Path):
        raw = Path(path).read_bytes()
        if len(raw) > MAX_NBYTES:
            raise ValueError(f"{path} has {len(raw)} bytes, wanted at most {MAX_NBYTES}")
        try:
            found = json.loads(raw.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is no JSON ({error})") from error
        if not isinstance(found, dict) or not all(isinstance(words, str) and words.strip() for words in found.values()):
            raise ValueError(f"{path} is not of the form {{id of a photo: caption}}")
        self.source, self._sha256 = source, hashlib.sha256(raw).hexdigest()
        self._captions: dict[str, str] = {}
        for name, words in found.items():
            parts = PurePosixPath(name).parts
            for start in range(len(parts)):
                tail = "/".join(parts[start:])
                for known in {tail, _bare(tail)}:
                    self._captions[known] = words if self._captions.get(known, words) == words else ""
        self._captions |= found

    @property
    def provenance(self) -> Provenance:
        """Which photos and which captions these are."""
        base = self.source.provenance
        return replace(base, name=f"{base.name}, with captions", sha256=fingerprint(base.sha256, self._sha256))

    @property
    def files(self) -> list[Path]:
        """The photos'; the captions are part of the fingerprint already."""
        return self.source.files

    def origin(self, number: int) -> str:
        """The photo's."""
        return self.source.origin(number)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, number: int) -> Sample:
        sample = self.source[number]
        return replace(sample, caption=self._captions.get(sample.id, self._captions.get(_bare(sample.id), "")))

    def __iter__(self) -> Iterator[Sample]:
        return (self[number] for number in range(len(self)))


def _bare(name: str) -> str:
    """Without the ending of a photo file; what stands behind another dot belongs to the name (``r-1294.208``)."""
    return name.rpartition(".")[0] if name.lower().endswith(ENDINGS) else name
