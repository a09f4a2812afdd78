"""Synthetic rooms: photos with exact metric depth from a seed, so that anyone can train, calibrate and test offline."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..sample import Provenance, Sample, fingerprint
from .camera import develop, sensor_sees, stand
from .layout import make_room
from .lighting import shade
from .lived_in import live_in, stance
from .raycast import View, cast
from .walls import Scene
from .words import Things, things_of

RECIPE = 1  # raised whenever the same seed would give another picture
LIVED_IN_RECIPE = 1  # the same for lived-in rooms
MAX_SIDE = 4096
NYU_NAMES = {"living": "living_room", "dining": "dining_room", "store": "furniture_store"}  # kinds of our rooms that NYU Depth v2 calls otherwise


class Rooms:
    """``count`` rooms; number i of a seed is always the same picture on the same machine.

    ``rooms`` are tidy and carefully photographed; numbers are measured on them. ``lived-in`` ones are to learn from: they have people, thin things
    and clutter in them, surfaces as uneven as real ones, and are photographed from anywhere; their light has half the resolution.

    Args:
        count: number of rooms.
        seed: of the whole series; another seed is another set of rooms.
        size: height and width in pixels.
        holes: whether depth is missing where a depth sensor would miss it, else it is known everywhere.
        lived_in: which of the two.

    Raises:
        ValueError: if the count or the seed is negative, or the size has no pixels or more than 4096 on a side.
    """

    def __init__(self, count: int, seed: int = 0, size: tuple[int, int] = (240, 320), holes: bool = False, lived_in: bool = False):
        if count < 1 or seed < 0:
            raise ValueError(f"rooms: a positive count and a seed from 0 were wanted, got {count} and {seed}")
        if not all(16 <= side <= MAX_SIDE for side in size):
            raise ValueError(f"rooms: a size from 16 to {MAX_SIDE} pixels was wanted, got {size[0]}x{size[1]}")
        self.count, self.seed, self.size, self.holes, self.lived_in = count, seed, tuple(size), holes, lived_in

    @property
    def provenance(self) -> Provenance:
        """Which rooms these are."""
        kind, recipe = ("lived-in", LIVED_IN_RECIPE) if self.lived_in else ("rooms", RECIPE)
        facts = fingerprint(kind, recipe, self.count, self.seed, self.size, self.holes)
        words = f"{self.count} {'lived-in ' if self.lived_in else ''}rooms, {self.size[0]}x{self.size[1]}{', sensor holes' if self.holes else ''}"
        return Provenance(kind, words, facts, self.count, self.seed)

    @property
    def files(self) -> list[Path]:
        """None: rooms are rendered."""
        return []

    def origin(self, number: int) -> str:
        """Which room of which seed; another size shows the same room."""
        return f"{'lived-in ' if self.lived_in else ''}room {number} of seed {self.seed}"

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Sample]:
        return (self[number] for number in range(self.count))

    def __getitem__(self, number: int) -> Sample:
        scene, view, draw = self._scene(number)
        depth, index = cast(view, scene.groups)
        radiance, facing = shade(scene, view, depth, index, sparse=self.lived_in)
        rgb = develop(radiance, draw)
        valid = np.isfinite(depth)
        if self.holes:
            shines = np.array([scene.materials[shape.surface].glow > 0 for group in scene.groups for shape in group.shapes] + [False])
            valid &= sensor_sees(depth, facing, shines[index], view.intrinsics[0], draw)
        name = "lived_in" if self.lived_in else "room"
        return Sample(rgb, np.where(valid, depth, np.float32(0)), valid, view.intrinsics, f"{name}_{self.seed}_{number:06d}", scene.kind)

    def things(self, number: int) -> Things:
        """Which pixels of room ``number`` are what. Nothing is lit for it, so this takes a fraction of the time of the picture.

        Raises:
            IndexError: if there is no such room.
        """
        scene, view, _ = self._scene(number)
        return things_of(scene.groups, cast(view, scene.groups)[1])

    def _scene(self, number: int) -> tuple[Scene, View, np.random.Generator]:
        if not 0 <= number < self.count:
            raise IndexError(f"room {number} of {self.count}")
        if self.lived_in:
            draw = np.random.Generator(np.random.PCG64([LIVED_IN_RECIPE, self.seed, number, 1]))
            scene = live_in(make_room(draw), draw)
            return scene, stand(scene, draw, *self.size, stance(draw)), draw
        draw = np.random.Generator(np.random.PCG64([RECIPE, self.seed, number]))
        scene = make_room(draw)
        return scene, stand(scene, draw, *self.size), draw
