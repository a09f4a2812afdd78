"""How much of an error is scale, and whether the camera's focal length decides it: maps whose scale is known."""

import json

import numpy as np
import pytest
from scipy import stats

from fathom.benchmarks.bench_command import main
from fathom.benchmarks.evaluation.evaluation import Pixels
from fathom.benchmarks.evaluation.map_scale import map_scale, scale_of_maps
from fathom.benchmarks.evaluation.published import EVALUATIONS
from fathom.benchmarks.record.statistics import interval_of_correlation
from fathom.datasets.rooms.rooms import Rooms
from fathom.runtime.pipeline import Pipeline

FULL = EVALUATIONS["full"]


def image_of(factor, draw, noise=0.0):
    truth = draw.uniform(0.5, 9, 4001)
    return Pixels(truth * factor * np.exp(noise * draw.standard_normal(truth.size)), truth, 0)


@pytest.mark.parametrize("factor", [0.5, 0.97, 1.0, 1.3, 12.0])
def test_a_map_that_is_wrong_in_scale_alone_has_no_error_left(factor):
    found = map_scale(FULL, image_of(factor, np.random.default_rng(1)), 0.9)
    assert found == {"factor": pytest.approx(factor), "abs_rel": pytest.approx(0, abs=1e-12), "delta1": 1.0, "focal": 0.9}


def test_what_is_left_of_a_noisy_map_is_its_noise():
    found = map_scale(FULL, image_of(0.7, np.random.default_rng(2), 0.1), None)
    assert found["factor"] == pytest.approx(0.7, rel=0.01)
    assert found["abs_rel"] == pytest.approx(0.1 * np.sqrt(2 / np.pi), rel=0.05)  # the mean size of a normal error of that spread


def test_maps_without_metres_or_without_depth_have_no_scale():
    image = image_of(0.7, np.random.default_rng(3))
    for name in ("llm-mde-min-max", "adadepthclip-nyu"):
        assert map_scale(EVALUATIONS[name], image, 0.9) is None
    for bad in (np.nan, np.inf, 0.0, -1.0):
        broken = image.prediction.copy()
        broken[7] = bad
        assert map_scale(FULL, Pixels(broken, image.truth, 0), 0.9) is None
    assert map_scale(FULL, Pixels(np.zeros(0), np.zeros(0), 3), 0.9) is None
    assert scale_of_maps([]) is None and scale_of_maps([None] * 9) is None


def maps_of(factors, focals):
    return [{"factor": factor, "abs_rel": 0.1, "delta1": 0.9, "focal": focal} for factor, focal in zip(factors, focals, strict=True)]


def test_a_network_that_does_not_see_the_angle_of_view_is_found_out():
    focals = np.random.default_rng(4).uniform(0.6, 1.1, 30)
    blind = scale_of_maps([*maps_of(0.9 / focals, focals), None])
    assert blind["images"] == 30 and blind["median"] == pytest.approx(np.median(0.9 / focals))
    assert blind["low"] == pytest.approx(np.percentile(0.9 / focals, 10)) and blind["high"] == pytest.approx(np.percentile(0.9 / focals, 90))
    assert blind["with_focal"]["rank_correlation"] == pytest.approx(-1) and blind["with_focal"]["interval"] == pytest.approx([-1, -1])
    outlier = scale_of_maps([*maps_of(0.9 / focals, focals), *maps_of([40.0], [5.0])])
    assert outlier["with_focal"]["rank_correlation"] < -0.7  # one wholly wrong map of another camera does not turn it round
    seeing = scale_of_maps(maps_of(np.random.default_rng(5).uniform(0.9, 1.1, 30), focals))
    low, high = seeing["with_focal"]["interval"]
    assert low < 0 < high


def test_equal_cameras_share_their_rank_and_one_camera_says_nothing():
    draw = np.random.default_rng(6)
    focals = draw.choice([0.6, 0.8, 1.0], 40)
    factors = 1 / focals + 0.3 * draw.standard_normal(40) ** 2
    found = scale_of_maps(maps_of(factors, focals))["with_focal"]
    assert found["rank_correlation"] == pytest.approx(stats.spearmanr(factors, focals).statistic)
    assert scale_of_maps(maps_of(factors, [0.8] * 40))["with_focal"] is None
    assert scale_of_maps(maps_of(factors, [None] * 40))["with_focal"] is None
    assert scale_of_maps([*maps_of(factors[:5], focals[:5]), *maps_of(factors, [None] * 40)])["with_focal"] is None
    assert scale_of_maps(maps_of(factors[:5], focals[:5])) is None  # too few to say anything


def test_the_interval_of_a_correlation_is_about_that_of_theory():
    draw = np.random.default_rng(7)
    ours = draw.standard_normal(400)
    theirs = 0.6 * ours + 0.8 * draw.standard_normal(400)
    found = np.arctanh(interval_of_correlation(ours, theirs))
    wanted = np.arctanh(stats.pearsonr(ours, theirs).confidence_interval())  # Fisher's
    np.testing.assert_allclose(found, wanted, atol=0.05)
    assert interval_of_correlation(ours[:5], theirs[:5]) is None and interval_of_correlation(np.ones(9), theirs[:9]) is None
    with pytest.raises(ValueError, match="pairs"):
        interval_of_correlation(ours, theirs[:7])


def test_the_record_and_the_table_tell_it(tiny, tmp_path, capsys):
    assert main(["accuracy", "--engine", str(tiny.plan), "--data", "rooms:7:3:48x64", "-o", str(tmp_path / "r.json"), "--quiet", "--threads", "1"]) == 0
    (row,) = json.loads((tmp_path / "r.json").read_text())["rows"]
    factors, left = [], []
    with Pipeline.open(tiny.plan, threads=1) as pipeline:
        for sample in Rooms(7, 3, (48, 64)):
            ratio = pipeline.predict(sample.rgb).values[sample.valid].astype(float) / sample.depth_m[sample.valid]
            factors.append(np.median(ratio))
            left.append(np.mean(np.abs(ratio / factors[-1] - 1)))
    assert [group["scales"][0]["factor"] for group in row["groups"]] == pytest.approx(factors)
    assert row["groups"][2]["scales"][0]["focal"] == pytest.approx(Rooms(7, 3, (48, 64))[2].intrinsics[0] / 64)
    assert row["scale"]["median"] == pytest.approx(np.median(factors)) and row["scale"]["abs_rel"] == pytest.approx(np.mean(left))
    out = capsys.readouterr().out
    assert f"median {np.median(factors):.2f}" in out and f"at the truth's median abs_rel {np.mean(left):.4f}" in out
    assert main(["accuracy", "--engine", str(tiny.plan), "--data", "rooms:7:3:48x64", "--alignment", "median", "--quiet", "--threads", "1"]) == 0
    assert "at the truth's median" not in capsys.readouterr().out
