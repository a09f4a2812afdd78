"""What becomes of a photo, and how far it moves when the network computes otherwise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Map:
    """What became of one photo: values float32 [H, W] and valid bool [H, W]; for a mask also how probable the object is in every window,
    float32 [windows, h, w]."""

    values: np.ndarray
    valid: np.ndarray
    object_share: np.ndarray | None = None


def apart(found: Map, reference: Map) -> float:
    """How far a map moved: relative, pixel by pixel; of a mask the object's probability."""
    if reference.object_share is not None:
        return float(np.mean(np.abs(found.object_share - reference.object_share)))
    counts = reference.valid & found.valid & (np.abs(reference.values) > 0)
    values = reference.values[counts]
    return float(np.mean(np.abs(found.values[counts] - values) / np.abs(values))) if counts.any() else 0.0


def object_share(tensors: list[np.ndarray]) -> np.ndarray:
    """Probability of the object from logits [batch, 2, h, w] of every window: float32 [windows, h, w]."""
    logits = np.stack([tensor[0] for tensor in tensors]).astype(np.float32)
    return 0.5 * (1 + np.tanh(0.5 * (logits[:, 1] - logits[:, 0])))  # the logistic function, without its overflow
