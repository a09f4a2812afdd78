"""Metrics of referring segmentation: overall IoU, mean IoU, precision at IoU thresholds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
METRICS = ("oIoU", "mIoU", *(f"P@{threshold}" for threshold in THRESHOLDS))  # the larger the better


@dataclass(frozen=True)
class MaskTotals:
    """Counts over samples (one per sentence), made in pieces and merged.

    Args:
        samples: number of samples.
        intersection, union: pixels, summed over all samples.
        iou_sum: of the samples' IoU.
        hits: samples whose IoU reaches each of ``THRESHOLDS``.
    """

    samples: int = 0
    intersection: int = 0
    union: int = 0
    iou_sum: float = 0.0
    hits: tuple[int, ...] = (0,) * len(THRESHOLDS)

    def add(self, prediction: np.ndarray, truth: np.ndarray) -> MaskTotals:
        """With one more sample.

        Args:
            prediction, truth: bool [H, W].

        Raises:
            ValueError: if they are no masks of one shape.
        """
        if prediction.dtype != np.bool_ or truth.dtype != np.bool_ or prediction.shape != truth.shape or prediction.ndim != 2:
            raise ValueError(f"two bool masks of one shape were wanted, got {prediction.dtype} {prediction.shape} and {truth.dtype} {truth.shape}")
        return self.merge(MaskTotals.of(int((prediction & truth).sum()), int((prediction | truth).sum())))

    @classmethod
    def of(cls, intersection: int, union: int) -> MaskTotals:
        """Of one sample, from its pixels. Where prediction and truth are both empty the IoU is 0, as in the published evaluation."""
        iou = intersection / union if union else 0.0
        return cls(1, intersection, union, iou, tuple(int(iou >= threshold) for threshold in THRESHOLDS))

    def merge(self, other: MaskTotals) -> MaskTotals:
        """Both together, of disjoint samples."""
        return MaskTotals(
            self.samples + other.samples,
            self.intersection + other.intersection,
            self.union + other.union,
            self.iou_sum + other.iou_sum,
            tuple(a + b for a, b in zip(self.hits, other.hits, strict=True)),
        )

    def metrics(self) -> dict[str, float]:
        """``oIoU`` (all intersections over all unions), ``mIoU`` (mean over samples), ``P@0.5`` to ``P@0.9``, as shares.

        Raises:
            ValueError: if there is no sample.
        """
        if not self.samples:
            raise ValueError("there is no sample to average over")
        precision = {f"P@{threshold}": hits / self.samples for threshold, hits in zip(THRESHOLDS, self.hits, strict=True)}
        return {"oIoU": self.intersection / self.union if self.union else 0.0, "mIoU": self.iou_sum / self.samples, **precision}
