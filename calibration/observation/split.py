"""Three splits of the images: ranges come from one, the search decides on another, and the third proves what it decided."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...runtime.errors import InputError
from ..ranges.table import image_warnings
from .photo import Photo

SELECT, PROVE = 16, 32  # most photos
FEWEST_SCENES = 4  # from so many on, the proof has scenes of its own
FEWEST_PHOTOS = {"observe": 16, "select": 4, "prove": 4}  # a part with fewer is warned of


@dataclass(frozen=True)
class Split:
    """The images of a calibration, no photo in two parts.

    Args:
        observe: photos whose activations give the ranges.
        select: photos the search is judged on.
        prove: photos that decide nothing but the verdict on what the search chose.
        seed: of the draw.
        warnings: full sentences.
    """

    observe: tuple[Photo, ...]
    select: tuple[Photo, ...]
    prove: tuple[Photo, ...]
    seed: int
    warnings: tuple[str, ...]

    def reduced(self, observe: int, select: int, prove: int) -> Split:
        """The same with fewer photos, drawn by the same seed: parts of the parts."""
        random = np.random.default_rng(self.seed)
        parts = ((self.observe, observe), (self.select, select), (self.prove, prove))
        fewer = [tuple(photos[place] for place in sorted(random.permutation(len(photos))[:count])) for photos, count in parts]
        return replace(self, observe=fewer[0], select=fewer[1], prove=fewer[2])

    def to_json(self) -> dict[str, Any]:
        """Names of the photos of every part, and how many scenes they show."""
        parts = {"observe": self.observe, "select": self.select, "prove": self.prove}
        scenes = {name: len({photo.scene for photo in photos}) for name, photos in parts.items()}
        return {"seed": self.seed, "scenes": scenes} | {name: [photo.id for photo in photos] for name, photos in parts.items()}


def split(photos: list[Photo], evaluation: set[str], kind: str, left_out: Sequence[str] = (), seed: int = 0, most: tuple[int, int] = (SELECT, PROVE)) -> Split:
    """Deal the different photos out over three parts, each spread over as many scenes as it can; doubles count once.

    A quarter of the photos, at most ``most[0]``, selects, a quarter, at most ``most[1]``, proves, and the rest is observed. With four scenes or more
    the photos that prove are of scenes that neither of the others sees (see ``_own_scenes``); what else there is of those scenes is left alone.

    Args:
        evaluation: names of samples on which results are reported.
        kind: word of the ``--data`` grammar; every synthetic room is a scene of its own.
        left_out: why images could not be used.
        seed: two different seeds give different parts, one always the same.
        most: photos that select, and that prove.

    Raises:
        InputError: if there are not three different photos.
    """
    first: dict[str, Photo] = {}
    duplicates = []
    for photo in photos:
        if photo.sha256 in first:
            duplicates.append((first[photo.sha256].id, photo.id))
        else:
            first[photo.sha256] = photo
    different = [replace(photo, scene=photo.id) if kind == "rooms" else photo for photo in first.values()]
    if len(different) < 3:
        fix = "give more images"
        raise InputError(f"the data holds {len(different)} different image(s)", wanted="at least 3: for the ranges, to choose by, and to prove on", fix=fix)
    scenes: dict[str, list[Photo]] = {}
    for photo in different:
        scenes.setdefault(photo.scene, []).append(photo)
    random = np.random.default_rng(seed)
    order = [list(scenes)[place] for place in random.permutation(len(scenes))]
    dealt = {name: [scenes[name][place] for place in random.permutation(len(scenes[name]))] for name in order}
    proving = min(max(1, len(different) // 4), most[1])
    selecting = min(max(1, -(-(len(different) - len(different) // 2) // 2)), most[0]) if len(different) > 3 else 1
    apart = len(order) >= FEWEST_SCENES
    own = _own_scenes(dealt, proving) if apart else order
    prove = round_robin([dealt[name] for name in own], proving)
    kept_back = {photo.number for photo in prove}
    others = [[photo for photo in dealt[name] if photo.number not in kept_back] for name in order if not apart or name not in own]
    select = round_robin(others, min(selecting, sum(map(len, others)) - 1))
    kept_back |= {photo.number for photo in select}
    observe = sorted((photo for some in others for photo in some if photo.number not in kept_back), key=lambda photo: photo.number)
    named = [photo.id for photo in different if photo.id in evaluation]
    warnings = image_warnings(len(different), duplicates, named, kind, left_out)
    if not apart:
        warnings += (f"The images show {len(order)} scene(s): those that prove the result share them with those that chose it.",)
    for words, some, fewest in zip(("give the ranges", "are selected by", "prove the result"), (observe, select, prove), FEWEST_PHOTOS.values(), strict=True):
        if len(some) < fewest:
            warnings += (f"Photos that {words}: {len(some)}; at least {fewest} are wanted.",)
    return Split(tuple(observe), tuple(select), tuple(prove), seed, warnings)


def _own_scenes(scenes: dict[str, list[Photo]], photos: int) -> list[str]:
    """Names of a quarter of the scenes, as they were drawn, and of more where those hold too few photos; half of the scenes and of the photos at most.

    A scene that holds more than what is left of that half is passed over: it would prove on one place what all others must do without.
    """
    half = sum(map(len, scenes.values())) // 2
    wanted, least = min(max(1, len(scenes) // 4), photos), min(photos, FEWEST_PHOTOS["prove"])
    found: list[str] = []
    held = 0
    for name, inside in scenes.items():
        if len(found) == len(scenes) // 2 or (len(found) >= wanted and held >= least):
            break
        if held + len(inside) <= half:
            found.append(name)
            held += len(inside)
    return found


def round_robin(scenes: list[list[Photo]], count: int) -> list[Photo]:
    """``count`` photos (or all there are), a second of a scene only when every scene has given one; in order of their numbers."""
    deepest = max((len(photos) for photos in scenes), default=0)
    ordered = [photos[depth] for depth in range(deepest) for photos in scenes if depth < len(photos)]
    return sorted(ordered[: max(count, 0)], key=lambda photo: photo.number)
