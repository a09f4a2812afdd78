"""LLM-MDE's way from language tokens to a picture: l2d before the language model, the up-sampling head after it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.nn.utils.fusion import fuse_conv_bn_eval


class LanguageToDepth(nn.Module):
    """x + f2(f1(x)); each f narrows to a quarter and widens again, without bias, a ReLU after each step."""

    def __init__(self, width: int, reduction: int = 4):
        super().__init__()
        self.l2p_l1, self.l2p_l2 = (self._bottleneck(width, width // reduction) for _ in range(2))

    @staticmethod
    def _bottleneck(width: int, narrow: int) -> nn.Sequential:
        return nn.Sequential(nn.Linear(width, narrow, bias=False), nn.ReLU(), nn.Linear(narrow, width, bias=False), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return x + self.l2p_l2(self.l2p_l1(x))


class UpSampleBN(nn.Module):
    """The code is stretched over the skip map (corners on corners), both go through two 3x3 convolutions."""

    def __init__(self, channels_in: int, channels: int):
        super().__init__()
        first = [nn.Conv2d(channels_in, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.LeakyReLU(0.01)]
        second = [nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.LeakyReLU(0.01)]
        self._net = nn.Sequential(*first, *second)

    def forward(self, code: Tensor, skip: Tensor) -> Tensor:
        """[B, 3, s, s], [B, c, H, W] -> [B, channels, H, W]."""
        return self._net(torch.cat([interpolate(code, skip.shape[2:], mode="bilinear", align_corners=True), skip], dim=1))

    def folded(self) -> nn.Module:
        """The same with the norms in the convolutions; the channels of ``_net`` keep their order."""
        other = UpSampleBN.__new__(UpSampleBN)
        nn.Module.__init__(other)
        conv1, norm1, act, conv2, norm2, _ = self._net
        other._net = nn.Sequential(fuse_conv_bn_eval(conv1, norm1), act, fuse_conv_bn_eval(conv2, norm2), act)
        return other.eval().requires_grad_(False)


class LanguageDepthDecoder(nn.Module):
    """Code [B, 3, s, s] and picture [B, 3, H, W] -> logits [B, 1, H, W]; the detail comes from the picture itself."""

    def __init__(self, features: int = 3):
        super().__init__()
        self.up1 = UpSampleBN(features + 3, 4 * features)
        self.up2 = UpSampleBN(5 * features, 8 * features)
        self.up3 = UpSampleBN(9 * features, 12 * features)
        self.conv3 = nn.Conv2d(12 * features, 1, 3, padding=1)

    def forward(self, code: Tensor, picture: Tensor) -> Tensor:
        return self.conv3(self.up3(code, self.up2(code, self.up1(code, picture))))

    def folded(self) -> nn.Module:
        """The same without norms."""
        other = LanguageDepthDecoder.__new__(LanguageDepthDecoder)
        nn.Module.__init__(other)
        other.up1, other.up2, other.up3, other.conv3 = self.up1.folded(), self.up2.folded(), self.up3.folded(), self.conv3
        return other.eval()
