"""The backbone against diffusers' own networks, the published key lists, and its folded form against itself unfolded."""

from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import nn
from torch.overrides import TorchFunctionMode

from fathom.models.diffusion.folding import FoldedUNet, FoldedVAE, reweighted, with_batch_norm
from fathom.models.diffusion.stable_diffusion import BackboneConfig, TapUNet, VAEEncoder
from fathom.models.diffusion.stable_diffusion_keys import unet_ldm_key, vae_ldm_key, vae_ldm_shape
from fathom.models.random_init import randomise

KEYS = Path(__file__).parent / "data" / "keys"
TINY = BackboneConfig((16, 32, 64, 64), 8, 2, 64, (16, 32, 64, 64), 8)
TOKENS = 40
HEAD = ("conv_norm_out.", "conv_out.")


def published(file):
    rows = [line.split("\t") for line in (KEYS / file).read_text().splitlines()]
    return {own: (ldm, tuple(int(n) for n in shape.strip("()").split(",") if n.strip())) for ldm, own, shape in rows}


@pytest.fixture(scope="module")
def unet():
    network = TapUNet(TINY, collect_maps=True)
    randomise(network, 3)
    return network


@pytest.fixture(scope="module")
def vae():
    network = VAEEncoder(TINY)
    randomise(network, 4)
    return network


def tensors(*shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def close(got, want, tolerance=1e-5):
    assert got.shape == want.shape
    assert ((got - want).abs().max() / want.abs().max()).item() < tolerance


def test_unet_names_and_shapes_are_the_published_ones():
    with torch.device("meta"):
        state = TapUNet(BackboneConfig(), collect_maps=True).state_dict()
    wanted = {own: entry for own, entry in published("ldm_to_diffusers_unet.tsv").items() if not own.startswith(HEAD)}
    assert len(wanted) == 682
    assert {own: (unet_ldm_key(own), tuple(tensor.shape)) for own, tensor in state.items()} == wanted
    assert sum(tensor.numel() for tensor in state.values()) == 859_508_800


def test_vae_names_and_shapes_are_the_published_ones():
    with torch.device("meta"):
        state = VAEEncoder(BackboneConfig()).state_dict()
    wanted = published("ldm_to_diffusers_vae_encoder.tsv")
    assert len(wanted) == 106
    got = {own: (vae_ldm_key(own), vae_ldm_shape(own, tuple(tensor.shape))) for own, tensor in state.items() if own.startswith("encoder.")}
    assert got == wanted
    assert sum(tensor.numel() for tensor in state.values()) == 34_163_592 + 72
    assert [own for own, tensor in state.items() if vae_ldm_shape(own, tuple(tensor.shape)) != tuple(tensor.shape)] == [
        f"encoder.mid_block.attentions.0.to_{part}.weight" for part in ("q", "k", "v", "out.0")
    ]


@pytest.mark.parametrize("key", ["down_blocks.0.resnets.0.strange.weight", "conv_norm_out.weight", "down_blocks.weight", ""])
def test_a_name_without_a_rule_is_refused(key):
    with pytest.raises((ValueError, KeyError)):
        unet_ldm_key(key)
    with pytest.raises((ValueError, KeyError)):
        vae_ldm_key(key)


@pytest.mark.parametrize("side", [32, 24])  # canvas 256, and 192 as KITTI's is smaller than NYU's
def test_taps_and_maps_are_those_of_diffusers(unet, side):
    reference = UNet2DConditionModel(
        block_out_channels=TINY.unet_channels, layers_per_block=2, norm_num_groups=8, cross_attention_dim=64, attention_head_dim=2
    ).eval()
    missing, unexpected = reference.load_state_dict(unet.state_dict(), strict=False)
    assert not unexpected and all(name.startswith(HEAD) for name in missing)
    reference.set_attn_processor(AttnProcessor())  # the plain one: it computes its probabilities where they can be seen
    seen, maps = {}, {}

    def watch(attention, name):
        scores = attention.get_attention_scores

        def spy(query, key, mask=None):
            maps[name] = scores(query, key, mask)  # [B * heads, h*w, T]
            return maps[name]

        attention.get_attention_scores = spy

    hooks = {"f8": reference.up_blocks[0].resnets[1], "f16": reference.up_blocks[1].attentions[1]}
    hooks |= {"f32": reference.up_blocks[2].attentions[1], "f64": reference.up_blocks[3].attentions[2]}
    for name, module in hooks.items():
        module.register_forward_hook(lambda _m, _i, out, name=name: seen.__setitem__(name, out[0] if isinstance(out, tuple) else out))
    for name, module in reference.named_modules():
        if name.endswith("attn2"):
            watch(module, name)
    latent, context = tensors((2, 4, side, side), (2, TOKENS, 64), seed=5)
    with torch.no_grad():
        reference(latent, torch.ones(2, dtype=torch.int64), context)
        taps = dict(zip(("f64", "f32", "f16", "f8"), unet(latent, context), strict=True))
    groups = {
        "f32": ["down_blocks.1.attentions.0", "down_blocks.1.attentions.1", *(f"up_blocks.2.attentions.{i}" for i in range(3))],
        "f16": ["down_blocks.2.attentions.0", "down_blocks.2.attentions.1", *(f"up_blocks.1.attentions.{i}" for i in range(3))],
    }
    for name, channels, factor in (("f64", 16, 1), ("f32", 32, 2), ("f16", 64, 4), ("f8", 64, 8)):
        close(taps[name][:, :channels], seen[name])
        if name in groups:
            size = side // factor
            layers = [maps[f"{path}.transformer_blocks.0.attn2"].view(2, 2, size * size, TOKENS).mean(1) for path in groups[name]]
            close(taps[name][:, channels:], torch.stack(layers).mean(0).transpose(1, 2).reshape(2, TOKENS, size, size))
        else:
            assert taps[name].shape[1] == channels


def test_latent_is_that_of_diffusers(vae):
    reference = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=TINY.vae_channels,
        norm_num_groups=8,
        layers_per_block=2,
    ).eval()
    missing, unexpected = reference.load_state_dict(vae.state_dict(), strict=False)
    assert not unexpected and all(name.startswith(("decoder.", "post_quant_conv.")) for name in missing)
    (image,) = tensors((2, 3, 64, 64))
    with torch.no_grad():
        close(vae(image), reference.encode(image).latent_dist.mean)


class Calls(TorchFunctionMode):
    """Counts the calls of PyTorch functions by name."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.counts[getattr(func, "__name__", str(func))] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("batch", [1, 3])
def test_folded_unet_is_the_unfolded_one(unet, batch):
    latent, context = tensors((batch, 4, 32, 32), (1, TOKENS, 64), seed=batch)
    folded = FoldedUNet(unet, context).eval()
    assert folded.folded == {"text_adapter": 1, "time_embedding": 1, "resnet_time_projection": 22, "cross_attention_kv_pair": 16}
    with Calls() as calls:
        taps = folded(latent)
    assert calls.counts["softmax"] == 10  # only the collected cross-attentions are explicit
    assert calls.counts["scaled_dot_product_attention"] == 16 + 6
    for got, want in zip(taps, unet(latent, context), strict=True):
        close(got, want)


def test_folded_unet_shares_its_weights_and_lacks_the_folded_ones(unet):
    folded = FoldedUNet(unet, tensors((1, TOKENS, 64))[0])
    own = {name: tensor.data_ptr() for name, tensor in unet.state_dict().items()}
    new = {name: tensor for name, tensor in folded.state_dict().items() if own.get(name) != tensor.data_ptr()}
    resnets = {name for name in own if name.endswith("time_emb_proj.bias")}
    assert {name for name in new if name.endswith("conv1.bias")} == {name.replace("time_emb_proj", "conv1") for name in resnets}
    assert all(name.endswith(("conv1.bias", "attn2.key", "attn2.value")) for name in new) and len(new) == 22 + 32
    gone = own.keys() - folded.state_dict().keys()
    assert all(name.startswith("time_embedding.") or "time_emb_proj" in name or "attn2.to_k" in name or "attn2.to_v" in name for name in gone)
    assert len(gone) == 4 + 44 + 32


def test_one_token_context_folds_to_one_vector_a_layer():
    network = TapUNet(TINY, collect_maps=False)
    randomise(network, 6)
    latent, context = tensors((2, 4, 32, 32), (1, 1, 64))
    folded = FoldedUNet(network, context).eval()
    assert folded.folded["cross_attention_vector"] == 16 and "cross_attention_kv_pair" not in folded.folded
    assert not any("attn2.to_q" in name or (".norm2.weight" in name and "transformer" in name) for name in folded.state_dict())
    for got, want in zip(folded(latent), network(latent, context), strict=True):
        close(got, want)


@pytest.mark.parametrize("divisor", [1.0, 5.07543])
def test_folded_vae_is_the_unfolded_one(vae, divisor):
    folded = FoldedVAE(vae, divisor).eval()
    assert folded.folded == {"log_variance_row": 4} | ({"latent_divisor": 1} if divisor != 1 else {})
    assert folded.quant_conv.weight.shape == (4, 8, 1, 1)
    (image,) = tensors((2, 3, 64, 64))
    with Calls() as calls:
        latent = folded(image)
    assert calls.counts["scaled_dot_product_attention"] == 1 and calls.counts["softmax"] == 0
    close(latent, vae(image) / divisor)


@pytest.mark.parametrize("conv", [nn.Conv2d(5, 7, 3, padding=1), nn.ConvTranspose2d(5, 7, 2, stride=2, bias=False)])
def test_batch_norm_folds_into_either_convolution(conv):
    norm = nn.BatchNorm2d(7)
    block = nn.Sequential(conv, norm)
    randomise(block, 1)
    (x,) = tensors((2, 5, 6, 6))
    want = block.double()(x.double())
    block.float()
    close(with_batch_norm(conv, norm)(x).double(), want, 1e-6)


def test_reweighted_takes_tensors_as_they_are():
    conv = nn.Conv2d(3, 4, 3, padding=1, stride=2)
    new = reweighted(conv, conv.weight, torch.zeros(4))
    assert new.weight.data_ptr() == conv.weight.data_ptr()
    (x,) = tensors((1, 3, 8, 8))
    torch.testing.assert_close(new(x), F.conv2d(x, conv.weight, stride=2, padding=1))


@pytest.mark.parametrize("bad", [{"unet_channels": (16, 32, 64)}, {"unet_groups": 7}, {"heads": 3}, {"vae_groups": 48}])
def test_impossible_widths_are_refused(bad):
    with pytest.raises(ValueError, match=r"wanted|divide"):
        BackboneConfig(**bad)
