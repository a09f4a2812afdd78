"""The RefCOCO family: photos of COCO, sentences, and the pixels each sentence means; every sentence is a sample.

Files as published: ``DIR/refcoco/refs(unc).p`` (read as plain data, nothing in it is executed) or the same as ``refs(unc).json``,
``DIR/refcoco/instances.json``, and COCO's ``train2014`` in ``DIR/images/mscoco/images/``, ``DIR/images/`` or ``DIR``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from ..reading import read_rgb
from ..sample import Provenance, fingerprint
from .coco_mask import referred_mask
from .plain_pickle import read_plain_pickle

GRAMMAR = "refer:DIR:refcoco|refcoco+|refcocog[:unc|:umd|:google][:train|:val|:testA|:testB|:test]"
AUTHORS = {"refcoco": "unc", "refcoco+": "unc", "refcocog": "umd"}  # whose division into splits is the usual one
DIVISIONS = ("unc", "google", "umd")
SPLITS = ("train", "val", "test", "testA", "testB")
PHOTOS = ("images/mscoco/images/train2014", "images/train2014", "train2014")
MAX_NBYTES = 1 << 30


@dataclass(frozen=True, eq=False)
class Referred:
    """A photo, what is said, and what is meant by it.

    Args:
        rgb: uint8 [H, W, 3].
        prompt: the sentence.
        mask: bool [H, W].
        id: unique within its source.
    """

    rgb: np.ndarray
    prompt: str
    mask: np.ndarray
    id: str

    def digest(self) -> str:
        """SHA-256 over photo, words and mask, hex."""
        state = sha256(repr((self.rgb.shape, self.prompt)).encode())
        state.update(np.ascontiguousarray(self.rgb))
        state.update(np.packbits(self.mask))
        return state.hexdigest()


@dataclass(frozen=True)
class _Sentence:
    id: str
    prompt: str
    image: int
    annotation: int


class Referring:
    """One split, sentence by sentence in the file's order.

    Args:
        folder: that holds a folder for each data set.
        name: ``refcoco``, ``refcoco+`` or ``refcocog``.
        split: one of ``SPLITS``.
        division: ``unc``, ``umd`` or ``google``; None for the usual one.

    Raises:
        OSError: if a file is missing.
        ValueError: if one is not what it should be, or the split is empty.
    """

    def __init__(self, folder: Path | str, name: str, split: str = "val", division: str | None = None):
        if name not in AUTHORS or split not in SPLITS or division not in (None, *DIVISIONS):
            raise ValueError(f"refer: {name}, {division}, {split}; wanted {GRAMMAR}")
        self.folder, self.name, self.split, self.division = Path(folder), name, split, division or AUTHORS[name]
        home = self.folder / name
        refs, self._files = _refs(home / f"refs({self.division}).p")
        instances = home / "instances.json"
        self._files.append((instances.name, instances.stat().st_size))
        content = _json(instances)
        try:
            self._images = {int(image["id"]): (str(image["file_name"]), int(image["height"]), int(image["width"])) for image in content["images"]}
            self._masks = {int(entry["id"]): entry["segmentation"] for entry in content["annotations"]}
            self._sentences = [
                _Sentence(f"{ref['ref_id']}/{said['sent_id']}", str(said.get("raw") or said["sent"]), int(ref["image_id"]), int(ref["ann_id"]))
                for ref in refs
                if ref["split"] == split
                for said in ref["sentences"]
            ]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{home} is not of REFER's form ({type(error).__name__}: {error})") from error
        if not self._sentences:
            there = ", ".join(sorted({str(ref["split"]) for ref in refs})) or "none"
            raise ValueError(f"{home}/refs({self.division}) has no split {split}; there are {there}")
        for sentence in self._sentences:
            if sentence.image not in self._images or sentence.annotation not in self._masks:
                raise ValueError(f"{instances} lacks picture {sentence.image} or annotation {sentence.annotation} of sentence {sentence.id}")
        self._photos = next((self.folder / place for place in PHOTOS if (self.folder / place).is_dir()), None)
        if self._photos is None:
            raise OSError(f"{self.folder} has none of {', '.join(PHOTOS)}: COCO's train2014 was wanted")

    @property
    def provenance(self) -> Provenance:
        """Which sentences these are."""
        said = [(sentence.id, sentence.prompt) for sentence in self._sentences]
        name = f"{self.name}, division {self.division}, split {self.split}"
        return Provenance("refer", name, fingerprint("refer", self._files, said), len(self))

    def __len__(self) -> int:
        return len(self._sentences)

    def __iter__(self) -> Iterator[Referred]:
        return (self[number] for number in range(len(self)))

    def __getitem__(self, number: int) -> Referred:
        sentence = self._sentences[number]
        file, height, width = self._images[sentence.image]
        if Path(file).name != file:
            raise ValueError(f"{self.name}: the picture {file!r} lies outside its folder")
        rgb = read_rgb(self._photos / file, upright=False)  # COCO counts in stored pixels
        if rgb.shape[:2] != (height, width):
            raise ValueError(f"{self._photos / file} has {rgb.shape[1]}x{rgb.shape[0]} pixels, instances.json says {width}x{height}")
        try:
            mask = referred_mask(self._masks[sentence.annotation], height, width)
        except ValueError as error:
            raise ValueError(f"annotation {sentence.annotation} of {self.name}: {error}") from error
        return Referred(rgb, sentence.prompt, mask, sentence.id)


def open_referring(text: str) -> Referring:
    """The data that a ``--data refer:…`` argument names; see ``GRAMMAR``. Errors as of ``Referring``."""
    words = text.split(":")[1:]
    split = words.pop() if words and words[-1] in SPLITS else "val"
    division = words.pop() if words and words[-1] in DIVISIONS else None
    if len(words) < 2:
        raise ValueError(f"{text!r} names no data; wanted {GRAMMAR}")
    return Referring(":".join(words[:-1]), words[-1], split, division)


def _refs(pickle: Path) -> tuple[list[dict[str, Any]], list[tuple[str, int]]]:
    """The references, from the pickle or its JSON form, and the file they are of."""
    path = pickle if pickle.is_file() else pickle.with_suffix(".json")
    if not path.is_file():
        raise OSError(f"{pickle} does not exist (nor the same as .json)")
    if path.stat().st_size > MAX_NBYTES:
        raise ValueError(f"{path} has {path.stat().st_size} bytes; at most {MAX_NBYTES} are read")
    try:
        refs = read_plain_pickle(path.read_bytes()) if path is pickle else _json(path)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(refs, list) or not all(isinstance(ref, dict) and "split" in ref for ref in refs):
        raise ValueError(f"{path} holds no list of references")
    return refs, [(path.name, path.stat().st_size)]


def _json(path: Path) -> Any:
    if path.stat().st_size > MAX_NBYTES:
        raise ValueError(f"{path} has {path.stat().st_size} bytes; at most {MAX_NBYTES} are read")
    try:
        return json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON ({error})") from error
