"""One scale and shift from measured distances: no more of a correction than the measurements support at 99 %."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import InputError
from .camera_scale import GREATEST, GREATEST_SHIFT_M

# A t test whose variance is shrunk towards what depth networks usually miss by (Smyth 2004, "moderated t"): two or three
# measurements that agree by chance do not count as exact ones.
PRIOR_SPREAD = 0.1  # of log(measured / depth)
PRIOR_FREEDOM = 6
Z = 2.5758293035489004  # of the normal distribution at 99 %, two-sided
SHIFT_RANGE = 2.0  # farthest over nearest measurement, below which a shift cannot be told from a scale
SHIFT_MEASUREMENTS = 6
SHIFT_UNITS = 5  # photos, or measurements in a single one
HUBER = 1.345  # standard deviations; 95 % efficient on normal errors
ROUNDS = 50
GREATEST_LOG = float(np.log(GREATEST))


@dataclass(frozen=True)
class Fit:
    """What the measurements say.

    Args:
        scale, shift_m: the correction; 1 and 0 if ``changed`` is False.
        changed: whether the measurements show at 99 % that the network's metres are off.
        interval: of the scale alone, at 99 %.
        error_before, error_after: mean of |log(measured / depth)|.
    """

    scale: float
    shift_m: float
    changed: bool
    interval: tuple[float, float]
    error_before: float
    error_after: float


def fit_scale(depth_m: np.ndarray, measured_m: np.ndarray, photo: np.ndarray) -> Fit:
    """Fit ``measured = scale * depth + shift``.

    Errors of depth networks are relative, so logarithms are compared, by Huber's loss; measurements in one photo share its errors, so the
    photo is the unit of the test (the measurement, where there is one photo). A scale is used only if a scale of 1 is rejected at 99 %; a
    shift, beside it or alone, only if it lowers the error of photos left out of the fit at 99 % too.

    Args:
        depth_m: float [n], what the network said, above 0.
        measured_m: float [n], metres along the optical axis, above 0.
        photo: int [n], which photo each was measured in.

    Raises:
        InputError: if there are fewer than two measurements.
        ValueError: if the arrays do not fit each other or hold values that are not above 0.
    """
    depth, measured, photo = np.asarray(depth_m, np.float64), np.asarray(measured_m, np.float64), np.asarray(photo)
    if depth.ndim != 1 or not depth.shape == measured.shape == photo.shape:
        raise ValueError(f"three arrays [n] were wanted, got {depth.shape}, {measured.shape} and {photo.shape}")
    if not (np.isfinite(depth).all() and np.isfinite(measured).all() and (depth > 0).all() and (measured > 0).all()):
        raise ValueError("depths and measurements have to be finite and above 0")
    if depth.size < 2:
        raise InputError(f"{depth.size} distance was measured", wanted="at least two", fix="measure more, at different distances")
    unit = photo if len(np.unique(photo)) > 1 else np.arange(depth.size)
    ratio = np.log(measured / depth)
    means = np.array([_center(ratio[unit == one]) for one in np.unique(unit)])
    center = _center(means)
    reach = _reach(means - center)
    scale_proven = abs(center) > reach
    scale, shift = (float(np.exp(center)), 0.0) if scale_proven else (1.0, 0.0)
    if depth.size >= SHIFT_MEASUREMENTS and measured.max() / measured.min() >= SHIFT_RANGE and len(np.unique(unit)) >= SHIFT_UNITS:
        both = _scale_and_shift(depth, measured)
        if both is not None and _shift_helps(depth, measured, unit, scale_proven):
            scale, shift = both
    after = np.abs(np.log(measured / np.maximum(scale * depth + shift, 1e-6))).mean()
    interval = (float(np.exp(center - reach)), float(np.exp(center + reach)))
    return Fit(scale, shift, scale_proven or shift != 0, interval, float(np.abs(ratio).mean()), float(after))


def critical_t(freedom: float) -> float:
    """Student's t that is passed by chance in 1 of 100, two-sided, for at least 4 degrees of freedom (Abramowitz and Stegun 26.7.5)."""
    z, v = Z, freedom
    return (
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * v**4)
    )


def _reach(residuals: np.ndarray) -> float:
    """Half-width of the 99 % confidence interval of a mean, from the deviations of the single values."""
    freedom = PRIOR_FREEDOM + residuals.size - 1
    variance = (PRIOR_FREEDOM * PRIOR_SPREAD**2 + float((residuals**2).sum())) / freedom
    return critical_t(freedom) * float(np.sqrt(variance / residuals.size))


def _weights(residuals: np.ndarray) -> np.ndarray:
    """Huber's weights; the standard deviation is estimated from the median deviation, and is at least 0.001."""
    spread = max(1.4826 * float(np.median(np.abs(residuals))), 1e-3)
    return np.minimum(1.0, HUBER * spread / np.maximum(np.abs(residuals), 1e-12))


def _center(values: np.ndarray) -> float:
    """Huber's mean."""
    center = float(np.median(values))
    for _ in range(ROUNDS):
        weights = _weights(values - center)
        before, center = center, float((weights * values).sum() / weights.sum())
        if abs(center - before) < 1e-10:
            break
    return center


def _scale_and_shift(depth: np.ndarray, measured: np.ndarray) -> tuple[float, float] | None:
    """Scale and shift that minimise the Huber loss of log(scale * depth + shift) - log(measured), by Gauss-Newton; None if no step keeps all depths
    positive."""
    log_scale, shift = _center(np.log(measured / depth)), 0.0
    for _ in range(ROUNDS):
        found = np.exp(log_scale) * depth + shift
        residual = np.log(found / measured)
        slope = np.stack([np.exp(log_scale) * depth / found, 1 / found], axis=1)
        root = np.sqrt(_weights(residual))
        step = np.linalg.lstsq(slope * root[:, None], -residual * root, rcond=None)[0]
        for _ in range(30):  # halve it until every depth stays above 0
            bounded = abs(log_scale + step[0]) < GREATEST_LOG and abs(shift + step[1]) < GREATEST_SHIFT_M
            if bounded and (np.exp(log_scale + step[0]) * depth + shift + step[1] > 0.05 * measured).all():
                break
            step = step / 2
        else:
            return None
        log_scale, shift = log_scale + step[0], shift + step[1]
        if np.abs(step).max() < 1e-9:
            break
    return float(np.exp(log_scale)), float(shift)


def _shift_helps(depth: np.ndarray, measured: np.ndarray, unit: np.ndarray, scaled: bool) -> bool:
    """Whether a shift lowers the error on units left out of the fit by more than chance, at 99 %; ``scaled``: compared with a scale alone."""
    gains = []
    for one in np.unique(unit):
        rest, out = unit != one, unit == one
        both = _scale_and_shift(depth[rest], measured[rest])
        if both is None:
            return False
        alone = np.exp(_center(np.log(measured[rest] / depth[rest]))) if scaled else 1.0
        before = np.abs(np.log(measured[out] / (alone * depth[out]))).mean()
        after = np.abs(np.log(measured[out] / np.maximum(both[0] * depth[out] + both[1], 1e-6))).mean()
        gains.append(before - after)
    gains = np.array(gains)
    freedom = PRIOR_FREEDOM + gains.size - 1
    variance = (PRIOR_FREEDOM * (PRIOR_SPREAD / 10) ** 2 + float(((gains - gains.mean()) ** 2).sum())) / freedom
    return float(gains.mean()) > critical_t(freedom) * float(np.sqrt(variance / gains.size))
