"""One way to train: losses, rates and schedules as the papers say them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from ..data.augmentation import Augmentation

SCHEDULES = ("cosine", "ramp", "constant", "steps", "poly")


@dataclass(frozen=True)
class Recipe:
    """The constants of one training.

    Args:
        source: where the constants come from.
        loss: a key of ``losses.LOSSES``, ``moa`` or, for words and masks, ``cross_entropy``.
        rate, least_rate: highest and lowest learning rate.
        schedule: ``cosine`` (after a linear warm-up), ``ramp`` (up as share^0.9 for the first half, down again), ``constant``,
            ``steps`` (a tenth every 20 of 50 epochs) or ``poly`` (power 0.9 down to the lowest).
        warmup: share of all steps.
        decay: AdamW's weight decay; biases, norms and other vectors have none.
        batch: pictures per step and process.
        epochs: passes over the data, where no number of steps is given.
        trained: regular expressions; a parameter learns if the start of its name matches one, all others stay frozen and in eval mode. Empty:
            the network stays as it is, and only DepthBLIP-2's seven depths are fitted.
        slow: regular expressions of those that learn at ``slow_factor`` of the rate.
        clip: largest norm of the gradient, or 0.
        geometry: of ``training_data.Examples``.
        augmentation: what is done to the pictures.
        precision: ``fp32``, or ``bf16`` or ``fp16`` for products and convolutions; weights, norms and the loss stay FP32.
        patience: with held-back pictures, validations without a better one after which training ends; 0: never.
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
    trained: tuple[str, ...] = (".",)
    slow: tuple[str, ...] = ()
    slow_factor: float = 0.01
    clip: float = 0.0
    geometry: str = "window"
    augmentation: Augmentation = field(default_factory=Augmentation)
    precision: str = "fp32"
    patience: int = 0

    # Defaults of what only ``tiny.TinyRecipe`` has, for networks that start from nothing.
    hint, hint_alone, sentences, edges, whole_every, sides, muon = False, 0.0, 1, 0.0, 0, (0,), False

    def __post_init__(self):
        if self.schedule not in SCHEDULES:
            raise ValueError(f"unknown schedule {self.schedule!r}, wanted one of {', '.join(SCHEDULES)}")
        if not 0 <= self.least_rate <= self.rate or self.rate == 0 or not 0 <= self.warmup < 1 or min(self.batch, self.epochs) < 1:
            raise ValueError(f"positive rates, sizes and a warm-up below 1 were wanted, got {self}")
        if self.precision not in ("fp32", "bf16", "fp16") or self.patience < 0:
            raise ValueError(f"fp32, bf16 or fp16 and a patience from 0 were wanted, got {self.precision!r} and {self.patience}")

    def carried_on(self) -> Recipe:
        """The recipe for a network that starts from weights."""
        return self

    def window_at(self, step: int, steps: int) -> int:
        """The window's side in a step, 0 for the network's own."""
        return 0

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
