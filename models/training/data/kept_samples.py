"""Samples of several sources, each kept in a folder once it was read or rendered."""

from __future__ import annotations

import copy
import json
import os
import secrets
from bisect import bisect_right
from collections.abc import Callable
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import IO
from zipfile import BadZipFile

import numpy as np

from ....datasets.sample import Sample, fingerprint, stamps
from ....datasets.source import Source
from ....runtime.errors import InputError
from ....runtime.files import PART, PART_END, full_disk_told, sweep

BROKEN = (OSError, ValueError, KeyError, EOFError, BadZipFile)  # what NumPy raises for a file that is no whole archive


class KeptSamples:
    """Several sources one after the other, each sample kept in a folder once it was read, as rendering or decoding it again may be slow.

    Args:
        sources: at least one.
        folder: where samples are kept, or None: a folder for each source (``kept_name``), in it its ``meta.json`` and a file for each number.
        shots: only that many of them, drawn by ``seed``; 0 for all.

    Raises:
        InputError: if the folder is none; of a sample, if it cannot be read or kept.
        ValueError: if there are fewer.
    """

    def __init__(self, sources: list[Source], folder: Path | None = None, shots: int = 0, seed: int = 0):
        self.sources, self.folder = sources, folder
        self.ends = list(accumulate(map(len, sources)))
        if folder and folder.exists() and not folder.is_dir():
            raise InputError(f"{folder} is no folder", wanted="a folder to keep samples in, which is made if there is none", fix="give another --cache")
        names = {id(source): kept_name(source) for source in sources} if folder else {}
        self.names = [names[id(source)] for source in sources] if folder else []
        if shots > self.ends[-1]:
            raise ValueError(f"{shots} samples were wanted, the data has {self.ends[-1]}")
        everything = np.arange(self.ends[-1])
        self.numbers = np.sort(np.random.Generator(np.random.PCG64([seed, shots])).permutation(everything)[:shots]) if shots else everything

    def split(self, count: int, seed: int) -> tuple[KeptSamples, KeptSamples]:
        """All but ``count`` samples drawn by ``seed``, and those.

        Raises:
            ValueError: if none would be left.
        """
        if not 0 < count < len(self):
            raise ValueError(f"{count} of {len(self)} samples cannot be held back, at least one must be left to learn from")
        order = np.random.Generator(np.random.PCG64([seed, count, 2])).permutation(len(self))
        parts = copy.copy(self), copy.copy(self)
        for part, places in zip(parts, (order[count:], order[:count]), strict=True):
            part.numbers = np.asarray(self.numbers)[np.sort(places)]
        return parts

    def __len__(self) -> int:
        return len(self.numbers)

    def place(self, number: int) -> tuple[int, int]:
        """Which source sample ``number`` is from, and its number there."""
        number = int(self.numbers[number])
        which = bisect_right(self.ends, number)
        return which, number - (self.ends[which - 1] if which else 0)

    def origins(self) -> set[str]:
        """What the samples are of (``Source.origin``)."""
        return {self.sources[which].origin(inside) for which, inside in map(self.place, range(len(self)))}

    def __getitem__(self, number: int) -> Sample:
        which, inside = self.place(number)
        if self.folder is None:
            return _read(self.sources[which], inside)
        file = self.folder / self.names[which] / f"{inside:06d}.npz"
        if file.is_file() and (sample := _kept(file)) is not None:
            return sample
        sample = _read(self.sources[which], inside)
        if not (meta := file.with_name("meta.json")).is_file():
            keep(meta, lambda part: part.write(json.dumps(_meta(self.sources[which]), indent=1).encode()))
        words = {name: np.str_(getattr(sample, name)) for name in ("id", "scene", "caption")}
        camera = np.array(sample.intrinsics or (), np.float64)
        keep(file, lambda part: np.savez(part, rgb=sample.rgb, depth_m=sample.depth_m, valid=sample.valid, intrinsics=camera, **words))
        return sample


def _read(source: Source, number: int) -> Sample:
    try:
        return source[number]
    except (ValueError, OSError) as error:
        raise InputError(f"the sample {source.origin(number)} cannot be read: {error}", fix="copy or download it again, or leave it out") from error


def kept_name(source: Source) -> str:
    """Under which name samples of a source are kept: its fingerprint's, which for files knows no more than names and sizes, so that path, size and
    modification time of each file count too. A file that was changed is read anew.

    Raises:
        OSError: if a file is gone.
    """
    own, files = source.provenance.sha256, stamps(source.files)
    return (fingerprint(own, files) if files else own)[:16]


def _meta(source: Source) -> dict:
    key = "the fingerprint sha256 of names and sizes, and path, size and modification time (ns) of each file" if source.files else "the fingerprint sha256"
    return {**source.provenance.to_json(), "files": len(source.files), "key": key}


def keep(file: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file, whole or not at all, also where several processes or threads make it at once.

    Raises:
        InputError: if it cannot be written.
    """
    part = file.with_name(f"{PART}{secrets.token_hex(8)}{PART_END}")
    try:
        with full_disk_told(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            sweep(file.parent)  # of what a killed run left
            with open(part, "wb") as stream:
                write(stream)
            os.replace(part, file)
    except OSError as error:
        raise InputError(f"the sample cannot be kept as {file} ({error.strerror or error})", fix="check the folder of --cache, or leave it out") from error
    finally:
        with suppress(OSError):
            part.unlink()


def _kept(file: Path) -> Sample | None:
    """The sample of a file, None of one that says nothing about the camera: they were kept without it once."""
    try:
        with np.load(file, allow_pickle=False) as kept:
            if "intrinsics" not in kept:
                return None
            camera = tuple(map(float, kept["intrinsics"])) or None
            return Sample(kept["rgb"], kept["depth_m"], kept["valid"], camera, *(str(kept[key]) for key in ("id", "scene", "caption")))
    except BROKEN as error:
        raise InputError(f"the kept sample {file} is broken ({error})", fix="delete it") from error
