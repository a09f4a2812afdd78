"""How a run is computed and which weights it keeps: parts of a step, workers, 16 bits, averages, pictures held back, rotation, KITTI's crop."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fathom.datasets.rooms.rooms import Rooms
from fathom.datasets.sample import Sample
from fathom.export.commands import export_command
from fathom.models.catalog import load, parse_settings
from fathom.models.diffusion.evp import TINY, variant_of
from fathom.models.llm_mde.llm_mde import TINY_PAPER, LlmMde
from fathom.models.training import loop
from fathom.models.training.averaged import Averaged
from fathom.models.training.card import card
from fathom.models.training.data.augmentation import Augmentation, framed, mirrored, turned
from fathom.models.training.data.kept_samples import KeptSamples
from fathom.models.training.data.prefetch import Prefetch
from fathom.models.training.data.training_data import Examples
from fathom.models.training.learners.learners import published_tensors, trained_as
from fathom.models.training.learners.losses import log_variance
from fathom.models.training.recipes import recipes
from fathom.models.training.recipes.recipes import RECIPES, recipe_of
from fathom.models.training.session import Session, recipe_for
from fathom.models.training.state import write_tensors
from fathom.models.training.train_command import build_parser, main
from fathom.runtime.errors import InputError


@pytest.fixture
def quick(monkeypatch, tmp_path, capsys):
    """vpd-tiny on small windows through the command line: words, changes of the recipe -> facts, log lines, weights file."""

    def run(*words, name="w", **changes):
        made = dataclasses.replace(RECIPES["vpd-tiny"], phases=((1.0, 32),), batch=2, warmup=0.0, **changes)
        monkeypatch.setitem(recipes.RECIPES, "vpd-tiny", made)
        output = tmp_path / f"{name}.safetensors"
        base = ["--model", "vpd-tiny", "--data", "rooms:4:1:32x48", "-o", str(output), "--json", "--quiet", "--random-init"]
        assert main([*base, *words]) == 0
        return json.loads(capsys.readouterr().out), loop.read_log(loop.log_path(output)), output

    return run


def test_workers_change_nothing(quick):
    alone, helped = (load_file(quick("--steps", "2", *more, name=name)[2]) for name, more in (("a", ()), ("b", ("--workers", "2"))))
    assert all(torch.equal(tensor, helped[name]) for name, tensor in alone.items())


def test_given_weights_skip_how_a_training_begins(quick, tmp_path):
    """A step changes the decoder at once, at the network's own window; where the hint alone is asked for, only the backbone moves. What has no hint
    refuses the flag."""
    _, begun, start = quick("--steps", "1", name="start", hint_alone=0.5, whole_every=0)
    changed = {}
    for name, more in (("plain", ()), ("asked", ("--hint-alone", "0.9"))):
        output = tmp_path / f"{name}.safetensors"
        words = ["--model", "vpd-tiny", "--data", "rooms:4:1:32x48", "--steps", "1", "--weights", str(start), "-o", str(output), "--quiet", *more]
        assert main(words) == 0
        before, after = load_file(start), load_file(output)
        changed[name] = {key.partition(".")[0] for key, tensor in after.items() if not torch.equal(tensor, before[key])}
        assert [line["window"] for line in loop.read_log(loop.log_path(output))] == [160]
    assert [line["window"] for line in begun] == [32]
    assert changed["asked"] < changed["plain"] and changed["asked"]
    assert main(["--model", "depthclip-tiny", "--data", "rooms:2:1:32x48", "--hint-alone", "0.5", "-o", str(tmp_path / "x.safetensors")]) == 2


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_16_bits_learn_nearly_the_same(quick, precision):
    """Another rounding, not another training; two parts a step besides."""
    (first, *_), (other, *_) = (quick("--steps", "2", "--accumulate", "2", "--precision", each, name=each)[1] for each in ("fp32", precision))
    assert other["loss"] == pytest.approx(first["loss"], rel=0.1)


def test_parts_of_a_step_are_its_pictures(quick):
    class Numbers:
        def __init__(self):
            self.examples = {0: self}  # one window

        def batch(self, numbers, draws, augmentation):
            return [(number, float(draw.random())) for number, draw in zip(numbers, draws, strict=True)]

    run = loop.Run(None, dataclasses.replace(RECIPES["evp"], batch=5), range(9), None, None, 3, 0, 1, "fp32", None, {})
    ((weight, whole),) = loop._batches_of(Numbers(), run, loop.Ranks())(1)
    parts = loop._batches_of(Numbers(), dataclasses.replace(run, accumulate=2), loop.Ranks())(1)
    assert weight == 1 and [share for share, _ in parts] == [3 / 5, 2 / 5]
    assert [each for _, part in parts for each in part] == whole
    with pytest.raises(ValueError, match="1 to 5 parts"):
        dataclasses.replace(run, accumulate=6)


def test_prefetch_gives_each_step_its_own_and_hands_errors_on():
    def make(step):
        if step == 4:
            raise ValueError("broken")
        return step * step

    ahead = Prefetch(make, 2, 5)
    assert [ahead(step) for step in range(4)] == [0, 1, 4, 9]
    with pytest.raises(ValueError, match="broken"):
        ahead(4)
    ahead.close()
    ahead.close()


def test_the_average_by_hand():
    parameter = torch.nn.Parameter(torch.tensor([1.0]))
    averaged, wanted = Averaged({parameter: "p"}, 0.5), 1.0
    for step, value in enumerate((3.0, 5.0, 9.0), 1):
        parameter.data.fill_(value)
        averaged.update(step)
        share = min(0.5, (1 + step) / (10 + step))
        wanted = share * wanted + (1 - share) * value
    with averaged.applied():
        assert float(parameter.detach()) == pytest.approx(wanted)
    assert float(parameter.detach()) == 9.0
    with pytest.raises(ValueError, match="decay"):
        Averaged({}, 1.0)


def test_an_averaged_run_can_be_interrupted(quick, monkeypatch):
    words = ("--steps", "2", "--ema", "0.5", "--every", "1")
    whole = load_file(quick(*words, name="a")[2])
    save = loop.save_state

    def stop(path, network, optimiser, names, step, *more):
        save(path, network, optimiser, names, step, *more)
        if step == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "save_state", stop)
    with pytest.raises(AssertionError):
        quick(*words, name="c")
    monkeypatch.setattr(loop, "save_state", save)
    again = load_file(quick(*words, "--resume", name="c")[2])
    assert all(torch.equal(tensor, again[name]) for name, tensor in whole.items())


def test_the_best_weights_are_chosen_by_pictures_held_back(quick):
    """``.best`` is the file of the validation with the lowest abs_rel on pictures of the data, and validation pictures choose nothing."""
    facts, lines, output = quick("--steps", "4", "--every", "1", "--hold-back", "2", "--val", "rooms:1:7:32x48", patience=1)
    scores = [line["chosen"]["abs_rel"] for line in lines if "chosen" in line]
    assert len(scores) >= 2 and len([line for line in lines if "validation" in line]) == len(scores)
    best, last = load_file(loop.best_path(output)), load_file(output)
    assert (scores[-1] == min(scores)) == all(torch.equal(tensor, last[name]) for name, tensor in best.items())
    if scores[-1] > min(scores):
        assert facts["steps"] == len(scores)  # patience 1: the first that is not better ends it


def depths(network) -> torch.Tensor:
    with torch.no_grad():
        return network(*network.example_inputs().values())


@pytest.mark.parametrize(
    ("model", "variant", "settings", "other"),
    [
        ("evp-tiny", "nyu", {"std": 0}, {"settings": {"std": 1}}),
        ("llm-mde-tiny", "official", {"vit_alpha": 8, "prompting": 0}, {"settings": {"vit_alpha": 4}}),
        ("llm-mde-tiny", "official-metric", {"prompting": 0}, {"variant": "official"}),
        ("llm-mde-tiny", "official", {"prompting": 0}, {"settings": {"vit_alpha": 8}}),
        ("depthblip2-tiny", "v1", {"wording": 2}, {"settings": {"wording": 0}}),
    ],
)
def test_trained_weights_say_what_they_were_trained_as(model, variant, settings, other, tmp_path):
    """Files whose tensors fit several networks: loaded as trained, or refused; those that say nothing are loaded as asked."""
    network, file = load(model, random_init=True, variant=variant, settings=settings), tmp_path / "w.safetensors"
    write_tensors(file, dict(published_tensors(network)), trained_as(network).metadata())
    found = load(model, file)
    assert found.variant == variant and found.contract == network.contract == load(model, file, variant=variant, settings=settings).contract
    torch.testing.assert_close(depths(found), depths(network), atol=1e-5, rtol=1e-5)
    name, value = next(iter((other.get("settings") or other).items()))
    with pytest.raises(InputError, match=rf"w\.safetensors was trained with .*{name}.*wanted: {name}[ =]{value}, as asked.*leave out --"):
        load(model, file, **other)
    assert load(model, file, retrain=True, **other).variant == other.get("variant", variant)  # it learns on
    write_tensors(file, dict(published_tensors(network)))
    assert load(model, file, variant=other.get("variant", variant), settings=settings | other.get("settings", {})).origin.kind == "trained"


def test_the_windows_of_one_network_share_weights(tmp_path):
    pytest.importorskip("open_clip")
    network, file = load("moa-depthclip-tiny", random_init=True, variant="quality"), tmp_path / "w.safetensors"
    write_tensors(file, dict(published_tensors(network)), trained_as(network).metadata())
    assert [load("moa-depthclip-tiny", file, variant=variant).contract.input.window for variant in (None, "parity")] == [(96, 128), (96, 96)]
    with pytest.raises(InputError, match=r"trained with experts=4; wanted: experts=0"):
        load("moa-depthclip-tiny", file, settings={"experts": 0})


def test_weights_of_another_network_name_it(tmp_path):
    file = tmp_path / "w.safetensors"
    network = load("depthblip2-tiny", random_init=True)
    write_tensors(file, dict(published_tensors(network)), trained_as(network).metadata())
    with pytest.raises(InputError, match=r"trained as depthblip2-tiny; wanted: weights of evp-tiny.*--model depthblip2-tiny"):
        load("evp-tiny", file)
    write_tensors(file, dict(published_tensors(network)), {"fathom": "[]"})
    with pytest.raises(InputError, match="no network of Fathom"):
        load("depthblip2-tiny", file)


def test_the_command_writes_it_into_every_file_and_export_heeds_it(tmp_path, capsys, monkeypatch):
    made = dataclasses.replace(RECIPES["evp-tiny"], phases=((1.0, 32),), batch=2, warmup=0.0)
    monkeypatch.setitem(recipes.RECIPES, "evp-tiny", made)
    last = tmp_path / "w.safetensors"
    start = ["--model", "evp-tiny", "--data", "rooms:3:1:32x48", "--steps", "1", "--quiet"]
    assert main([*start, "--variant", "kitti", "--set", "std=0", "--hold-back", "1", "--ema", "0.5", "-o", str(last)]) == 0
    for file in (last, loop.best_path(last)):
        network = load("evp-tiny", file)
        assert network.variant == "kitti" and network.config.std == 0 and network.contract.output.far == 80.0
    assert main([*start, "--weights", str(last), "-o", str(tmp_path / "on.safetensors")]) == 0
    assert load("evp-tiny", tmp_path / "on.safetensors").variant == "kitti"
    capsys.readouterr()
    export = ["--model", "evp-tiny", "--weights", str(last), "-o", str(tmp_path / "bundle")]
    assert export_command.main([*export, "--variant", "nyu"]) == 3
    assert "w.safetensors was trained with variant kitti; wanted: variant nyu, as asked" in capsys.readouterr().err


def test_patience_counts_epochs(quick):
    """Two pictures to learn from are one step of two; without patience a validation comes every 200 steps, and at the end."""
    for patience, looked in ((5, [1, 2, 3]), (0, [3])):
        _, lines, _ = quick("--steps", "3", "--hold-back", "2", name=f"w{patience}", patience=patience)
        assert [line["step"] for line in lines if "chosen" in line] == looked


def test_an_epoch_of_several_processes_is_one_pass(tmp_path, monkeypatch):
    """40 pictures are three steps of 16, and two where each of two processes takes 16."""
    words = build_parser().parse_args(["--model", "vpd-tiny", "--data", "rooms:40:1:32x48", "--random-init", "-o", "x"])
    for processes, steps in (("1", 3), ("2", 2)):
        monkeypatch.setenv("WORLD_SIZE", processes)
        session = Session.prepare(words, tmp_path / "x.safetensors", "")
        assert session.run.steps == steps * RECIPES["vpd-tiny"].epochs and session.run.facts["processes"] == int(processes)
    facts = {"model": "m", "file": "f", "nbytes": 1, "sha256": "0", "licence": "", "command": "", "recipe": "", "start": "", "seed": 0, "device": "CPU"}
    facts |= {"steps": 40, "batch": 16, "processes": 2, "wall_s": 60, "threads": 1, "store": "fp32", "data": [], "parameters": 1, "results": [], "notes": []}
    assert "40 steps of 16 pictures in each of 2 processes in 1 minutes" in card(facts | {"measures": "depth"})


def test_held_back_pictures_are_never_learned_from():
    data = KeptSamples([Rooms(9, 1, (24, 32))])
    learned, held = data.split(3, seed=1)
    assert len(learned) == 6 and len(held) == 3 and sorted([*learned.numbers, *held.numbers]) == list(range(9))
    assert list(data.split(3, seed=1)[1].numbers) == list(held.numbers) != list(data.split(3, seed=2)[1].numbers)
    with pytest.raises(ValueError, match="held back"):
        data.split(9, seed=1)


def test_equation_3_by_hand():
    prediction, truth = torch.tensor([1.0, 2.0, 4.0, 9.0]).view(1, 1, 2, 2), torch.tensor([1.5, 2.0, 3.0, 7.0]).view(1, 1, 2, 2)
    valid = torch.tensor([True, True, True, False]).view(1, 1, 2, 2)
    d = [math.log(1.5), 0.0, math.log(0.75)]
    wanted = sum((each - sum(d) / 3) ** 2 for each in d) / 3
    assert float(log_variance(prediction, truth, valid)) == pytest.approx(wanted, rel=1e-6)
    assert float(log_variance(5 * prediction, truth, valid)) == pytest.approx(wanted, rel=1e-5)


def test_a_turned_sample_stays_one():
    """A quarter turn by NumPy; by a little, depth beside its own pixel and nothing known in the corners."""
    draw = np.random.default_rng(0)
    rgb = draw.integers(0, 255, (8, 8, 3), dtype=np.uint8)
    sample = Sample(rgb, rgb[..., 0].astype(np.float32) + 1, np.ones((8, 8), bool), None, "x", "")
    quarter = turned(sample, 90)
    assert any(np.array_equal(quarter.rgb, np.rot90(rgb, k)) and np.array_equal(quarter.depth_m, np.rot90(sample.depth_m, k)) for k in (1, 3))
    assert np.array_equal(turned(sample, 0).rgb, rgb)
    at_pixel = turned(dataclasses.replace(sample, intrinsics=(9.0, 9.0, 6.0, 1.0)), 90)  # the camera looks at that pixel, and still does
    (row,), (column,) = np.nonzero((at_pixel.rgb == rgb[1, 6]).all(axis=-1))
    assert at_pixel.intrinsics == pytest.approx((9, 9, column, row))
    flat = Sample(np.full((40, 60, 3), 7, np.uint8), np.full((40, 60), 2, np.float32), np.ones((40, 60), bool), None, "x", "")
    little = turned(flat, 2.5)
    assert little.valid[10:30, 10:50].all() and not little.valid.all() and (little.depth_m[little.valid] == 2).all()
    with pytest.raises(ValueError, match="strengths"):
        Augmentation(turn=60)


def test_kitti_learns_as_published():
    """Rates and batch of the published arguments; random windows of the 352x1216 crop at the bottom centre."""
    recipe = recipe_of("evp", "kitti")
    assert (recipe.rate, recipe.least_rate, recipe.batch) == (3e-4, 1e-7, 3) and recipe_of("evp", "nyu") is RECIPES["evp"]
    contract = variant_of(dataclasses.replace(TINY, kitti_window=352), "kitti").contract
    rows, columns = np.mgrid[0:375, 0:1242]
    depth = (1 + rows / 100 + columns / 1000).astype(np.float32)
    sample = Sample(np.zeros((375, 1242, 3), np.uint8), depth, np.ones(depth.shape, bool), None, "x", "")
    examples = Examples([sample], contract, "kitti")
    lefts = set()
    for seed in range(3):
        _, truth, valid, *_ = examples.example(0, np.random.default_rng(seed))
        left = round(float((truth[0, 0] - 1 - (375 - 352) / 100) * 1000))
        np.testing.assert_array_equal(truth, depth[375 - 352 :, left : left + 352])
        assert valid.all() and 13 <= left <= 13 + 1216 - 352
        lefts.add(left)
    assert len(lefts) > 1


def test_llm_mde_paper_trains_adapters_and_new_parts_alone():
    recipe, official = recipe_of("llm-mde", "paper"), recipe_of("llm-mde", "official")
    assert (recipe.loss, recipe.rate, recipe.schedule, recipe.patience, recipe.augmentation.turn) == ("log_variance", 2e-5, "cosine", 5, 2.5)
    assert official.loss == "ssi" and official.patience == 0
    with torch.device("meta"):
        network = LlmMde(TINY_PAPER, "paper")
    learned = set(loop._open_for_training(network, recipe).values())
    transformers = {name for name in learned if name.startswith(("vit.", "llm."))}
    assert transformers and all("lora_" in name or "linear_" in name for name in transformers)
    assert len(transformers) == 4 * TINY_PAPER.vit.blocks + 6 * TINY_PAPER.llm_layers
    assert learned - transformers == {n for n, _ in network.named_parameters() if not n.startswith(("vit.", "llm."))}


def test_a_rank_of_zero_freezes_the_transformer():
    def trained(*more):
        arguments = build_parser().parse_args(["--model", "llm-mde", *more])
        return recipe_for(arguments, "paper", parse_settings(arguments.set)).trained

    both = trained()
    assert [pattern for pattern in both if pattern not in trained("--set", "llm_rank=0")] == [both[-1]] and both[-1].startswith("llm")
    assert not any(pattern.startswith(("vit", "llm")) for pattern in trained("--set", "llm_rank=0", "--set", "vit_rank=0"))


def test_a_spoiled_photo_keeps_its_caption_and_its_depth():
    """Below a frame nothing is known; words stay."""
    depth = np.tile(np.linspace(1, 3, 64, dtype=np.float32)[:, None], (1, 48))
    sample = Sample(np.full((64, 48, 3), 90, np.uint8), depth, np.ones((64, 48), bool), None, "a", "kitchen_0001", "a photo of a kitchen")
    draw = np.random.default_rng(2)
    bordered = framed(sample, draw)
    assert bordered.caption == turned(sample, 3.0).caption == mirrored(sample).caption == sample.caption
    assert not bordered.valid[0].any() and not bordered.valid[:, 0].any() and bordered.valid[10, 10] and not bordered.depth_m[~bordered.valid].any()
    assert np.all(bordered.rgb[bordered.valid] == 90) and not np.any(bordered.rgb[~bordered.valid] == 90)
