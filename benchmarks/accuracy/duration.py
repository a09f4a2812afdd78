"""How long a measurement will take, asked of one look of the network before the first image."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ...runtime.errors import FathomError
from ..latency.opening import any_camera, made_up_photo

if TYPE_CHECKING:
    from ...runtime.pipeline import Pipeline

LEAST_LOOKS = 20  # fewer are not worth one more


def duration(seconds: float) -> str:
    """In words, in the largest unit of which there are two."""
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} seconds"


def expected_s(pipeline: Pipeline, protocol: str, images: int) -> float:
    """Seconds that so many images take by a protocol: one made-up photo by the protocol with the fewest looks, times the looks of all.

    0 where that is less work than asking, or the network cannot be asked so.
    """
    contract = pipeline.contract
    looks = {found.name: (len(found.lefts) + len(found.fill_lefts)) * (1 + found.flip) for found in contract.protocols}
    if looks.get(protocol, 0) * images < LEAST_LOOKS:
        return 0.0
    cheapest = min(looks, key=looks.__getitem__)
    try:
        photo = made_up_photo(pipeline.protocol(cheapest))
        begun = time.monotonic()
        pipeline.predict(photo, cheapest, any_camera(photo), contract.text.some_words("the chair") if contract.text is not None else None)
    except FathomError:
        return 0.0
    return (time.monotonic() - begun) / looks[cheapest] * looks[protocol] * images
