"""How long a calibration will take on this machine, and what fits into the hours that are given."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import Any

from .graph.chain import Chain
from .graph.session import StageSession, check_finite
from .observation.flow import Flow
from .observation.photo import Photo
from .observation.split import FEWEST_PHOTOS, Split
from .precision.regions import find_regions
from .search.mixtures import MOST_TRIALS

LOOKING = 1.6  # observing a stage takes so much longer than running it
ROUNDING = 1.5  # so does a stage with the roundings of a mixture in it; it opens slower by as much
PROOFS = 2  # FP32 and what was chosen
FEWEST = FEWEST_PHOTOS | {"regions": 4, "trials": 8}
STEP = 0.8
SCREENED = 48  # regions times photos: where there are fewer regions, each is tried on more photos


@dataclass(frozen=True)
class Pace:
    """Seconds that every stage takes to open, and to run on one window, in FP32 and in running order."""

    open_s: tuple[float, ...]
    run_s: tuple[float, ...]


@dataclass(frozen=True)
class Extent:
    """What a calibration does: photos of the three splits, windows per photo, most regions per stage, regions of every stage, trials."""

    observe: int
    select: int
    prove: int
    windows: float
    regions: int
    by_stage: tuple[int, ...]
    trials: int

    @classmethod
    def from_json(cls, facts: dict[str, Any]) -> Extent:
        """From what ``asdict`` made, as JSON gives it back."""
        return cls(**{**facts, "by_stage": tuple(facts["by_stage"])})

    @property
    def screened(self) -> tuple[int, ...]:
        """Regions of every stage that are tried."""
        return tuple(min(count, self.regions) for count in self.by_stage)

    @property
    def screen(self) -> int:
        """Photos to screen on: one tells the forms of a whole stage apart by chance, and of few regions each can be tried on more."""
        return max(1, min(self.select, SCREENED // max(1, sum(self.screened))))


def measure_pace(chain: Chain, flow: Flow, photo: Photo) -> Pace:
    """Open every stage and run one window of a photo through it; what it gives is thrown away.

    Raises:
        AccuracyError: naming the first stage and tensor that is NaN, infinite or constant.
    """
    tensors = flow.inputs(photo, 0)
    opened, ran = [], []
    for spec in chain.specs:
        start = time.monotonic()
        session = StageSession(chain.graphs[spec.name])
        middle = time.monotonic()
        values = session.run(tensors)
        opened.append(middle - start)
        ran.append(time.monotonic() - middle)
        check_finite(spec.name, values, photo.id)
        tensors |= values
        del session
    return Pace(tuple(opened), tuple(ran))


def extent_of(chain: Chain, parts: Split, regions: int, trials: int = MOST_TRIALS) -> Extent:
    """All of a calibration."""
    photos = [*parts.observe, *parts.select, *parts.prove]
    windows = sum(photo.windows for photo in photos) / len(photos)
    by_stage = tuple(len(find_regions(spec.name, chain.graphs[spec.name], regions)) for spec in chain.specs)
    return Extent(len(parts.observe), len(parts.select), len(parts.prove), windows, regions, by_stage, trials)


def phases_s(pace: Pace, extent: Extent, passes: tuple[int, ...], groups: int = 1) -> dict[str, float]:
    """Seconds of every phase.

    Args:
        passes: how often each stage is run to look at all of its activations.
        groups: how often each stage is opened for that.
    """
    opens, run = math.fsum(pace.open_s), math.fsum(pace.run_s)
    windows = extent.windows
    looking = math.fsum(count * ran for count, ran in zip(passes, pace.run_s, strict=True))
    observing = LOOKING * windows * (extent.observe + extent.select) * looking + groups * opens
    screening = 0.0
    for place, count in enumerate(extent.screened):
        after = math.fsum(pace.run_s[place:]) * windows * extent.screen + math.fsum(pace.open_s[place:])
        screening += (count + 1) * ROUNDING * after
    trials = extent.trials * ROUNDING * (extent.select * windows * run + opens)
    proof = PROOFS * ROUNDING * (extent.prove * windows * run + opens)
    return {"observing": observing, "screening": screening, "trials": trials, "proof": proof}


def fit(pace: Pace, extent: Extent, passes: tuple[int, ...], seconds: float) -> Extent | None:
    """The largest extent that fits: the phase that takes longest gives way first; None if even the least does not fit."""
    while math.fsum((phases := phases_s(pace, extent, passes)).values()) > seconds:
        for phase in sorted(phases, key=lambda name: -phases[name]):
            smaller = _less(extent, phase)
            if smaller != extent:
                extent = smaller
                break
        else:
            return None
    return extent


def least(extent: Extent) -> Extent:
    """The smallest that ``fit`` gives."""
    return replace(extent, **{name: min(getattr(extent, name), few) for name, few in FEWEST.items()})


def _less(extent: Extent, phase: str) -> Extent:
    names = {"observing": ("observe",), "screening": ("regions",), "trials": ("trials", "select"), "proof": ("prove",)}[phase]
    larger = [name for name in names if getattr(extent, name) > FEWEST[name]]
    if not larger:
        return extent
    name = max(larger, key=lambda some: getattr(extent, some) / FEWEST[some])
    return replace(extent, **{name: max(FEWEST[name], int(STEP * getattr(extent, name)))})


def words(phases: dict[str, float]) -> str:
    """``about 2.4 h: observing 1.1 h, screening 40 min, trials 31 min, proof 5 min``."""
    return f"about {_time(math.fsum(phases.values()))}: " + ", ".join(f"{name} {_time(seconds)}" for name, seconds in phases.items())


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
