"""Depth metrics, defined here alone: per image over its pixels, then the mean over images. Natural logarithms unless the name says otherwise."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

METRICS = ("abs_rel", "sq_rel", "rmse", "rmse_log", "log10", "silog", "silog_half", "delta1", "delta2", "delta3")
UNITS = {"sq_rel": "m", "rmse": "m", "silog": "x100"}
LARGER_IS_BETTER = ("delta1", "delta2", "delta3")


def depth_errors(prediction: np.ndarray, truth: np.ndarray, names: Collection[str] = METRICS) -> dict[str, float]:
    """Metrics over one set of pixels, computed in float64.

    With p the prediction, g the truth and d = ln p - ln g:

    - ``abs_rel`` mean |p - g| / g, ``sq_rel`` mean (p - g)^2 / g, ``rmse`` sqrt mean (p - g)^2
    - ``rmse_log`` sqrt mean d^2, ``log10`` mean |log10 p - log10 g|
    - ``silog`` 100 sqrt(mean d^2 - (mean d)^2): the scale-invariant error of the KITTI benchmark, with its factor 100
    - ``silog_half`` sqrt(mean d^2 - 0.5 (mean d)^2): what EVP and VPD train with and print as silog
    - ``delta1..3`` share of pixels with max(p / g, g / p) < 1.25, 1.25^2, 1.25^3

    Args:
        prediction, truth: [n], positive and finite, n >= 1.
        names: which of ``METRICS``; the logarithms are only taken where one of them wants them.

    Raises:
        ValueError: if the arrays differ in length, are empty, or hold a number that is not positive and finite.
    """
    p, g = np.asarray(prediction, np.float64).reshape(-1), np.asarray(truth, np.float64).reshape(-1)
    if p.size != g.size or not p.size:
        raise ValueError(f"as many predictions as truths were wanted, and at least one, got {p.size} and {g.size}")
    if not (np.isfinite(p).all() and np.isfinite(g).all() and p.min() > 0 and g.min() > 0):
        raise ValueError("depths have to be positive finite numbers")
    measures = {
        "abs_rel": lambda: np.mean(np.abs(p - g) / g),
        "sq_rel": lambda: np.mean((p - g) ** 2 / g),
        "rmse": lambda: math.sqrt(np.mean((p - g) ** 2)),
        **{f"delta{k}": lambda k=k: np.mean(np.maximum(p / g, g / p) < 1.25**k) for k in (1, 2, 3)},
    }
    if any(name not in measures for name in names):
        log = np.log(p) - np.log(g)
        square, mean = float(np.mean(log**2)), float(np.mean(log))
        measures |= {
            "rmse_log": lambda: math.sqrt(square),
            "log10": lambda: np.mean(np.abs(log)) / math.log(10),
            "silog": lambda: 100 * math.sqrt(max(float(np.mean((log - mean) ** 2)), 0.0)),
            "silog_half": lambda: math.sqrt(max(square - 0.5 * mean**2, 0.0)),
        }
    return {name: float(measures[name]()) for name in METRICS if name in names}


def at_median(prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Depths without a unit, multiplied so that their median is the truth's; as they are if their median is not above zero."""
    middle = float(np.median(prediction)) if np.size(prediction) else 0.0
    return prediction * (float(np.median(truth)) / middle) if middle > 0 else prediction


@dataclass(frozen=True)
class Score:
    """What one image (or one pooled batch) gave.

    Args:
        values: the metrics, or None if the image could not be scored.
        pixels: how many pixels were compared.
        not_finite: pixels with NaN or infinity in the prediction.
        not_positive: pixels with a predicted depth of zero or less.
        uncovered: pixels with a truth, inside the evaluation's region, for which the network's protocol gives no depth.
    """

    values: dict[str, float] | None
    pixels: int
    not_finite: int = 0
    not_positive: int = 0
    uncovered: int = 0

    @property
    def failed(self) -> bool:
        """Whether the prediction holds numbers that are no depth: such an image fails, it is not repaired."""
        return self.not_finite > 0 or self.not_positive > 0

    def to_json(self) -> dict:
        """As JSON values."""
        return {
            "values": self.values,
            "pixels": self.pixels,
            "not_finite": self.not_finite,
            "not_positive": self.not_positive,
            "uncovered": self.uncovered,
        }

    @classmethod
    def from_json(cls, data: Mapping) -> Score:
        """From JSON values.

        Raises:
            ValueError: if a key is missing or a value is of another kind.
        """
        counts = [data.get(name) for name in ("pixels", "not_finite", "not_positive", "uncovered")]
        if not all(isinstance(count, int) and count >= 0 for count in counts):
            raise ValueError(f"a score has four counts, got {counts}")
        values = data.get("values")
        if values is not None and not (isinstance(values, dict) and set(values) == set(METRICS) and all(isinstance(v, float) for v in values.values())):
            raise ValueError(f"a score has the metrics {', '.join(METRICS)}, got {values!r}")
        return cls(values, *counts)


def compare(prediction: np.ndarray, truth: np.ndarray) -> Score:
    """Score pixels, counting what is no depth instead of repairing it.

    Args:
        prediction: [n], any numbers.
        truth: [n], positive and finite.
    """
    prediction = np.asarray(prediction)
    finite = np.isfinite(prediction)
    not_finite, not_positive = int((~finite).sum()), int((prediction[finite] <= 0).sum())
    if not_finite or not_positive or not prediction.size:
        return Score(None, prediction.size, not_finite, not_positive)
    return Score(depth_errors(prediction, truth), prediction.size)


@dataclass
class MeanScore:
    """The mean over images, made in pieces: add scores in any order, merge means of disjoint sets of images.

    ``images`` were scored; ``empty`` had no pixel to compare and count for nothing; ``failed`` held numbers that are no depth,
    and one of them is enough for ``means`` to be None.
    """

    images: int = 0
    empty: int = 0
    failed: int = 0
    pixels: int = 0
    not_finite: int = 0
    not_positive: int = 0
    uncovered: int = 0
    sums: dict[str, float] = field(default_factory=lambda: dict.fromkeys(METRICS, 0.0))

    def add(self, score: Score) -> None:
        """Count one image."""
        self.images += score.values is not None
        self.failed += score.failed
        self.empty += score.values is None and not score.failed
        for name in ("pixels", "not_finite", "not_positive", "uncovered"):
            setattr(self, name, getattr(self, name) + getattr(score, name))
        for name in METRICS if score.values is not None else ():
            self.sums[name] += score.values[name]

    def merge(self, other: MeanScore) -> MeanScore:
        """Both together; neither is changed."""
        both = MeanScore(**{name: getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__ if name != "sums"})
        both.sums = {name: self.sums[name] + other.sums[name] for name in METRICS}
        return both

    @property
    def means(self) -> dict[str, float] | None:
        """Each metric's mean over images, or None if an image failed or none was scored."""
        if self.failed or not self.images:
            return None
        return {name: self.sums[name] / self.images for name in METRICS}

    @property
    def coverage(self) -> float:
        """Share of the pixels with a truth, inside the region, that the prediction covers."""
        return self.pixels / max(1, self.pixels + self.uncovered)

    @classmethod
    def over(cls, scores: Iterable[Score]) -> MeanScore:
        """Of these scores."""
        mean = cls()
        for score in scores:
            mean.add(score)
        return mean
