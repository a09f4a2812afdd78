"""Crops, masks, clamps, pooling: each against a slow, separate computation."""

import json
import math

import numpy as np
import pytest

from fathom.benchmarks.evaluation.evaluation import Evaluation, collect, counted, judge, overall
from fathom.benchmarks.evaluation.published import EIGEN_KITTI, EVALUATIONS, GARG
from fathom.benchmarks.evaluation.shaping import shape_pair
from fathom.datasets.depth_metrics import compare
from fathom.datasets.mask_metrics import MaskTotals
from fathom.runtime.artefact.contract import Crop, Pad, Resize
from fathom.runtime.errors import InputError
from fathom.runtime.photo.depth_map import Intrinsics
from fathom.runtime.photo.preprocess import place_steps, shape_camera


def images(draw, height, width, near=0.5, far=12.0):
    truth = draw.uniform(near, far, (height, width)).astype(np.float32)
    prediction = (truth * draw.uniform(0.7, 1.4, truth.shape)).astype(np.float32)
    valid = draw.random(truth.shape) > 0.2
    return prediction, truth, valid


def rows_and_columns(mask):
    rows, columns = np.nonzero(mask)
    return rows.min(), rows.max() + 1, columns.min(), columns.max() + 1


@pytest.mark.parametrize(
    ("name", "size", "region"),
    [
        ("nyu-eigen", (480, 640), (45, 471, 41, 601)),
        ("depthclip-nyu", (480, 640), (56, 471, 60, 601)),
        ("depthblip2-nyu", (480, 640), (56, 471, 60, 601)),
        ("llm-mde-min-max", (480, 640), (45, 472, 43, 608)),
        ("kitti-garg", (352, 1216), (143, 349, 43, 1172)),
        ("kitti-garg-full", (375, 1242), (153, 371, 44, 1197)),
        ("kitti-eigen", (375, 1242), (124, 342, 44, 1197)),
        ("depthblip2-kitti", (375, 1242), (153, 371, 44, 1197)),
        ("full", (50, 60), (0, 50, 0, 60)),
    ],
)
def test_regions_are_those_of_the_publications(name, size, region):
    truth = np.full(size, 5, np.float32)
    assert rows_and_columns(counted(EVALUATIONS[name], truth, np.ones(size, bool))) == region


def test_fractions_round_down():
    assert GARG.slices(375, 1242) == (slice(153, 371), slice(44, 1197))
    assert EIGEN_KITTI.slices(375, 1242) == (slice(124, 342), slice(44, 1197))


def test_caps_are_strict():
    evaluation = EVALUATIONS["nyu-eigen"]
    truth = np.full((480, 640), 5, np.float32)
    truth[100, 100], truth[100, 101], truth[100, 102], truth[100, 103] = 10.0, 9.999, 1e-3, 0.0011
    mask = counted(evaluation, truth, np.ones(truth.shape, bool))
    assert mask[100, 100:104].tolist() == [False, True, False, True]


def test_depthclip_clamps_both_and_drops_small_predictions():
    evaluation = EVALUATIONS["depthclip-nyu"]
    prediction, truth, valid = images(np.random.default_rng(0), 480, 640)
    prediction[100, 100], prediction[100, 101] = 30.0, 0.0005
    truth[100, 100], valid[100, 100], truth[100, 101], valid[100, 101] = 9.0, True, 5.0, True
    score = judge(evaluation, [collect(evaluation, prediction, np.ones_like(valid), truth, valid)])[0]
    total, count = 0.0, 0
    for y in range(56, 471):
        for x in range(60, 601):
            g, p = float(truth[y, x]), float(prediction[y, x])
            if valid[y, x] and 1e-3 < g < 10 and p > 1e-3:
                p = min(max(p, 1e-3), 10)
                total, count = total + abs(p - g) / g, count + 1
    assert score.pixels == count
    assert score.values["abs_rel"] == pytest.approx(total / count, rel=1e-9)


def test_the_half_canvas_quantises():
    evaluation = EVALUATIONS["depthblip2-nyu"]
    prediction = np.full((480, 640), 3.0007, np.float32)
    pixels = collect(evaluation, prediction, np.ones(prediction.shape, bool), np.full_like(prediction, 3.0), np.ones(prediction.shape, bool))
    assert set(pixels.prediction.tolist()) == {float(np.float16(3.0007))}


def test_min_max_is_computed_per_image_and_is_not_metric():
    evaluation = EVALUATIONS["llm-mde-min-max"]
    assert not evaluation.metric
    prediction, truth, valid = images(np.random.default_rng(1), 480, 640, 0.5, 9)
    everywhere = np.ones_like(valid)
    got = judge(evaluation, [collect(evaluation, prediction, everywhere, truth, valid)])[0].values
    inside = valid[45:472, 43:608]
    p, g = (values[45:472, 43:608][inside].astype(np.float64) for values in (prediction, truth))
    p, g = np.maximum((p - p.min()) / (p.max() - p.min()), 1e-3), np.maximum((g - g.min()) / (g.max() - g.min()), 1e-3)
    assert got["abs_rel"] == pytest.approx(np.mean(np.abs(p - g) / g))
    assert got["rmse"] < 1
    stretched = judge(evaluation, [collect(evaluation, 7 * prediction + 2, everywhere, truth, valid)])[0].values
    assert stretched["rmse"] == pytest.approx(got["rmse"], rel=1e-4)  # any scale and shift scores the same: it says nothing of metres


def test_pooled_batches_are_fitted_and_scored_as_one_image():
    evaluation = Evaluation("pooled", "test", 1e-3, 100, alignment="median", group=2, pooling="pixels")
    draw = np.random.default_rng(2)
    several = [images(draw, 6, 8), images(draw, 9, 5)]
    pixels = [collect(evaluation, p, np.ones_like(v), g, v) for p, g, v in several]
    (score,) = judge(evaluation, pixels)
    p = np.concatenate([p[v] for p, _, v in several]).astype(np.float64)
    g = np.concatenate([g[v] for _, g, v in several]).astype(np.float64)
    assert score.values["abs_rel"] == pytest.approx(np.mean(np.abs(p * np.median(g) / np.median(p) - g) / g))


def test_batch_means_over_weigh_a_short_last_batch():
    evaluation = Evaluation("batches", "test", 1e-3, 100, group=2)
    scores = [compare(np.array([value]), np.array([1.0])) for value in (1.1, 1.2, 1.5)]
    assert overall(evaluation, [scores[:2], scores[2:]]).means["abs_rel"] == pytest.approx(((0.1 + 0.2) / 2 + 0.5) / 2)
    plain = Evaluation("images", "test", 1e-3, 100)
    assert overall(plain, [[s] for s in scores]).means["abs_rel"] == pytest.approx((0.1 + 0.2 + 0.5) / 3)


def test_uncovered_pixels_are_counted_not_scored():
    evaluation = EVALUATIONS["full"]
    truth = np.full((4, 5), 2, np.float32)
    covered = np.ones((4, 5), bool)
    covered[0] = False
    prediction = np.where(covered, truth, np.float32(np.nan))
    score = judge(evaluation, [collect(evaluation, prediction, covered, truth, np.ones((4, 5), bool))])[0]
    assert (score.pixels, score.uncovered, score.failed) == (15, 5, False)
    assert overall(evaluation, [[score]]).coverage == 0.75


@pytest.mark.parametrize("name", EVALUATIONS)
def test_nan_fails_under_every_evaluation(name):
    evaluation = EVALUATIONS[name]
    size = {"kitti-garg": (352, 1216), "kitti-garg-full": (375, 1242), "kitti-eigen": (375, 1242), "depthblip2-kitti": (375, 1242)}.get(name, (480, 640))
    prediction, truth, valid = images(np.random.default_rng(3), *size, 0.5, 9)
    y, x = size[0] // 2, size[1] // 2
    prediction[y, x], valid[y, x] = np.nan, True
    (score,) = judge(evaluation, [collect(evaluation, prediction, np.ones_like(valid), truth, valid)])
    assert score.failed and score.not_finite == 1 and score.values is None


@pytest.mark.parametrize("name", EVALUATIONS)
def test_every_evaluation_is_data(name):
    written = json.loads(json.dumps(EVALUATIONS[name].to_json(), allow_nan=False))
    assert written["name"] == name and written["source"] and written["alignment"] in ("none", "median", "scale-shift", "scale-shift-inverse")


def test_a_region_off_the_picture_is_refused():
    with pytest.raises(ValueError, match="do not lie"):
        counted(EVALUATIONS["nyu-eigen"], np.ones((100, 100), np.float32), np.ones((100, 100), bool))
    with pytest.raises(ValueError, match="near"):
        Evaluation("x", "y", 2, 1)


def test_photo_and_truth_go_through_the_same_steps():
    draw = np.random.default_rng(4)
    rgb = draw.integers(0, 256, (40, 60, 3), dtype=np.uint8)
    depth = rgb[..., 0].astype(np.float32)
    steps = (Crop(20, 30, "center"), Crop(10, 10, "top-left", 3, 4))
    shaped, depth_m, valid = shape_pair(rgb, depth, depth > 100, steps)
    assert np.array_equal(shaped, rgb[13:23, 19:29]) and np.array_equal(depth_m, depth[13:23, 19:29]) and np.array_equal(valid, depth_m > 100)
    _, small, known = shape_pair(rgb, depth, depth > 100, (Resize(17, 23, "bilinear"),))
    for y in range(17):
        for x in range(23):
            assert small[y, x] == depth[math.floor(y * 40 / 17), math.floor(x * 60 / 23)]  # a pixel of the truth, never a mixture
    assert np.array_equal(known, small > 100)
    with pytest.raises(InputError, match="exactly"):
        shape_pair(rgb, depth, depth > 0, EVALUATIONS["nyu-eigen"].shape)


@pytest.mark.parametrize(
    "steps",
    [
        (),
        (Crop(30, 40, "bottom-center"),),
        (Resize(120, 50, "bilinear"), Pad(3, 5, 7, 2)),
        (Resize(80, 0, "bilinear", 10), Crop(60, 50, "center"), Resize(33, 90, "bilinear")),
    ],
)
def test_a_camera_sees_through_each_pixel_what_it_saw_before(steps):
    """A photo whose colours say where each pixel was: the ray through a shaped pixel is that through the place it came from."""
    fx, fy, cx, cy = 71.0, 66.0, 28.0, 21.5
    row, column = np.mgrid[:48, :60]
    rgb = np.stack([4 * column, 5 * row, np.full_like(row, 255)], -1).astype(np.uint8)
    shaped, _, _ = shape_pair(rgb, np.ones((48, 60), np.float32), np.ones((48, 60), bool), steps)
    ours = shape_camera(Intrinsics(fx, fy, cx, cy), place_steps(steps, 48, 60))
    inside = shaped[..., 2] == 255
    inside &= (
        (shaped[..., 0] > 4) & (shaped[..., 0] < 4 * 58) & (shaped[..., 1] > 5) & (shaped[..., 1] < 5 * 46)
    )  # off the edges, where a resize repeats pixels
    assert inside.sum() > 500
    y, x = np.nonzero(inside)
    np.testing.assert_allclose((x - ours.cx) / ours.fx, (shaped[inside][:, 0] / 4 - cx) / fx, atol=0.5 / 4 / fx + 1e-9)
    np.testing.assert_allclose((y - ours.cy) / ours.fy, (shaped[inside][:, 1] / 5 - cy) / fy, atol=0.5 / 5 / fy + 1e-9)


def test_segmentation_by_hand():
    truth = np.zeros((4, 5), bool)
    truth[:2] = True  # 10 pixels
    half = np.zeros_like(truth)
    half[0] = True  # 5 of them: IoU 0.5
    wide = np.ones_like(truth)  # IoU 10 / 20
    empty = np.zeros_like(truth)
    totals = MaskTotals()
    for prediction, wanted in ((half, truth), (truth, truth), (wide, truth), (empty, empty)):
        totals = totals.add(prediction, wanted)
    got = totals.metrics()
    assert got["oIoU"] == pytest.approx((5 + 10 + 10 + 0) / (10 + 10 + 20 + 0))
    assert got["mIoU"] == pytest.approx((0.5 + 1 + 0.5 + 0) / 4)
    assert got["P@0.5"] == 0.75 and got["P@0.6"] == got["P@0.9"] == 0.25
    apart = MaskTotals().add(half, truth).merge(MaskTotals().add(truth, truth)).merge(MaskTotals().add(wide, truth)).merge(MaskTotals().add(empty, empty))
    assert apart == totals
    with pytest.raises(ValueError, match="masks"):
        totals.add(half.astype(np.uint8), truth)
    with pytest.raises(ValueError, match="no sample"):
        MaskTotals().metrics()
