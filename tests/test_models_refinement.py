"""IMAFR, aggregation and decoder against NumPy in float64, written out by hand."""

import numpy as np
import pytest
import torch

from fathom.models.diffusion.depth_decoder import Decoder, DecoderConfig, FoldedDecoder, depth_head, double
from fathom.models.diffusion.refinement import Aggregation, Refinement
from fathom.models.random_init import randomise

CHANNELS = (16, 24, 40, 32)


def conv(x, weight, bias, stride=1):
    pad = weight.shape[-1] // 2
    x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    windows = np.lib.stride_tricks.sliding_window_view(x, weight.shape[-2:], axis=(2, 3))[:, :, ::stride, ::stride]
    return np.einsum("bchwij,ocij->bohw", windows, weight, optimize=True) + bias[:, None, None]


def group_norm(x, groups, weight, bias):
    split = x.reshape(len(x), groups, -1)
    normed = (split - split.mean(2, keepdims=True)) / np.sqrt(split.var(2, keepdims=True) + 1e-5)
    return normed.reshape(x.shape) * weight[:, None, None] + bias[:, None, None]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def relu(x):
    return np.maximum(x, 0)


def double_nearest(x):
    return x.repeat(2, axis=2).repeat(2, axis=3)


def numbers(module):
    return {name: tensor.double().numpy() for name, tensor in module.state_dict().items()}


def refine_by_hand(w, taps, groups):
    def part(layer, name):
        return w[f"{layer}.{name}.weight"], w[f"{layer}.{name}.bias"]

    def merge(layer, finer, tap):
        return relu(group_norm(conv(np.concatenate([finer, tap], 1), *part(layer, "conv1.0")), groups, *part(layer, "conv1.1")))

    def down(layer, x):
        x = x * sigmoid(conv(x, *part(layer, "spatial_attention.0")))
        gate = relu(conv(x.mean((2, 3), keepdims=True), *part(layer, "channel_attention.1")))
        x = x * sigmoid(conv(gate, *part(layer, "channel_attention.3")))
        x = relu(group_norm(conv(x, *part(layer, "conv1")), groups, *part(layer, "group_norm")))
        return relu(group_norm(conv(x, *part(layer, "conv2"), stride=2), groups, *part(layer, "group_norm")))  # the same norm again

    f64, f32, f16, f8 = taps
    f64 = f64 * sigmoid(conv(f64, *part("layer1", "spatial_attention.0")))
    f64 = relu(group_norm(conv(f64, *part("layer1", "conv1")), groups, *part("layer1", "group_norm")))
    f32 = merge("layer3", down("layer2", f64), f32)
    f16 = merge("layer5", down("layer4", f32), f16)
    return f64, f32, f16, merge("layer7", down("layer6", f16), f8)


@pytest.fixture(scope="module")
def taps():
    rng = np.random.default_rng(0)
    return [rng.standard_normal((2, c, 16 >> i, 16 >> i)) for i, c in enumerate(CHANNELS)]


def torched(arrays):
    return [torch.from_numpy(array).float() for array in arrays]


def test_refinement_is_the_one_written_out(taps):
    module = Refinement(CHANNELS, 4)
    randomise(module, 1)
    for got, want in zip(module(*torched(taps)), refine_by_hand(numbers(module), taps, 4), strict=True):
        np.testing.assert_allclose(got.numpy(), want, atol=2e-5)


def test_aggregation_is_the_one_written_out(taps):
    module = Aggregation(CHANNELS, 32, 8)
    randomise(module, 2)
    w = numbers(module)
    f64, f32, f16, f8 = taps
    first = relu(group_norm(conv(f64, w["layer1.0.weight"], w["layer1.0.bias"], 2), 8, w["layer1.1.weight"], w["layer1.1.bias"]))
    first = conv(first, w["layer1.3.weight"], w["layer1.3.bias"], 2)
    second = conv(f32, w["layer2.0.weight"], w["layer2.0.bias"], 2)
    joined = np.concatenate([first, second, f16, double_nearest(f8)], 1)
    want = relu(group_norm(conv(joined, w["out_layer.0.weight"], w["out_layer.0.bias"]), 8, w["out_layer.1.weight"], w["out_layer.1.bias"]))
    np.testing.assert_allclose(module(*torched(taps)).numpy(), want, atol=2e-5)


def test_published_parameter_counts():
    with torch.device("meta"):
        refinement = Refinement((320, 680, 1320, 1280), 20)
        aggregation = Aggregation((320, 680, 1320, 1280), 1536, 16)
    layers = [sum(p.numel() for p in layer.parameters()) for layer in refinement.children()]
    assert layers == [922_881, 718_121, 573_240, 3_239_606, 2_195_160, 12_202_246, 2_487_040]
    assert sum(layers) == 22_338_294
    assert round(sum(p.numel() for p in aggregation.parameters()) / 1e6, 2) == 11.54


@pytest.mark.parametrize(("channels", "groups"), [((16, 24, 40, 32), 5), ((16, 24, 42, 32), 2), ((12, 24, 40, 32), 4)])
def test_widths_that_do_not_divide_are_refused(channels, groups):
    with pytest.raises(ValueError, match="do not divide"):
        Refinement(channels, groups)


def bilinear_double(x):
    """Half-pixel centres, edges clamped."""
    place = np.clip((np.arange(2 * x.shape[-1]) + 0.5) / 2 - 0.5, 0, x.shape[-1] - 1)
    low = np.floor(place).astype(int)
    high, part = np.minimum(low + 1, x.shape[-1] - 1), place - np.floor(place)
    along = lambda v: v[..., low] * (1 - part) + v[..., high] * part  # noqa: E731
    return along(along(x).swapaxes(-1, -2)).swapaxes(-1, -2)


def test_decoder_and_its_folded_form_are_the_one_written_out():
    config = DecoderConfig(6, (4, 4, 4), 5)
    decoder, head = Decoder(config), depth_head(5)
    randomise(decoder, 3)
    randomise(head, 4)
    w, h = numbers(decoder), numbers(head)

    def norm(x, name):
        mean, var, weight, bias = (w[f"{name}.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias"))
        return relu((x - mean) / np.sqrt(var + 1e-5) * weight + bias)

    def deconv(x, weight):
        spread = np.einsum("bchw,coij->bohiwj", x, weight)
        return spread.reshape(len(x), weight.shape[1], 2 * x.shape[2], 2 * x.shape[3])

    features = np.random.default_rng(1).standard_normal((2, 6, 3, 3))
    x1 = norm(deconv(features, w["deconv_layers.0.weight"]), "deconv_layers.1")
    x2 = norm(deconv(x1, w["deconv_layers.3.weight"]), "deconv_layers.4")
    x3 = norm(deconv(x2, w["deconv_layers.6.weight"]), "deconv_layers.7")
    x4 = bilinear_double(norm(conv(x3, w["conv_layers.0.weight"], w["conv_layers.0.bias"]), "conv_layers.1"))
    raw = conv(relu(conv(bilinear_double(x4), h["0.weight"], h["0.bias"])), h["2.weight"], h["2.bias"])
    (given,) = torched([features])
    levels = decoder(given)
    folded = FoldedDecoder(decoder, head).eval()
    assert folded.folded == {"batch_norm": 4}
    for got, want in zip((*levels, head(double(levels[-1]))), (x1, x2, x3, x4, raw), strict=True):
        np.testing.assert_allclose(got.numpy(), want, atol=1e-5)
    for got, want in zip(folded(given), (x1, x2, x3, x4, raw), strict=True):
        np.testing.assert_allclose(got.numpy(), want, atol=1e-5)
