"""Losses by hand, pictures that stay beside their depth, runs that can be interrupted, weights that load_evp reads."""

import dataclasses
import json
import math
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from closeness import same_output, same_weights
from PIL import Image
from safetensors.torch import load_file, save_file

from fathom.datasets.depth_metrics import depth_errors
from fathom.datasets.pairs import Pairs
from fathom.datasets.rooms.rooms import Rooms
from fathom.datasets.sample import Provenance, Sample
from fathom.models.catalog import load
from fathom.models.diffusion.depth_decoder import DecoderConfig
from fathom.models.diffusion.evp import TINY, load_evp, random_evp, variant_of
from fathom.models.diffusion.metric_bins import BinsConfig
from fathom.models.diffusion.stable_diffusion import BackboneConfig
from fathom.models.diffusion.vpd import TINY as VPD_TINY
from fathom.models.diffusion.vpd import random_vpd
from fathom.models.llm_mde.llm_mde import TINY as LLM_MDE_TINY
from fathom.models.llm_mde.llm_mde import random_llm_mde
from fathom.models.network import WeightsOrigin
from fathom.models.training import loop as training
from fathom.models.training.data.augmentation import Augmentation, cut_depth, hue_matrix, mirrored, recoloured
from fathom.models.training.data.kept_samples import KeptSamples, keep
from fathom.models.training.data.training_data import Examples
from fathom.models.training.learners.learners import learner_for, published_tensors
from fathom.models.training.learners.losses import l1_and_rmse, log_l1, moa_parts, silog, ssi
from fathom.models.training.learners.validation import baselines, errors, validate
from fathom.models.training.loop import Run, numbers_of_step, parameter_groups, read_log, take_backbone, train
from fathom.models.training.recipes import recipes
from fathom.models.training.recipes.recipe import Recipe
from fathom.models.training.recipes.recipes import RECIPES
from fathom.models.training.state import load_state, save_state, state_path
from fathom.models.training.train_command import main
from fathom.runtime.errors import AccuracyError, InputError, UsageError

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
        dataclasses.replace(RECIPES["evp-tiny"], phases=((0.5, 96, 0),))


def test_the_backbone_learns_slowly_and_vectors_do_not_decay():
    network = random_evp("nyu", SMALLER)
    names = {parameter: name for name, parameter in network.named_parameters()}
    groups = parameter_groups(names, RECIPES["evp"])
    assert sum(len(group["params"]) for group in groups) == len(names)
    for group in groups:
        for parameter in group["params"]:
            assert group["factor"] == (0.01 if names[parameter].startswith(("unet.", "vae.")) else 1.0)
            assert group["weight_decay"] == (0.1 if parameter.ndim > 1 else 0.0)


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
    assert kept[3].scene == fresh[3].scene and len(list(tmp_path.rglob("*.npz"))) == 4


def write_pair(folder: Path, depth_mm: int, size=(6, 8)) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), 90, np.uint8)).save(folder / "rgb.png")
    Image.fromarray(np.full(size, depth_mm, np.uint16)).save(folder / "depth.png", compress_level=0)
    (folder / "meta.json").write_text(json.dumps({"depth_scale": 1000}))


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


def test_a_broken_picture_is_named_and_nothing_half_kept(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(recipes.RECIPES, "evp-tiny", QUICK)
    for name in ("good", "torn"):
        write_pair(tmp_path / "data" / name, 2500, (32, 48))
    file, output = tmp_path / "data" / "torn" / "depth.png", tmp_path / "x.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    words = ["--model", "evp-tiny", "--data", f"pairs:{tmp_path}/data", "--steps", "1", "-o", str(output), "--quiet"]
    for more in ((), ("--cache", str(tmp_path / "kept")), ("--workers", "2")):
        assert main([*words, *more]) == 3
        said = capsys.readouterr().err
        assert f"the sample {tmp_path}/data/torn cannot be read" in said and "depth.png" in said and not output.exists()
    assert main([*words, "--cache", str(file)]) == 3 and "depth.png is no folder" in capsys.readouterr().err

    def stop(part):
        part.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        keep(tmp_path / "kept" / "0.npz", stop)
    with pytest.raises(InputError, match="cannot be kept"):
        keep(file / "0.npz", lambda part: None)
    assert {path.name for path in (tmp_path / "kept").rglob("*") if path.is_file()} <= {"meta.json", "000000.npz"}
    rooms = KeptSamples([Rooms(1, 3, (24, 32))], tmp_path / "rooms")
    assert rooms[0].id == rooms[0].id == "room_3_000000"
    (kept,) = (tmp_path / "rooms").rglob("*.npz")
    kept.write_bytes(kept.read_bytes()[:500])
    with pytest.raises(InputError, match=r"000000\.npz is broken"):
        rooms[0]


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
    truths, places = [np.where(valid, truth, np.nan) for _, truth, valid, *_ in shown], [part[3] for part in shown]
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


SMALLER = dataclasses.replace(
    TINY,
    backbone=BackboneConfig((8, 8, 16, 16), 4, 2, 8, (8, 8, 8, 8), 4),
    tokens=8,
    decoder=DecoderConfig(32, (8, 8, 8), 8),
    bins=BinsConfig(32, 16, 8, (4, 2, 2, 1), (8, 8, 8, 8)),
)
QUICK = dataclasses.replace(RECIPES["evp-tiny"], batch=2, phases=((0.25, 32, 0), (0.75, 96, 2), (1.0, 96, 0)))


def quick_run(output: Path, steps: int = 4, recipe: Recipe = QUICK, rooms: int = 3, **changes) -> Run:
    data = KeptSamples([Rooms(rooms, 1, (32, 48))])
    network = random_evp("nyu", SMALLER)
    facts = {"steps": steps, "seed": 5}
    return Run(**({"network": network, "recipe": recipe, "data": data, "held_out": None, "output": output, "steps": steps, "seed": 5} | changes),
               every=2, store="fp32", device=torch.device("cpu"), facts=facts)  # fmt: skip


@pytest.mark.parametrize("recipe", [QUICK, dataclasses.replace(QUICK, hint_alone=0.6)], ids=["all", "hint-alone"])
def test_a_resumed_run_ends_as_if_it_had_never_stopped(recipe, tmp_path):
    whole = quick_run(tmp_path / "whole.safetensors", recipe=recipe, held_out=KeptSamples([Rooms(1, 9, (32, 48))]))
    ended = train(whole)

    def stop(step: int) -> None:
        if step == 3:  # one step after a state was saved
            raise KeyboardInterrupt

    output = tmp_path / "parts.safetensors"
    parts = dataclasses.replace(whole, network=random_evp("nyu", SMALLER), output=output)
    with pytest.raises(KeyboardInterrupt):
        train(parts, on_progress=stop)
    assert not output.exists() and state_path(output).is_file()
    with pytest.raises(UsageError, match="another seed"):
        train(dataclasses.replace(parts, network=random_evp("nyu", SMALLER, seed=8), facts={"steps": 4, "seed": 6}), resume=True)
    resumed = train(dataclasses.replace(parts, network=random_evp("nyu", SMALLER, seed=8)), resume=True)
    assert resumed["loss"] == ended["loss"] > 0
    assert output.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    assert not state_path(output).exists() and sorted(path.suffix for path in tmp_path.iterdir()) == [".jsonl", ".jsonl", ".safetensors", ".safetensors"]
    one, other = (
        [{k: v for k, v in line.items() if k != "wall_s"} for line in read_log(training.log_path(path))] for path in (output, tmp_path / "whole.safetensors")
    )
    assert one == other and [line["step"] for line in one if "validation" in line] == [2, 4]


def test_a_state_gives_back_the_loss_of_every_step(tmp_path):
    """The loss that a run ends with is a mean over the last tenth of its steps, wherever it was interrupted."""
    layer, scaler = torch.nn.Linear(2, 2), torch.amp.GradScaler("cpu", enabled=False)
    names, losses = {parameter: name for name, parameter in layer.named_parameters()}, [1 / (step + 3) for step in range(25)]
    optimiser = torch.optim.AdamW(layer.parameters())
    save_state(tmp_path / "s.safetensors", layer, optimiser, names, 25, 7.5, {"seed": 1}, {}, scaler, losses)
    assert load_state(tmp_path / "s.safetensors", layer, optimiser, names, {"seed": 1}, {}, scaler) == (25, 7.5, losses)


def test_the_weights_are_read_back_as_they_were(tmp_path):
    run = quick_run(tmp_path / "evp.safetensors", steps=2)
    train(run)
    back = load_evp(run.output, "nyu", SMALLER)
    assert back.origin.kind == "trained" and back.origin.warnings == ()
    inputs = back.example_inputs()
    with torch.no_grad():
        assert same_weights(back, run.network) and same_output(back.boundaries(inputs)["depth"], run.network.boundaries(inputs)["depth"])
    half = dict(published_tensors(run.network, torch.float16))
    assert all(tensor.dtype in (torch.float16, torch.int64) for tensor in half.values())


def test_it_learns_one_picture_by_heart(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "LOG_EVERY", 1)
    recipe = dataclasses.replace(QUICK, batch=1, phases=(), rate=1e-2, augmentation=Augmentation(flip=0.0, colour=0.0, cut_depth=0.0))
    network = random_evp("nyu", dataclasses.replace(SMALLER, nyu_window=96))
    log = train(quick_run(tmp_path / "one.safetensors", steps=20, recipe=recipe, rooms=1, network=network))["log"]
    assert log[-1]["loss"] < 0.5 * log[0]["loss"]


def test_a_run_can_begin_with_the_backbone_of_another_network(tmp_path):
    backbone = random_evp("nyu", SMALLER, seed=3)
    frozen = dataclasses.replace(QUICK, trained=(r"depth_head\.", r"bins\."), slow=())
    run = quick_run(tmp_path / "x.safetensors", steps=1, recipe=frozen, backbone=backbone)
    train(run)
    wanted = backbone.state_dict()
    mine = run.network.state_dict()
    assert all(torch.equal(mine[name], wanted[name]) for name in wanted if name.startswith(("vae.", "unet.")))


def test_llm_mde_counts_the_hints_of_its_vit_and_of_its_head():
    network = random_llm_mde("official", LLM_MDE_TINY)
    learner = learner_for(network, RECIPES["llm-mde-tiny"])
    learner.start(0)
    batch = Examples(KeptSamples([Rooms(2, 1, (48, 64))]), network.contract).batch([0, 1])
    parts = learner(batch)
    assert float(parts["loss"]) == pytest.approx(float(parts["ssi"] + 4 * (parts["hint"] + parts["code_hint"])), rel=1e-5)
    learner.alone = True
    alone = learner(batch)
    assert float(alone["loss"]) == pytest.approx(4 * float(parts["hint"]), rel=1e-5) and alone.keys() == {"loss", "hint"}


ALONE = {"evp-tiny": ("vae.", "unet.", "text."), "depthblip2-tiny": ("image_encoder.",), "llm-mde-tiny": ("vit.",)}


@pytest.mark.parametrize("model", ALONE)
def test_the_hint_alone_teaches_the_backbone_and_nothing_else(model, tmp_path):
    recipe = dataclasses.replace(RECIPES[model], batch=1, warmup=0.0, hint_alone=0.6, phases=())
    network, data = load(model, random_init=True), KeptSamples([Rooms(1, 1, (48, 64))])
    run = Run(network, recipe, data, None, tmp_path / "w.safetensors", 4, 0, 100, "fp32", torch.device("cpu"), {})
    seen = []
    train(run, on_progress=lambda step: seen.append({name: tensor.clone() for name, tensor in network.state_dict().items()}))
    changed = {name for name in seen[0] if not torch.equal(seen[0][name], seen[2][name])}  # steps 2 and 3 of 4
    assert changed and all(name.startswith(ALONE[model]) for name in changed)
    assert any(not name.startswith(ALONE[model]) and not torch.equal(seen[2][name], seen[3][name]) for name in seen[0])


def test_a_hint_alone_wants_a_hint():
    with pytest.raises(ValueError, match="hint_alone"):
        dataclasses.replace(RECIPES["vpd-tiny"], hint=False, hint_alone=0.5)


def test_a_backbone_goes_on_as_it_was():
    evp = random_evp("nyu", dataclasses.replace(SMALLER, nyu_window=96))
    vpd = random_vpd(config=dataclasses.replace(VPD_TINY, backbone=SMALLER.backbone, decoder=SMALLER.decoder, nyu_window=96), scene="kitchen", seed=4)
    take_backbone(learner_for(vpd, QUICK), learner_for(evp, QUICK))
    image, context = torch.rand(1, 3, 128, 128), torch.rand(1, 4, 8)
    with torch.no_grad():  # EVP divides its latent by 5.07543 and VPD does not
        bias = evp.unet.conv_in.bias[None, :, None, None]
        divided = evp.unet.conv_in(evp.vae(image) / 5.07543) - bias
        torch.testing.assert_close(vpd.unet.conv_in(vpd.vae(image)) - bias, divided)
        torch.testing.assert_close(vpd.unet(vpd.vae(image), context)[0], evp.unet(evp.vae(image) / 5.07543, context)[0], rtol=1e-4, atol=1e-4)
    wider = random_evp("nyu", dataclasses.replace(SMALLER, backbone=dataclasses.replace(SMALLER.backbone, vae_channels=(8, 8, 8, 16))))
    with pytest.raises(UsageError, match="cannot begin with the vae"):
        take_backbone(learner_for(vpd, QUICK), learner_for(wider, QUICK))


def test_a_loss_that_is_no_number_stops_the_run(tmp_path):
    run = quick_run(tmp_path / "x.safetensors")
    run.network.origin = WeightsOrigin("trained")  # or it would begin with other numbers
    run.network.decoder.conv_layers[0].weight[0, 0, 0, 0] = math.nan
    with pytest.raises(AccuracyError, match="loss of step 0 is nan"):
        train(run)
    assert not list(tmp_path.iterdir())


def test_parameters_that_no_gradient_reaches_are_named(tmp_path):
    run = quick_run(tmp_path / "x.safetensors")
    run.network.decoder.spare = torch.nn.Linear(2, 2)
    with pytest.raises(AccuracyError, match=r"2 tensor.*decoder\.spare\.bias"):
        train(run)


def test_frozen_parts_stay_as_they_are(tmp_path):
    recipe = dataclasses.replace(QUICK, trained=(r"depth_head\.", r"bins\."), slow=())
    run = quick_run(tmp_path / "x.safetensors", steps=2, recipe=recipe)
    run.network.origin = WeightsOrigin("trained")  # or the start would be made easier for it
    before = {name: tensor.clone() for name, tensor in run.network.state_dict().items()}
    train(run)
    changed = {name.split(".")[0] for name, tensor in run.network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"depth_head", "bins"}  # not even the running statistics of a frozen decoder


def test_the_command_trains_measures_and_writes_a_card(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(recipes.RECIPES, "evp-tiny", QUICK)
    output = tmp_path / "w.safetensors"
    words = ["--model", "evp-tiny", "--data", "rooms:3:1:32x48", "--val", "rooms:2:7:32x48", "--steps", "2", "--store", "fp16"]
    words += ["-o", str(output), "--json", "--quiet"]
    assert main(words) == 0
    facts = json.loads(capsys.readouterr().out)
    text = (tmp_path / "w.md").read_text()
    assert facts["sha256"] in text and str(tmp_path) not in text and "rooms, 32x48, seed 7" in text
    assert "depth-train --model evp-tiny --data rooms:3:1:32x48 --val rooms:2:7:32x48 --steps 2 --store fp16 -o w.safetensors" in text
    assert f"{facts['results'][0]['mean_map']['abs_rel']:.3f}" in text and output.stat().st_size < 10e6
    assert main(words) == 3 and "exists already" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["x.md", "x.log.jsonl", "x.best.safetensors", "x.state.safetensors"])
def test_files_beside_the_output_are_not_replaced_unasked(name, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(recipes.RECIPES, "evp-tiny", QUICK)
    kept = tmp_path / name
    kept.write_text("another run's")
    words = ["--model", "evp-tiny", "--data", "rooms:3:1:32x48", "--steps", "1", "-o", str(tmp_path / "x.safetensors"), "--quiet"]
    assert main(words) == 3 and f"{name} exists already" in capsys.readouterr().err
    assert [path.read_text() for path in tmp_path.iterdir()] == ["another run's"]
    if name == "x.md":
        assert main([*words, "--force"]) == 0 and kept.read_text().startswith("# ")


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--model", "evpp"], 2, "no recipe for 'evpp'"),
        (["--model", "evp"], 2, "starts from trained weights"),
        (["--data", "moon:1"], 2, "names no data"),
        (["--data", "pairs:nowhere"], 3, "no folder"),
        (["--lr", "-1"], 2, "no learning rate"),
        (["--device", "abacus"], 2, "no device"),
        (["--device", "cuda:99"], 6, "finds no cuda:99"),
        (["-o", "x.pt"], 2, "no .safetensors"),
        (["--backbone", "evp"], 2, "a small network of the catalog"),
        (["--resume"], 3, "state of an interrupted run"),
        (["--model", "evp clip"], 2, "no recipe for 'evp clip'"),  # a key of the recipes, and no network
        (["--model", "evp", "--random-init", "--learn", "kitti"], 2, "--learn kitti: there is no such recipe of evp, variant nyu; wanted: clip"),
        (["--model", "evp", "--random-init", "--variant", "kitti", "--learn", "clip", "--set", "captions=1"], 2, "no such recipe of evp, variant kitti"),
        (["--model", "llm-mde", "--random-init", "--learn", "paper"], 2, "no such recipe of llm-mde, variant official"),
        (["--model", "llm-mde", "--random-init", "--learn", ""], 2, "no such recipe of llm-mde"),
        (["--learn", "clip"], 2, "keeps no CLIP; fix: give --set captions=1"),
        (["--val", "rooms:5:1:48x64"], 2, "--val rooms:5:1:48x64: room 0 of seed 1 (and 1 more) is in --data too"),
        (["--data", "rooms:2:1:48x64", "--hold-back", "1"], 2, "would be learned from and chosen by"),
    ],
)
def test_what_cannot_be_done_is_said(words, code, says, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base = ["--model", "evp-tiny", "--data", "rooms:2:1:32x48", "-o", "x.safetensors", "--steps", "1"]
    assert main([*base, *words]) == code
    assert says in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("model", "more"),
    [("vpd-tiny", ["--scene", "kitchen"]), ("moa-depthclip-tiny", []), ("llm-mde-tiny", []), ("depthclip-tiny", []), ("depthblip2-tiny", ["--shots", "2"])],
)
def test_every_recipe_trains_its_network_and_reads_it_back(model, more, tmp_path, capsys, monkeypatch):
    if "depthclip" in model:
        pytest.importorskip("open_clip")
    if recipes.RECIPES[model].phases:
        monkeypatch.setitem(recipes.RECIPES, model, dataclasses.replace(recipes.RECIPES[model], phases=((0.5, 96, 2), (1.0, 96, 0))))
    output = tmp_path / "w.safetensors"
    words = ["--model", model, "--data", "rooms:3:1:32x48", "--val", "rooms:2:7:32x48", "--steps", "2", "--batch", "2", "-o", str(output), "--json", "--quiet"]
    assert main([*words, *more]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert all(math.isfinite(value) for value in facts["results"][0]["network"].values())
    line = read_log(training.log_path(output))[-2]
    assert line["loss"] > 0 and ("gate_entropy" not in line or 0 < line["gate_entropy"] <= 1)
    assert ("gate_entropy" in line) == model.startswith("moa")


def test_the_published_few_shot_recipe_learns_seven_bins_and_nothing_else(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(recipes.RECIPES, "depthblip2-tiny", RECIPES["depthblip2"])
    output = tmp_path / "bins.safetensors"
    words = ["--model", "depthblip2-tiny", "--data", "rooms:3:1:32x48", "--shots", "2", "--val", "rooms:2:7:32x48", "-o", str(output), "--json", "--quiet"]
    assert main(words) == 0
    facts = json.loads(capsys.readouterr().out)
    assert math.isfinite(facts["results"][0]["network"]["abs_rel"]) and read_log(training.log_path(output))[-1]["loss"] > 0
    start, learned = load("depthblip2-tiny", random_init=True), load("depthblip2-tiny", random_init=True, bins=output)
    changed = [key for key, tensor in start.state_dict().items() if not torch.equal(tensor, learned.state_dict()[key])]
    assert changed == ["head.bins_m"]
    with pytest.raises(InputError, match=r"bins\.safetensors was trained with wording=0; wanted: wording=1"):  # bins mean nothing behind other words
        load("depthblip2-tiny", random_init=True, settings={"wording": 1}, bins=output)
    first, second = (tmp_path / f"{name}.safetensors" for name in ("first", "second"))
    for number, file in enumerate((first, second)):
        tensors = load("depthblip2-tiny", random_init=True, seed=number).state_dict()
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
    assert main([*words, "--weights", str(first), "--force"]) == 0
    assert not torch.equal(load("depthblip2-tiny", first, bins=output).head.bins_m, load("depthblip2-tiny", first).head.bins_m)
    with pytest.raises(InputError, match=r"bins\.safetensors was fitted to other weights"):  # nor before another network's probabilities
        load("depthblip2-tiny", second, bins=output)


def test_the_few_shot_recipe_heeds_its_flags_or_refuses_them(tmp_path, capsys, monkeypatch):
    """A step of 1e-6 leaves the bins where they began, the recipe's rate does not; what would change nothing is refused."""
    monkeypatch.setitem(recipes.RECIPES, "depthblip2-tiny", RECIPES["depthblip2"])
    words = ["--model", "depthblip2-tiny", "--data", "rooms:2:1:32x48", "--json", "--quiet"]
    files = {}
    for name, more in (("idle", ("--lr", "1e-6", "--steps", "1")), ("short", ("--steps", "1")), ("long", ("--steps", "20"))):
        assert main([*words, *more, "-o", str(tmp_path / f"{name}.safetensors")]) == 0
        assert json.loads(capsys.readouterr().out)["steps"] == int(more[-1])
        files[name] = torch.cat([tensor.flatten() for tensor in load_file(tmp_path / f"{name}.safetensors").values()])
    moved = {name: float((files[name] - files["idle"]).abs().max()) for name in ("short", "long")}
    assert 5e-4 < moved["short"] < 2e-3 and moved["long"] > 3 * moved["short"]  # AdamW's first step is as long as the rate
    for more in (["--ema", "0.9"], ["--hold-back", "1"], ["--accumulate", "2"], ["--store", "fp16"], ["--precision", "bf16"], ["--every", "5"], ["--resume"]):
        assert main([*words, *more, "-o", str(tmp_path / "x.safetensors")]) == 2
        assert f"leave out {more[0]}" in capsys.readouterr().err


def test_few_shots_are_always_the_same_ones():
    some = [KeptSamples([Rooms(40, 1, (24, 32))], shots=5, seed=seed) for seed in (2, 2, 3)]
    assert len(some[0]) == 5 and len(set(some[0].numbers)) == 5
    assert list(some[0].numbers) == list(some[1].numbers) != list(some[2].numbers)
    with pytest.raises(ValueError, match="the data has 40"):
        KeptSamples([Rooms(40)], shots=41)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["evp-tiny", "llm-mde-tiny"])  # the second one's hint is learned alone first
def test_two_processes_end_with_one_set_of_weights(model, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29611", "-m", "fathom.models.training.train_command"]
    words = ["--model", model, "--data", "rooms:4:1:48x64", "--steps", "5", "--batch", "1", "--threads", "1"]
    words += ["-o", str(tmp_path / "w.safetensors"), "--json"]
    done = subprocess.run([*command, *words], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1 and json.loads(done.stdout)["steps"] == 5
    load(model, tmp_path / "w.safetensors")
