"""Runs that can be interrupted, weights that are read back as they were, and the command."""

import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from closeness import same_output, same_weights
from safetensors.torch import load_file, save_file
from wall_pairs import write_pair

from fathom.datasets.rooms.rooms import Rooms
from fathom.models.catalog import load
from fathom.models.diffusion.depth_decoder import DecoderConfig
from fathom.models.diffusion.evp import TINY, load_evp, random_evp
from fathom.models.diffusion.metric_bins import BinsConfig
from fathom.models.diffusion.stable_diffusion import BackboneConfig
from fathom.models.diffusion.vpd import TINY as VPD_TINY
from fathom.models.diffusion.vpd import random_vpd
from fathom.models.llm_mde.llm_mde import TINY as LLM_MDE_TINY
from fathom.models.llm_mde.llm_mde import random_llm_mde
from fathom.models.network import WeightsOrigin
from fathom.models.training import loop as training
from fathom.models.training.data.augmentation import Augmentation
from fathom.models.training.data.kept_samples import KeptSamples, keep
from fathom.models.training.data.training_data import Examples
from fathom.models.training.learners.learners import learner_for, published_tensors
from fathom.models.training.loop import Run, parameter_groups, read_log, take_backbone, train
from fathom.models.training.recipes import recipes
from fathom.models.training.recipes.recipe import Recipe
from fathom.models.training.recipes.recipes import RECIPES
from fathom.models.training.state import load_state, save_state, state_path
from fathom.models.training.train_command import main
from fathom.runtime.errors import AccuracyError, InputError, UsageError

SMALLER = dataclasses.replace(
    TINY,
    backbone=BackboneConfig((8, 8, 16, 16), 4, 2, 8, (8, 8, 8, 8), 4),
    tokens=8,
    decoder=DecoderConfig(32, (8, 8, 8), 8),
    bins=BinsConfig(32, 16, 8, (4, 2, 2, 1), (8, 8, 8, 8)),
)
QUICK = dataclasses.replace(RECIPES["evp-tiny"], batch=2, phases=((0.25, 32), (1.0, 96)))


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


def test_the_backbone_learns_slowly_and_vectors_do_not_decay():
    network = random_evp("nyu", SMALLER)
    names = {parameter: name for name, parameter in network.named_parameters()}
    groups = parameter_groups(names, RECIPES["evp"])
    assert sum(len(group["params"]) for group in groups) == len(names)
    for group in groups:
        for parameter in group["params"]:
            assert group["factor"] == (0.01 if names[parameter].startswith(("unet.", "vae.")) else 1.0)
            assert group["weight_decay"] == (0.1 if parameter.ndim > 1 else 0.0)


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
    assert float(parts["loss"]) == pytest.approx(float(parts["depth"] + 0.5 * (parts["hint"] + parts["code_hint"])), rel=1e-5)
    learner.alone = True
    alone = learner(batch)
    assert float(alone["loss"]) == pytest.approx(0.5 * float(parts["hint"]), rel=1e-5) and alone.keys() == {"loss", "hint"}


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
    assert f"{facts['results'][0]['mean_map']['abs_rel']:.3f}" in text and output.stat().st_size < 10e6 and "picture's own was told" in text
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
        monkeypatch.setitem(recipes.RECIPES, model, dataclasses.replace(recipes.RECIPES[model], phases=((1.0, 96),)))
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
