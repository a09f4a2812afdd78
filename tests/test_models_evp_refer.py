"""EVP's referring network: published names, the published arithmetic, live text, and a tokenizer that tokenises like CLIP."""

import gzip
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from closeness import same_output, same_weights
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import nn

from fathom.models.clip.clip_tokenizer import published_tokenizer, tokenizer_json, whole_word_merges
from fathom.models.diffusion import evp_refer
from fathom.models.diffusion.evp_refer import OFFICIAL, TINY, EVPRefer, evp_refer_keys, load_evp_refer, published_name, random_evp_refer
from fathom.models.diffusion.simple_decoding import SimpleDecoding
from fathom.runtime.errors import InputError

KEYS = Path(__file__).parent / "data" / "keys" / "evp_refer.txt.gz"


@pytest.fixture(scope="module")
def network():
    return random_evp_refer(config=TINY, seed=3)


def published_form(network):
    """A checkpoint as it was published, with the tensors that are there and not used."""
    table = evp_refer_keys(network)
    own = network.state_dict()
    tensors = {name: own[key.own].reshape(key.shape).clone() for name, key in table.wanted.items()}
    unused = {name: torch.randn(shape) for name, shape in table.ignored.items() if not name.endswith("position_ids")}
    return tensors | unused


def test_the_official_network_has_exactly_the_published_tensors():
    with torch.device("meta"):
        network = EVPRefer(OFFICIAL, b"")
    table = evp_refer_keys(network)
    have = {name: list(key.shape) for name, key in table.wanted.items()}
    have |= {name: list(shape) for name, shape in table.ignored.items() if not name.endswith("position_ids")}
    listed = [line.split("\t") for line in gzip.decompress(KEYS.read_bytes()).decode().splitlines()]
    assert len(listed) == 1089
    assert have == {name: json.loads(shape) for name, _, shape in listed}
    assert sum(p.numel() for p in network.classifier.parameters()) == 39_176_962


def test_tiny_has_every_published_name_below_two_text_layers_and_few_parameters(network):
    assert sum(p.numel() for p in network.parameters()) < 5e6
    listed = {line.split("\t")[0] for line in gzip.decompress(KEYS.read_bytes()).decode().splitlines()}
    missing = listed - set(evp_refer_keys(network).wanted) - set(evp_refer_keys(network).ignored)
    assert {name.split(".")[4] for name in missing} == {str(n) for n in range(2, 12)}  # text layers only


@pytest.mark.parametrize("form", ["bare", "wrapped", "pth"])
def test_published_forms_load_to_the_same_network(network, tmp_path, form):
    tensors = published_form(network)
    if form == "pth":
        path = tmp_path / "best_model_refcoco.pth"
        torch.save({"model": tensors}, path)
    else:
        prefix = "model." if form == "wrapped" else ""
        path = tmp_path / "model.safetensors"
        save_file({prefix + name: tensor for name, tensor in tensors.items()}, str(path))
    loaded = load_evp_refer(path, config=TINY)
    inputs = network.example_inputs(1)
    assert same_weights(loaded, network)
    assert same_output(loaded(inputs["image"], inputs["ids"]), network(inputs["image"], inputs["ids"]))
    assert loaded.origin.kind == "trained" and not loaded.origin.warnings


def test_misfits_are_refused_by_name(network, tmp_path):
    tensors = published_form(network)
    gone = dict(tensors)
    del gone["classifier.conv1_1.bias"]
    for change, named in ((gone, "classifier.conv1_1.bias"), ({**tensors, "surprise": torch.zeros(1)}, "surprise")):
        save_file(change, str(tmp_path / "m.safetensors"))
        with pytest.raises(InputError, match=named):
            load_evp_refer(tmp_path / "m.safetensors", config=TINY)
    depth = {"decoder.conv_layers.0.bias": torch.zeros(1), "encoder.aggregation.layer1.conv1.weight": torch.zeros(1)}
    save_file(depth, str(tmp_path / "m.safetensors"))
    with pytest.raises(InputError, match="--model evp"):
        load_evp_refer(tmp_path / "m.safetensors", config=TINY)


def test_folded_stages_equal_the_unfolded_network_for_two_pictures_with_different_words(network):
    inputs = network.example_inputs(2, seed=5)
    assert not torch.equal(inputs["ids"][0], inputs["ids"][1])
    truth, current = network.boundaries(inputs), dict(inputs)
    folded = {}
    for stage in network.stages():
        outputs = stage.module(*(current[tensor.name] for tensor in stage.spec.inputs))
        for tensor, value in zip(stage.spec.outputs, outputs if isinstance(outputs, tuple) else (outputs,), strict=True):
            wanted = truth[tensor.name]
            assert tuple(value.shape[1:]) == tensor.shape[1:]
            assert (value - wanted).abs().max() <= 1e-5 * wanted.abs().max(), tensor.name
            current[tensor.name] = value
        folded[stage.spec.name] = stage.folded
    assert folded["unet"] == {"time_embedding": 1, "resnet_time_projection": 22}  # the text is live: no keys or values are constants
    assert folded["vae"] == {"log_variance_row": 4, "latent_divisor": 1} and folded["classifier"] == {"batch_norm": 6}
    assert (truth["logits"][0] - truth["logits"][1]).abs().max() > 1e-3


def test_the_words_change_the_mask(network):
    inputs = network.example_inputs(1)
    other = inputs["ids"].clone()
    other[0, 3] += 1
    change = (network(inputs["image"], inputs["ids"]) - network(inputs["image"], other)).abs().max()
    assert change > 1e-3


def test_the_taps_are_those_of_diffusers_own_unet_fed_with_the_same_words(network):
    backbone = TINY.backbone
    truth = UNet2DConditionModel(
        block_out_channels=backbone.unet_channels,
        norm_num_groups=backbone.unet_groups,
        cross_attention_dim=backbone.context_width,
        attention_head_dim=backbone.heads,
    ).eval()
    missing = truth.load_state_dict({**truth.state_dict(), **network.unet.state_dict()})
    assert not missing.unexpected_keys
    inputs = network.example_inputs(1)
    found = network.boundaries(inputs)
    seen = {}
    truth.up_blocks[0].resnets[1].register_forward_hook(lambda m, i, o: seen.update(f8=o))
    truth.up_blocks[3].attentions[2].register_forward_hook(lambda m, i, o: seen.update(f64=o[0]))
    with torch.no_grad():
        truth(found["latent"], torch.tensor([1]), found["context"])
    for name in ("f8", "f64"):
        assert (found[name] - seen[name]).abs().max() <= 1e-5 * seen[name].abs().max()


def test_simple_decoding_against_its_definition_layer_by_layer():
    torch.manual_seed(0)
    head = SimpleDecoding((4, 6, 8, 10), 12).double().eval()
    for module in head.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-1, 1), module.running_var.uniform_(0.5, 2)
    r64, r32, r16, r8 = (torch.randn(1, c, s, s, dtype=torch.float64) for c, s in ((4, 16), (6, 8), (8, 4), (10, 2)))
    weights = head.state_dict()

    def layer(x, name):
        norm = name.replace("conv", "bn")
        x = F.conv2d(x, weights[f"{name}.weight"], padding=1)
        mean, var, gain, bias = (weights[f"{norm}.{k}"].view(1, -1, 1, 1) for k in ("running_mean", "running_var", "weight", "bias"))
        return ((x - mean) / (var + 1e-5).sqrt() * gain + bias).clamp(min=0)

    def corners(x, size):  # bilinear with aligned corners, written out as two small matrices
        place = torch.arange(size, dtype=torch.float64) * (x.shape[-1] - 1) / (size - 1)
        matrix = (1 - (place[:, None] - torch.arange(x.shape[-1])).abs()).clamp(min=0)
        return torch.einsum("yh,bchw,xw->bcyx", matrix, x, matrix)

    x = r8
    for level, finer in ((4, r16), (3, r32), (2, r64)):
        x = layer(layer(torch.cat([corners(x, finer.shape[-1]), finer], 1), f"conv1_{level}"), f"conv2_{level}")
    wanted = F.conv2d(x, weights["conv1_1.weight"], weights["conv1_1.bias"])
    assert (head(r64, r32, r16, r8) - wanted).abs().max() < 1e-9


def test_every_own_name_has_one_published_name(network):
    names = [published_name(own) for own in network.state_dict()]
    assert len(set(names)) == len(names)


def test_the_tiny_tokenizer_knows_its_words_and_spells_the_others():
    tokenizer = Tokenizer.from_str(evp_refer.TINY_TOKENIZER.decode())
    assert tokenizer.get_vocab_size() == TINY.vocabulary
    encoded = tokenizer.encode("The  cup on the LEFT zq")
    assert encoded.tokens == ["<|startoftext|>", "the</w>", "cup</w>", "on</w>", "the</w>", "left</w>", "z", "q</w>", "<|endoftext|>"]
    assert encoded.ids[0] == TINY.vocabulary - 2 and encoded.ids[-1] == TINY.vocabulary - 1
    assert tokenizer_json(whole_word_merges(evp_refer.TINY_WORDS.split())) == evp_refer.TINY_TOKENIZER


def test_another_networks_tokenizer_is_refused(tmp_path):
    (tmp_path / "t.json").write_bytes(evp_refer.TINY_TOKENIZER)
    with pytest.raises(InputError, match="another network's tokenizer"):
        published_tokenizer(tmp_path / "t.json")
    (tmp_path / "t.json").write_bytes(b"{}")
    with pytest.raises(InputError, match="no tokenizer"):
        published_tokenizer(tmp_path / "t.json")


def test_the_published_tokenizer_gives_open_clips_ids():
    open_clip = pytest.importorskip("open_clip")
    ours, theirs = Tokenizer.from_str(published_tokenizer(None).decode()), open_clip.SimpleTokenizer(context_length=77)
    sentences = (
        "the cup on the left",
        "A man's 3rd shirt, 42 (striped)!!",
        "  white   CAT\tbehind\nthe door ",
        "café naïve über straße",
        "woman's dog's they're I'll we've",
        "emoji 😀 and 日本語 text",
        "x1y2 #hashtag @you 100%",
    )
    for sentence in sentences:
        wanted = [int(i) for i in theirs(sentence)[0] if i]
        assert ours.encode(sentence).ids == wanted, sentence
