"""Ranges from histograms, against NumPy on the raw values and ONNX Runtime's own calibrator."""

import numpy as np
import pytest

from fathom.calibration.ranges.observers import BINS, LEVELS, OBSERVERS, Histogram, entropy, mean_squared_error, percentile
from fathom.runtime.errors import AccuracyError


def filled(*parts):
    histogram = Histogram()
    for part in parts:
        histogram.add(part)
    return histogram


@pytest.fixture(scope="module")
def values():
    return np.random.default_rng(1).laplace(size=200_000).astype(np.float32)


def test_parts_merge_to_exactly_what_one_pass_sees(values):
    parts = [values[:7] * np.float32(1e-3), values[7:50_000], values[50_000:] * np.float32(30)]
    whole = filled(*parts)
    for order in ((0, 1, 2), (2, 1, 0), (1, 2, 0)):
        merged = Histogram()
        for place in order:
            merged.merge(filled(parts[place]))
        assert merged.exponent == whole.exponent and merged.amax == whole.amax
        assert (merged.counts == whole.counts).all()
    assert whole.count == values.size and whole.amax == np.abs(np.concatenate(parts)).max()


def test_the_counts_are_those_of_numpy(values):
    histogram = filled(values)
    expected, _ = np.histogram(np.abs(values).astype(np.float64), BINS, (0, 2.0**histogram.exponent))
    assert (histogram.counts == expected).all()


@pytest.mark.parametrize("percent", [50, 99, 99.9, 99.99])
def test_percentiles_are_those_of_the_values(values, percent):
    histogram = filled(values)
    assert percentile(histogram, percent) == pytest.approx(np.percentile(np.abs(values), percent), abs=1.5 * histogram.width)


def test_the_least_squares_range_is_that_of_a_search_over_the_raw_values(values):
    histogram = filled(values)

    def error(amax):
        step = amax / LEVELS
        return np.mean((values - np.clip(np.rint(values / step), -LEVELS, LEVELS) * step).astype(np.float64) ** 2)

    best = min(histogram.amax * np.linspace(0.1, 1, 91), key=error)
    found = mean_squared_error(histogram)
    assert error(found) <= 1.02 * error(best)
    assert found < 0.9 * histogram.amax


def test_entropy_agrees_with_onnxruntime(values):
    from onnxruntime.quantization.calibrate import HistogramCollector

    histogram = filled(values)
    amax = np.float32(histogram.amax)
    hist, edges = np.histogram(values, 1001, (-amax, amax))
    collector = HistogramCollector("entropy", True, 1001, 255, 99.99, "same")
    theirs = float(collector.get_entropy_threshold((hist, edges.astype(np.float32), -amax, amax, amax), 255)[1])
    step = [amax / LEVELS, theirs / LEVELS, entropy(histogram) / LEVELS]
    errors = [np.mean((values - np.clip(np.rint(values / s), -LEVELS, LEVELS) * s) ** 2) for s in step]
    assert entropy(histogram) < amax and errors[2] < errors[0]  # better than the greatest value, like theirs
    assert 0.4 < entropy(histogram) / theirs < 2.5


def divergence(counts, cut, levels=128):
    """Migacz's, bin by bin: what lies beyond the cut goes into its last bin, and every step's counts spread evenly over its bins that have any."""
    reference, candidate = counts[:cut].copy(), np.zeros(cut)
    reference[-1] += counts[cut:].sum()
    for step in range(levels):
        bins = [k for k in range(step * cut // levels, min(cut, (step + 1) * cut // levels + 1)) if k * levels // cut == step and counts[k]]
        candidate[bins] = sum(counts[k] for k in bins) / max(len(bins), 1)
    p, q = reference / reference.sum(), candidate / candidate.sum()
    return sum(p[k] * np.log(p[k] / max(q[k], 1e-4 / cut)) for k in np.flatnonzero(p))


def test_entropy_takes_the_cut_of_least_divergence(values):
    histogram = filled(values)
    counts = histogram.counts[: int(np.ceil(histogram.amax / histogram.width))].astype(np.float64)
    counts[0] = 0
    step = max(1, len(counts) // 512)
    place = round((entropy(histogram) / histogram.width - 128) / step)
    cuts = [128 + step * k for k in {0, *range(max(place - 3, 0), place + 4), place // 2, place * 2} if 128 + step * k <= len(counts)]
    assert divergence(counts, 128 + step * place) <= min(divergence(counts, cut) for cut in cuts) + 1e-9


def test_what_is_not_finite_is_refused_by_name():
    for bad in (np.nan, np.inf, -np.inf):
        with pytest.raises(AccuracyError, match="tensor x holds 1 NaN or infinite"):
            Histogram().add(np.array([1, bad, 2], np.float32), "x")


@pytest.mark.parametrize("rule", OBSERVERS.values(), ids=OBSERVERS)
def test_odd_tensors_have_a_range(rule):
    assert rule(filled(np.zeros(100, np.float32))) == 0
    assert rule(Histogram()) == 0
    for value in (1e-30, 1.0, 3e38):
        assert rule(filled(np.full(100, value, np.float32))) == pytest.approx(value, rel=0.6)
    histogram = filled(np.random.default_rng(0).normal(size=1000).astype(np.float32))
    assert histogram.amax / 64 <= rule(histogram) <= histogram.amax


def test_a_rare_outlier_is_cut_by_percentile_and_kept_by_max(values):
    histogram = filled(values, np.array([1e4], np.float32))
    assert OBSERVERS["max"](histogram) == 1e4
    assert OBSERVERS["percentile-99.9"](histogram) <= 1e4 / 64 + histogram.width
