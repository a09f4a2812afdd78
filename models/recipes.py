"""How each network is trained: the constants of its paper, and of this project's small versions of it, which start from nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from .augmentation import Augmentation

SCHEDULES = ("cosine", "ramp", "constant", "steps", "poly")


@dataclass(frozen=True)
class Recipe:
    """One way to train.

    Args:
        source: where the constants come from.
        loss: ``silog``, ``ssi``, ``l1_and_rmse`` or ``moa``.
        rate, least_rate: highest and lowest learning rate.
        schedule: ``cosine`` (after a linear warm-up), ``ramp`` (up as share^0.9 for the first half, down again), ``constant``,
            ``steps`` (a tenth every 20 of 50 epochs) or ``poly`` (power 0.9 down to the lowest).
        warmup: share of all steps.
        decay: AdamW's weight decay; biases, norms and other vectors have none.
        batch: pictures per step and process.
        epochs: passes over the data, where no number of steps is given.
        trained: names of parameters that learn start with one of these; all others stay frozen and in eval mode.
        slow: names of parameters that learn at ``slow_factor`` of the rate start with one of these.
        clip: largest norm of the gradient, or 0.
        geometry: of ``training_data.Examples``.
        augmentation: what is done to the pictures.
        windows: side of the window up to a share of all steps, for networks that take any: ((0.8, 96), (1.0, 224)); empty: its own.
    """

    source: str
    loss: str
    rate: float
    least_rate: float
    schedule: str
    warmup: float
    decay: float
    batch: int
    epochs: int
    trained: tuple[str, ...] = ("",)
    slow: tuple[str, ...] = ()
    slow_factor: float = 0.01
    clip: float = 0.0
    geometry: str = "window"
    augmentation: Augmentation = field(default_factory=Augmentation)
    windows: tuple[tuple[float, int], ...] = ()

    def __post_init__(self):
        if self.schedule not in SCHEDULES:
            raise ValueError(f"unknown schedule {self.schedule!r}, wanted one of {', '.join(SCHEDULES)}")
        if not 0 <= self.least_rate <= self.rate or self.rate == 0 or not 0 <= self.warmup < 1 or min(self.batch, self.epochs) < 1:
            raise ValueError(f"positive rates, sizes and a warm-up below 1 were wanted, got {self}")
        shares = [share for share, _ in self.windows]
        if shares != sorted(set(shares)) or (shares and (shares[0] <= 0 or shares[-1] != 1)):
            raise ValueError(f"growing shares that end with 1 were wanted, got {self.windows}")

    def window_at(self, share: float) -> int | None:
        """The window's side after ``share`` (0 to below 1) of all steps, or None for the network's own."""
        return next((side for end, side in self.windows if share < end), None)

    def rate_at(self, share: float) -> float:
        """The learning rate after ``share`` (0 to 1) of all steps."""
        span = self.rate - self.least_rate
        if share < self.warmup:
            return self.least_rate + span * share / self.warmup
        if self.schedule == "cosine":
            return self.least_rate + span * (1 + math.cos(math.pi * (share - self.warmup) / (1 - self.warmup))) / 2
        if self.schedule == "ramp":
            return self.least_rate + span * max(0.0, min(2 * share, 2 - 2 * share)) ** 0.9
        if self.schedule == "steps":
            return self.rate * 0.1 ** int(share * 50 / 20)
        if self.schedule == "poly":
            return self.least_rate + span * (1 - share) ** 0.9
        return self.rate


DIFFUSION_SLOW = ("unet.", "vae.")
LIGHT = Augmentation(cut_depth=0.0)
TINY_SCALE = ((0.8, 96), (0.93, 160), (1.0, 224))
TINY_SOURCE = "this project: from nothing, so nothing is slowed down; small windows first, the last steps at full size"

RECIPES: dict[str, Recipe] = {
    "evp": Recipe(
        source="EVP (arXiv 2312.08548), published NYU settings; the latent divisor, the text and the window are the variant's",
        loss="silog",
        rate=2e-4,
        least_rate=3e-5,
        schedule="cosine",
        warmup=1 / 15,
        decay=0.1,
        batch=2,
        epochs=15,
        slow=DIFFUSION_SLOW,
    ),
    "vpd": Recipe(
        source="VPD (arXiv 2303.02153), published NYU settings",
        loss="silog",
        rate=5e-4,
        least_rate=3e-5,
        schedule="ramp",
        warmup=0.0,
        decay=0.1,
        batch=3,
        epochs=25,
        slow=("unet.",),
    ),
    "evp-tiny": Recipe(
        source=TINY_SOURCE,
        loss="silog",
        rate=1e-3,
        least_rate=2e-5,
        schedule="cosine",
        warmup=0.03,
        decay=0.01,
        batch=4,
        epochs=2,
        clip=1.0,
        geometry="protocol",
        augmentation=LIGHT,
        windows=TINY_SCALE,
    ),
}
