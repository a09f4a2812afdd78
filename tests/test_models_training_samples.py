"""Losses by hand, schedules, pictures that stay beside their depth, and guesses that never look at them."""

import dataclasses
import json
import math
import time
import warnings

import numpy as np
import pytest
import torch
from wall_pairs import write_pair

from fathom.datasets.depth_metrics import depth_errors
from fathom.datasets.pairs import Pairs
from fathom.datasets.rooms.rooms import Rooms
from fathom.datasets.sample import Provenance, Sample
from fathom.models.catalog import load
from fathom.models.diffusion.evp import TINY, variant_of
from fathom.models.llm_mde.llm_mde import TINY as LLM_MDE_TINY
from fathom.models.llm_mde.llm_mde import random_llm_mde
from fathom.models.training.data.augmentation import Augmentation, cut_depth, hue_matrix, mirrored, recoloured
from fathom.models.training.data.kept_samples import KeptSamples
from fathom.models.training.data.training_data import Examples
from fathom.models.training.learners.learners import learner_for
from fathom.models.training.learners.losses import l1_and_rmse, log_l1, moa_parts, silog, ssi
from fathom.models.training.learners.validation import baselines, errors, validate
from fathom.models.training.loop import numbers_of_step
from fathom.models.training.recipes.recipes import RECIPES
from fathom.models.training.train_command import main
from fathom.runtime.errors import AccuracyError, InputError

PREDICTION = [1.0, 2.0, 4.0, 9.0]
TRUTH = [1.5, 2.0, 3.0, 7.0]  # the last one is not valid
D = [math.log(g) - math.log(p) for p, g in zip(PREDICTION[:3], TRUTH[:3], strict=True)]
MEAN, SQUARE = sum(D) / 3, sum(d * d for d in D) / 3


@pytest.fixture
def maps():
    shape = (1, 1, 2, 2)
    valid = torch.tensor([True, True, True, False]).view(shape)
    return torch.tensor(PREDICTION, dtype=torch.float64).view(shape), torch.tensor(TRUTH, dtype=torch.float64).view(shape), valid


def test_silog_is_the_published_one(maps):
    assert float(silog(*maps)) == pytest.approx(math.sqrt(SQUARE - 0.5 * MEAN**2), rel=1e-12)
    assert float(silog(*maps, focus=1.0)) == pytest.approx(math.sqrt(SQUARE - MEAN**2), rel=1e-12)


def test_silog_with_focus_one_forgives_any_scale(maps):
    prediction, truth, valid = maps
    assert float(silog(3 * prediction, truth, valid, focus=1.0)) == pytest.approx(float(silog(prediction, truth, valid, focus=1.0)), rel=1e-9)


def test_ssi_is_that_of_llm_mde_and_has_its_floor(maps):
    _, truth, valid = maps
    assert float(ssi(*maps)) == pytest.approx(10 * math.sqrt(SQUARE - 0.85 * MEAN**2), rel=1e-12)
    assert float(ssi(truth, truth, valid)) == pytest.approx(10 * math.sqrt(1e-6), rel=1e-12)


def test_log_l1_is_the_mean_distance_of_the_logarithms(maps):
    assert float(log_l1(*maps)) == pytest.approx(sum(map(abs, D)) / 3, rel=1e-12)


def test_depthblip2_takes_half_of_each(maps):
    errors_m = [p - g for p, g in zip(PREDICTION[:3], TRUTH[:3], strict=True)]
    l1, rmse = sum(map(abs, errors_m)) / 3, math.sqrt(sum(e * e for e in errors_m) / 3)
    assert float(l1_and_rmse(*maps)) == pytest.approx(0.5 * l1 + 0.5 * rmse, rel=1e-12)


def test_moa_has_three_parts(maps):
    prediction, truth, valid = maps
    edges = torch.tensor([0.001, 1.75, 2.5, 10.0], dtype=torch.float64)  # 1.5 -> bin 0, 2.0 -> bin 1, 3.0 -> bin 2
    logits = torch.tensor([[0.0, 0, 0], [1, 2, 3], [0.5, 0, -1], [9, 9, 9]], dtype=torch.float64).T.reshape(1, 3, 2, 2)
    parts = moa_parts(logits, prediction, edges, truth, valid)
    chances = [1 / 3, math.exp(2) / sum(map(math.exp, (1, 2, 3))), math.exp(-1) / (math.exp(0.5) + 1 + math.exp(-1))]
    assert float(parts["cross_entropy"]) == pytest.approx(-sum(map(math.log, chances)) / 3, rel=1e-12)
    assert float(parts["l1"]) == pytest.approx(1.5 / 3, rel=1e-12)
    assert float(parts["silog"]) == pytest.approx(10 * ((SQUARE - MEAN**2) + 0.85 * MEAN**2), rel=1e-12)


@pytest.mark.parametrize("loss", [silog, log_l1, ssi, l1_and_rmse])
def test_a_perfect_prediction_has_a_finite_slope(maps, loss):
    _, truth, valid = maps
    prediction = truth.clone().requires_grad_(True)
    loss(prediction, truth, valid).backward()
    assert bool(prediction.grad.isfinite().all())


def test_schedules_reach_the_papers_rates():
    evp, vpd = RECIPES["evp"], RECIPES["vpd"]
    assert [evp.rate_at(share) for share in (0, 1 / 15, 1)] == pytest.approx([3e-5, 2e-4, 3e-5])
    assert evp.rate_at(1 / 15 + (14 / 15) / 2) == pytest.approx((2e-4 + 3e-5) / 2)
    assert [vpd.rate_at(share) for share in (0, 0.5, 1)] == pytest.approx([3e-5, 5e-4, 3e-5])
    assert vpd.rate_at(0.25) == vpd.rate_at(0.75) == pytest.approx(3e-5 + (5e-4 - 3e-5) * 0.5**0.9)
    with pytest.raises(ValueError, match="schedule"):
        dataclasses.replace(evp, schedule="square")
    with pytest.raises(ValueError, match="end with 1"):
        dataclasses.replace(RECIPES["evp-tiny"], phases=((0.5, 96),))


def test_every_pass_sees_every_sample_once():
    seen = [number for step in range(6) for number in numbers_of_step(step, 3, 9, seed=4)]
    assert sorted(seen[:9]) == sorted(seen[9:]) == list(range(9)) and seen[:9] != seen[9:]
    assert seen == [number for step in range(6) for number in numbers_of_step(step, 3, 9, seed=4)]


class Ramp:
    """Photos whose red says how far it is: 25 levels per metre, and left differs from right."""

    provenance = Provenance("images", "ramp", "0" * 64, 3)

    def __len__(self):
        return 3

    def __iter__(self):
        return (self[number] for number in range(3))

    def __getitem__(self, number):
        height, width = (60, 80), (48, 128)
        rows, columns = (height, width)[number % 2]
        depth = np.linspace(1, 9, columns, dtype=np.float32)[None] * np.linspace(0.8, 1, rows, dtype=np.float32)[:, None]
        rgb = np.zeros((rows, columns, 3), np.uint8)
        rgb[..., 0] = np.round(depth * 25)
        return Sample(rgb, depth, np.ones((rows, columns), bool), None, str(number), "")


@pytest.mark.parametrize("geometry", ["protocol", "window"])
@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_photo_and_depth_stay_together(geometry, flip):
    contract = variant_of(dataclasses.replace(TINY, nyu_window=96), "nyu").contract
    examples = Examples(KeptSamples([Ramp()]), contract, geometry)
    only_moves = Augmentation(flip=flip, colour=0.0, cut_depth=0.0)
    for number in range(3):
        image, truth, valid, *_ = examples.example(number, np.random.default_rng(number), only_moves)
        seen_m = (image[0, :96, :96] * 0.5 + 0.5) * 255 / 25
        assert valid.mean() > 0.9 and np.abs(seen_m - truth)[valid].max() < 0.12  # half a source pixel, and a byte's step
        first, last = truth[valid[:, 10], 10].mean(), truth[valid[:, 80], 80].mean()
        assert (first > last) == bool(flip)
        if geometry == "protocol":
            assert not valid[:8].any() and valid[8:].all() and (image[:, :8, :96] == -1).all()  # the black bar


def test_the_window_moves_at_random_over_a_wide_photo():
    contract = variant_of(dataclasses.replace(TINY, nyu_window=96), "nyu").contract
    examples = Examples(KeptSamples([Ramp()]), contract, "window")
    moves = Augmentation(flip=0.0, colour=0.0, cut_depth=0.0)
    starts = {float(examples.example(1, np.random.default_rng(seed), moves)[1][0, 0]) for seed in range(8)}
    assert len(starts) > 4


def test_windows_without_depth_are_refused_where_no_other_has_some():
    depth = np.zeros((48, 128), np.float32)
    depth[:, -1] = 2  # known at the right edge alone
    sample = Sample(np.zeros((48, 128, 3), np.uint8), depth, depth > 0, None, "hall", "")
    examples = Examples([sample, Rooms(1, 0, (48, 64))[0]], variant_of(dataclasses.replace(TINY, nyu_window=96), "nyu").contract, "window")
    draws = [np.random.default_rng(0) for _ in range(2)]
    with pytest.raises(InputError, match="in the windows of hall"):
        examples.batch([0], draws[:1])
    assert [bool(part.any()) for part in examples.batch([0, 1], draws).valid] == [False, True]


def test_a_mirror_moves_the_principal_point():
    sample = Rooms(1, 0, (32, 48))[0]
    turned = mirrored(sample)
    assert np.array_equal(turned.rgb[:, ::-1], sample.rgb) and np.array_equal(turned.depth_m[:, ::-1], sample.depth_m)
    assert turned.intrinsics[2] == 47 - sample.intrinsics[2] and mirrored(turned).digest() == sample.digest()


def test_colours_change_and_stay_colours():
    picture = np.random.default_rng(0).random((20, 30, 3), dtype=np.float32)
    strong = Augmentation(colour=1.0)
    changed = recoloured(picture, strong, np.random.default_rng(1))
    assert changed.dtype == np.float32 and changed.min() >= 0 and changed.max() <= 1 and np.abs(changed - picture).mean() > 0.01
    assert np.array_equal(recoloured(picture, Augmentation(colour=0.0), np.random.default_rng(1)), picture)
    assert hue_matrix(0.7, 1.3) @ np.ones(3) == pytest.approx(np.ones(3), abs=1e-6)  # grey stays grey


def test_cut_depth_does_not_wrap_around():
    truth = np.linspace(0, 10, 40, dtype=np.float32)[:, None].repeat(50, axis=1)
    picture = np.full((40, 50, 3), 2.0, np.float32)  # no colour looks like this
    cut = cut_depth(picture, truth, 10.0, Augmentation(), np.random.default_rng(3))
    columns = np.flatnonzero((cut != 2).all(axis=(0, 2)))
    assert 1 <= len(columns) <= 0.75 * 50 and np.array_equal(columns, np.arange(columns[0], columns[-1] + 1))
    assert np.allclose(cut[:, columns[0], 1], truth[:, 0] / 10) and (np.diff(cut[:, columns[0], 0]) > 0).all()


def test_kept_samples_are_the_same_numbers(tmp_path):
    fresh, kept = KeptSamples([Rooms(2, 3, (24, 32)), Rooms(2, 4, (24, 32))]), KeptSamples([Rooms(2, 3, (24, 32)), Rooms(2, 4, (24, 32))], tmp_path)
    digests = [fresh[number].digest() for number in range(4)]
    assert len(set(digests)) == 4
    assert [kept[number].digest() for number in range(4)] == digests == [kept[number].digest() for number in range(4)]
    assert kept[3].scene == fresh[3].scene and kept[3].intrinsics == fresh[3].intrinsics and len(list(tmp_path.rglob("*.npz"))) == 4


def test_samples_that_were_kept_without_their_camera_are_read_anew(tmp_path):
    kept, (wanted,) = KeptSamples([Rooms(1, 3, (24, 32))], tmp_path), Rooms(1, 3, (24, 32))
    kept[0]
    (file,) = tmp_path.rglob("*.npz")
    parts = dict(np.load(file, allow_pickle=False))
    assert tuple(parts.pop("intrinsics")) == wanted.intrinsics
    np.savez(file, **parts)
    assert kept[0].intrinsics == wanted.intrinsics == tuple(np.load(file, allow_pickle=False)["intrinsics"])


@pytest.mark.parametrize("model", ["evp-tiny", "vpd-tiny"])
def test_metres_are_learned_by_the_focal_length(model):
    """A camera of twice the focal length sees the same picture of a room twice as far away: the same loss, and metres that are twice as many."""

    class Seen(Ramp):
        def __init__(self, focal_widths, far):
            self.focal_widths, self.far = focal_widths, far

        def __getitem__(self, number):
            sample = super().__getitem__(number)
            camera = self.focal_widths and (self.focal_widths * sample.rgb.shape[1],) * 2 + (3.0, 4.0)
            return dataclasses.replace(sample, depth_m=np.float32(self.far) * np.clip(sample.depth_m, 0.1, 2), intrinsics=camera or None)

    network = load(model, random_init=True, **({"scene": "kitchen"} if model == "vpd-tiny" else {}))
    learner = learner_for(network, RECIPES[model])

    def seen(focal_widths, far):
        batch = learner.examples(KeptSamples([Seen(focal_widths, far)])).batch([0])
        with torch.no_grad():
            return float(batch.metres), float(learner(batch)["loss"]), learner.predict(batch)

    own = network.contract.output.focal_px / network.contract.input.window[1]
    (one, loss, depth), (two, same, twice), (unknown, _, _) = seen(own, 1), seen(2 * own, 2), seen(0, 1)
    assert (one, two, unknown) == (pytest.approx(1), pytest.approx(2), 1) and same == pytest.approx(loss, rel=1e-5)
    torch.testing.assert_close(twice, 2 * depth)


def test_what_was_kept_of_other_files_is_never_given(tmp_path):
    """Two folders alike in names and sizes, and one whose file was replaced: each has its own metres."""
    for place, depth_mm in (("a", 2000), ("b", 5000)):
        write_pair(tmp_path / place / "data" / "p", depth_mm)
    one, other = ([path.stat().st_size for path in sorted((tmp_path / place).rglob("*.*"))] for place in "ab")
    assert one == other

    def depth_m(place: str) -> float:
        return float(KeptSamples([Pairs(tmp_path / place / "data")], tmp_path / "kept")[0].depth_m[0, 0])

    assert (depth_m("a"), depth_m("b"), depth_m("a")) == (2.0, 5.0, 2.0)
    time.sleep(0.02)  # a file system's clock may tick slowly
    write_pair(tmp_path / "a" / "data" / "p", 3000)
    assert depth_m("a") == 3.0
    metas = [json.loads(path.read_text()) for path in (tmp_path / "kept").glob("*/meta.json")]
    assert len(metas) == 3 and all("modification time" in meta["key"] and meta["files"] == 3 and meta["kind"] == "pairs" for meta in metas)


def test_pictures_without_depth_are_refused_by_name(tmp_path, capsys):
    """Nothing is NaN: what cannot be learned from or measured on is said."""
    write_pair(tmp_path / "data" / "wall", 2500, (32, 48))
    write_pair(tmp_path / "data" / "window", 0, (32, 48))  # 0: unknown
    examples = Examples(KeptSamples([Pairs(tmp_path / "data")], tmp_path / "kept"), variant_of(dataclasses.replace(TINY, nyu_window=96), "nyu").contract)
    draws = [np.random.default_rng(0)]
    for _ in range(2):  # read, and as it was kept
        assert examples.batch([0], draws).valid.any() and not examples.batch([1]).valid.any()
        with pytest.raises(InputError, match="sample window has no known depth"):
            examples.batch([1], draws)
    found = validate(lambda batch: torch.full_like(batch.truth_m, 2.0), examples, 2, torch.device("cpu"))
    assert found["abs_rel"] == pytest.approx(0.2)  # of the wall alone
    blind = Examples(KeptSamples([Pairs(tmp_path / "data" / "window")]), examples.contract)
    with pytest.raises(InputError, match="none of the 1 pictures"):
        validate(lambda batch: torch.full_like(batch.truth_m, 2.0), blind, 2, torch.device("cpu"))
    base = ["--model", "evp-tiny", "-o", str(tmp_path / "x.safetensors"), "--steps", "1"]
    for data, val, code, says in (
        ("rooms:2:1:32x48", f"pairs:{tmp_path}/data/window", 3, "no picture of it has a known depth"),
        ("rooms:2:1:32x48", f"images:{tmp_path}/data", 2, "photos without depth"),
        (f"images:{tmp_path}/data", "rooms:2:1:32x48", 2, "photos without depth"),
    ):
        assert main([*base, "--data", data, "--val", val]) == code and says in capsys.readouterr().err


def test_validation_metrics_are_those_of_the_benchmark():
    draw = np.random.default_rng(0)
    prediction, truth = draw.uniform(0.5, 9, 500).astype(np.float32), draw.uniform(0.5, 9, 500).astype(np.float32)
    reference = depth_errors(prediction, truth)
    assert errors(prediction, truth) == pytest.approx({name: reference[name] for name in ("abs_rel", "rmse", "delta1")}, rel=1e-12)
    with pytest.raises(AccuracyError, match="1 predicted depths are not finite and 1 not positive"):
        errors(np.array([1.0, np.nan, -1.0]), np.ones(3))


class Walls:
    """Three flat walls at 2, 4 and 6 m."""

    provenance = Provenance("rooms", "walls", "1" * 64, 3)

    def __len__(self):
        return 3

    def __getitem__(self, number):
        depth = np.full((32, 32), 2.0 * (number + 1), np.float32)
        return Sample(np.zeros((32, 32, 3), np.uint8), depth, depth > 0, None, str(number), "")


@pytest.mark.parametrize("name", [name for name, recipe in RECIPES.items() if recipe.geometry == "protocol"])
def test_no_recipe_enlarges_a_photo_or_changes_its_depths(name):
    """A stripe on a wall is as wide as it is in every photo that is learned from: else networks say too much of whole photos, or too little."""
    depth = np.full((96, 128), 3.0, np.float32)
    depth[:, 44:84] = 2.0
    sample = Sample(np.full((96, 128, 3), 60, np.uint8), depth, depth > 0, None, "a", "")
    examples = Examples([sample], variant_of(dataclasses.replace(TINY, nyu_window=96), "nyu").contract)
    upright = dataclasses.replace(RECIPES[name].augmentation, turn=0)
    middle = 48  # a row
    wide = (examples.example(0)[1][middle] == 2).sum()
    for seed in range(20):
        _, truth, valid, *_ = examples.example(0, np.random.default_rng(seed), upright)
        assert set(truth[valid].tolist()) <= {2.0, 3.0}
        assert abs(int((truth[middle][valid[middle]] == 2).sum()) - int(wide)) <= 1


def test_baselines_never_see_the_picture_they_guess():
    contract = variant_of(dataclasses.replace(TINY, nyu_window=96), "nyu").contract
    found = baselines(Examples(KeptSamples([Walls()]), contract))
    wanted = (abs(5 - 2) / 2 + abs(4 - 4) / 4 + abs(3 - 6) / 6) / 3  # the others' mean, which for two is their median too
    assert found["mean_map"]["abs_rel"] == pytest.approx(wanted) and found["constant"]["abs_rel"] == pytest.approx(wanted)
    assert found["mean_map"]["delta1"] == pytest.approx(1 / 3)


class Dented:
    """Walls with dents and holes, of three places; one place has one picture alone. Depths repeat."""

    provenance = Provenance("pairs", "dented", "2" * 64, 8)

    def __len__(self):
        return 8

    def __getitem__(self, number):
        draw = np.random.default_rng(number)
        depth = draw.integers(1, 7, (32, 32)).astype(np.float32)
        depth[draw.random((32, 32)) < 0.6] = 0
        return Sample(np.zeros((32, 32, 3), np.uint8), depth, depth > 0, None, str(number), "abbbcbbb"[number] if number < 7 else "c")


def test_baselines_are_those_of_looking_at_all_others_for_each():
    examples = Examples(KeptSamples([Dented()]), variant_of(dataclasses.replace(TINY, nyu_window=32), "nyu").contract)
    shown = [examples.example(number) for number in range(8)]
    truths, places = [np.where(valid, truth, np.nan) for _, truth, valid, *_ in shown], [part[4] for part in shown]
    wanted = {"constant": [], "mean_map": []}
    for number, truth in enumerate(truths):
        rest = [other for other in range(8) if other != number]
        rest = np.stack([truths[other] for other in [o for o in rest if places[o] == places[number]] or rest])
        known = np.isfinite(truth)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a pixel that none of them knows
            mean = np.nanmean(rest.astype(np.float64), axis=0)
        for name, guess in (("constant", np.full_like(mean, np.nanmedian(rest))), ("mean_map", np.where(np.isfinite(mean), mean, np.nanmedian(rest)))):
            wanted[name].append(errors(guess[known], truth[known]))
    found = baselines(examples)
    for name, scores in wanted.items():
        assert found[name] == pytest.approx({metric: np.mean([score[metric] for score in scores]) for metric in found[name]}, rel=1e-12)


def test_baselines_of_relative_depth_know_its_median_too():
    network = random_llm_mde("official", LLM_MDE_TINY)
    found = baselines(Examples(KeptSamples([Walls()]), network.contract))
    assert found["mean_map"] == found["constant"] == pytest.approx({"abs_rel": 0, "rmse": 0, "delta1": 1})  # walls are flat: their median says it all
