"""A part of a data set: the pictures of some kinds of room, a number of each or in all, drawn with a seed."""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .sample import Provenance, Sample, fingerprint

WORD = re.compile(r"(scene|each|count|draw)=([^:]+)")


class DataArgumentError(ValueError):
    """The words of a ``--data`` argument are wrong; no file is to blame."""


def room_type(scene: str) -> str:
    """The kind of room of a scene's name: ``bedroom`` for ``bedroom_0021b``.

    >>> room_type("dining_room_0003a")
    'dining_room'
    """
    return re.sub(r"_\d+[a-z]?$", "", scene)


@dataclass(frozen=True)
class Selection:
    """Which samples of a data set.

    Args:
        scenes: kinds of room; empty for all.
        each: samples of every kind of room, or 0 for all.
        count: samples in all, or 0 for all.
        seed: of the draw; it decides nothing where all are taken.

    Raises:
        DataArgumentError: for a negative number.
    """

    scenes: tuple[str, ...] = ()
    each: int = 0
    count: int = 0
    seed: int = 0

    def __post_init__(self):
        if min(self.each, self.count, self.seed) < 0:
            raise DataArgumentError(f"numbers from 0 were wanted, got {self}")

    @property
    def words(self) -> str:
        """As ``--data`` writes it, with a colon in front of each word; empty for everything."""
        words = [f"scene={'+'.join(self.scenes)}"] if self.scenes else []
        words += [f"{name}={value}" for name, value in (("each", self.each), ("count", self.count), ("draw", self.seed)) if value]
        return "".join(f":{word}" for word in words)

    @classmethod
    def parse(cls, words: list[str]) -> Selection | None:
        """Take the words of a selection off the end of ``words``; None if there are none.

        Raises:
            ValueError: for a number that is none, or a word given twice.
        """
        found: dict[str, str] = {}
        while len(words) > 1 and (match := WORD.fullmatch(words[-1])):
            if match[1] in found:
                raise DataArgumentError(f"{match[1]}= was given twice")
            found[match[1]] = match[2]
            words.pop()
        if not found:
            return None
        numbers = {name: found.get(name, "0") for name in ("each", "count", "draw")}
        for name, number in numbers.items():
            if not (number.isascii() and number.isdigit() and len(number) < 10):
                raise DataArgumentError(f"{name}={number} is no whole number")
        scenes = tuple(found["scene"].split("+")) if "scene" in found else ()
        return cls(scenes, int(numbers["each"]), int(numbers["count"]), int(numbers["draw"]))


class Selected:
    """The samples of a source that a selection names, in the source's order.

    Args:
        source: knows the scene of a sample without reading it (``scene_of``).

    Raises:
        ValueError: if a kind of room has no sample, or fewer than were asked for exist.
    """

    def __init__(self, source: Any, selection: Selection):
        self.source, self.selection = source, selection
        kinds = [room_type(source.scene_of(number)) for number in range(len(source))]
        absent = sorted(set(selection.scenes) - set(kinds))
        if absent:
            raise DataArgumentError(f"no picture shows a {absent[0]}; there are {', '.join(sorted(set(kinds)))}")
        numbers = [number for number, kind in enumerate(kinds) if not selection.scenes or kind in selection.scenes]
        draw = random.Random(selection.seed)
        if selection.each:
            by_kind: dict[str, list[int]] = {}
            for number in numbers:
                by_kind.setdefault(kinds[number], []).append(number)
            numbers = [number for kind in sorted(by_kind) for number in _drawn(draw, by_kind[kind], selection.each, kind)]
        if selection.count:
            numbers = _drawn(draw, numbers, selection.count, "the selection")
        self.numbers = sorted(numbers)

    @property
    def provenance(self) -> Provenance:
        """The source's, and which of its samples."""
        whole = self.source.provenance
        name = f"{whole.name}, {self.selection.words[1:].replace(':', ', ')}"
        return dataclasses.replace(whole, name=name, sha256=fingerprint(whole.sha256, self.numbers), count=len(self))

    @property
    def files(self) -> list[Path]:
        """The source's."""
        return self.source.files

    def origin(self, number: int) -> str:
        """The source's."""
        return self.source.origin(self.numbers[number])

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, number: int) -> Sample:
        if not 0 <= number < len(self):
            raise IndexError(f"sample {number} of {len(self)}")
        return self.source[self.numbers[number]]

    def __iter__(self) -> Iterator[Sample]:
        return (self[number] for number in range(len(self)))


def _drawn(draw: random.Random, numbers: list[int], count: int, of: str) -> list[int]:
    if len(numbers) < count:
        raise DataArgumentError(f"{of} has {len(numbers)} pictures, {count} were asked for")
    return draw.sample(numbers, count)
