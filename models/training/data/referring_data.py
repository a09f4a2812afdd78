"""Pictures with words and the pixels they mean, for networks that take words."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ....datasets.rooms.rooms import Rooms
from ....datasets.rooms.words import WORDS_RECIPE, Meaning, Things, meanings
from ....runtime.artefact.contract import Contract
from ....runtime.errors import InputError, UsageError
from ....runtime.photo.preprocess import Window, place_steps, shape_photo, window_tensor
from ....runtime.text.encoder import TextEncoder
from .augmentation import Augmentation, mirrored, recoloured
from .kept_samples import BROKEN, KeptSamples, keep
from .training_data import shape_truth


@dataclass(frozen=True)
class WordsBatch:
    """What one step learns from.

    Args:
        image: [B, 3, window, window], normalised.
        truth_m, valid: depth of the pictures in metres and where it is known, [B, 1, window, window].
        ids: of the sentences, int64 [S, tokens].
        picture: which picture each sentence is about, int64 [S].
        mask: bool [S, window, window], the pixels each sentence means.
    """

    image: Tensor
    truth_m: Tensor
    valid: Tensor
    ids: Tensor
    picture: Tensor
    mask: Tensor

    def to(self, device: torch.device) -> WordsBatch:
        """The same on another device."""
        return WordsBatch(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))


class NamedSamples:
    """Rooms and the names of what is in them, which are kept beside the pictures.

    Raises:
        UsageError: if a source is none of synthetic rooms.
    """

    def __init__(self, samples: KeptSamples):
        for source in samples.sources:
            if not isinstance(source, Rooms):
                was = f"{source.provenance.kind}: does not say what its things are called"
                raise UsageError(
                    was, wanted="rooms:N[:SEED][:HEIGHTxWIDTH], the only data with words here", fix="give synthetic rooms to a network that is asked in words"
                )
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def things(self, number: int) -> Things:
        """What sample ``number`` shows.

        Raises:
            InputError: if what was kept is broken.
        """
        which, inside = self.samples.place(number)
        rooms = self.samples.sources[which]
        if self.samples.folder is None:
            return rooms.things(inside)
        file = self.samples.folder / f"{self.samples.names[which]}-words{WORDS_RECIPE}" / f"{inside:06d}.npz"
        if file.is_file():
            return _kept(file)
        things = rooms.things(inside)
        keep(file, lambda part: np.savez(part, map=things.map, names=np.str_(json.dumps(things.names))))
        return things


def _kept(file: Path) -> Things:
    try:
        with np.load(file, allow_pickle=False) as kept:
            return Things(kept["map"], tuple(json.loads(str(kept["names"]))))
    except BROKEN as error:
        raise InputError(f"the kept names {file} are broken ({error})", fix="delete them") from error


class WordsExamples:
    """Rooms shaped for one contract, with sentences.

    Args:
        samples: where they come from.
        contract: of the network.
        tokenizer: its ``tokenizer.json``.
        sentences: of every room in a batch.
    """

    def __init__(self, samples: NamedSamples, contract: Contract, tokenizer: bytes, sentences: int = 1):
        self.samples, self.contract, self.sentences = samples, contract, sentences
        self.write = TextEncoder(contract.text, contract.input, tokenizer)

    def __len__(self) -> int:
        return len(self.samples)

    def example(self, number: int, draw: np.random.Generator | None = None, augmentation: Augmentation | None = None):
        """A room, changed at random if asked to. A mirrored one is named anew, so that left stays left.

        Returns:
            image float32 [3, window, window], depth float32 and validity bool [window, window], and for each meaning its pixels, bool like it.
        """
        sample, things, image = self.samples.samples[number], self.samples.things(number), self.contract.input
        if augmentation is not None and draw.random() < augmentation.flip:
            sample, things = mirrored(sample), things.mirrored()
        placed = place_steps(self.contract.protocols[0].steps, *sample.rgb.shape[:2])
        picture = shape_photo(sample.rgb, placed)
        if augmentation is not None:
            picture = recoloured(picture, augmentation, draw)
        found = meanings(things, sample.depth_m)
        masks = {meaning: shape_truth(sample.depth_m, mask, placed)[1] for meaning, mask in found.items()}
        truth, valid = shape_truth(sample.depth_m, sample.valid, placed)
        return window_tensor(picture, Window(0, False, False), image), np.where(valid, truth, np.float32(0)), valid, masks

    def batch(self, numbers: list[int], draws: list[np.random.Generator], augmentation: Augmentation | None = None) -> WordsBatch:
        """Several rooms, of each some of its meanings (with repetition where it has fewer), each said in one of its ways.

        Args:
            draws: one random generator per number.
        """
        shown, texts, pictures, masks = [], [], [], []
        for place, (number, draw) in enumerate(zip(numbers, draws, strict=True)):
            *maps, found = self.example(number, draw, augmentation)
            shown.append(maps)
            known = list(found)
            for k in draw.choice(len(known), self.sentences, replace=len(known) < self.sentences):
                texts.append(str(draw.choice(known[k].sentences())))
                pictures.append(place)
                masks.append(found[known[k]])
        return self._batch(shown, texts, pictures, masks)

    def whole(self, number: int) -> tuple[list[Meaning], WordsBatch]:
        """One room with all its meanings, each said in its shortest way."""
        *maps, found = self.example(number)
        texts = [meaning.sentences()[0] for meaning in found]
        return list(found), self._batch([maps], texts, [0] * len(found), list(found.values()))

    def _batch(self, shown: list[list[np.ndarray]], texts: list[str], pictures: list[int], masks: list[np.ndarray]) -> WordsBatch:
        ids = torch.from_numpy(self.write.tokenize(texts)[self.contract.text.ids])
        image, truth, valid = (torch.from_numpy(np.stack([maps[k] for maps in shown])) for k in range(3))
        return WordsBatch(image, truth[:, None], valid[:, None], ids, torch.tensor(pictures), torch.from_numpy(np.stack(masks)))
