"""``zip(strict=True)`` and ``itertools.pairwise``, which Python has since 3.10, for the Python 3.8 of JetPack 5."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import tee
from typing import Any

END = object()


def zip_equal(*sequences: Iterable[Any]) -> Iterator[tuple[Any, ...]]:
    """``zip`` of sequences that have the same length.

    Raises:
        ValueError: where one ends before the others.
    """
    ways = [iter(sequence) for sequence in sequences]
    while True:
        items = tuple(next(way, END) for way in ways)
        ended = sum(item is END for item in items)
        if ended == len(items):
            return
        if ended:
            raise ValueError(f"{ended} of {len(items)} sequences ended before the others")
        yield items


def pairwise(sequence: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
    """Each item with the one after it."""
    first, second = tee(sequence)
    next(second, None)
    return zip(first, second)
