"""Metrics against values worked by hand and against a loop that knows nothing of NumPy's reductions."""

import json
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fathom.benchmarks.evaluation.alignment import align
from fathom.datasets.depth_metrics import METRICS, MeanScore, Score, compare, depth_errors

depths = st.floats(0.05, 80, allow_nan=False)
pairs = st.lists(st.tuples(depths, depths), min_size=1, max_size=40)


def naive(prediction, truth):
    """One pixel after the other in plain Python floats."""
    n = len(truth)
    sums = dict.fromkeys(METRICS, 0.0)
    total_d = total_d2 = 0.0
    for p, g in zip(prediction, truth, strict=True):
        p, g = float(p), float(g)
        sums["abs_rel"] += abs(p - g) / g / n
        sums["sq_rel"] += (p - g) ** 2 / g / n
        sums["rmse"] += (p - g) ** 2 / n
        sums["log10"] += abs(math.log10(p) - math.log10(g)) / n
        d = math.log(p) - math.log(g)
        total_d, total_d2 = total_d + d, total_d2 + d * d
        worst = max(p / g, g / p)
        for k in (1, 2, 3):
            sums[f"delta{k}"] += (worst < 1.25**k) / n
    sums["rmse"] = math.sqrt(sums["rmse"])
    sums["rmse_log"] = math.sqrt(total_d2 / n)
    mean_d = total_d / n
    variance = sum((math.log(float(p)) - math.log(float(g)) - mean_d) ** 2 for p, g in zip(prediction, truth, strict=True)) / n
    sums["silog"] = 100 * math.sqrt(variance)
    sums["silog_half"] = math.sqrt(max(0, total_d2 / n - 0.5 * mean_d**2))
    return sums


def test_values_worked_by_hand():
    # g = 1, 2, 4 and p = 2, 2, 1: errors 1, 0, 3; ratios 2, 1, 4; d = ln 2, 0, -2 ln 2
    got = depth_errors(np.array([2.0, 2.0, 1.0]), np.array([1.0, 2.0, 4.0]))
    ln2 = math.log(2)
    assert got["abs_rel"] == pytest.approx((1 / 1 + 0 + 3 / 4) / 3)
    assert got["sq_rel"] == pytest.approx((1 / 1 + 0 + 9 / 4) / 3)
    assert got["rmse"] == pytest.approx(math.sqrt(10 / 3))
    assert got["rmse_log"] == pytest.approx(ln2 * math.sqrt(5 / 3))
    assert got["log10"] == pytest.approx(math.log10(2))  # (1 + 0 + 2) log10(2) / 3
    assert got["silog"] == pytest.approx(100 * ln2 * math.sqrt(5 / 3 - 1 / 9))
    assert got["silog_half"] == pytest.approx(ln2 * math.sqrt(5 / 3 - 0.5 / 9))
    assert (got["delta1"], got["delta2"], got["delta3"]) == pytest.approx((1 / 3, 1 / 3, 1 / 3))


def test_delta_is_strict_at_its_threshold():
    got = depth_errors(np.array([1.25, 1.2499]), np.array([1.0, 1.0]))
    assert got["delta1"] == 0.5 and got["delta2"] == 1.0


def test_silog_ignores_scale_and_silog_half_does_not():
    draw = np.random.default_rng(1)
    g, p = draw.uniform(1, 9, 50), draw.uniform(1, 9, 50)
    assert depth_errors(3 * p, g)["silog"] == pytest.approx(depth_errors(p, g)["silog"])
    assert depth_errors(3 * p, g)["silog_half"] != pytest.approx(depth_errors(p, g)["silog_half"])
    assert depth_errors(2 * g, g)["silog"] == pytest.approx(0, abs=1e-9)


@given(pairs)
@settings(max_examples=150, deadline=None)
def test_agrees_with_the_loop(pixels):
    p, g = (np.array(column, np.float64) for column in zip(*pixels, strict=True))
    got, wanted = depth_errors(p, g), naive(p, g)
    for name in METRICS:
        assert got[name] == pytest.approx(wanted[name], rel=1e-9, abs=1e-9), name


@given(pairs, st.floats(0.1, 10))
@settings(max_examples=80, deadline=None)
def test_properties(pixels, factor):
    p, g = (np.array(column, np.float64) for column in zip(*pixels, strict=True))
    got = depth_errors(p, g)
    assert 0 <= got["delta1"] <= got["delta2"] <= got["delta3"] <= 1
    assert got["silog"] <= 100 * got["silog_half"] + 1e-6 <= 100 * got["rmse_log"] + 2e-6
    scaled = depth_errors(factor * p, factor * g)
    for name in ("abs_rel", "rmse_log", "log10"):
        assert scaled[name] == pytest.approx(got[name], rel=1e-6, abs=1e-9)
    assert scaled["rmse"] == pytest.approx(factor * got["rmse"], rel=1e-6, abs=1e-9)
    perfect = depth_errors(g, g)
    assert all(perfect[name] == (1.0 if name.startswith("delta") else 0.0) for name in METRICS)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0, -1.0])
def test_what_is_no_depth_is_counted_and_fails(bad):
    score = compare(np.array([1.0, bad, 2.0]), np.array([1.0, 1.0, 2.0]))
    assert score.failed and score.values is None and score.not_finite + score.not_positive == 1
    mean = MeanScore.over([compare(np.ones(2), np.ones(2)), score])
    assert mean.failed == 1 and mean.means is None
    with pytest.raises(ValueError, match="positive finite"):
        depth_errors(np.array([1.0, bad]), np.ones(2))


def test_mean_is_over_images_not_pixels():
    one = compare(np.array([2.0]), np.array([1.0]))  # abs_rel 1 on one pixel
    many = compare(np.ones(99), np.ones(99))  # abs_rel 0 on 99 pixels
    assert MeanScore.over([one, many]).means["abs_rel"] == pytest.approx(0.5)


def test_an_image_without_pixels_counts_for_nothing():
    mean = MeanScore.over([compare(np.array([]), np.array([])), compare(np.array([2.0]), np.array([1.0]))])
    assert (mean.images, mean.empty, mean.failed) == (1, 1, 0) and mean.means["abs_rel"] == 1.0


@given(st.lists(pairs, min_size=1, max_size=8), st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_means_merge_in_any_order(images, order: random.Random):
    scores = [compare(*(np.array(column) for column in zip(*pixels, strict=True))) for pixels in images]
    whole = MeanScore.over(scores)
    order.shuffle(scores)
    cut = order.randint(0, len(scores))
    merged = MeanScore.over(scores[:cut]).merge(MeanScore.over(scores[cut:]))
    assert (merged.images, merged.pixels) == (whole.images, whole.pixels)
    for name in METRICS:
        assert merged.means[name] == pytest.approx(whole.means[name], rel=1e-12, abs=1e-12)


def test_scores_survive_json():
    score = compare(np.array([1.0, 2.0, 3.3]), np.array([1.1, 1.9, 3.0]))
    assert Score.from_json(json.loads(json.dumps(score.to_json()))) == score
    with pytest.raises(ValueError, match="metrics"):
        Score.from_json({**score.to_json(), "values": {"abs_rel": 1.0}})


def test_alignments_recover_what_they_can():
    draw = np.random.default_rng(0)
    g = draw.uniform(1, 8, 200)
    assert np.array_equal(align(g / 3, g, "none", 1e-3), g / 3)
    assert align(g / 3, g, "median", 1e-3) == pytest.approx(g)
    assert align(0.2 * g - 0.1, g, "scale-shift", 1e-3) == pytest.approx(g)
    assert align(5 / g + 2, g, "scale-shift-inverse", 1e-3) == pytest.approx(g)
    broken = align(np.array([1.0, np.nan]), np.ones(2), "scale-shift", 1e-3)
    assert np.isnan(broken[1])
    with pytest.raises(ValueError, match="alignment"):
        align(g, g, "best", 1e-3)


def test_a_few_metrics_are_the_same_numbers_as_all():
    p, g = np.random.default_rng(5).uniform(0.3, 9, (2, 400))
    everything = depth_errors(p, g)
    for names in (("abs_rel", "delta1"), ("rmse",), ("silog_half", "delta3", "log10")):
        assert depth_errors(p, g, names) == {name: everything[name] for name in METRICS if name in names}
