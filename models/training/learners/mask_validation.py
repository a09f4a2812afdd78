"""Mask metrics on held-out rooms, beside those of two guesses that do not use the picture."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable

import numpy as np
import torch

from ....datasets.mask_metrics import MaskTotals
from ....runtime.errors import AccuracyError
from ..data.referring_data import WordsBatch, WordsExamples

METRICS = ("mIoU", "oIoU", "P@0.5")


def mask_metrics(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    """``METRICS`` of predictions and truths, bool [H, W] each."""
    totals = MaskTotals()
    for found, truth in pairs:
        totals = totals.add(found, truth)
    found = totals.metrics()
    return {name: found[name] for name in METRICS}


def validate_masks(predict: Callable[[WordsBatch], torch.Tensor], examples: WordsExamples, device: torch.device) -> dict[str, float]:
    """The network's metrics over all pairs of a room and words, at the network's window.

    Args:
        predict: a batch to logits [S, 2, window, window].

    Raises:
        AccuracyError: if a logit is not finite.
    """
    pairs = []
    with torch.no_grad():
        for number in range(len(examples)):
            batch = examples.whole(number)[1]
            logits = predict(batch.to(device)).float().cpu()
            if not bool(logits.isfinite().all()):
                raise AccuracyError(f"{int((~logits.isfinite()).sum())} logits of room {number} are not finite")
            pairs += zip((logits[:, 1] > logits[:, 0]).numpy(), batch.mask.numpy(), strict=True)
    return mask_metrics(pairs)


def blind_masks(examples: WordsExamples) -> dict[str, dict[str, float]]:
    """What two blind guesses reach on the same pairs.

    ``everything`` is the whole picture. ``mean_mask`` knows the words and all *other* rooms: as many pixels as these words cover there
    on average, those that they cover most often (words that no other room has: the same over all words).
    """
    masks = defaultdict(list)
    for number in range(len(examples)):
        found, batch = examples.whole(number)
        for meaning, mask in zip(found, batch.mask.numpy(), strict=True):
            masks[meaning].append(mask)
    total, count = sum(np.sum(found, axis=0, dtype=np.float64) for found in masks.values()), sum(map(len, masks.values()))
    mean, everything = [], []
    for found in masks.values():
        own = np.sum(found, axis=0, dtype=np.float64)
        for mask in found:
            others, known = (own - mask, len(found) - 1) if len(found) > 1 else (total - mask, count - 1)
            share = others / max(known, 1)
            least = np.sort(share, axis=None)[::-1][max(1, round(float(share.sum()))) - 1]
            mean.append(((share >= least) & (share > 0), mask))
            everything.append((np.ones_like(mask), mask))
    return {"mean_mask": mask_metrics(mean), "everything": mask_metrics(everything)}
