"""LLM-MDE with a prompt that is the same for every picture, and with none: against transformers' BERT, and as an artefact that takes no text."""

import json

import numpy as np
import pytest
import torch
from test_models_llm_mde import _bert_like
from tokenizers import BertWordPieceTokenizer
from torch.nn.functional import interpolate

from fathom.export.commands import export_command
from fathom.models.catalog import load
from fathom.models.llm_mde.llm_mde import FIXED, OFFICIAL, fixed_ids, of_variant
from fathom.models.prompt_tokens import bert_words
from fathom.runtime.errors import InputError, UsageError
from fathom.runtime.pipeline import Pipeline


@pytest.mark.parametrize(("prompting", "variant"), [(1, "official"), (0, "official"), (1, "paper"), (0, "paper-metric")])
def test_the_network_is_bert_over_words_and_image_without_any_mask(prompting, variant):
    network = load("llm-mde-tiny", variant=variant, random_init=True, settings={"prompting": prompting})
    config, image = network.config, network.example_inputs(2)["image"]
    tokenizer = BertWordPieceTokenizer(dict(bert_words()), lowercase=True)
    said = tokenizer.encode(FIXED).ids if prompting else []
    compact = {number: place for place, number in enumerate(bert_words().values())}  # small networks count only the words that occur
    with torch.no_grad():
        side, words = config.vit.image, network.llm.embeddings.word_embeddings.weight
        tokens = network.vit(interpolate(image, (side, side), mode="bilinear", align_corners=False))
        tokens = tokens[:, :-1] if variant == "official" else tokens[:, 1:]
        seen = network.l2d(network.reprogramming(tokens, network.prototypes(words.T).T))
        sequence = torch.cat([words[[compact[number] for number in said]].expand(2, -1, -1), seen], dim=1)
        out = _bert_like(network, config.llm_layers)(inputs_embeds=sequence).last_hidden_state
        wanted = network.head(out, image)
        got, values = network.boundaries({"image": image}), {"image": image}
        for stage in network.stages():
            values[stage.spec.outputs[0].name] = stage.module(*(values[tensor.name] for tensor in stage.spec.inputs))
    assert config.prompt_tokens == len(said) and (len(said) > 30) == bool(prompting)
    for found in (got["depth"], values["depth"]):
        torch.testing.assert_close(found, wanted, atol=2e-6, rtol=1e-5)
    assert wanted.std() > 1e-3


def test_official_size_says_the_same_words_as_bert():
    config = of_variant(load_config(1), "official")
    assert fixed_ids(config) == tuple(BertWordPieceTokenizer(dict(bert_words()), lowercase=True).encode(FIXED).ids)
    assert (config.head_tokens, of_variant(load_config(0), "paper").head_tokens) == (len(fixed_ids(config)) + 196, 196)
    assert of_variant(load_config(2), "official").head_tokens == of_variant(OFFICIAL, "official").head_tokens == 310


def load_config(prompting):
    from fathom.models.catalog import with_settings

    return with_settings("llm-mde", OFFICIAL, {"prompting": prompting})


@pytest.mark.parametrize("prompting", [0, 1])
def test_an_artefact_of_it_takes_no_text(prompting, tmp_path):
    words = ["--model", "llm-mde-tiny", "--random-init", "--set", f"prompting={prompting}", "-o", str(tmp_path / "b"), "--quiet"]
    assert export_command.main(words) == 0  # every stage was held against PyTorch
    manifest = json.loads((tmp_path / "b" / "bundle.json").read_text())
    assert "text" not in manifest["contract"] and manifest["network"]["config"]["prompting"] == prompting
    assert not (tmp_path / "b" / "constants").exists()
    photo = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    with Pipeline.open(tmp_path / "b", threads=1) as pipeline:
        assert pipeline.predict(photo).values.shape == (60, 80)


def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(UsageError, match="prompting 3"):
        load("llm-mde-tiny", settings={"prompting": 3})
    from safetensors.torch import save_file

    save_file(dict(load("llm-mde-tiny", random_init=True).state_dict()), tmp_path / "x.safetensors")
    with pytest.raises(InputError, match=r"head\.token_mix\.weight"):
        load("llm-mde-tiny", tmp_path / "x.safetensors", settings={"prompting": 0})
