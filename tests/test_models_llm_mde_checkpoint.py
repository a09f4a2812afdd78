"""Files of LLM-MDE: the published training's, their adapters' ranks, wrong ones, and our own."""

import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from fathom.models.llm_mde.llm_mde import TINY, LlmMde, load_llm_mde, random_llm_mde
from fathom.models.random_init import draw_weights
from fathom.runtime.errors import InputError


def _published(network):
    """The network's tensors as the published training saves them, duplicates and unused parts included."""
    state = {}
    for name, tensor in network.state_dict().items():
        first, rest = name.split(".", 1)
        if first == "vit":
            state[f"vit_lora.lora_vit.{rest}"] = state[f"vit_backbone.{rest}"] = tensor
        elif name == "llm.embeddings.word_embeddings.weight":
            state |= dict.fromkeys(("llm_model.embeddings.word_embeddings.weight", "word_embeddings", "llm_decoder.embeddings.word_embeddings.weight"), tensor)
        elif first == "head":
            for ours, theirs in (("token_mix", "mapping_layer4"), ("channel_mix", "mapping_layer5"), ("decoder", "l2d_deocder")):
                if rest.startswith(ours):
                    state[theirs + rest.removeprefix(ours)] = tensor
        else:
            state[{"prototypes": "mapping_layer", "reprogramming": "cross_att", "l2d": "l2d_module", "llm": "llm_decoder"}[first] + "." + rest] = tensor
    for index in range(network.config.llm_layers):
        for part in ("query", "key", "value"):
            layer = f"llm_decoder.encoder.layer.{index}.attention.self.{part}."
            state |= {layer + "lora_A": torch.ones(2, 64), layer + "lora_B": torch.ones(64, 2)}
    unused = ("vit_lora.proj_3d.weight", "vit_lora.lora_vit.head.bias", "vit_backbone.head.bias", "llm_model.encoder.layer.0.output.dense.bias")
    unused += (
        "llm_model.pooler.dense.weight",
        "llm_decoder.pooler.dense.bias",
        "cross_att.value_projection.weight",
        "mapping_layer2.weight",
        "mapping_layer3.bias",
    )
    return state | dict.fromkeys(unused, torch.zeros(2))


@pytest.fixture
def published(tmp_path):
    network = random_llm_mde("official", TINY, seed=4)
    state = _published(network)
    torch.save({"model_state_dict": state, "optimizer_state_dict": {"state": {}, "param_groups": []}, "loss": 0.5}, tmp_path / "test_model_121.pth")
    return network, state, tmp_path


def test_files_of_the_published_training_load(published):
    network, _, folder = published
    again = load_llm_mde(folder / "test_model_121.pth", config=TINY)
    inputs = network.example_inputs()
    with torch.no_grad():
        torch.testing.assert_close(again(*inputs.values()), network(*inputs.values()), atol=0, rtol=0)
    assert again.origin.kind == "trained" and "merged" in again.origin.warnings[0]
    assert not [name for name, buffer in again.named_buffers() if buffer.is_meta]


@pytest.mark.parametrize("rank", [0, 7])
def test_the_adapters_rank_is_read_from_the_file(tmp_path, rank):
    config = replace(TINY, vit=replace(TINY.vit, lora_rank=rank))
    network = draw_weights(LlmMde(config, "official"), 1)
    state = {name.replace("lora_vit.", "") if not rank else name: tensor for name, tensor in _published(network).items()}
    torch.save({"model_state_dict": state}, tmp_path / "x.pth")
    again = load_llm_mde(tmp_path / "x.pth", config=TINY)
    assert again.config.vit.lora_rank == rank
    inputs = network.example_inputs()
    with torch.no_grad():
        torch.testing.assert_close(again(*inputs.values()), network(*inputs.values()), atol=0, rtol=0)


@pytest.mark.parametrize("damage", ["missing", "unexpected", "misshapen", "not finite"])
def test_wrong_files_are_refused_by_name(published, damage):
    _, state, folder = published
    name = "llm_decoder.encoder.layer.1.intermediate.dense.bias"
    if damage == "missing":
        del state[name]
    elif damage == "unexpected":
        state[name := "l2d_decoder.conv3.bias"] = torch.zeros(1)
    else:
        state[name] = torch.zeros(3) if damage == "misshapen" else torch.full_like(state[name], math.inf)
    torch.save({"model_state_dict": state}, folder / "x.pth")
    with pytest.raises(InputError, match=rf"(?s){damage}.*{name}"):
        load_llm_mde(folder / "x.pth", config=TINY)


@pytest.mark.parametrize("variant", ["official", "paper"])
def test_own_files_come_back(tmp_path, variant):
    network = random_llm_mde(variant, TINY, seed=6)
    save_file(network.state_dict(), tmp_path / "own.safetensors")
    again = load_llm_mde(tmp_path / "own.safetensors", variant, TINY)
    inputs = network.example_inputs()
    with torch.no_grad():
        torch.testing.assert_close(again(*inputs.values()), network(*inputs.values()), atol=0, rtol=0)
