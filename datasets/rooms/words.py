"""What things in a room are called, and which pixels a few words mean: pictures for networks that take words."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .raycast import Group

WORDS_RECIPE = 2  # raised whenever the same room would get other words
NOTHING = 255  # in a map of things
LEAST_SHARE = 0.01  # of the pixels that words must mean
SEEN_SHARE = 0.002  # a thing of fewer pixels does not make words ambiguous
APART = 0.1  # of the picture's width between the middles of what is called left or right
FARTHER = 1.25  # times the distance of what is called near
BACKGROUND = ("floor", "ceiling", "wall")  # these have no left one or near one
# fmt: off
NAMES = (
    *BACKGROUND, "door", "window", "curtain", "radiator", "picture", "clock", "lamp", "rug", "table", "chair", "sofa", "bed", "shelf", "cupboard",
    "desk", "screen", "counter", "fridge", "plant", "box", "book", "cup", "bottle", "ball",
)
# fmt: on
PLACES = {
    "": ("{0}", "the {0}", "a {0}"),
    "left": ("left {0}", "the left {0}", "{0} on the left", "the {0} on the left"),
    "right": ("right {0}", "the right {0}", "{0} on the right", "the {0} on the right"),
    "near": ("near {0}", "the near {0}", "{0} in front", "the {0} in front"),
    "far": ("far {0}", "the far {0}", "{0} at the back", "the {0} at the back"),
}


@dataclass(frozen=True, eq=False)
class Things:
    """What every pixel of a picture shows.

    Args:
        map: uint8 [H, W], index into ``names``, or ``NOTHING``.
        names: of the things that are seen (two chairs are two things); each is one of ``NAMES``.

    Raises:
        ValueError: if the map is no such map, or a name is unknown.
    """

    map: np.ndarray
    names: tuple[str, ...]

    def __post_init__(self):
        if self.map.dtype != np.uint8 or self.map.ndim != 2 or len(self.names) > NOTHING:
            raise ValueError(f"a map of things is uint8 [H, W] with at most {NOTHING} names, got {self.map.dtype} {self.map.shape}, {len(self.names)} names")
        if not ((self.map < len(self.names)) | (self.map == NOTHING)).all() or not set(self.names) <= set(NAMES):
            raise ValueError(f"a map of things points to a name that is none: {sorted(set(self.names) - set(NAMES))}")

    def mirrored(self) -> Things:
        """Seen in a mirror."""
        return Things(np.ascontiguousarray(self.map[:, ::-1]), self.names)


@dataclass(frozen=True)
class Meaning:
    """What words say: a name, and which of several things of that name (a key of ``PLACES``; ``""`` for all of them)."""

    name: str
    place: str = ""

    def sentences(self) -> tuple[str, ...]:
        """All ways to say it, the shortest first."""
        return tuple(form.format(self.name) for form in PLACES[self.place])


def things_of(groups: tuple[Group, ...], index: np.ndarray) -> Things:
    """The things behind the shapes of a scene: solids of one group and one name are one thing.

    Args:
        index: int [H, W] into the shapes of all groups in order, -1 for none (``raycast.cast``).
    """
    owners = [(number, shape.name) for number, group in enumerate(groups) for shape in group.shapes]
    seen = [owners[k] for k in np.unique(index[index >= 0])]
    known = {owner: number for number, owner in enumerate(sorted({owner for owner in seen if owner[1]}))}
    table = np.array([known.get(owner, NOTHING) for owner in owners] + [NOTHING], np.uint8)  # the last one for -1
    return Things(table[index], tuple(name for _, name in known))


def meanings(things: Things, depth_m: np.ndarray) -> dict[Meaning, np.ndarray]:
    """Everything that words can mean in a picture, with its pixels.

    A name alone means all things of that name. Left, right, near and far mean one of several, where no second one competes; near and far are
    not said where the depth of one of them is unknown on more than half of its pixels.
    What covers less than ``LEAST_SHARE`` of the picture is left out.

    Args:
        depth_m: float32 [H, W]; may be infinite or 0 where it is not known.

    Returns:
        bool [H, W] for each meaning.
    """
    pixels = things.map.size
    known = np.isfinite(depth_m) & (depth_m > 0)
    counts = np.bincount(things.map.ravel(), minlength=NOTHING + 1)
    found: dict[Meaning, np.ndarray] = {}
    for name in dict.fromkeys(things.names):
        mine = [k for k, other in enumerate(things.names) if other == name]
        if sum(counts[k] for k in mine) < LEAST_SHARE * pixels:
            continue
        found[Meaning(name)] = np.isin(things.map, mine)
        rivals = [k for k in mine if counts[k] >= SEEN_SHARE * pixels]
        if name in BACKGROUND or len(rivals) < 2:
            continue
        masks = {k: things.map == k for k in rivals}
        columns = {k: np.flatnonzero(mask.any(axis=0)) for k, mask in masks.items()}
        across = {k: int(seen[0] + seen[-1]) for k, seen in columns.items()}  # middles in half pixels, as whole numbers: a mirror changes nothing
        by_side = sorted(rivals, key=across.get)
        chosen, apart = {}, 2 * APART * things.map.shape[1]
        if across[by_side[1]] - across[by_side[0]] >= apart:
            chosen["left"] = by_side[0]
        if across[by_side[-1]] - across[by_side[-2]] >= apart:
            chosen["right"] = by_side[-1]
        if all(2 * known[mask].sum() >= counts[k] for k, mask in masks.items()):
            away_m = {k: float(np.median(depth_m[mask & known])) for k, mask in masks.items()}
            by_depth = sorted(rivals, key=away_m.get)
            if away_m[by_depth[1]] >= FARTHER * away_m[by_depth[0]]:
                chosen["near"] = by_depth[0]
            if away_m[by_depth[-1]] >= FARTHER * away_m[by_depth[-2]]:
                chosen["far"] = by_depth[-1]
        for place, k in chosen.items():
            if counts[k] >= LEAST_SHARE * pixels:
                found[Meaning(name, place)] = masks[k]
    return found
