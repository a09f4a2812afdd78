"""Words, masks and the referring network's training: the right pixels, metrics by hand, guesses that are blind, weights that come back."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from fathom.datasets.mask_metrics import MaskTotals
from fathom.datasets.rooms.rooms import Rooms
from fathom.datasets.rooms.words import Meaning, Things
from fathom.datasets.sample import Sample
from fathom.models.diffusion.evp_refer import OFFICIAL, TINY, EVPRefer, load_evp_refer, random_evp_refer
from fathom.models.diffusion.stable_diffusion import BackboneConfig
from fathom.models.training.data.augmentation import Augmentation
from fathom.models.training.data.kept_samples import KeptSamples
from fathom.models.training.data.referring_data import NamedSamples, WordsExamples
from fathom.models.training.learners.learners import learner_for
from fathom.models.training.learners.mask_validation import blind_masks, mask_metrics
from fathom.models.training.learners.refer import ReferLearner
from fathom.models.training.loop import parameter_groups, read_log
from fathom.models.training.recipes import recipes
from fathom.models.training.recipes.recipes import RECIPES
from fathom.models.training.train_command import main
from fathom.runtime.errors import InputError, UsageError

SMALLER = dataclasses.replace(TINY, backbone=BackboneConfig((8, 8, 16, 16), 4, 2, 8, (8, 8, 8, 8), 4), tokens=16, clip_mlp=16, hidden=8, window=64)
STILL = Augmentation(flip=0.0, colour=0.0, cut_depth=0.0)


class Squares(Rooms):
    """Grey rooms with a red left chair and a green right one, which is farther; all else is wall."""

    def __getitem__(self, number):
        rgb = np.full((48, 64, 3), 128, np.uint8)
        depth = np.full((48, 64), 5, np.float32)
        rgb[20:40, 4:20], depth[20:40, 4:20] = (255, 0, 0), 2
        rgb[20:40, 40:60], depth[20:40, 40:60] = (0, 255, 0), 4
        return Sample(rgb, depth, depth > 0, None, str(number), "")

    def things(self, number):
        where = np.zeros((48, 64), np.uint8)
        where[20:40, 4:20], where[20:40, 40:60] = 1, 2
        return Things(where, ("wall", "chair", "chair"))


def squares(count=2):
    return NamedSamples(KeptSamples([Squares(count)]))


@pytest.fixture(scope="module")
def network():
    return random_evp_refer(config=SMALLER, seed=1)


def examples(network, samples, sentences=3):
    return WordsExamples(samples, network.contract, network.tokenizer, sentences)


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_words_mean_the_same_pixels_when_the_picture_is_mirrored(network, flip):
    image, truth, valid, found = examples(network, squares()).example(0, np.random.default_rng(0), dataclasses.replace(STILL, flip=flip))
    assert image.shape == (3, 64, 64) and {(meaning.name, meaning.place) for meaning in found} >= {("wall", ""), ("chair", "left"), ("chair", "far")}
    left, right = found[Meaning("chair", "left")], found[Meaning("chair", "right")]
    assert not left[:, 32:].any() and not right[:, :32].any()
    first, second = (1, 0) if flip else (0, 1)  # red is left, and in a mirror right
    assert image[first][left].mean() > 0.8 and image[second][right].mean() > 0.8
    assert np.array_equal(found[Meaning("chair", "far")], left if flip else right)
    assert valid.all() and (truth[found[Meaning("chair", "near")]] == 2).all() and (truth[found[Meaning("chair", "far")]] == 4).all()


def test_a_batch_asks_several_things_about_each_picture_in_words_of_the_tokenizer(network):
    data = examples(network, squares(), 4)
    draws = [np.random.default_rng(seed) for seed in (1, 2)]
    batch = data.batch([0, 1], draws, STILL)
    assert batch.image.shape == (2, 3, 64, 64) and batch.ids.shape == (8, 16) and batch.mask.shape == (8, 64, 64)
    assert batch.picture.tolist() == [0] * 4 + [1] * 4
    tokenizer = Tokenizer.from_str(network.tokenizer.decode())
    texts = [tokenizer.decode([i for i in ids if i < TINY.vocabulary - 2]) for ids in batch.ids.tolist()]
    for text, mask in zip(texts, batch.mask, strict=True):
        assert ("wall" in text or "chair" in text) and (mask.float().mean() > 0.5) == ("wall" in text), text
    assert len({*texts}) > 3
    again = data.batch([0, 1], [np.random.default_rng(seed) for seed in (1, 2)], STILL)
    assert torch.equal(again.ids, batch.ids) and torch.equal(again.mask, batch.mask)


def test_kept_names_are_the_same_and_broken_ones_are_named(tmp_path):
    fresh, kept = NamedSamples(KeptSamples([Rooms(2, 3, (24, 32))])), NamedSamples(KeptSamples([Rooms(2, 3, (24, 32))], tmp_path))
    for _ in range(2):
        for number in range(2):
            one, other = fresh.things(number), kept.things(number)
            assert np.array_equal(one.map, other.map) and one.names == other.names
    files = sorted(tmp_path.rglob("*.npz"))
    assert len(files) == 2
    files[0].write_bytes(b"PK")
    with pytest.raises(InputError, match="broken"):
        kept.things(0)


def test_the_loss_is_the_published_weighted_cross_entropy(network):
    learner = learner_for(network, RECIPES["evp-refer-tiny"])
    assert isinstance(learner, ReferLearner)
    batch = examples(network, squares(), 2).batch([0, 1], [np.random.default_rng(0)] * 2, STILL)
    truth = network.boundaries({"image": batch.image[batch.picture], "ids": batch.ids})["logits"]
    place = torch.arange(64) * (truth.shape[-1] - 1) / 63
    matrix = (1 - (place[:, None] - torch.arange(truth.shape[-1])).abs()).clamp(min=0)
    logits = torch.einsum("yh,bchw,xw->bcyx", matrix, truth, matrix).double()
    assert (learner.predict(batch) - logits).abs().max() < 1e-4 * logits.abs().max()
    weight = torch.where(batch.mask, 1.1, 0.9).double()
    wanted = torch.logsumexp(logits, 1) - torch.where(batch.mask, logits[:, 1], logits[:, 0])
    found = learner(batch)
    assert float(found["cross_entropy"]) == pytest.approx(float((weight * wanted).sum() / weight.sum()), rel=1e-5)
    assert float(found["loss"]) == pytest.approx(float(found["cross_entropy"] + 0.1 * found["depth_hint"] + 0.5 * found["mask_hint"]), rel=1e-6)
    plain = learner_for(network, dataclasses.replace(RECIPES["evp-refer-tiny"], hint=False))(batch)
    assert plain.keys() == {"loss"} and float(plain["loss"]) == pytest.approx(float(found["cross_entropy"]), rel=1e-6)


def test_metrics_are_those_of_the_benchmark():
    draw = np.random.default_rng(0)
    pairs = [(draw.random((8, 9)) < a, draw.random((8, 9)) < b) for a, b in ((0.5, 0.5), (0.9, 0.8), (0.1, 0.6), (1.0, 0.9))]
    totals = MaskTotals()
    for found, truth in pairs:
        totals = totals.add(found, truth)
    assert mask_metrics(pairs) == pytest.approx({name: totals.metrics()[name] for name in ("mIoU", "oIoU", "P@0.5")})
    assert mask_metrics([(np.zeros((2, 2), bool), np.zeros((2, 2), bool))])["mIoU"] == 0


class Halves(Squares):
    """Room 0 has floor in its lower half, room 1 in its lower quarter."""

    def things(self, number):
        where = np.zeros((48, 64), np.uint8)
        where[24 if number == 0 else 36 :] = 1
        return Things(where, ("wall", "floor"))


def test_guesses_never_see_the_room_they_guess(network):
    found = blind_masks(examples(network, NamedSamples(KeptSamples([Halves(2)]))))
    iou = [0.25 / 0.5, 0.25 / 0.5, 0.5 / 0.75, 0.5 / 0.75]  # the other room's floor, twice, and its wall, twice
    assert found["mean_mask"]["mIoU"] == pytest.approx(np.mean(iou)) and found["mean_mask"]["P@0.5"] == 1
    assert found["everything"]["mIoU"] == pytest.approx(np.mean([0.5, 0.25, 0.5, 0.75]))


def test_the_published_recipe_slows_backbone_and_text_down():
    with torch.device("meta"):
        network = EVPRefer(OFFICIAL, b"")
    names = {parameter: name for name, parameter in network.named_parameters()}
    recipe = RECIPES["evp-refer"]
    factors = {names[p].split(".")[0] if not names[p].startswith("text.") else ".".join(names[p].split(".")[:2]): g["factor"]
               for g in parameter_groups(names, recipe) for p in g["params"]}  # fmt: skip
    slow = {"unet", "vae", "text.clip"}
    assert factors == {part: 0.01 if part in slow else 1.0 for part in (*slow, "text.gamma", "text.text_adapter", "refinement", "classifier")}
    assert recipe.rate_at(0.05) == pytest.approx(8e-5) and recipe.rate_at(1) == pytest.approx(1e-7) and recipe.batch == 3


def test_another_window_shares_the_weights(network):
    learner = learner_for(network, RECIPES["evp-refer-tiny"])
    other = learner.at_window(128)
    assert other.contract.input.window == (128, 128) and other.unet is network.unet
    inputs = other.example_inputs()
    assert other.boundaries(inputs)["logits"].shape == (1, 2, 16, 16)


def test_it_learns_two_rooms_by_heart_and_listens(network):
    learner = learner_for(random_evp_refer(config=SMALLER, seed=1).requires_grad_(True).train(), RECIPES["evp-refer-tiny"])
    learner.start(0)
    batch = examples(network, squares(1)).whole(0)[1]
    optimiser = torch.optim.AdamW(learner.parameters(), 3e-3)
    losses = []
    for _ in range(40):
        found = learner(batch)
        losses.append(float(found["cross_entropy"].detach()))
        optimiser.zero_grad()
        found["loss"].backward()
        optimiser.step()
    assert losses[-1] < 0.5 * losses[0]


def test_the_command_trains_measures_and_writes_a_card(tmp_path, capsys, monkeypatch):
    quick = dataclasses.replace(RECIPES["evp-refer-tiny"], batch=2, sentences=2, phases=((0.5, 64), (1.0, TINY.window)))
    monkeypatch.setitem(recipes.RECIPES, "evp-refer-tiny", quick)
    output = tmp_path / "w.safetensors"
    words = ["--model", "evp-refer-tiny", "--data", "rooms:3:1:32x48", "--val", "rooms:2:7:32x48", "--steps", "2", "--store", "fp16"]
    assert main([*words, "-o", str(output), "--cache", str(tmp_path / "kept"), "--json", "--quiet"]) == 0
    facts = json.loads(capsys.readouterr().out)
    text = (tmp_path / "w.md").read_text()
    result = facts["results"][0]
    assert set(result) == {"data", "network", "mean_mask", "everything"} and all(math.isfinite(value) for value in result["network"].values())
    assert f"| mean mask of the same words | {result['mean_mask']['mIoU']:.3f}" in text and "are not learned from" in text and "mIoU" in text
    assert output.stat().st_size < 10e6 and read_log(tmp_path / "w.log.jsonl")[-1]["validation"].keys() == result["network"].keys()
    back = load_evp_refer(output, config=TINY)
    assert back.origin.kind == "trained" and back.contract.input.window == (TINY.window,) * 2


@pytest.mark.parametrize("flag", ["--data", "--val"])
def test_data_without_words_is_refused(flag, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    from PIL import Image

    Image.new("RGB", (32, 24)).save(tmp_path / "photos" / "a.png")
    words = ["--model", "evp-refer-tiny", "--data", "rooms:2:1:32x48", "--steps", "1", "-o", "x.safetensors"]
    assert main([*words, flag, "images:photos"]) == 2
    assert "what its things are called" in capsys.readouterr().err and not (tmp_path / "x.safetensors").exists()
    with pytest.raises(UsageError, match="rooms"):
        NamedSamples(KeptSamples([type("Photos", (), {"provenance": Rooms(1).provenance, "__len__": lambda self: 1})()]))
