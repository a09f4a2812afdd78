"""One photo between the file and its map."""

from __future__ import annotations

import numpy as np

from ..artefact.contract import Contract, Protocol
from .postprocess import Assembly
from .preprocess import check_windows, place_steps, shape_photo, windows_of


class ShapedPhoto:
    """One photo on its way: shaped on first use, so that a long list does not lie shaped in memory at once.

    Attributes:
        photo: uint8 [H, W, 3].
        placed: the steps of the protocol on it.
        size: height and width after them.
        windows: of the protocol.
        network_ms, waiting_ms: see ``depth_map.DepthMap``; so far.

    Raises:
        InputError: if the protocol does not apply to a picture of this size.
    """

    def __init__(self, photo: np.ndarray, contract: Contract, protocol: Protocol):
        self.photo, self.placed = photo, place_steps(protocol.steps, *photo.shape[:2])
        self.size = self.placed[-1].after if self.placed else photo.shape[:2]
        check_windows(protocol, contract.input, *self.size)
        self.windows = windows_of(protocol)
        self._contract, self._protocol, self._picture, self._assembly = contract, protocol, None, None
        self.network_ms = self.waiting_ms = 0.0

    @property
    def picture(self) -> np.ndarray:
        """float32 [h, w, 3] in [0, 1]."""
        if self._picture is None:
            self._picture = shape_photo(self.photo, self.placed)
        return self._picture

    @property
    def assembly(self) -> Assembly:
        """Where its windows' outputs go."""
        if self._assembly is None:
            self._assembly = Assembly(self._contract, self._protocol, self.placed, self.photo.shape[:2])
        return self._assembly
