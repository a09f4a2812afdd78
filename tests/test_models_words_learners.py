"""The small networks of seven words learn: gradients reach words and towers, the loss falls, and the file read back says the same."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fathom.datasets.rooms.rooms import Rooms
from fathom.models.blip2.depthblip2 import TINY as BLIP2
from fathom.models.blip2.depthblip2 import load_depthblip2, random_depthblip2
from fathom.models.blip2.qformer import PromptedQFormer, QFormer, QFormerConfig
from fathom.models.catalog import load
from fathom.models.random_init import draw_weights
from fathom.models.training import loop as training
from fathom.models.training.data.kept_samples import KeptSamples
from fathom.models.training.data.training_data import Batch, Examples
from fathom.models.training.learners.depth_hint import waves
from fathom.models.training.learners.learners import learner_for
from fathom.models.training.loop import Run, train
from fathom.models.training.recipes.recipes import RECIPES

CASES = [("depthclip-tiny", None), ("depthblip2-tiny", "v1"), ("depthblip2-tiny", "v2")]


def run_of(name, variant, output, steps, **changes) -> Run:
    if name == "depthclip-tiny":
        pytest.importorskip("open_clip")
    network = load(name, variant=variant, random_init=True)
    recipe = dataclasses.replace(RECIPES[name], batch=2, warmup=0.0, hint_alone=0.0, **changes)
    data = KeptSamples([Rooms(2, 1, (48, 64))])
    return Run(network, recipe, data, None, output, steps, 0, 100, "fp32", torch.device("cpu"), {})


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_the_loss_falls_words_and_tower_learn_and_the_file_says_the_same(name, variant, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "LOG_EVERY", 1)
    run = run_of(name, variant, tmp_path / "w.safetensors", 16)
    network = run.network
    learner_for(network, run.recipe).start(run.seed)  # as training begins
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    losses = [line["loss"] for line in train(run)["log"]]
    assert np.mean(losses[-3:]) < 0.9 * np.mean(losses[:3])
    back, image = load(name, run.output, variant=variant), Examples(run.data, network.contract).batch([0, 1]).image
    with torch.no_grad():
        torch.testing.assert_close(back.boundaries({"image": image})["depth"], network.boundaries({"image": image})["depth"], atol=1e-4, rtol=0)
    assert back.origin.kind == "trained"
    learned = {"depthclip-tiny": ("text_features", "visual.conv1.weight")}.get(
        name, ("qformer.text.word_embeddings.weight", "image_encoder.embeddings.patch_embedding.weight", "qformer.query_tokens")
    )
    for key in learned:
        assert not torch.equal(back.state_dict()[key], before[key]), key


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_the_start_lets_every_word_have_a_say(name, variant):
    run = run_of(name, variant, None, 1)
    learner = learner_for(run.network, run.recipe)
    learner.start(3)
    shown = Examples(run.data, run.network.contract).batch([0, 1])
    image = shown.image
    run.network.requires_grad_(True)
    if name == "depthclip-tiny":
        run.network.train()  # running statistics belong to pictures that were not seen yet
    learner(shown)["loss"].backward()
    config = run.network.config
    if name == "depthclip-tiny":
        features = run.network.boundaries({"image": image})["feat"]
        chances = (run.network.similarity(features) / config.temperature).softmax(dim=1)
    else:
        chances = run.network.head.chances(run.network.boundaries({"image": image})["q"])
    chances = chances.detach()
    assert float(chances.amax(dim=1).mean()) < 0.7 and float(chances.std()) > 0.01  # none has it all, and they differ
    watched = ("text_features", "visual.conv1.weight", "query_tokens", "word_embeddings.weight", "patch_embedding.weight")
    slopes = [parameter.grad for key, parameter in run.network.named_parameters() if key.endswith(watched)]
    assert slopes and all(float(slope.abs().max()) > 0 for slope in slopes)


def test_only_the_direction_of_a_word_counts():
    pytest.importorskip("open_clip")
    network = load("depthclip-tiny", random_init=True)
    features = torch.rand(1, network.config.feature_dim, 6, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        first = network.depth(features)
        network.text_features.mul_(torch.linspace(0.5, 3, 7)[:, None])
        torch.testing.assert_close(network.depth(features), first, atol=1e-4, rtol=0)
        torch.testing.assert_close(network.stages()[1].module(features), first, atol=1e-4, rtol=0)


def test_maps_are_enlarged_corner_on_corner_as_at_inference():
    network = random_depthblip2(config=BLIP2)
    learner = learner_for(network, RECIPES["depthblip2-tiny"])
    image = network.example_inputs()["image"]
    nothing = torch.zeros(1, 1, 30, 45)
    with torch.no_grad():
        large = learner.predict(Batch(image, nothing, nothing > 0, torch.ones(1, 1, 1, 1), ("",)))[0, 0].double().numpy()
        small = network.boundaries({"image": image})["depth"][0, 0].double().numpy()
    rows, columns = (np.arange(count) * (8 - 1) / (count - 1) for count in (30, 45))
    across = np.stack([np.interp(columns, np.arange(8), line) for line in small])
    wanted = np.stack([np.interp(rows, np.arange(8), line) for line in across.T]).T
    np.testing.assert_allclose(large, wanted, atol=1e-4)


def test_prompts_that_learn_together_have_the_slopes_of_one_by_one():
    """Folding the first layer and sharing the image's keys changes no gradient; transformers' own network says which it is."""
    prompts = ((101, 5, 7, 102), (101, 9, 102), (101, 3, 4, 5, 6, 7, 8, 102))
    former = draw_weights(QFormer(QFormerConfig(40, width=48, layers=3, heads=4, mlp=96, queries=6, vocabulary=128, positions=16)), 1).eval()
    former.requires_grad_(True)
    image = torch.randn(2, 11, 40, generator=torch.Generator().manual_seed(2))
    target = torch.randn(2, 3, 48, generator=torch.Generator().manual_seed(3))

    def slopes(fused):
        former.zero_grad()
        F.mse_loss(fused, target).backward()
        return {key: parameter.grad.clone() for key, parameter in former.named_parameters() if parameter.grad is not None}

    wanted = slopes(torch.stack([former(image, ids).mean(dim=1) for ids in prompts], dim=1))
    found = slopes(PromptedQFormer(former, prompts, learns=True)(image))
    assert not PromptedQFormer(former, prompts).first_queries.requires_grad
    idle = {key for key in wanted if key.startswith(("former.encoder.layer.2.intermediate.", "former.encoder.layer.2.output."))}
    assert set(wanted) - set(found) <= idle and all(not wanted[key].any() for key in idle)
    for key, slope in found.items():
        torch.testing.assert_close(slope, wanted[key], atol=2e-6, rtol=2e-4)


def test_places_begin_as_independent_waves():
    found = waves(14, 64).double()
    overlap = found.T @ found
    torch.testing.assert_close(overlap, torch.diag(overlap.diagonal()), atol=1e-3, rtol=0)
    neighbours = (found.view(14, 14, 64)[1:] - found.view(14, 14, 64)[:-1]).norm(dim=-1).mean()
    assert found.shape == (196, 64) and neighbours < 0.7 * torch.cdist(found, found).mean()


def test_half_precision_files_keep_the_bins(tmp_path):
    run = run_of("depthblip2-tiny", "v1", tmp_path / "w.safetensors", 1)
    train(dataclasses.replace(run, store="fp16"))
    assert load_depthblip2(run.output, config=BLIP2).head.bins_m.tolist() == list(BLIP2.bins_m)
