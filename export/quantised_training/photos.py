"""The photos that a quantised network learns from: drawn by the seed, shaped as the network is fed at run time."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator

import numpy as np
import torch
from torch import Tensor

from ...calibration.graph.chain import Chain
from ...calibration.observation.images import Chosen
from ...calibration.observation.photo import Photo

HELD_NBYTES = 1 << 30
PICTURE = 4  # axes of an input that is a picture


class Batches:
    """Windows of photos, and their mirror images, as inputs of the network.

    What the teacher says of a mirror image is as true as of the photo, and photos are few.

    Args:
        chain: the network.
        data: gives the image of a photo's number.
        photos: to draw from.
        batch: windows per step.
        seed: of the draw; a step's windows follow from it and the step.
        device: where the inputs are wanted.
    """

    def __init__(self, chain: Chain, data: Chosen, photos: tuple[Photo, ...], batch: int, seed: int, device: torch.device):
        self._chain, self._data, self._device = chain, data, device
        self._windows = [(photo, window, mirrored) for photo in photos for window in range(photo.windows) for mirrored in (False, True)]
        self._batch, self._seed = batch, seed
        self._free = all(isinstance(tensor.shape[0], str) for spec in chain.specs for tensor in spec.inputs)
        self._held: dict[int, list[dict[str, np.ndarray]]] = {}

    def of(self, photos: Collection[Photo]) -> Batches:
        """The same of some of the photos; what was shaped already is shared."""
        other = copy.copy(self)
        other._windows = [each for each in self._windows if each[0] in photos]
        return other

    def __call__(self, step: int) -> list[dict[str, Tensor]]:
        """The inputs of a step: one dict whose tensors hold the whole batch, or, where the network's batch is fixed, one per window."""
        feeds = [self._inputs(*self._windows[place]) for place in self._places(step)]
        if self._free:
            feeds = [{name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}]
        return [self._tensors(feed) for feed in feeds]

    def _places(self, step: int) -> list[int]:
        """One shuffled pass over the windows after the other."""
        count, first = len(self._windows), step * self._batch
        turns = range(first, first + self._batch)
        orders = {turn: np.random.default_rng([self._seed, turn]).permutation(count) for turn in {place // count for place in turns}}
        return [int(orders[place // count][place % count]) for place in turns]

    def _inputs(self, photo: Photo, window: int, mirrored: bool) -> dict[str, np.ndarray]:
        feed = self._shaped(photo, window)
        return {name: values[..., ::-1].copy() if values.ndim == PICTURE else values for name, values in feed.items()} if mirrored else feed

    def _shaped(self, photo: Photo, window: int) -> dict[str, np.ndarray]:
        if photo.number not in self._held:
            feeds = self._chain.inputs(self._data[photo.number].rgb, photo.number)[1]
            if sum(values.nbytes for held in (*self._held.values(), feeds) for feed in held for values in feed.values()) > HELD_NBYTES:
                return feeds[window]
            self._held[photo.number] = feeds
        return self._held[photo.number][window]

    def each(self, most: int) -> Iterator[list[dict[str, Tensor]]]:
        """The inputs of ``most`` windows or a few more, spread evenly: of each, the window as it is and its mirror image."""
        pairs = [self._windows[place : place + 2] for place in range(0, len(self._windows), 2)]
        for pair in pairs[:: -(-len(pairs) // max(1, most))]:
            yield [self._tensors(self._inputs(*each)) for each in pair]

    def _tensors(self, feed: dict[str, np.ndarray]) -> dict[str, Tensor]:
        return {name: torch.from_numpy(values).to(self._device) for name, values in feed.items()}
