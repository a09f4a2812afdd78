"""What a backend that works on whole photos hands back, before the maps are judged."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class RawMaps:
    """Maps of several photos, or why there are none.

    Args:
        maps: values float32 [H, W] and valid bool [H, W] for each photo.
        network_ms: what the network's runs took on the device, without waiting, copies and resizes.
        why_cpu: why these photos have to be shaped on the CPU instead; then there are no maps.
        parts_ms: the device's time from the first byte in to the last byte out, one part after the other: ``copy_in``, ``shaping``, ``network``,
            ``finishing``, ``copy_out``; empty unless it was asked for.
    """

    maps: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    network_ms: float = 0.0
    why_cpu: str = ""
    parts_ms: dict[str, float] = field(default_factory=dict)
