"""The whole way of a number, held against an evaluation made elsewhere: FastDepth's official weights on real pairs.

The table was computed with OpenCV, whose bilinear resize of bytes works with weights of 11 bits and rounds after each of the two
resizes; ours interpolates in float32 and rounds once, at the end. The photos differ by one step of 255 at most, and that moves
abs_rel by up to 0.002 on the NYU pairs and 0.004 elsewhere. With OpenCV's arithmetic written out below, the rest of our
evaluation agrees with the table to its rounding.
"""

import os
from pathlib import Path

import numpy as np
import pytest

import fathom
from fathom.benchmarks.evaluation.evaluation import Evaluation, collect, judge
from fathom.benchmarks.evaluation.published import EVALUATIONS
from fathom.benchmarks.evaluation.shaping import shape_pair
from fathom.datasets.pairs import Pairs

SHARED = Path(os.environ.get("FATHOM_SHARED") or Path(fathom.__file__).parent.parent / "shared")
NETWORK = SHARED / "weights" / "fastdepth_7.onnx"
TABLE = {  # abs_rel, delta1, abs_rel after median scaling
    "nyu_diningroom_1": (0.0671, 0.9436, 0.0691),
    "nyu_diningroom_2": (0.1062, 0.8960, 0.1100),
    "nyu_diningroom_3": (0.0685, 0.9354, 0.0760),
    "nyu_diningroom_4": (0.0869, 0.9129, 0.0877),
    "nyu_diningroom_5": (0.0698, 0.9529, 0.0711),
    "7scenes_kitchen_000000": (0.1369, 0.8189, 0.1574),
    "7scenes_kitchen_000200": (0.2504, 0.5898, 0.2362),
    "7scenes_kitchen_000400": (0.1708, 0.7267, 0.1603),
    "7scenes_kitchen_000600": (0.2887, 0.4248, 0.5042),
    "hololens_office_00003": (0.1945, 0.6666, 0.2023),
    "hololens_office_00078": (0.1044, 0.8943, 0.1273),
    "hololens_office_00153": (0.5451, 0.2393, 0.4955),
    "sun_open3d": (0.2037, 0.6193, 0.2016),
    "nyu_basement_00000": (0.0709, 0.9754, 0.0731),
    "nyu_basement_00050": (0.0920, 0.9357, 0.0719),
    "nyu_basement_00100": (0.1219, 0.9155, 0.0928),
    "nyu_fastdepth_224": (0.1405, 0.7773, 0.1559),
    "nyu_cafe_100": (0.0617, 0.9856, 0.0610),
    "nyu_cafe_300": (0.1048, 0.9024, 0.0926),
    "nyu_cafe_500": (0.0972, 0.9420, 0.1121),
    "tum_desk_open3d": (0.2531, 0.2854, 0.1398),
    "tum_fr1_desk_1": (0.3531, 0.3909, 0.1832),
}
pytestmark = pytest.mark.skipif(not NETWORK.is_file() or not (SHARED / "data" / "manifest.json").is_file(), reason="FastDepth and the pairs are not here")


def fixed_point(photo, height, width):
    """A bilinear resize of bytes with 11-bit weights, rows after columns, as OpenCV's INTER_LINEAR has it."""

    def taps(size, wanted):
        source = (np.arange(wanted) + 0.5) * (size / wanted) - 0.5
        low = np.floor(source).astype(int)
        share = np.where((low < 0) | (low >= size - 1), 0, source - low)
        low = np.clip(low, 0, size - 1)
        upper = np.rint(share * 2048).astype(np.int64)
        return low, np.minimum(low + 1, size - 1), 2048 - upper, upper

    left, right, wl, wr = taps(photo.shape[1], width)
    top, bottom, wt, wb = taps(photo.shape[0], height)
    lines = photo.astype(np.int64)
    lines = (lines[:, left] * wl[:, None] + lines[:, right] * wr[:, None]) >> 4
    both = ((wt[:, None, None] * lines[top]) >> 16) + ((wb[:, None, None] * lines[bottom]) >> 16)
    return np.clip((both + 2) >> 2, 0, 255).astype(np.uint8)


def as_opencv(photo):
    height, width = photo.shape[:2]
    photo = fixed_point(photo, 250, max(304, round(width * 250 / height)))
    left = (photo.shape[1] - 304) // 2
    return fixed_point(photo[11:239, left : left + 304], 224, 224)


@pytest.fixture(scope="module")
def scores():
    onnxruntime = pytest.importorskip("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(NETWORK, options, providers=["CPUExecutionProvider"])
    evaluation = EVALUATIONS["fastdepth-nyu"]
    fitted = Evaluation("fitted", "test", evaluation.near_m, evaluation.far_m, alignment="median")

    def score(rgb, depth_m, valid):
        (output,) = session.run(["350"], {"0": (rgb.astype(np.float32) / 255).transpose(2, 0, 1)[None]})
        pixels = collect(evaluation, output[0, 0], np.ones_like(valid), depth_m, valid)
        plain, median = judge(evaluation, [pixels])[0].values, judge(fitted, [pixels])[0].values
        return plain["abs_rel"], plain["delta1"], median["abs_rel"]

    found = {}
    for sample in Pairs(SHARED / "data"):
        if sample.id in TABLE:
            small = sample.rgb.shape[:2] == (224, 224)
            rgb, depth_m, valid = shape_pair(sample.rgb, sample.depth_m, sample.valid, () if small else evaluation.shape)
            other = sample.rgb if small else as_opencv(sample.rgb)
            assert np.abs(rgb.astype(int) - other).max() <= 1
            found[sample.id] = score(rgb, depth_m, valid), score(other, depth_m, valid)
    return found


@pytest.mark.parametrize("name", TABLE)
def test_the_table_is_reproduced(scores, name):
    ours, opencv = (np.abs(np.subtract(values, TABLE[name])) for values in scores[name])
    assert (opencv <= (0.0007, 0.0013, 0.0016)).all(), opencv
    assert (ours <= ((0.002, 0.004, 0.002) if name.startswith("nyu") else (0.004, 0.013, 0.006))).all(), ours


def test_the_mean_of_the_nyu_pairs(scores):
    ours = np.mean([values for name, (values, _) in scores.items() if name.startswith("nyu")], 0)
    assert ours == pytest.approx((0.0906, 0.9229, 0.0894), abs=0.0006)
