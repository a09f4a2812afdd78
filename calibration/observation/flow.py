"""What flows between the stages for every window of every photo: made when it is needed, kept in the journal while there is room."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..graph.chain import Chain
from .journal import Journal
from .photo import Photo

if TYPE_CHECKING:
    from ...datasets.source import Source

GROUP_NBYTES = 1_200_000_000  # of the windows on their way through the stages
HELD_NBYTES = 2_000_000_000  # of the windows that stay for the search; with the histograms a journal stays below 4 GB
Window = tuple[Photo, int]


class Flow:
    """The tensors between the FP32 stages.

    Args:
        chain: the network.
        source: gives the image of a number.
        journal: keeps the tensors.
    """

    def __init__(self, chain: Chain, source: Source, journal: Journal):
        self.chain, self._source, self.journal = chain, source, journal
        specs = chain.specs
        output = chain.contract.output.tensor
        self._needed = [{t.name for spec in specs[place:] for t in spec.inputs} | {output} for place in range(len(specs) + 1)]
        self._inputs: tuple[int, list[dict[str, np.ndarray]]] = (-1, [])
        self._room: dict[tuple[int, int], bool] = {}

    def window_nbytes(self) -> int:
        """Bytes of all tensors that pass from stage to stage for one window, the network's inputs and output among them."""
        total = 0
        for spec in self.chain.specs:
            _, shapes = self.chain.graphs[spec.name].types_and_shapes(self.chain.batch)
            total += sum(4 * int(np.prod(shapes[t.name], dtype=np.int64)) for t in spec.outputs if shapes.get(t.name))
        first = {t.name: t for spec in self.chain.specs for t in spec.inputs if t.name in self.chain.outside()}
        return total + sum(4 * int(np.prod([size if isinstance(size, int) else self.chain.batch for size in t.shape], dtype=np.int64)) for t in first.values())

    def groups(self, photos: list[Photo], hold: set[int]) -> list[list[Window]]:
        """The windows in groups that go through all stages together; says of every one of ``hold`` whether there is room to keep it."""
        nbytes = max(self.window_nbytes(), 1)
        kept = 0
        for photo in photos:
            for window in range(photo.windows):
                if photo.number in hold:
                    self._room[photo.number, window] = (kept + 1) * nbytes <= HELD_NBYTES
                    kept += self._room[photo.number, window]
        windows = [(photo, window) for photo in photos for window in range(photo.windows)]
        size = max(1, GROUP_NBYTES // nbytes)
        return [windows[start : start + size] for start in range(0, len(windows), size)]

    def group_count(self, windows: int) -> int:
        """How many groups so many windows make."""
        return -(-windows // max(1, GROUP_NBYTES // max(self.window_nbytes(), 1)))

    def holds(self, photo: Photo, window: int) -> bool:
        """Whether a window's tensors stay for the search."""
        return self._room.get((photo.number, window), False)

    def read(self, photo: Photo, window: int) -> dict[str, np.ndarray]:
        """What one window has become so far; at first what the first stages get."""
        return self.journal.get(_name(photo, window)) or self.inputs(photo, window)

    def inputs(self, photo: Photo, window: int) -> dict[str, np.ndarray]:
        """What the first stages get for one window."""
        if self._inputs[0] != photo.number:
            self._inputs = (photo.number, self.chain.inputs(self._source[photo.number].rgb, photo.number)[1])
        return dict(self._inputs[1][window])

    def write(self, photo: Photo, window: int, tensors: dict[str, np.ndarray], place: int, hold: bool) -> None:
        """Keep what stage ``place`` and those after it read, and the network's output; all that any stage reads if it stays for the search."""
        needed = self._needed[0 if hold and self.holds(photo, window) else place]
        self.journal.put(_name(photo, window), {name: values for name, values in tensors.items() if name in needed}, synced=False)

    def drop(self, photo: Photo, window: int) -> None:
        """Forget a window."""
        self.journal.drop(_name(photo, window))


def _name(photo: Photo, window: int) -> str:
    return f"item_{photo.number:06d}_{window:03d}"
