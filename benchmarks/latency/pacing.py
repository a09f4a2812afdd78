"""A camera at a fixed rate before a network that takes its time: which frames find it busy. Worked out from recorded samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

RATES_HZ = (10, 15, 30)


def dropped(samples_ms: Sequence[float], rate_hz: float) -> tuple[int, int]:
    """Frames that came, and those of them that were dropped because the one before was still in work; nothing waits in a queue.

    Args:
        samples_ms: how long each frame that is taken takes, in the order in which they were measured; the camera stops when they are used up.
    """
    period_ms = 1e3 / rate_hz
    frame, lost, free_at_ms = 0, 0, 0.0
    for taken_ms in samples_ms:
        while frame * period_ms < free_at_ms - 1e-9:
            frame, lost = frame + 1, lost + 1
        free_at_ms = frame * period_ms + taken_ms
        frame += 1
    return frame, lost


def fixed_rate(samples_ms: Sequence[float]) -> list[dict[str, Any]]:
    """``dropped`` at each of ``RATES_HZ``, as JSON values."""
    found = []
    for rate_hz in RATES_HZ:
        frames, lost = dropped(samples_ms, rate_hz)
        found.append({"rate_hz": rate_hz, "frames": frames, "dropped": lost, "drop_rate": lost / frames if frames else None})
    return found
