"""The metric-bins head against its formulas in NumPy float64, and the export form's memory."""

import copy
from collections import Counter

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fathom.models.diffusion.depth_decoder import double
from fathom.models.diffusion.metric_bins import BIN_COUNT, BinsConfig, FlatLogBinomial, LogBinomial, MetricBins, MetricBinsExport, RelativeDepth
from fathom.models.random_init import randomise

CONFIG = BinsConfig(12, 10, 6, (16, 8, 4, 1), (5, 5, 5, 9))
SIDE = 3
FAR = 10.0


@pytest.fixture(scope="module")
def bins():
    module = MetricBins(CONFIG, FAR)
    randomise(module, 1)
    module.seed_bin_regressor._net[2].bias.copy_(torch.linspace(0.1, 1, BIN_COUNT) * FAR)
    transform = module.conditional_log_binomial.log_binomial_transform
    transform.k_idx.copy_(torch.arange(BIN_COUNT).view(1, -1, 1, 1))
    transform.K_minus_1.fill_(BIN_COUNT - 1)
    last = module.conditional_log_binomial.mlp[2]
    last.weight.mul_(4)
    last.bias.copy_(torch.tensor([0.0, 0.0, -3.0, 3.0]))
    return module


@pytest.fixture(scope="module")
def inputs():
    generator = torch.Generator().manual_seed(2)
    shapes = [(2, 12, SIDE, SIDE), *((2, c, SIDE << i, SIDE << i) for i, c in enumerate(CONFIG.level_channels, 1)), (2, 1, SIDE << 5, SIDE << 5)]
    return [torch.randn(shape, generator=generator) for shape in shapes]


def softplus(x):
    return np.logaddexp(x, 0)


def up(x, size):
    """Bilinear, corners aligned."""
    place = np.linspace(0, x.shape[-1] - 1, size)
    low = np.minimum(np.floor(place).astype(int), x.shape[-1] - 2)
    part = place - low
    along = lambda v: v[..., low] * (1 - part) + v[..., low + 1] * part  # noqa: E731
    return along(along(x).swapaxes(-1, -2)).swapaxes(-1, -2)


def double_up(x):
    place = np.clip((np.arange(2 * x.shape[-1]) + 0.5) / 2 - 0.5, 0, x.shape[-1] - 1)
    low = np.minimum(np.floor(place).astype(int), x.shape[-1] - 2)
    part = place - low
    along = lambda v: v[..., low] * (1 - part) + v[..., low + 1] * part  # noqa: E731
    return along(along(x).swapaxes(-1, -2)).swapaxes(-1, -2)


def conv(x, weight, bias):
    pad = weight.shape[-1] // 2
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad))), weight.shape[-2:], axis=(2, 3))
    return np.einsum("bchwij,ocij->bohw", windows, weight, optimize=True) + bias[:, None, None]


def log_binomial_by_hand(p, temperature):
    """Probabilities [B, 64, H, W] by the formulas of the published code, in float64."""
    k = np.arange(64.0).reshape(1, -1, 1, 1)
    n1, k1 = 63 + 1e-7, k + 1e-7
    stirling = n1 * np.log(n1) - k1 * np.log(k1) - (n1 - k1) * np.log(n1 - k1 + 1e-7)
    logits = stirling + k * np.log(np.clip(p, 1e-4, 1)) + (63 - k) * np.log(np.clip(1 - p, 1e-4, 1))
    logits = logits / temperature
    weights = np.exp(logits - logits.max(1, keepdims=True))
    return weights / weights.sum(1, keepdims=True)


def depth_by_hand(module, inputs):
    w = {name: tensor.double().numpy() for name, tensor in module.state_dict().items()}
    features, *levels, raw = (tensor.double().numpy() for tensor in inputs)

    def pointwise(name, x, act=lambda v: np.maximum(v, 0), net="._net"):
        x = act(conv(x, w[f"{name}{net}.0.weight"], w[f"{name}{net}.0.bias"]))
        return conv(x, w[f"{name}{net}.2.weight"], w[f"{name}{net}.2.bias"])

    def gelu(v):
        return v * 0.5 * (1 + torch.erf(torch.from_numpy(v / np.sqrt(2))).numpy())

    x = pointwise("bottle_neck", features, net="")
    centers, embedding = softplus(pointwise("seed_bin_regressor", x)), pointwise("seed_projector", x)
    for i, level in enumerate(levels):
        size = level.shape[-1]
        new = pointwise(f"projectors.{i}", level)
        pulls = softplus(pointwise(f"attractors.{i}", new + up(embedding, size)))
        before, embedding = up(centers, size), new
        distance = pulls[:, :, None] - before[:, None]
        centers = before + (distance / (1 + 300 * distance**2)).mean(1)
    size = raw.shape[-1]
    relative = FAR / (1 + np.exp(-raw))
    joined = np.concatenate([double_up(levels[-1]), relative, up(embedding, size)], 1)
    p0, p1, t0, t1 = np.split(softplus(pointwise("conditional_log_binomial", joined, gelu, ".mlp")), 4, axis=1)
    p, tau = (p0 + 1e-4) / (p0 + p1 + 2e-4), (t0 + 1e-4) / (t0 + t1 + 2e-4)
    probabilities = log_binomial_by_hand(p, (50 - 0.0212) * tau + 0.0212)
    return (probabilities * up(centers, size)).sum(1, keepdims=True)


def test_both_forms_give_the_depth_of_the_formulas(bins, inputs):
    want = depth_by_hand(bins, inputs)
    assert want.std() > 0.3  # the truth is not a flat map
    for dtype, tolerance in ((torch.float64, 3e-5), (torch.float32, 2e-4)):  # the constants S(63, k) are FP32 in both
        module = copy.deepcopy(bins).to(dtype)
        features, *levels, raw = given = [tensor.to(dtype) for tensor in inputs]
        np.testing.assert_allclose(module(features, tuple(levels), double(levels[-1]), raw).numpy(), want, rtol=tolerance)
        np.testing.assert_allclose(MetricBinsExport(module).eval()(*given).numpy(), want, rtol=tolerance)


def test_published_parameter_count():
    with torch.device("meta"):
        module = MetricBins(BinsConfig(), FAR)
    assert round(sum(p.numel() for p in module.parameters()) / 1e6, 2) == 4.49
    assert BinsConfig().hidden == 160


@pytest.mark.parametrize("p", [0.0, 1e-5, 1e-4, 0.3, 0.5, 0.9999, 1.0])
@pytest.mark.parametrize("temperature", [0.0212, 1.0, 50.0])
def test_log_binomial_holds_at_its_extremes(p, temperature):
    want = log_binomial_by_hand(np.full((1, 1, 1, 1), float(np.float32(p))), temperature)
    got = LogBinomial()(torch.full((1, 1, 1, 1), p), torch.full((1, 1, 1, 1), temperature))
    np.testing.assert_allclose(got.numpy(), want, atol=1e-3 if temperature < 1 else 1e-5)


@pytest.mark.parametrize("scale", [1.0, 30.0, 1000.0])
def test_flat_log_binomial_is_the_plain_one(scale):
    raw = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(3)) * scale
    positive = torch.nn.functional.softplus(raw.double()).numpy()
    p0, p1, t0, t1 = np.split(positive, 4, axis=1)
    temperature = (50 - 0.0212) * (t0 + 1e-4) / (t0 + t1 + 2e-4) + 0.0212
    want = log_binomial_by_hand((p0 + 1e-4) / (p0 + p1 + 2e-4), temperature)
    got = FlatLogBinomial(LogBinomial()).eval()(raw)
    assert got.isfinite().all()
    np.testing.assert_allclose(got.numpy(), want, atol=2e-3)  # FP32 at temperatures down to 0.02
    np.testing.assert_allclose(got.sum(1).numpy(), 1, atol=1e-5)


def test_relative_depth_and_its_range():
    got = RelativeDepth(80.0)(torch.tensor([-200.0, 0.0, 200.0]))
    assert got.tolist() == [0.0, 40.0, 80.0]


class Made(TorchDispatchMode):
    """Counts the tensors that operators make, by shape; views are not made."""

    def __init__(self):
        super().__init__()
        self.shapes = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        known = {a.untyped_storage().data_ptr() for a in args if isinstance(a, torch.Tensor)}
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in known:
                self.shapes[tuple(tensor.shape)] += 1
        return out


def test_export_form_makes_no_wide_tensor_and_few_of_64_bins(bins, inputs):
    features, *levels, raw = inputs
    full = raw.shape[-2:]
    out = double(levels[-1])
    with torch.no_grad():
        with Made() as literal:
            bins(features, tuple(levels), out, raw)
        module = MetricBinsExport(bins).eval()
        with Made() as export:
            module(*inputs)

    def count(made, channels):
        return made.shapes[(2, channels, *full)]

    wide = CONFIG.level_channels[-1] + 1 + CONFIG.embedding
    assert count(literal, wide) >= 1 and count(export, wide) == 0  # the concatenation
    assert count(export, CONFIG.level_channels[-1] + 1) == 0 and count(export, CONFIG.level_channels[-1]) == 0
    assert count(export, CONFIG.embedding) == 0  # the embedding at full size
    assert count(literal, 64) == 8
    assert count(export, 64) == 6  # log-odds term, its sum, over T, softmax, centres, product
    greatest = max(np.prod(shape) for shape in export.shapes)
    assert greatest == 2 * 64 * full[0] * full[1]


def test_export_form_shares_its_weights(bins):
    module = MetricBinsExport(bins)
    own = {tensor.data_ptr() for tensor in bins.state_dict().values()}
    new = [name for name, tensor in module.state_dict().items() if tensor.data_ptr() not in own]
    wanted = {"hidden_of_map.weight", "hidden_of_embedding.weight", "hidden_of_relative", "log_binomial.numbers", "log_binomial.coefficients"}
    assert set(new) == wanted


def test_fp32_islands_hold_arithmetic_only(bins):
    from fathom.models.diffusion.evp import FP32_ISLANDS

    module = MetricBinsExport(bins)
    for island in FP32_ISLANDS:
        part = module.get_submodule(island)
        assert not list(part.parameters())
