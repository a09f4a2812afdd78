"""DepthBLIP-2 against transformers, against LAVIS' published names and formulas by hand, and through ONNX Runtime."""

import itertools
import math

import numpy as np
import onnxruntime
import pytest
import torch
from torch.nn.functional import gelu, layer_norm, linear
from transformers import Blip2QFormerConfig, Blip2QFormerModel, Blip2VisionConfig, Blip2VisionModel, CLIPVisionConfig, CLIPVisionModel
from transformers.models.blip_2.modeling_blip_2 import Blip2TextEmbeddings

from fathom.models.blip2.adaptive_bins import PREFIX_BINS_M, AdaptiveBins, check_bins, fit_bins, folded_bins
from fathom.models.blip2.blip2_vision import ImageEncoder, VisionConfig
from fathom.models.blip2.depthblip2 import TINY, V1, V2, DepthBlip2, PromptDepth, contract, load_depthblip2, of_variant, random_depthblip2
from fathom.models.blip2.qformer import PromptedQFormer, QFormer, QFormerConfig
from fathom.models.random_init import draw_weights
from fathom.runtime.artefact.contract import Contract
from fathom.runtime.artefact.spec import check_chain
from fathom.runtime.errors import InputError

PROMPTS = ((101, 5, 7, 102), (101, 9, 102), (101, 3, 4, 5, 6, 7, 8, 102))
SMALL = QFormerConfig(image_width=40, width=48, layers=5, heads=4, mlp=96, queries=6, vocabulary=128, positions=16)


@pytest.fixture(scope="module", params=["v1", "v2"])
def network(request):
    return random_depthblip2(request.param, TINY)


# ----------------------------------------------------------------------------- Q-Former


def test_prompts_together_equal_transformers_one_by_one():
    """Shared image keys, padding, the folded first layer and the short last one change nothing."""
    ours = draw_weights(QFormer(SMALL), 1).eval()
    sizes = Blip2QFormerConfig(
        vocab_size=128,
        hidden_size=48,
        num_hidden_layers=5,
        num_attention_heads=4,
        intermediate_size=96,
        max_position_embeddings=16,
        encoder_hidden_size=40,
        use_qformer_text_input=True,
    )
    former, text = Blip2QFormerModel(sizes).eval(), Blip2TextEmbeddings(sizes).eval()
    former.load_state_dict(ours.former.state_dict())
    text.load_state_dict(ours.text.state_dict())
    image = torch.randn(2, 11, 40, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        got = PromptedQFormer(ours, PROMPTS).eval()(image)
        for index, prompt in enumerate(PROMPTS):
            tokens = text(input_ids=torch.tensor([prompt] * 2), query_embeds=ours.query_tokens.expand(2, -1, -1))
            wanted = former(tokens, query_length=6, encoder_hidden_states=image).last_hidden_state[:, :6].mean(dim=1)
            torch.testing.assert_close(got[:, index], wanted, atol=2e-6, rtol=2e-6)
            torch.testing.assert_close(ours(image, prompt).mean(dim=1), wanted, atol=2e-6, rtol=2e-6)


def test_image_keys_are_made_once_per_image():
    """One key and one value product per cross-attention, of the image's batch and not of batch x prompts."""
    module = PromptedQFormer(draw_weights(QFormer(SMALL), 1), PROMPTS).eval()
    seen = []
    for layer in module.layers:
        if layer.has_cross_attention:
            for projection in (layer.crossattention.attention.key, layer.crossattention.attention.value):
                projection.register_forward_hook(lambda _, inputs, __: seen.append(tuple(inputs[0].shape)))
    module(torch.zeros(2, 11, 40))
    assert seen == [(2, 11, 40)] * 6  # layers 0, 2, 4


# ----------------------------------------------------------------------------- image encoders


def test_clip_encoder_equals_transformers():
    config = VisionConfig("clip", 32, 3, 4, 64, image=28)
    ours = draw_weights(ImageEncoder(config), 4).eval()
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64, "image_size": 28, "patch_size": 14}
    theirs = CLIPVisionModel(CLIPVisionConfig(**sizes)).eval()
    theirs.embeddings.load_state_dict(ours.embeddings.state_dict())
    theirs.pre_layrnorm.load_state_dict(ours.norm_before.state_dict())
    theirs.encoder.load_state_dict(ours.encoder.state_dict())
    image = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        wanted = layer_norm(theirs(image).last_hidden_state, (32,), ours.ln_vision.weight, ours.ln_vision.bias, 1e-5)
        torch.testing.assert_close(ours(image), wanted, atol=2e-6, rtol=2e-6)


def test_eva_encoder_equals_transformers():
    config = VisionConfig("eva", 32, 3, 4, 64, image=28)
    ours = draw_weights(ImageEncoder(config), 4).eval()
    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64, "image_size": 28, "patch_size": 14}
    theirs = Blip2VisionModel(Blip2VisionConfig(**sizes)).eval()
    theirs.embeddings.load_state_dict(ours.embeddings.state_dict())
    theirs.encoder.load_state_dict(ours.encoder.state_dict())
    theirs.post_layernorm.load_state_dict(ours.ln_vision.state_dict())
    theirs.post_layernorm.eps = 1e-5  # LAVIS' value; transformers' port has 1e-6
    image = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        torch.testing.assert_close(ours(image), theirs(image).last_hidden_state, atol=2e-6, rtol=2e-6)


# ----------------------------------------------------------------------------- head and bins


@pytest.mark.parametrize("layout", ["hws", "shw"])
def test_head_by_hand(layout):
    """Eq. 5 and 6 in float64, channel by channel."""
    grid, temperature = 3, 0.3
    bins = np.linspace(1.0, 3.5, 7)
    q = np.random.default_rng(0).normal(size=(2, 7, 27))
    wanted = np.zeros((2, 1, grid, grid))
    for batch, row, column in itertools.product(range(2), range(grid), range(grid)):
        channels = [(row * grid + column) * 3 + s if layout == "hws" else s * grid * grid + row * grid + column for s in range(3)]
        score = np.exp([max(q[batch, k, c] for c in channels) / temperature for k in range(7)])
        wanted[batch, 0, row, column] = (score / score.sum() * bins).sum()
    head = PromptDepth(layout, grid, temperature, torch.tensor(bins)).double()
    np.testing.assert_allclose(head(torch.tensor(q)), wanted, rtol=1e-12)


def test_official_layouts():
    """Channel of row 2, column 5, third value: (2 * 16 + 5) * 3 + 2 in v1, 2 * 256 + 2 * 16 + 5 in v2."""
    for config, channel in ((V1, 113), (V2, 549)):
        q = torch.zeros(1, 7, 768)
        q[0, 6, channel] = 100 * config.temperature
        depth = PromptDepth(config.layout, config.grid, config.temperature, torch.tensor(PREFIX_BINS_M))(q)[0, 0]
        assert depth.shape == (16, 16)
        assert depth[2, 5] == pytest.approx(3.5) and depth[0, 0] == pytest.approx(sum(PREFIX_BINS_M) / 7)
    assert (V1.temperature, V2.temperature) == (0.05, 0.5)


def test_adaptive_bins_by_hand():
    """1 + sigmoid(MLP)^2 * 2.5 with the published layer numbers; 83,463 parameters."""
    mlp = draw_weights(AdaptiveBins(), 3)
    assert sum(weight.numel() for weight in mlp.parameters()) == 83_463
    state = {name: tensor.double().numpy() for name, tensor in mlp.layers.state_dict().items()}
    x = np.array([1.00, 1.75, 2.25, 2.50, 2.75, 3.00, 3.50])
    for number in (0, 2, 4, 7, 10):
        x = np.maximum(state[f"{number}.weight"] @ x + state[f"{number}.bias"], 0)
    wanted = 1 + (1 / (1 + np.exp(-(state["12.weight"] @ x + state["12.bias"])))) ** 2 * 2.5
    np.testing.assert_allclose(folded_bins(mlp), wanted, rtol=1e-5)


@pytest.mark.parametrize("bins", [[1.0] * 6, [0.99, *[2.0] * 6], [*[2.0] * 6, 3.6], [math.nan, *[2.0] * 6]])
def test_bins_outside_their_range_are_refused(bins):
    with pytest.raises(ValueError, match="seven depths"):
        check_bins(torch.tensor(bins))


def test_bins_are_learned():
    """Pictures drawn with other bins: the depth that the learned bins give comes much closer than the prefix bins' depth."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.tensor([1.1, 1.2, 1.4, 1.6, 1.9, 2.2, 2.6])
    cases = []
    for _ in range(8):
        chances = (3 * torch.randn(7, 4, 4, generator=generator)).softmax(dim=0)
        depth = torch.nn.functional.interpolate(torch.einsum("khw,k->hw", chances, truth)[None, None], (10, 12), mode="bilinear", align_corners=True)[0, 0]
        cases.append((chances, depth, torch.rand(10, 12, generator=generator) > 0.3))
    learned = folded_bins(fit_bins(cases, 50))

    def error(bins):
        return sum(float((torch.einsum("khw,k->hw", chances, bins - truth)).abs().mean()) for chances, _, _ in cases) / 8

    assert error(learned) < 0.25 * error(torch.tensor(PREFIX_BINS_M))
    torch.testing.assert_close(learned, folded_bins(fit_bins(cases, 50)))
    with pytest.raises(ValueError, match="no picture"):
        fit_bins([])
    with pytest.raises(ValueError, match="valid pixel"):
        fit_bins([(cases[0][0], cases[0][1], torch.zeros(10, 12, dtype=torch.bool))])


# ----------------------------------------------------------------------------- the whole network


def test_contract_and_specs(network):
    assert Contract.from_json(network.contract.to_json()) == network.contract
    assert (network.contract.output.kind, network.contract.output.near, network.contract.output.far) == ("metric", 0.75, 8.0)
    assert (contract(V1).output.near, contract(V1).output.far) == (1.0, 3.5) == (contract(V2).output.near, contract(V2).output.far)
    assert V1.bins_m == PREFIX_BINS_M == (1.00, 1.75, 2.25, 2.50, 2.75, 3.00, 3.50)
    check_chain(tuple(stage.spec for stage in network.stages()))
    assert sum(weight.numel() for weight in network.parameters()) < 2_000_000
    assert network.config_json()["prompts"][3] == "this object is not in distance"
    assert V1.prompt_ids[3] == (101, 2023, 4874, 2003, 2025, 1999, 3292, 102)


def test_stages_equal_the_unfolded_network(network):
    inputs = network.example_inputs(3, seed=1)
    with torch.no_grad():
        wanted = network.boundaries(inputs)
        values = dict(inputs)
        for stage in network.stages():
            values[stage.spec.outputs[0].name] = stage.module(*(values[tensor.name] for tensor in stage.spec.inputs))
    for name, tensor in wanted.items():
        torch.testing.assert_close(values[name], tensor, atol=1e-4 if name == "depth" else 5e-6, rtol=1e-5)
    assert wanted["depth"].std() > 0.01 and not torch.equal(wanted["depth"][0], wanted["depth"][1])


def test_stages_through_onnx_runtime(network, tmp_path):
    """Exported with batch 2, run with batches 1 and 3."""
    example = network.example_inputs(2)
    with torch.no_grad():
        example |= network.boundaries(example)
    for stage in network.stages() if network.variant == "v1" else network.stages()[::2]:  # the Q-Former is the same in both
        batch = torch.export.Dim("batch", min=1)
        names, (output,) = [tensor.name for tensor in stage.spec.inputs], stage.spec.outputs
        arguments = tuple(example[name] for name in names)
        shapes = tuple({0: batch} for _ in names)
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


def test_bins_travel_into_the_head():
    network = random_depthblip2(config=TINY)
    bins = torch.linspace(1.2, 3.2, 7)
    network.set_bins(bins)
    inputs = network.example_inputs()
    with torch.no_grad():
        found = network.boundaries(inputs)
        torch.testing.assert_close(network.stages()[-1].module(found["q"]), found["depth"])
    assert found["depth"].min() >= 1.2 and found["depth"].max() <= 3.2
    assert network.config_json()["bins_m"] == pytest.approx(bins.tolist(), abs=1e-6)


# ----------------------------------------------------------------------------- LAVIS' files


def _attention(query, key, value, heads):
    parts = [part.unflatten(1, (heads, -1)).transpose(0, 1) for part in (query, key, value)]
    scores = parts[0] @ parts[1].transpose(1, 2) / parts[0].shape[-1] ** 0.5
    return (scores.softmax(-1) @ parts[2]).transpose(0, 1).flatten(1)


def _vision_by_hand(image, config, tensors, norm):
    """One image through CLIP's or EVA's published formulas, from published names, in float64."""
    t = {name: tensor.double() for name, tensor in tensors.items()}
    width = config.width
    clip = config.kind == "clip"
    kernel, bias = (t["conv1.weight"], None) if clip else (t["patch_embed.proj.weight"], t["patch_embed.proj.bias"])
    patches = torch.nn.functional.conv2d(image[None], kernel, bias, stride=config.patch)[0].flatten(1).T
    x = torch.cat([t["class_embedding" if clip else "cls_token"].reshape(1, width), patches]) + t["positional_embedding" if clip else "pos_embed"].reshape(
        -1, width
    )
    if clip:
        x = layer_norm(x, (width,), t["ln_pre.weight"], t["ln_pre.bias"], 1e-5)
    for index in range(config.blocks):
        b = f"transformer.resblocks.{index}." if clip else f"blocks.{index}."
        first, second = ("ln_1", "ln_2") if clip else ("norm1", "norm2")
        y = layer_norm(x, (width,), t[f"{b}{first}.weight"], t[f"{b}{first}.bias"], 1e-5 if clip else 1e-6)
        if clip:
            qkv = linear(y, t[b + "attn.in_proj_weight"], t[b + "attn.in_proj_bias"])
        else:
            qkv = linear(y, t[b + "attn.qkv.weight"], torch.cat([t[b + "attn.q_bias"], torch.zeros(width).double(), t[b + "attn.v_bias"]]))
        out = "attn.out_proj" if clip else "attn.proj"
        x = x + linear(_attention(*qkv.chunk(3, dim=1), config.heads), t[f"{b}{out}.weight"], t[f"{b}{out}.bias"])
        y = layer_norm(x, (width,), t[f"{b}{second}.weight"], t[f"{b}{second}.bias"], 1e-5 if clip else 1e-6)
        up, down = ("mlp.c_fc", "mlp.c_proj") if clip else ("mlp.fc1", "mlp.fc2")
        y = linear(y, t[f"{b}{up}.weight"], t[f"{b}{up}.bias"])
        x = x + linear(y * torch.sigmoid(1.702 * y) if clip else gelu(y), t[f"{b}{down}.weight"], t[f"{b}{down}.bias"])
    return layer_norm(x, (width,), norm["ln_vision.weight"].double(), norm["ln_vision.bias"].double(), 1e-5)


def _qformer_by_hand(image_embeds, prompt, config, tensors):
    """BERT with queries in front, post-norm, cross-attention in even layers, from LAVIS' names, in float64; mean of the queries."""
    t = {name.removeprefix("Qformer.bert."): tensor.double() for name, tensor in tensors.items()}
    count = config.queries

    def norm(x, name):
        return layer_norm(x, (config.width,), t[name + ".LayerNorm.weight"], t[name + ".LayerNorm.bias"], 1e-12)

    def attention(x, source, name):
        q, k, v = (linear(y, t[f"{name}.self.{part}.weight"], t[f"{name}.self.{part}.bias"]) for part, y in (("query", x), ("key", source), ("value", source)))
        return norm(x + linear(_attention(q, k, v, config.heads), t[f"{name}.output.dense.weight"], t[f"{name}.output.dense.bias"]), f"{name}.output")

    words = t["embeddings.word_embeddings.weight"][list(prompt)] + t["embeddings.position_embeddings.weight"][: len(prompt)]
    x = norm(torch.cat([t["query_tokens"][0], words]), "embeddings")
    for index in range(config.layers):
        layer = f"encoder.layer.{index}"
        x = attention(x, x, f"{layer}.attention")
        queries, words = x[:count], x[count:]
        if index % 2 == 0:
            queries = attention(queries, image_embeds, f"{layer}.crossattention")
        parts = []
        for part, end in ((queries, "_query"), (words, "")):
            inner = gelu(linear(part, t[f"{layer}.intermediate{end}.dense.weight"], t[f"{layer}.intermediate{end}.dense.bias"]))
            parts.append(norm(part + linear(inner, t[f"{layer}.output{end}.dense.weight"], t[f"{layer}.output{end}.dense.bias"]), f"{layer}.output{end}"))
        x = torch.cat(parts)
    return x[:count].mean(dim=0)


@pytest.fixture(params=["v1", "v2"])
def lavis(request, published_files, tmp_path):
    config = of_variant(TINY, request.param)
    rng = np.random.default_rng(7)
    qformer, vision = published_files.lavis_qformer(config.qformer, rng), published_files.lavis_vision(config.vision, rng)
    torch.save({"model": qformer}, tmp_path / "qformer.pth")
    torch.save({name: tensor.half() if request.param == "v1" else tensor for name, tensor in vision.items()}, tmp_path / "vision.pth")
    return request.param, config, qformer, vision, tmp_path


def test_published_files_give_the_published_numbers(lavis):
    variant, config, qformer, vision, folder = lavis
    network = load_depthblip2(folder / "qformer.pth", folder / "vision.pth", variant=variant, config=TINY)
    inputs = network.example_inputs(1, seed=2)
    with torch.no_grad():
        got = network.boundaries(inputs)
    if variant == "v1":
        vision = {name: tensor.half() for name, tensor in vision.items()}  # OpenAI's files are FP16
    embeds = _vision_by_hand(inputs["image"][0].double(), config.vision, vision, qformer)
    torch.testing.assert_close(got["image_embeds"][0].double(), embeds, atol=2e-5, rtol=2e-5)
    q = torch.stack([_qformer_by_hand(embeds, prompt, config.qformer, qformer) for prompt in config.prompt_ids])
    torch.testing.assert_close(got["q"][0].double(), q, atol=2e-5, rtol=2e-5)
    assert network.origin.kind == "published" and network.origin.sha256
    assert network.stages()[1].module(got["image_embeds"]).shape == (1, 7, config.qformer.width)


@pytest.mark.parametrize("damage", ["missing", "unexpected", "misshapen", "not finite"])
@pytest.mark.parametrize("file", ["qformer", "vision"])
def test_wrong_files_are_refused_by_name(lavis, damage, file):
    variant, _, qformer, vision, folder = lavis
    tensors = dict(qformer if file == "qformer" else vision)
    name = {"qformer": "Qformer.bert.encoder.layer.0.output_query.dense.bias", "vision": {"v1": "ln_pre.bias", "v2": "blocks.1.attn.v_bias"}[variant]}[file]
    if damage == "missing":
        del tensors[name]
    elif damage == "unexpected":
        tensors[name := "visual_encoder.blocks.0.surprise"] = torch.zeros(1)
    elif damage == "misshapen":
        tensors[name] = torch.zeros(3, 3)
    else:
        tensors[name] = torch.full_like(tensors[name], math.nan)
    torch.save({"model": tensors}, folder / f"{file}.pth")
    with pytest.raises(InputError, match=rf"(?s){damage}.*{name.replace('.', chr(92) + '.')}"):
        load_depthblip2(folder / "qformer.pth", folder / "vision.pth", variant=variant, config=TINY)


def test_the_files_come_in_pairs(lavis):
    variant, _, _, _, folder = lavis
    with pytest.raises(InputError, match="--visual-weights"):
        load_depthblip2(folder / "qformer.pth", variant=variant, config=TINY)
    with pytest.raises(ValueError, match="variant"):
        load_depthblip2(folder / "qformer.pth", folder / "vision.pth", variant="v3")


def test_own_files_and_trained_bins_come_back(tmp_path):
    from safetensors.torch import save_file

    network = random_depthblip2(config=TINY, seed=5)
    network.set_bins(torch.linspace(1.1, 3.3, 7))
    save_file(network.state_dict(), tmp_path / "own.safetensors")
    again = load_depthblip2(tmp_path / "own.safetensors", config=TINY)
    inputs = network.example_inputs()
    with torch.no_grad():
        torch.testing.assert_close(again(*inputs.values()), network(*inputs.values()), atol=0, rtol=0)
    mlp = draw_weights(AdaptiveBins(), 8)
    torch.save(mlp.layers.state_dict(), tmp_path / "model_epoch_49.pth")
    again = load_depthblip2(tmp_path / "own.safetensors", bins=tmp_path / "model_epoch_49.pth", config=TINY)
    torch.testing.assert_close(again.head.bins_m, folded_bins(mlp))
    torch.testing.assert_close(random_depthblip2(config=TINY, bins=tmp_path / "model_epoch_49.pth").head.bins_m, folded_bins(mlp))
    with pytest.raises(InputError, match="random"):
        random_depthblip2(config=TINY, visual_weights="x.pth")
    with pytest.raises(InputError, match="given too"):
        load_depthblip2(tmp_path / "own.safetensors", tmp_path / "own.safetensors", config=TINY)


# ----------------------------------------------------------------------------- official size


@pytest.mark.parametrize(("config", "vision_m", "former_m", "width"), [(V1, 290.6, 158.3, 1024), (V2, 985.9, 161.8, 1408)])
def test_official_sizes(config, vision_m, former_m, width):
    """Parameters as counted from the published networks (the Q-Former without its text table); shapes on meta."""
    with torch.device("meta"):
        network = DepthBlip2(config, "v1")
        count = {name: sum(weight.numel() for weight in part.parameters()) / 1e6 for name, part in network.named_children()}
        text = sum(weight.numel() for weight in network.qformer.text.parameters()) / 1e6
        assert count["image_encoder"] == pytest.approx(vision_m, abs=0.1)
        assert count["qformer"] - text == pytest.approx(former_m, abs=0.1)
        assert text == pytest.approx(23.8, abs=0.1)
        assert network.image_encoder(torch.zeros(2, 3, 224, 224)).shape == (2, 257, width)
    assert [len(prompt) for prompt in config.prompt_ids] == [6, 7, 6, 8, 8, 6, 6]


@pytest.mark.slow
def test_official_qformer_equals_transformers():
    ours = draw_weights(QFormer(V1.qformer), 0).eval()
    image = torch.randn(1, 257, 1024, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        got = PromptedQFormer(ours, V1.prompt_ids).eval()(image)
        wanted = torch.stack([ours(image, ids).mean(dim=1) for ids in V1.prompt_ids], dim=1)
    torch.testing.assert_close(got, wanted, atol=5e-6, rtol=5e-5)
