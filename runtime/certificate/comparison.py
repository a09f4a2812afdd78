"""How far a tensor is from what it should be."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MIN_COUNT_FOR_CONSTANT = 16  # fewer numbers may well be equal


@dataclass(frozen=True)
class Difference:
    """One tensor beside its golden one.

    Args:
        rms: root of the mean squared difference over that of the golden values.
        gain: the factor that the golden values would have to be multiplied by to come closest, less 1. Rounding hardly moves it, because it
            averages over all values; a wrong scale moves it by all it is wrong.
        problem: ``""``, or what is wrong with the tensor in itself.
    """

    rms: float
    gain: float
    problem: str = ""


def difference(got: np.ndarray, wanted: np.ndarray) -> Difference:
    """Compare a tensor [n, ...] with a golden one [1, ...] or [n, ...]; integers and truth values must be equal."""
    if got.shape[1:] != wanted.shape[1:] or got.ndim != wanted.ndim or wanted.shape[:1] not in ((1,), got.shape[:1]):
        return Difference(0.0, 0.0, f"shape {list(got.shape)}, wanted {list(wanted.shape)}")
    if problem := find_problem(got):
        return Difference(0.0, 0.0, problem)
    if got.dtype.kind != "f":
        wrong = int(np.count_nonzero(got != wanted))
        return Difference(0.0, 0.0, f"other numbers in {wrong} of {got.size} places" if wrong else "")
    wide, true = got.astype(np.float64), wanted.astype(np.float64)
    repeated = max(len(wide) // max(len(true), 1), 1) if wide.ndim else 1
    energy = float(np.sum(true**2)) * repeated
    if not energy:
        return Difference(0.0, 0.0, "" if not wide.any() else "not 0 where it should be 0 everywhere")
    return Difference(float(np.sqrt(np.sum((wide - true) ** 2) / energy)), float(np.sum(wide * true) / energy) - 1.0)


def compare_output(got: np.ndarray, wanted: np.ndarray) -> dict[str, float]:
    """Two outputs of a network.

    Returns:
        for depth [B, 1, h, w] ``abs_rel`` = mean |got - wanted| / |wanted| where wanted is not 0; for the two logits of a mask
        [B, 2, h, w] ``changed_pixels``, the share whose class differs; and ``max_abs`` in the output's own unit.
    """
    mask = wanted.ndim == 4 and wanted.shape[1] == 2
    measure = "changed_pixels" if mask else "abs_rel"
    if got.shape != wanted.shape or not np.isfinite(got).all():
        return {measure: 1e30, "max_abs": 1e30}
    got, wanted = got.astype(np.float64), wanted.astype(np.float64)
    difference, size = np.abs(got - wanted), np.abs(wanted)
    if mask:
        error = float(np.mean((got[:, 1] > got[:, 0]) != (wanted[:, 1] > wanted[:, 0])))
    else:
        there = size > 0
        error = float(np.mean(difference[there] / size[there])) if there.any() else 1e30
    return {measure: error, "max_abs": float(difference.max())}


def find_problem(values: np.ndarray) -> str:
    """What is wrong with a tensor in itself: not finite, or one number everywhere."""
    if values.dtype.kind == "f":
        bad = int(values.size - np.count_nonzero(np.isfinite(values)))
        if bad:
            return f"not finite in {bad} of {values.size} places"
        if values.size >= MIN_COUNT_FOR_CONSTANT and float(values.max()) == float(values.min()):
            return f"the same number {float(values.max()):g} everywhere"
    return ""
