"""LLM-MDE against transformers' ViT and BERT, NumPy float64, the published run of the network, and through ONNX Runtime."""

from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch
from torch.nn.functional import interpolate
from transformers import BertConfig, BertModel, ViTConfig, ViTModel

from fathom.models.catalog import load
from fathom.models.llm_mde.head_outputs import first_outputs
from fathom.models.llm_mde.language_depth_decoder import LanguageDepthDecoder, LanguageToDepth, UpSampleBN
from fathom.models.llm_mde.llm_mde import OFFICIAL, PAPER, TINY, TOKENIZER, VARIANTS, LlmMde, of_variant, random_llm_mde
from fathom.models.llm_mde.vit import VisionTransformer, VitConfig
from fathom.models.lora import LoraLinear, LoraQkv, merge_adapters
from fathom.models.prompt_tokens import DEPTH_CLASSES
from fathom.models.random_init import draw_weights
from fathom.runtime.artefact.contract import Contract
from fathom.runtime.artefact.spec import check_chain
from fathom.runtime.text.encoder import TextEncoder


@pytest.fixture(scope="module", params=["official", "paper-metric"])
def network(request):
    return random_llm_mde(request.param, TINY)


# ----------------------------------------------------------------------------- parts


def _to_transformers(vit, config):
    """timm's names into transformers' ViT, name by name."""
    sizes = {"hidden_size": config.width, "num_hidden_layers": config.blocks, "num_attention_heads": config.heads, "intermediate_size": config.mlp}
    theirs = ViTModel(ViTConfig(**sizes, image_size=config.image, patch_size=config.patch, layer_norm_eps=1e-6), add_pooling_layer=False).eval()
    state, ours = {}, vit.state_dict()
    layers = "layers" if any(name.startswith("layers.") for name in theirs.state_dict()) else "encoder.layer"
    for name in theirs.state_dict():
        block = name.split(f"{layers}.")[1].split(".")[0] if layers in name else ""
        rest = name.split(f"{layers}.{block}.")[1] if block else name
        end = rest.rsplit(".", 1)[-1]
        if not block:
            table = {"embeddings.cls_token": "cls_token", "embeddings.position_embeddings": "pos_embed", f"layernorm.{end}": f"norm.{end}"}
            state[name] = ours[table.get(name, f"patch_embed.proj.{end}")]
            continue
        found = next((part for part, key in enumerate("qkv") if f"{key}_proj." in rest or ["query.", "key.", "value."][part] in rest), None)
        if found is not None:
            state[name] = ours[f"blocks.{block}.attn.qkv.{end}"].chunk(3)[found]
        elif "layernorm_" in rest:
            state[name] = ours[f"blocks.{block}.norm{1 if 'before' in rest else 2}.{end}"]
        elif "attention" in rest:
            state[name] = ours[f"blocks.{block}.attn.proj.{end}"]
        else:
            state[name] = ours[f"blocks.{block}.mlp.{'fc1' if 'intermediate' in rest or 'fc1' in rest else 'fc2'}.{end}"]
    theirs.load_state_dict(state)
    return theirs


def test_vit_equals_transformers():
    config = VitConfig(image=64, patch=16, width=48, blocks=3, heads=4, mlp=96)
    vit = draw_weights(VisionTransformer(config), 1).eval()
    image = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(vit(image), _to_transformers(vit, config)(image).last_hidden_state, atol=3e-6, rtol=3e-6)


def test_adapters_by_hand_and_merged():
    """W + scale B A in float64; the key is not adapted."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 8))
    qkv = draw_weights(LoraQkv(8, 2, 2.0), 1).double()
    part = {name: tensor.numpy() for name, tensor in qkv.state_dict().items()}
    wanted = x @ part["qkv.weight"].T + part["qkv.bias"]
    wanted[:, :8] += 2 * x @ part["linear_a_q.weight"].T @ part["linear_b_q.weight"].T
    wanted[:, 16:] += 2 * x @ part["linear_a_v.weight"].T @ part["linear_b_v.weight"].T
    np.testing.assert_allclose(qkv(torch.tensor(x)).detach(), wanted, rtol=1e-12)
    np.testing.assert_allclose(qkv.merged()(torch.tensor(x)).detach(), wanted, rtol=1e-12)
    linear = draw_weights(LoraLinear(8, 5, 2, 0.5), 2).double()
    part = {name: tensor.numpy() for name, tensor in linear.state_dict().items()}
    wanted = x @ (part["weight"] + 0.5 * part["lora_B"] @ part["lora_A"]).T + part["bias"]
    np.testing.assert_allclose(linear(torch.tensor(x)).detach(), wanted, rtol=1e-12)
    np.testing.assert_allclose(linear.merged()(torch.tensor(x)).detach(), wanted, rtol=1e-12)


def test_merging_shares_what_it_does_not_change():
    vit = draw_weights(VisionTransformer(VitConfig(image=32, width=16, blocks=2, heads=2, mlp=32, lora_rank=2)), 1)
    merged, count = merge_adapters(vit)
    assert count == 4
    assert merged.blocks[0].mlp.fc1.weight.data_ptr() == vit.blocks[0].mlp.fc1.weight.data_ptr()
    assert isinstance(vit.blocks[0].attn.qkv, LoraQkv) and not any(isinstance(part, LoraQkv) for part in merged.modules())


def test_up_sampling_by_hand():
    """Corners on corners, concatenation, 3x3 convolution, norm with running statistics, leaky ReLU, twice; in NumPy float64."""
    module = draw_weights(UpSampleBN(5, 4), 3).double().eval()
    rng = np.random.default_rng(1)
    code, skip = rng.normal(size=(3, 2, 3)), rng.normal(size=(2, 4, 5))
    up = np.zeros((3, 4, 5))
    for row in range(4):
        for column in range(5):
            y, x = row * (2 - 1) / (4 - 1), column * (3 - 1) / (5 - 1)
            top, left = min(int(y), 0), min(int(x), 1)
            dy, dx = y - top, x - left
            up[:, row, column] = (1 - dy) * ((1 - dx) * code[:, top, left] + dx * code[:, top, left + 1])
            up[:, row, column] += dy * ((1 - dx) * code[:, top + 1, left] + dx * code[:, top + 1, left + 1])
    x = np.concatenate([up, skip])
    part = {name: tensor.numpy() for name, tensor in module.state_dict().items()}
    for conv, norm in ((0, 1), (3, 4)):
        weight, padded = part[f"_net.{conv}.weight"], np.pad(x, ((0, 0), (1, 1), (1, 1)))
        shifted = np.stack([padded[:, i : i + 4, j : j + 5] for i in range(3) for j in range(3)], axis=1)  # [C,9,H,W]
        x = np.einsum("ocn,cnhw->ohw", weight.reshape(*weight.shape[:2], 9), shifted) + part[f"_net.{conv}.bias"][:, None, None]
        mean, var, scale, bias = (part[f"_net.{norm}.{name}"][:, None, None] for name in ("running_mean", "running_var", "weight", "bias"))
        x = (x - mean) / np.sqrt(var + 1e-5) * scale + bias
        x = np.where(x > 0, x, 0.01 * x)
    with torch.no_grad():
        arguments = torch.tensor(code)[None], torch.tensor(skip)[None]
        np.testing.assert_allclose(module(*arguments)[0], x, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(module.folded()(*arguments)[0], x, rtol=1e-10, atol=1e-12)


def test_l2d_by_hand():
    module = draw_weights(LanguageToDepth(8), 2).double()
    x = np.random.default_rng(0).normal(size=(3, 8))
    y = x
    for part in (module.l2p_l1, module.l2p_l2):
        for layer in (part[0], part[2]):
            y = np.maximum(y @ layer.weight.detach().numpy().T, 0)
    np.testing.assert_allclose(module(torch.tensor(x)).detach(), x + y, rtol=1e-12)


def test_decoder_parameters():
    """31,537, as counted from the published code."""
    assert sum(weight.numel() for weight in LanguageDepthDecoder().parameters()) == 31_537


# ----------------------------------------------------------------------------- the whole network


def _bert_like(network, layers):
    """A plain transformers BERT with the network's weights, adapters merged by hand."""
    config = network.config
    sizes = {"hidden_size": config.width, "num_attention_heads": config.llm_heads, "intermediate_size": config.llm_mlp}
    bert = BertModel(
        BertConfig(vocab_size=config.vocabulary, num_hidden_layers=layers, max_position_embeddings=config.positions, **sizes), add_pooling_layer=False
    )
    state = network.llm.state_dict()
    for name in [name for name in state if name.endswith("lora_A")]:
        base = name.removesuffix("lora_A")
        low, high = state.pop(base + "lora_A"), state.pop(base + "lora_B")
        state[base + "weight"] = state[base + "weight"] + high @ low / len(low)
    bert.load_state_dict(state)
    return bert.eval()


def _prompt_of(network, length, seed=0):
    """A prompt of exactly ``length`` tokens in a network's budget: ids, mask."""
    ids = torch.zeros(1, network.config.prompt_tokens, dtype=torch.int64)
    ids[0, :length] = torch.randint(1, network.config.vocabulary, (length,), generator=torch.Generator().manual_seed(seed))
    mask = torch.zeros(1, network.config.prompt_tokens)
    mask[0, :length] = 1
    return {"prompt_ids": ids, "prompt_mask": mask}


def _published_depth(network, inputs, kept):
    """The published forward by formula: no mask, no budget; the first ``kept`` outputs of prompt and image together go into one linear layer."""
    config, image, used = network.config, inputs["image"], int(inputs["prompt_mask"].sum())
    side = config.vit.image
    tokens = network.vit(interpolate(image, (side, side), mode="bilinear", align_corners=False))[:, :-1]
    words = network.llm.embeddings.word_embeddings.weight
    prototypes = network.prototypes(words.permute(1, 0)).permute(1, 0)
    reprog = network.l2d(network.reprogramming(tokens, prototypes))
    sequence = torch.cat([words[inputs["prompt_ids"][0, :used]][None], reprog], dim=1)
    out = _bert_like(network, config.llm_layers)(inputs_embeds=sequence).last_hidden_state[:, :kept]
    weight = network.head.token_mix.weight[:, : out.shape[1]]  # all of it unless the prompt is shorter than the published code takes
    mixed = torch.einsum("btd,ot->bod", out, weight) + network.head.token_mix.bias[:, None]
    code = network.head.channel_mix(mixed).reshape(-1, 3, config.code, config.code)
    return out, network.head.decoder(code, image).sigmoid()


LENGTHS = range(112, 119)
ROOMY = replace(TINY, prompt_tokens=118)  # the longest prompt that the rule writes has 116


@pytest.fixture(scope="module")
def roomy():
    return draw_weights(LlmMde(ROOMY, "official"), 7)


@pytest.mark.parametrize("length", LENGTHS)
def test_official_equals_the_published_code_at_every_prompt_length(roomy, length):
    """Unfolded and as stages: behind 116 tokens the image's last two outputs are gone and all others two places late."""
    inputs = {"image": roomy.example_inputs(1)["image"], **_prompt_of(roomy, length)}
    with torch.no_grad():
        out, depth = _published_depth(roomy, inputs, 114 + ROOMY.vit.patches)
        got, values = roomy.boundaries(inputs), dict(inputs)
        for stage in roomy.stages():
            values[stage.spec.outputs[0].name] = stage.module(*(values[tensor.name] for tensor in stage.spec.inputs))
    there = out.shape[1]
    assert there == min(114, length) + ROOMY.vit.patches
    for found in (got["llm_out"], values["llm_out"]):
        torch.testing.assert_close(found[:, :there], out, atol=1e-5, rtol=1e-5)
        assert not found[:, there:].any()
    for found in (got["depth"], values["depth"]):
        torch.testing.assert_close(found, depth, atol=2e-6, rtol=1e-5)
    assert depth.std() > 1e-3


@pytest.mark.parametrize("length", LENGTHS)
def test_the_published_cut_at_official_token_counts(length):
    """310 of prompt and 196 image outputs, by what each output says of itself: its place in the unpadded sequence."""
    budget, patches, wanted = 118, OFFICIAL.vit.patches, 310
    out = torch.full((1, budget + patches, 1), -1.0)  # -1: padding, which nobody may see
    out[0, :length, 0] = torch.arange(length) + 1.0
    out[0, budget:, 0] = length + torch.arange(patches) + 1.0
    mask = (torch.arange(budget) < length).float()[None]
    sequence = np.zeros(wanted)
    sequence[: min(wanted, length + patches)] = np.arange(1, length + patches + 1)[:wanted]
    np.testing.assert_array_equal(first_outputs(out, mask, wanted)[0, :, 0], sequence)


def test_prompts_of_several_lengths_in_one_batch_do_not_mix(roomy):
    """Each picture of a batch gets what it gets alone."""
    images = roomy.example_inputs(3)["image"]
    prompts = [_prompt_of(roomy, length, length) for length in (114, 116, 118)]
    with torch.no_grad():
        together = roomy(images, *(torch.cat([prompt[name] for prompt in prompts]) for name in ("prompt_ids", "prompt_mask")))
        for row, prompt in enumerate(prompts):
            alone = _published_depth(roomy, {"image": images[row : row + 1], **prompt}, 114 + ROOMY.vit.patches)[1]
            torch.testing.assert_close(together[row : row + 1], alone, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("word", DEPTH_CLASSES)
def test_paper_keeps_every_image_token_in_its_place(word):
    """Every image token's output reaches the head, always in the same places, and it is what BERT gives without any padding."""
    network = random_llm_mde("paper", TINY)
    inputs = network.example_inputs(1)
    encoder = TextEncoder(network.contract.text, network.contract.input, network.artefact_files()[TOKENIZER])
    text = encoder.tokenize([network.contract.text.fill({"min": 0, "max": 255, "median": 63, "class": word})])
    inputs |= {name: torch.from_numpy(values) for name, values in text.items()}
    used, budget = int(inputs["prompt_mask"].sum()), network.config.prompt_tokens
    assert used < budget
    with torch.no_grad():
        got = network.boundaries(inputs)
        real = torch.cat([got["llm_in"][:, :used], got["llm_in"][:, budget:]], dim=1)
        out = _bert_like(network, network.config.llm_layers)(inputs_embeds=real).last_hidden_state
    torch.testing.assert_close(got["llm_out"][:, budget:], out[:, used:], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(got["llm_out"][:, :used], out[:, :used], atol=1e-5, rtol=1e-5)
    assert not got["llm_out"][:, used:budget].any()


def test_llm_stage_through_onnx_runtime_at_several_prompt_lengths(roomy, tmp_path):
    """One graph, prompts of 112, 114, 116 and 118 tokens in one batch and alone, against the published forward."""
    stage = next(stage for stage in roomy.stages() if stage.spec.name == "llm")
    names, image = [tensor.name for tensor in stage.spec.inputs], roomy.example_inputs(1)["image"]
    lengths = (112, 114, 116, 118)
    with torch.no_grad():
        inputs = [{"image": image, **_prompt_of(roomy, length)} for length in lengths]
        wanted = [_published_depth(roomy, each, 114 + ROOMY.vit.patches)[0].numpy() for each in inputs]
        inputs = [each | roomy.boundaries(each) for each in inputs]
        both = tuple(torch.cat([inputs[0][name], inputs[3][name]]) for name in names)
        batch = torch.export.Dim("batch", min=1)
        program = torch.onnx.export(
            stage.module,
            both,
            dynamo=True,
            opset_version=18,
            dynamic_shapes=({0: batch}, {0: batch}),
            input_names=names,
            output_names=["llm_out"],
            verbose=False,
        )
    program.save(tmp_path / "llm.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "llm.onnx", providers=["CPUExecutionProvider"])
    (together,) = session.run(None, {name: torch.cat([each[name] for each in inputs]).numpy() for name in names})
    for row, (each, outputs) in enumerate(zip(inputs, wanted, strict=True)):
        (alone,) = session.run(None, {name: each[name].numpy() for name in names})
        for got in (alone[0], together[row]):
            np.testing.assert_allclose(got[: outputs.shape[1]], outputs[0], atol=2e-5, rtol=2e-5)
            assert not got[outputs.shape[1] :].any()


def test_stages_equal_the_unfolded_network(network):
    inputs = network.example_inputs(3, seed=1)
    with torch.no_grad():
        wanted = network.boundaries(inputs)
        values = dict(inputs)
        for stage in network.stages():
            values[stage.spec.outputs[0].name] = stage.module(*(values[tensor.name] for tensor in stage.spec.inputs))
    for name, tensor in wanted.items():
        torch.testing.assert_close(values[name], tensor, atol=1e-4, rtol=1e-4)
    assert not torch.equal(wanted["depth"][0], wanted["depth"][1])
    torch.testing.assert_close(network(*inputs.values()), wanted["depth"])


def test_contract(network):
    text, output = network.contract.text, network.contract.output
    assert Contract.from_json(network.contract.to_json()) == network.contract
    check_chain(tuple(stage.spec for stage in network.stages()))
    assert sum(weight.numel() for weight in network.parameters()) < 2_000_000
    if network.variant == "official":
        assert (output.kind, output.unit, output.far, text.kind, text.size) == ("relative", "", 1.0, "position-statistics", 96)
    else:
        assert (output.kind, output.unit, output.far, text.kind, text.size) == ("metric", "m", 10.0, "level-statistics", 0)


def test_only_the_metric_variants_speak_of_metres():
    for variant in VARIANTS:
        config = of_variant(OFFICIAL, variant)
        assert (config.far_m == 10.0) == variant.endswith("-metric")
    inputs, metric, plain = None, random_llm_mde("official-metric", TINY), random_llm_mde("official", TINY)
    inputs = metric.example_inputs()
    with torch.no_grad():
        torch.testing.assert_close(metric(*inputs.values()), 10 * plain(*inputs.values()))
    with pytest.raises(ValueError, match="variant"):
        of_variant(OFFICIAL, "metres")


def test_stages_through_onnx_runtime(network, tmp_path):
    """Exported with batch 2, run with batches 1 and 3."""
    example = network.example_inputs(2)
    with torch.no_grad():
        example |= network.boundaries(example)
    for stage in network.stages() if network.variant == "official" else (network.stages()[1], network.stages()[3]):  # where they differ
        names, (output,) = [tensor.name for tensor in stage.spec.inputs], stage.spec.outputs
        batch = torch.export.Dim("batch", min=1)
        shapes = tuple({0: batch} for _ in names)
        arguments = tuple(example[name] for name in names)
        program = torch.onnx.export(
            stage.module, arguments, dynamo=True, opset_version=18, dynamic_shapes=shapes, input_names=names, output_names=[output.name], verbose=False
        )
        program.save(tmp_path / "stage.onnx")
        session = onnxruntime.InferenceSession(tmp_path / "stage.onnx", providers=["CPUExecutionProvider"])
        for count in (1, 3):
            inputs = network.example_inputs(count, seed=count)
            with torch.no_grad():
                inputs |= network.boundaries(inputs)
            (got,) = session.run([output.name], {name: inputs[name].numpy() for name in names})
            np.testing.assert_allclose(got, inputs[output.name], atol=1e-4, rtol=1e-4)


# ----------------------------------------------------------------------------- official size


def test_official_sizes():
    """Parameters as counted from the published network, in millions, and the 310 tokens of its head."""
    assert OFFICIAL.head_tokens == 310 and PAPER.head_tokens == 84 + 196
    with torch.device("meta"):
        network = LlmMde(replace(OFFICIAL, vit=VitConfig(lora_rank=96)), "official")
    count = {name: sum(weight.numel() for weight in part.parameters()) / 1e6 for name, part in network.named_children()}
    assert count["vit"] == pytest.approx(85.8 + 3.54, abs=0.05)  # timm counts 86.6 with its classifier of 1,000
    assert count["prototypes"] == pytest.approx(30.5, abs=0.05)
    assert count["reprogramming"] == pytest.approx(56.7 - 14.2, abs=0.1)  # without the values that nothing reads
    assert count["llm"] == pytest.approx(109.5 - 0.6, abs=0.1)  # without the pooler
    assert count["l2d"] == pytest.approx(0.59, abs=0.005)
    assert count["head"] == pytest.approx(0.82, abs=0.005)


@pytest.mark.parametrize("variant", ["official", "paper"])
def test_official_budgets_hold_the_longest_prompt(variant):
    """At official size, every class with the longest numbers: 113 plus the class' words as published (three words at most)."""
    with torch.device("meta"):
        network = LlmMde(of_variant(OFFICIAL, variant), variant)
    encoder = TextEncoder(network.contract.text, network.contract.input, network.artefact_files()[TOKENIZER])
    fields = dict.fromkeys(("min_x", "min_y", "max_x", "max_y", "median_x", "median_y", "min", "max", "median"), 223)
    lengths = [int(encoder.tokenize([network.contract.text.fill({**fields, "class": word})])["prompt_mask"].sum()) for word in DEPTH_CLASSES]
    if variant == "official":
        assert lengths == [113 + len(word.split()) for word in DEPTH_CLASSES]
    assert max(lengths) <= network.config.prompt_tokens
    ids = encoder.tokenize([network.contract.text.fill({**fields, "class": "far"})])["prompt_ids"]
    assert 100 not in ids  # no unknown word


@pytest.mark.slow
def test_official_size_stage_by_stage():
    network = random_llm_mde("official", OFFICIAL)
    inputs = network.example_inputs()
    with torch.no_grad():
        wanted = network.boundaries(inputs)
        for stage in network.stages():
            got = stage.module(*({**inputs, **wanted}[tensor.name] for tensor in stage.spec.inputs))
            name = stage.spec.outputs[0].name
            torch.testing.assert_close(got, wanted[name], atol=2e-4, rtol=2e-4)


def test_adapters_of_other_ranks_and_none():
    """Table 5's columns at full size: rank and alpha of the ViT's, rank of the language model's; rank 0 leaves plain layers."""
    paper = of_variant(OFFICIAL, "paper")
    second = of_variant(replace(OFFICIAL, vit_rank=192, vit_alpha=192), "paper")
    assert (second.vit.lora_rank, second.vit.lora_scale, second.llm_lora_rank) == (192, 1.0, 32) and second.vit.blocks == paper.vit.blocks
    assert of_variant(replace(OFFICIAL, vit_rank=60, vit_alpha=120), "paper").vit.lora_scale == paper.vit.lora_scale == 2.0
    assert of_variant(replace(OFFICIAL, llm_rank=16), "paper").llm_lora_rank == 16
    frozen = load("llm-mde-tiny", variant="paper", random_init=True, settings={"vit_rank": 0, "llm_rank": 0})
    assert not any("lora" in name or "linear_a" in name for name in frozen.state_dict())
    some = load("llm-mde-tiny", variant="paper", random_init=True, settings={"vit_rank": 3, "llm_rank": 2})
    assert some.state_dict()["vit.blocks.0.attn.qkv.linear_a_q.weight"].shape == (3, 128)
    assert some.state_dict()["llm.encoder.layer.0.attention.self.query.lora_A"].shape == (2, 192)
    assert some.config_json()["vit_rank"] == 3 and some.config_json()["llm_rank"] == 2
