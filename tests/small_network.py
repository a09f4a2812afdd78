"""A depth network of two stages with one of everything that is hard to export; 6 thousand weights."""

import torch
import torch.nn.functional as F
from torch import nn

from fathom.models.network import DepthNetwork, Stage, WeightsOrigin
from fathom.runtime.artefact.contract import Contract, ImageInput, OutputContract, Protocol, Resize
from fathom.runtime.artefact.spec import StageSpec, TensorSpec

HEIGHT, WIDTH, CHANNELS = 32, 48, 16


class Attention(nn.Module):
    def __init__(self, channels, heads=2):
        super().__init__()
        self.heads, self.norm = heads, nn.LayerNorm(channels)
        self.qkv, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)

    def forward(self, x):
        height, width = x.shape[-2:]
        tokens = self.norm(x.flatten(2).transpose(1, 2))
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(tokens).chunk(3, -1))
        seen = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        return x + self.out(seen).transpose(1, 2).unflatten(2, (height, width))


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv_in, self.norm = nn.Conv2d(3, CHANNELS, 3, 2, 1), nn.GroupNorm(4, CHANNELS)
        self.attn, self.shared = Attention(CHANNELS), nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)

    def forward(self, image):
        x = F.silu(self.norm(self.conv_in(image)))
        return self.shared(self.attn(self.shared(x)))


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.bn, self.logits = nn.ConvTranspose2d(CHANNELS, 8, 4, 2, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 6, 1)
        self.register_buffer("centers", torch.linspace(0.5, 9, 6).view(1, -1, 1, 1))

    def forward(self, latent):
        x = F.gelu(self.bn(self.up(latent)))
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
        return (self.logits(x).softmax(1) * self.centers).sum(1, keepdim=True)


class SmallNetwork(DepthNetwork):
    """Image [B, 3, 32, 48] to latent [B, 16, 16, 24] to depth [B, 1, 64, 96]."""

    name, variant = "small", "test"

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.encoder, self.decoder = Encoder(), Decoder()
        self.decoder.bn.running_mean.normal_()
        self.decoder.bn.running_var.uniform_(0.5, 2)
        protocol = Protocol("single-image", (Resize(HEIGHT, WIDTH, "bilinear"),), (0,), (), False, "a test")
        image = ImageInput("image", (HEIGHT, WIDTH), (HEIGHT, WIDTH), (0.5,) * 3, (0.25,) * 3)
        self.contract = Contract(image, OutputContract("depth", "metric", "m", 0.1, 10.0, "far", "bilinear"), (protocol,))
        self.origin = WeightsOrigin("random-init", warnings=("The weights are random.",))
        self.eval().requires_grad_(False)

    def config_json(self):
        return {"channels": CHANNELS}

    def boundaries(self, inputs):
        latent = self.encoder(inputs["image"])
        return {"latent": latent, "depth": self.decoder(latent)}

    def stages(self):
        image = TensorSpec("image", "float32", ("batch", 3, HEIGHT, WIDTH))
        latent = TensorSpec("latent", "float32", ("batch", CHANNELS, HEIGHT // 2, WIDTH // 2))
        depth = TensorSpec("depth", "float32", ("batch", 1, 2 * HEIGHT, 2 * WIDTH))
        return (
            Stage(StageSpec("encoder", (image,), (latent,)), self.encoder, folded={"nothing": 0}),
            Stage(StageSpec("decoder", (latent,), (depth,)), self.decoder, ("logits",)),
        )
