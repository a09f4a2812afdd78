"""One way to turn predictions and truths into numbers: which pixels count, what is clamped, fitted and pooled."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...datasets.depth_metrics import MeanScore, Score, compare
from ...runtime.artefact.contract import Step, step_to_json
from .alignment import ALIGNMENTS, align


@dataclass(frozen=True)
class Rectangle:
    """Rows and columns in pixels, of pictures of one size."""

    top: int
    bottom: int
    left: int
    right: int

    def slices(self, height: int, width: int) -> tuple[slice, slice]:
        """Rows and columns of a picture.

        Raises:
            ValueError: if the picture is too small for them.
        """
        if self.bottom > height or self.right > width:
            raise ValueError(f"rows {self.top}:{self.bottom}, columns {self.left}:{self.right} do not lie on a picture of {height}x{width}")
        return slice(self.top, self.bottom), slice(self.left, self.right)


@dataclass(frozen=True)
class Fractions:
    """Rows and columns as shares of the picture, rounded down (the crops of Garg and of Eigen for KITTI)."""

    top: float
    bottom: float
    left: float
    right: float

    def slices(self, height: int, width: int) -> tuple[slice, slice]:
        """Rows and columns of a picture."""
        return slice(int(self.top * height), int(self.bottom * height)), slice(int(self.left * width), int(self.right * width))


@dataclass(frozen=True)
class BenchmarkCrop:
    """The 352x1216 part of a KITTI picture, from the bottom edge and the horizontal middle."""

    height: int = 352
    width: int = 1216

    def slices(self, height: int, width: int) -> tuple[slice, slice]:
        """Rows and columns of a picture.

        Raises:
            ValueError: if the picture is smaller.
        """
        if height < self.height or width < self.width:
            raise ValueError(f"a picture of {height}x{width} is smaller than {self.height}x{self.width}")
        left = (width - self.width) // 2
        return slice(height - self.height, height), slice(left, left + self.width)


Region = Rectangle | Fractions | BenchmarkCrop


@dataclass(frozen=True)
class Evaluation:
    """One way to turn predictions and truths into numbers.

    Args:
        name: of ``--evaluation``.
        source: who evaluates so, and what to know about it.
        near_m, far_m: truth counts where near < truth < far; far may be infinite.
        regions: truth counts only inside all of them, on the shaped picture.
        shape: steps applied to photo (as they say) and truth (nearest pixel) before the network sees the photo.
        prediction_above_m: pixels with a smaller prediction do not count, or None.
        clamp_m: prediction (and truth, if ``clamp_truth``) are clamped to this range, or None. Never hides NaN or infinity.
        half_canvas: the prediction goes through float16.
        min_max: prediction and truth are each stretched to [0, 1] over the image's counted pixels and floored at 0.001: the
            numbers are not metres and compare with nothing else.
        alignment: see ``alignment.align``.
        group: images that are evaluated together.
        pooling: ``images``: each image is scored, the scores of a group averaged, then the groups; ``pixels``: the pixels of a
            group are fitted and scored as if they were one image.

    Raises:
        ValueError: if a value is impossible.
    """

    name: str
    source: str
    near_m: float
    far_m: float
    regions: tuple[Region, ...] = ()
    shape: tuple[Step, ...] = ()
    prediction_above_m: float | None = None
    clamp_m: tuple[float, float] | None = None
    clamp_truth: bool = False
    half_canvas: bool = False
    min_max: bool = False
    alignment: str = "none"
    group: int = 1
    pooling: str = "images"

    def __post_init__(self):
        if not 0 < self.near_m < self.far_m:
            raise ValueError(f"evaluation {self.name}: 0 < near < far was wanted, got {self.near_m} and {self.far_m}")
        if self.alignment not in ALIGNMENTS or self.pooling not in ("images", "pixels") or not 1 <= self.group <= 64:
            raise ValueError(f"evaluation {self.name}: alignment {self.alignment!r}, pooling {self.pooling!r}, group {self.group}")
        if self.clamp_m is not None and not 0 < self.clamp_m[0] < self.clamp_m[1]:
            raise ValueError(f"evaluation {self.name}: the clamp {self.clamp_m} is no range of depths")

    @property
    def metric(self) -> bool:
        """Whether the numbers speak of metres."""
        return not self.min_max

    def to_json(self) -> dict[str, Any]:
        """As JSON values, for the record of a result."""
        data = {name: getattr(self, name) for name in self.__dataclass_fields__}
        data["regions"] = [{"kind": type(region).__name__, **vars(region)} for region in self.regions]
        data["shape"] = [step_to_json(step) for step in self.shape]
        data["far_m"] = self.far_m if math.isfinite(self.far_m) else None
        data["clamp_m"] = list(self.clamp_m) if self.clamp_m else None
        return data


@dataclass(frozen=True, eq=False)
class Pixels:
    """The counted pixels of one image: prediction and truth [n] float64, and how many the prediction does not cover."""

    prediction: np.ndarray
    truth: np.ndarray
    uncovered: int


def counted(evaluation: Evaluation, truth_m: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Which pixels of a shaped truth count, bool [H, W].

    Raises:
        ValueError: if a region does not lie on the picture.
    """
    mask = valid & (truth_m > evaluation.near_m) & (truth_m < evaluation.far_m)
    for region in evaluation.regions:
        inside = np.zeros_like(mask)
        inside[region.slices(*mask.shape)] = True
        mask &= inside
    return mask


def collect(evaluation: Evaluation, prediction: np.ndarray, covered: np.ndarray, truth_m: np.ndarray, valid: np.ndarray) -> Pixels:
    """Pick the counted pixels of one image; arguments and errors as in ``scored``."""
    seen, mask, uncovered = scored(evaluation, prediction, covered, truth_m, valid)
    return Pixels(seen[mask], truth_m[mask].astype(np.float64), uncovered)


def scored(evaluation: Evaluation, prediction: np.ndarray, covered: np.ndarray, truth_m: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """What of one image is scored; all arrays are [H, W] of the shaped picture.

    Returns:
        the prediction as the evaluation sees it (float64), which of its pixels are scored (bool), and how many counted ones it does not cover.

    Raises:
        ValueError: if the shapes differ or a region does not lie on the picture.
    """
    if not prediction.shape == covered.shape == truth_m.shape == valid.shape:
        raise ValueError(f"prediction {prediction.shape}, covered {covered.shape}, truth {truth_m.shape} and valid {valid.shape} differ in shape")
    mask = counted(evaluation, truth_m, valid)
    with np.errstate(over="ignore"):
        seen = (prediction.astype(np.float16) if evaluation.half_canvas else prediction).astype(np.float64)
    mask_seen = mask & covered
    uncovered = int(mask.sum() - mask_seen.sum())
    if evaluation.prediction_above_m is not None:
        mask_seen &= ~(seen <= evaluation.prediction_above_m)  # NaN stays in, to be counted
    return seen, mask_seen, uncovered


def judge(evaluation: Evaluation, images: Sequence[Pixels]) -> list[Score]:
    """Score a group of images: one score each, or a single one where their pixels are pooled."""
    if evaluation.pooling == "pixels":
        pooled = Pixels(np.concatenate([i.prediction for i in images]), np.concatenate([i.truth for i in images]), sum(i.uncovered for i in images))
        images = [pooled]
    return [_score(evaluation, image) for image in images]


def _score(evaluation: Evaluation, image: Pixels) -> Score:
    score = compare(*compared(evaluation, image))
    return Score(score.values, score.pixels, score.not_finite, score.not_positive, image.uncovered)


def compared(evaluation: Evaluation, image: Pixels) -> tuple[np.ndarray, np.ndarray]:
    """Prediction and truth as they are compared, [n]: aligned, and where the evaluation says so stretched and clamped."""
    prediction, truth = align(image.prediction, image.truth, evaluation.alignment, evaluation.near_m), image.truth
    if prediction.size and np.isfinite(prediction).all():
        if evaluation.min_max:
            prediction, truth = _stretch(prediction), _stretch(truth)
        if evaluation.clamp_m is not None:
            prediction = np.clip(prediction, *evaluation.clamp_m)
            truth = np.clip(truth, *evaluation.clamp_m) if evaluation.clamp_truth else truth
    return prediction, truth


def _stretch(values: np.ndarray) -> np.ndarray:
    low, high = values.min(), values.max()
    return np.maximum((values - low) / (high - low) if high > low else np.zeros_like(values), 1e-3)


def overall(evaluation: Evaluation, groups: Sequence[Sequence[Score]]) -> MeanScore:
    """The mean over all groups, weighed as the evaluation says."""
    if evaluation.pooling == "pixels" or evaluation.group == 1:
        return MeanScore.over(score for group in groups for score in group)
    total = MeanScore()
    for group in groups:
        mean = MeanScore.over(group)
        for name in ("pixels", "not_finite", "not_positive", "uncovered", "failed", "empty"):
            setattr(total, name, getattr(total, name) + getattr(mean, name))
        if mean.images and not mean.failed:
            total.images += 1
            total.sums = {name: total.sums[name] + mean.sums[name] / mean.images for name in total.sums}
    return total
