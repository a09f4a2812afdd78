"""The time of a calibration: told before it starts and as it goes, and kept to where hours are given."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict

from ..runtime.errors import UsageError
from .estimate import Extent, Pace, extent_of, fit, least, measure_pace, phases_s, words
from .graph.chain import Chain
from .observation.flow import Flow
from .observation.observe import passes
from .observation.split import Split

PACE, EXTENT = "pace", "extent"
SURE_FROM_S = 10.0  # shorter phases say little about the others


class Schedule:
    """Plans a calibration and watches over it.

    Args:
        chain, flow: the network, and what flows in it.
        parts: the three splits.
        regions: most per stage.
        memory_nbytes, also: see ``observe``.
        hours: how long all may take, or None.
        on_message: told the estimates.

    Attributes:
        parts: the splits, cut to fit.
        extent: what is done, cut to fit.

    Raises:
        UsageError: if the hours do not suffice for the least.
    """

    def __init__(
        self,
        chain: Chain,
        flow: Flow,
        parts: Split,
        regions: int,
        memory_nbytes: int,
        also: tuple[str, ...],
        hours: float | None,
        on_message: Callable[[str], None],
    ):
        self._started, self._on_message = time.monotonic(), on_message
        known = flow.journal.fact(PACE)
        self._pace = Pace(*map(tuple, known)) if known else measure_pace(chain, flow, parts.observe[0])
        flow.journal.note(PACE, [self._pace.open_s, self._pace.run_s])
        self._passes = tuple(map(len, passes(chain, flow.journal, memory_nbytes, also)))
        whole = extent_of(chain, parts, regions)
        self.parts, self.extent = parts, whole
        self._end = None if hours is None else self._started + 3600 * hours
        if hours is not None:
            known = flow.journal.fact(EXTENT)  # the photos that were looked at before are those that count
            found = Extent.from_json(known) if known else fit(self._pace, whole, self._passes, 3600 * hours)
            if found is None:
                need = math.fsum(phases_s(self._pace, least(whole), self._passes).values()) / 3600
                raise UsageError(f"--hours {hours:g} are too few on this machine", wanted=f"about {1.1 * need:.2g} at least", fix="give more, or fewer images")
            flow.journal.note(EXTENT, asdict(found))
            self.extent = found
            self.parts = parts.reduced(found.observe, found.select, found.prove)
        group = max(1, round(self.extent.windows * (self.extent.observe + self.extent.select)))
        self._groups = flow.group_count(group)
        self._phases = phases_s(self._pace, self.extent, self._passes, self._groups)
        self._begun = time.monotonic()
        cut = "" if self.extent == whole else f" ({self._cut()}, to fit into {hours:g} h)"
        on_message(f"this will take {words(self._phases)}{cut}")

    def _cut(self) -> str:
        found = self.extent
        photos = f"{found.observe} photos observed, {found.select} to select by, {found.prove} to prove on"
        return f"{photos}, at most {found.regions} regions per stage, {found.trials} trials"

    def done(self, phase: str) -> None:
        """A phase is over: what is left is told, as fast as this one went."""
        took, reckoned = time.monotonic() - self._begun, self._phases.pop(phase)
        factor = took / reckoned if reckoned > SURE_FROM_S else 1.0
        self._begun = time.monotonic()
        left = {name: seconds * factor for name, seconds in self._phases.items()}
        self._on_message(f"{phase} took {words({phase: took}).split(':')[0].removeprefix('about ')}; left: {words(left)}")

    def out_of_time(self) -> bool:
        """Whether what is left of the hours is needed for the proof."""
        return self._end is not None and time.monotonic() + self._phases.get("proof", 0.0) >= self._end
