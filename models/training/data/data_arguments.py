"""What ``--data`` and ``--val`` name, and what may not be learned from or measured on."""

from __future__ import annotations

from ....datasets.captions import Captioned
from ....datasets.source import DataArgumentError, Source, open_source
from ....runtime.errors import InputError, UsageError
from .kept_samples import KeptSamples


def repeated(text: str, captions: str | None) -> tuple[Source, int]:
    """The source of ``DATA`` or ``DATA*N``, and how often each of its samples counts."""
    words, star, times = text.rpartition("*")
    if not (star and times.isascii() and times.isdigit() and 0 < int(times) < 10**6):
        return open_data(text, "train", captions), 1
    return open_data(words, "train", captions), int(times)


def facts_of(source: Source, times: int) -> dict:
    """The provenance of a source whose samples count so often, as JSON values."""
    facts = source.provenance.to_json()
    return facts if times == 1 else {**facts, "name": f"{facts['name']}, each {times} times"}


def open_data(text: str, split: str, captions: str | None) -> Source:
    """The source of a ``--data`` argument, with the captions of a file if there is one.

    Args:
        split: where the text names none.

    Raises:
        InputError: if a file is missing or not what it should be.
        UsageError: if the text names no data.
    """
    try:
        source = open_source(text, split)
        return source if captions is None else Captioned(source, captions)
    except DataArgumentError as error:
        raise UsageError(str(error)) from error
    except (ValueError, OSError) as error:
        raise InputError(str(error)) from error


def refuse_shared(data: KeptSamples, chosen: KeptSamples | None, words: list[str], held_out: tuple[KeptSamples, ...]) -> None:
    """Raises:
    UsageError: if a sample that is learned from or chosen by is measured on too, or one that is learned from is chosen by.
    """
    learned = data.origins()
    if chosen is not None:
        held = chosen.origins()
        if both := sorted(learned & held):
            raise UsageError(f"--hold-back: {both[0]} would be learned from and chosen by", wanted="each sample once in --data")
        learned |= held
    for text, kept in zip(words, held_out, strict=True):
        if both := sorted(learned & kept.origins()):
            more = f" (and {len(both) - 1} more)" if len(both) > 1 else ""
            was = f"--val {text}: {both[0]}{more} is in --data too, and numbers measured on what was learned would be too good"
            raise UsageError(was, wanted="other pictures", fix="for rooms another seed, else another split or list")


def refuse_without_depth(learned: list[Source], words: list[str], held_out: tuple[KeptSamples, ...]) -> None:
    """Raises:
    InputError: if no picture of a data set to measure on has a known depth.
    UsageError: if a data set holds photos alone.
    """
    for source in (*learned, *(source for kept in held_out for source in kept.sources)):
        if source.provenance.kind == "images":
            was = f"images: {source.provenance.name} holds photos without depth"
            raise UsageError(was, wanted="data with depth: nyu, nyu-folder, kitti, pairs, rooms or lived-in", fix="only --quantise learns from photos alone")
    for text, kept in zip(words, held_out, strict=True):
        if not any(kept[number].valid.any() for number in range(len(kept))):  # the first one has as a rule
            raise InputError(f"--val {text}: no picture of it has a known depth", wanted="pictures with depth to measure on")
