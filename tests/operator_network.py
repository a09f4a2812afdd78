"""A small depth network with one of each of our operators: a norm with SiLU, attention to a fixed text with its map, and metric bins."""

import torch
import torch.nn.functional as F
from small_network import SmallNetwork
from torch import nn

from fathom.models.diffusion.metric_bins import Attract, Expectation, FlatLogBinomial, LogBinomial, SoftCenters
from fathom.models.network import Stage
from fathom.runtime.artefact.spec import StageSpec, TensorSpec

CHANNELS, HEADS, TOKENS = 16, 2, 7
HEIGHT, WIDTH = 32, 48
OPERATORS = {"encoder": {"GroupNormSilu": 2, "CrossAttention": 1}, "head": {"BinsExpectation": 1}}


class Encoder(nn.Module):
    """Image [B, 3, 32, 48] to latent [B, 16, 16, 24] and the map of its attention [B, 384, 7]."""

    def __init__(self):
        super().__init__()
        self.conv_in, self.conv_mid = nn.Conv2d(3, CHANNELS, 3, 2, 1), nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.norm, self.norm_mid = nn.GroupNorm(4, CHANNELS), nn.GroupNorm(8, CHANNELS)
        self.query = nn.Linear(CHANNELS, CHANNELS)
        self.register_buffer("key", torch.randn(1, HEADS, CHANNELS // HEADS, TOKENS))
        self.register_buffer("value", torch.randn(1, HEADS, TOKENS, CHANNELS // HEADS))

    def forward(self, image):
        x = F.silu(self.norm(self.conv_in(image)))
        query = self.query(x.flatten(2).transpose(1, 2)).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        probabilities = torch.softmax(query @ self.key, dim=-1)
        seen = (probabilities @ self.value).transpose(1, 2).flatten(2).transpose(1, 2).unflatten(2, (HEIGHT // 2, WIDTH // 2))
        return x + F.silu(self.norm_mid(self.conv_mid(x + seen))), probabilities.mean(dim=1)


class Head(nn.Module):
    """Latent [B, 16, 16, 24] and map [B, 384, 7] to depth [B, 1, 32, 48]."""

    def __init__(self):
        super().__init__()
        self.seed, self.pull, self.shape = nn.Conv2d(CHANNELS, 64, 2, 2), nn.Conv2d(CHANNELS + TOKENS, 1, 1), nn.Conv2d(CHANNELS, 4, 1)
        self.soft, self.attract, self.log_binomial, self.expectation = SoftCenters(), Attract(), FlatLogBinomial(LogBinomial()), Expectation()

    def forward(self, latent, attention):
        places = attention.transpose(1, 2).unflatten(2, (HEIGHT // 2, WIDTH // 2))
        centers = self.attract(self.soft(self.seed(latent) + 3), self.pull(torch.cat([latent, places], 1)))
        full = F.interpolate(self.shape(latent), scale_factor=2, mode="nearest")
        return self.expectation(self.log_binomial(full), centers)


class OperatorNetwork(SmallNetwork):
    """Image [B, 3, 32, 48] to depth [B, 1, 32, 48] in two stages."""

    name = "operators"

    def __init__(self, seed=0):
        super().__init__(seed)
        del self.encoder, self.decoder
        self.encoder, self.head = Encoder(), Head()
        self.eval().requires_grad_(False)

    def boundaries(self, inputs):
        latent, attention = self.encoder(inputs["image"])
        return {"latent": latent, "attention": attention, "depth": self.head(latent, attention)}

    def stages(self):
        image = TensorSpec("image", "float32", ("batch", 3, HEIGHT, WIDTH))
        latent = TensorSpec("latent", "float32", ("batch", CHANNELS, HEIGHT // 2, WIDTH // 2))
        attention = TensorSpec("attention", "float32", ("batch", HEIGHT * WIDTH // 4, TOKENS))
        depth = TensorSpec("depth", "float32", ("batch", 1, HEIGHT, WIDTH))
        return (
            Stage(StageSpec("encoder", (image,), (latent, attention)), self.encoder),
            Stage(StageSpec("head", (latent, attention), (depth,)), self.head, ("attract", "log_binomial", "expectation")),
        )
