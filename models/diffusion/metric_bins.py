"""EVP's metric-bins head: adaptive bin centres pulled by attractors, and a conditional log-binomial over them.

Source: the published code's use of ZoeDepth's head (its "softplus" flavour). The attractor strength is ``ALPHA`` = 300: the published
config says 1000, but the call leaves that argument out, and 300 is what the weights were trained with. Bin centres are neither
bounded nor sorted, and the depth is not clamped: it can exceed ``max_depth``.

``MetricBins`` is the published arithmetic, step by step, and holds the weights; ``MetricBinsExport`` is the same arranged for memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ALPHA = 300.0
BIN_COUNT = 64
PROBABILITY_FLOOR = 1e-4
TEMPERATURES = (0.0212, 50.0)
STIRLING_EPS = 1e-7


@dataclass(frozen=True)
class BinsConfig:
    """Widths of the head.

    Args:
        in_channels: of the aggregated features.
        width: of the bottleneck.
        embedding: of the bin embeddings.
        attractors: how many pull on each of the four finer levels.
        level_channels: of the decoder's maps x1..x4.
    """

    in_channels: int = 1536
    width: int = 256
    embedding: int = 128
    attractors: tuple[int, int, int, int] = (16, 8, 4, 1)
    level_channels: tuple[int, int, int, int] = (32, 32, 32, 192)

    @property
    def hidden(self) -> int:
        """Width of the log-binomial's hidden layer: half of (features, relative depth, condition)."""
        return (self.level_channels[-1] + 1 + self.embedding) // 2


class PointwiseNet(nn.Module):
    """Two 1x1 convolutions around a ReLU."""

    def __init__(self, in_channels: int, width: int, out_channels: int):
        super().__init__()
        self._net = nn.Sequential(nn.Conv2d(in_channels, width, 1), nn.ReLU(), nn.Conv2d(width, out_channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self._net(x)


class LogBinomial(nn.Module):
    """The two constants that published checkpoints carry: the bin numbers and their maximum."""

    def __init__(self):
        super().__init__()
        self.register_buffer("k_idx", torch.arange(BIN_COUNT).view(1, -1, 1, 1))
        self.register_buffer("K_minus_1", torch.full((1, 1, 1, 1), float(BIN_COUNT - 1)))

    def coefficients(self) -> Tensor:
        """S(K-1, k): Stirling's log binomial coefficients [1, 64, 1, 1]."""
        n, k = self.K_minus_1 + STIRLING_EPS, self.k_idx + STIRLING_EPS
        return n * torch.log(n) - k * torch.log(k) - (n - k) * torch.log(n - k + STIRLING_EPS)

    def forward(self, p: Tensor, temperature: Tensor) -> Tensor:
        """Bin probabilities [B, 64, H, W] of p and temperature [B, 1, H, W]."""
        k = self.k_idx
        success, failure = (torch.log(torch.clamp(q, PROBABILITY_FLOOR, 1.0)) for q in (p, 1 - p))
        logits = self.coefficients() + k * success + (self.K_minus_1 - k) * failure
        return torch.softmax(logits / temperature, dim=1)


class ConditionalLogBinomial(nn.Module):
    """Bin probabilities from features [B, F, H, W] and a condition [B, E, H, W]."""

    def __init__(self, features: int, condition: int, hidden: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Conv2d(features + condition, hidden, 1), nn.GELU(), nn.Conv2d(hidden, 4, 1), nn.Softplus())
        self.log_binomial_transform = LogBinomial()

    def forward(self, features: Tensor, condition: Tensor) -> Tensor:
        p, temperature = shape_parameters(self.mlp(torch.cat([features, condition], dim=1)))
        return self.log_binomial_transform(p, temperature)


def shape_parameters(positive: Tensor) -> tuple[Tensor, Tensor]:
    """Four positive numbers per pixel [B, 4, H, W] to success probability and temperature, [B, 1, H, W] each."""
    p0, p1, t0, t1 = positive.split(1, dim=1)
    low, high = TEMPERATURES
    p = (p0 + PROBABILITY_FLOOR) / (p0 + p1 + 2 * PROBABILITY_FLOOR)
    tau = (t0 + PROBABILITY_FLOOR) / (t0 + t1 + 2 * PROBABILITY_FLOOR)
    return p, (high - low) * tau + low


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear with aligned corners."""
    return F.interpolate(x, size=size, mode="bilinear", align_corners=True)


def corner_double(x: Tensor) -> Tensor:
    """``resize`` to twice the resolution; a fixed factor exports without shape arithmetic."""
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=True)


class MetricBins(nn.Module):
    """Features, decoder maps and raw depth to metres, as published.

    Args:
        config: widths.
        max_depth: metres that the sigmoid of the raw depth is scaled to.
    """

    def __init__(self, config: BinsConfig, max_depth: float):
        super().__init__()
        width, embedding = config.width, config.embedding
        self.max_depth = max_depth
        self.bottle_neck = nn.Sequential(nn.Conv2d(config.in_channels, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1))
        self.seed_bin_regressor = PointwiseNet(width, width, BIN_COUNT)
        self.seed_projector = PointwiseNet(width, embedding, embedding)
        self.projectors = nn.ModuleList([PointwiseNet(channels, embedding, embedding) for channels in config.level_channels])
        self.attractors = nn.ModuleList([PointwiseNet(embedding, embedding, count) for count in config.attractors])
        self.conditional_log_binomial = ConditionalLogBinomial(config.level_channels[-1] + 1, embedding, config.hidden)

    def forward(self, features: Tensor, levels: tuple[Tensor, ...], out: Tensor, raw: Tensor) -> Tensor:
        """Features [B, in, h, w], x1..x4 [2h .. 16h], ``out`` [B, C, 32h, 32w] and raw depth [B, 1, 32h, 32w] to metres like ``raw``."""
        x = self.bottle_neck(features)
        centers = F.softplus(self.seed_bin_regressor(x))  # [B, 64, h, w]
        embedding = self.seed_projector(x)
        for level, projector, attractor in zip(levels, self.projectors, self.attractors, strict=True):
            size = level.shape[-2:]
            previous, embedding = resize(embedding, size), projector(level)
            pulls = F.softplus(attractor(embedding + previous))  # [B, n, h_i, w_i]
            centers = resize(centers, size)
            shift = torch.zeros_like(centers)
            for number in range(pulls.shape[1]):
                distance = pulls[:, number : number + 1] - centers
                shift = shift + distance / (1 + ALPHA * distance**2)
            centers = centers + shift / pulls.shape[1]
        relative = torch.sigmoid(raw) * self.max_depth
        size = raw.shape[-2:]
        probabilities = self.conditional_log_binomial(torch.cat([out, relative], dim=1), resize(embedding, size))
        return (probabilities * resize(centers, size)).sum(dim=1, keepdim=True)


class SoftCenters(nn.Module):
    """Softplus of the seed bin centres."""

    def forward(self, raw: Tensor) -> Tensor:
        return F.softplus(raw)


class Attract(nn.Module):
    """Bin centres [B, 64, h, w] of the coarser level pulled by raw attractors [B, n, 2h, 2w]: the centres of this level."""

    def forward(self, centers: Tensor, raw: Tensor) -> Tensor:
        centers = corner_double(centers)
        distance = F.softplus(raw).unsqueeze(2) - centers.unsqueeze(1)  # [B, n, 64, 2h, 2w]: never larger than the last level's centres
        return centers + (distance / (1 + ALPHA * distance * distance)).mean(dim=1)


class RelativeDepth(nn.Module):
    """Raw depth to (0, max_depth) metres."""

    def __init__(self, max_depth: float):
        super().__init__()
        self.max_depth = max_depth

    def forward(self, raw: Tensor) -> Tensor:
        return torch.sigmoid(raw) * self.max_depth


class FlatLogBinomial(nn.Module):
    """Four raw numbers per pixel to bin probabilities [B, 64, H, W].

    k log p + (63 - k) log(1-p) = k (log p - log(1-p)) + 63 log(1-p), and the softmax over k does not see the last term. What is left
    is one chain of pointwise operations, which engines fuse into the softmax. It is not written as a convolution of two channels,
    which would be one operation less but which GPUs may run in TF32: at T = 0.02 its ten bits of mantissa shift logits by whole units.
    """

    def __init__(self, log_binomial: LogBinomial):
        super().__init__()
        self.register_buffer("numbers", log_binomial.k_idx.to(torch.float32))  # [1, 64, 1, 1]
        self.register_buffer("coefficients", log_binomial.coefficients())  # [1, 64, 1, 1]

    def forward(self, raw: Tensor) -> Tensor:
        p, temperature = shape_parameters(F.softplus(raw))
        log_odds = torch.log(torch.clamp(p, PROBABILITY_FLOOR, 1.0)) - torch.log(torch.clamp(1 - p, PROBABILITY_FLOOR, 1.0))
        return torch.softmax((self.numbers * log_odds + self.coefficients) / temperature, dim=1)


class Expectation(nn.Module):
    """Mean bin centre: probabilities [B, 64, H, W] and centres [B, 64, H/2, W/2] to depth [B, 1, H, W]."""

    def forward(self, probabilities: Tensor, centers: Tensor) -> Tensor:
        return (probabilities * corner_double(centers)).sum(dim=1, keepdim=True)


class MetricBinsExport(nn.Module):
    """``MetricBins`` arranged for memory; needs x4 instead of ``out`` = its doubling. Weights are shared.

    The log-binomial's first 1x1 convolution is split by its inputs. Interpolation and a 1x1 convolution commute, so the parts of x4
    and of the embedding are convolved at half the resolution: neither the concatenation nor ``out`` nor the embedding ever exists at
    full size.
    """

    def __init__(self, bins: MetricBins):
        super().__init__()
        self.bottle_neck, self.seed_bin_regressor, self.seed_projector = bins.bottle_neck, bins.seed_bin_regressor, bins.seed_projector
        self.projectors, self.attractors = bins.projectors, bins.attractors
        self.soft_centers = SoftCenters()
        self.attract = nn.ModuleList([Attract() for _ in bins.attractors])
        self.relative = RelativeDepth(bins.max_depth)
        first, _, last, _ = bins.conditional_log_binomial.mlp
        features = bins.projectors[-1]._net[0].in_channels
        hidden = first.out_channels
        with torch.device("meta"):
            self.hidden_of_map, self.hidden_of_embedding = nn.Conv2d(features, hidden, 1), nn.Conv2d(first.in_channels - features - 1, hidden, 1, bias=False)
        weight = first.weight.detach()
        self.hidden_of_map.weight, self.hidden_of_map.bias = _fixed(weight[:, :features]), _fixed(first.bias.detach())
        self.hidden_of_embedding.weight = _fixed(weight[:, features + 1 :])
        self.register_buffer("hidden_of_relative", weight[:, features].view(1, hidden, 1, 1).contiguous())
        self.to_shape = last
        self.log_binomial = FlatLogBinomial(bins.conditional_log_binomial.log_binomial_transform)
        self.expectation = Expectation()

    def forward(self, conv_feats: Tensor, x1: Tensor, x2: Tensor, x3: Tensor, x4: Tensor, raw: Tensor) -> Tensor:
        x = self.bottle_neck(conv_feats)
        centers = self.soft_centers(self.seed_bin_regressor(x))
        embedding = self.seed_projector(x)
        for level, projector, attractor, attract in zip((x1, x2, x3, x4), self.projectors, self.attractors, self.attract, strict=True):
            previous, embedding = corner_double(embedding), projector(level)
            centers = attract(centers, attractor(embedding + previous))
        hidden = F.interpolate(self.hidden_of_map(x4), scale_factor=2.0, mode="bilinear", align_corners=False)  # [B, hidden, H, W]
        hidden = hidden + corner_double(self.hidden_of_embedding(embedding))
        hidden = hidden + self.hidden_of_relative * self.relative(raw)
        return self.expectation(self.log_binomial(self.to_shape(F.gelu(hidden))), centers)


def _fixed(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.contiguous(), requires_grad=False)
