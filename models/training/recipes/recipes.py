"""How each network is trained: the constants of its paper, and of this project's small versions of it, which start from nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from ..data.augmentation import Augmentation

SCHEDULES = ("cosine", "ramp", "constant", "steps", "poly")


@dataclass(frozen=True)
class Recipe:
    """One way to train.

    Args:
        source: where the constants come from.
        loss: ``silog``, ``ssi``, ``l1_and_rmse``, ``moa`` or, for words and masks, ``cross_entropy``.
        rate, least_rate: highest and lowest learning rate.
        schedule: ``cosine`` (after a linear warm-up), ``ramp`` (up as share^0.9 for the first half, down again), ``constant``,
            ``steps`` (a tenth every 20 of 50 epochs) or ``poly`` (power 0.9 down to the lowest).
        warmup: share of all steps.
        decay: AdamW's weight decay; biases, norms and other vectors have none.
        batch: pictures per step and process.
        epochs: passes over the data, where no number of steps is given.
        trained: regular expressions; a parameter learns if the start of its name matches one, all others stay frozen and in eval mode.
        slow: regular expressions of those that learn at ``slow_factor`` of the rate.
        clip: largest norm of the gradient, or 0.
        geometry: of ``training_data.Examples``.
        augmentation: what is done to the pictures.
        autocast: products and convolutions in bfloat16 while learning; weights, norms and the loss stay FP32.
        hint: places in the backbone say their depth while they learn (``depth_hint``), for backbones that start from nothing.
        hint_alone: up to which share of all steps only the backbone is computed, and only the hint learned: its steps are the cheapest.
        phases: for networks that take any window: up to which share of all steps, the window's width, and how many feature cells a side
            are decoded (0: all), as ((0.6, 160, 3), (1.0, 224, 0)); empty: the network's own window, all of it.
        sentences: for networks that are asked in words, about each picture of a batch.
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
    autocast: bool = False
    hint: bool = False
    hint_alone: float = 0.0
    phases: tuple[tuple[float, int, int], ...] = ()
    sentences: int = 1

    def __post_init__(self):
        if self.schedule not in SCHEDULES:
            raise ValueError(f"unknown schedule {self.schedule!r}, wanted one of {', '.join(SCHEDULES)}")
        if not 0 <= self.least_rate <= self.rate or self.rate == 0 or not 0 <= self.warmup < 1 or min(self.batch, self.epochs, self.sentences) < 1:
            raise ValueError(f"positive rates, sizes and a warm-up below 1 were wanted, got {self}")
        if not 0 <= self.hint_alone < 1 or (self.hint_alone and not self.hint):
            raise ValueError(f"hint_alone must be a share below 1, of a recipe with hints, got {self.hint_alone}")
        shares = [share for share, _, _ in self.phases]
        if shares != sorted(set(shares)) or (shares and (shares[0] <= 0 or shares[-1] != 1)):
            raise ValueError(f"growing shares that end with 1 were wanted, got {self.phases}")

    def phase_at(self, share: float) -> tuple[int, int]:
        """The window's side after ``share`` (0 to below 1) of all steps, 0 for the network's own, and the cells that are decoded."""
        return next(((side, cells) for end, side, cells in self.phases if share < end), (0, 0))

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


LIGHT = Augmentation(cut_depth=0.0)
TINY_PHASES = ((0.86, 96, 2), (0.97, 160, 2), (1.0, 160, 0))
TINY_SOURCE = "this project: from nothing, so nothing is slowed down; smaller windows and parts of the decoder first, the last steps as it is used"
FROM_NOTHING = Recipe(
    source=TINY_SOURCE,
    loss="silog",
    rate=1e-3,
    least_rate=1e-5,
    schedule="cosine",
    warmup=0.03,
    decay=0.05,
    batch=16,
    epochs=2,
    clip=1.0,
    geometry="protocol",
    augmentation=LIGHT,
)
TINY_DIFFUSION = replace(FROM_NOTHING, epochs=3, hint=True, phases=TINY_PHASES)
VPD_LEARNS = (r"unet\.", r"text\.", r"aggregation\.", r"decoder\.", r"depth_head\.")
MOA = Recipe(
    source="MoA-DepthCLIP (arXiv 2604.01118), section 4: CLIP frozen but for its last four blocks, constant rate",
    loss="moa",
    rate=1e-5,
    least_rate=1e-5,
    schedule="constant",
    warmup=0.0,
    decay=1e-4,
    batch=8,
    epochs=30,
    trained=(r"adapters\.", r"classification\.", r"regression\.", r"visual\.transformer\.resblocks\.(8|9|10|11)\."),
    geometry="protocol",
    augmentation=LIGHT,
)
LLM_MDE = Recipe(
    source="LLM-MDE (arXiv 2409.01133), published arguments: low-rank adapters on the frozen ViT, BERT frozen but for queries, keys and values",
    loss="ssi",
    rate=1e-4,
    least_rate=1e-5,
    schedule="poly",
    warmup=0.0,
    decay=0.01,
    batch=32,
    epochs=50,
    trained=(
        r"vit\.blocks\.\d+\.attn\.qkv\.linear_",
        r"prototypes\.",
        r"reprogramming\.",
        r"l2d\.",
        r"head\.",
        r"llm\.encoder\.layer\.\d+\.attention\.self\.",
    ),
    geometry="protocol",
)
BINS = Recipe(
    source="DepthBLIP-2, few-shot adaptive bins: only the seven depths learn (published: 16 pictures, see --shots)",
    loss="l1_and_rmse",
    rate=1e-3,
    least_rate=0.0,
    schedule="steps",
    warmup=0.0,
    decay=0.01,
    batch=16,
    epochs=50,
    geometry="protocol",
    augmentation=LIGHT,
)

RECIPES: dict[str, Recipe] = {
    "evp": Recipe(
        source="EVP (arXiv 2312.08548), published NYU settings: the backbone learns at a hundredth of the rate",
        loss="silog",
        rate=2e-4,
        least_rate=3e-5,
        schedule="cosine",
        warmup=1 / 15,
        decay=0.1,
        batch=2,
        epochs=15,
        slow=(r"unet\.", r"vae\."),
    ),
    "evp-tiny": TINY_DIFFUSION,
    "evp-refer": Recipe(
        source="EVP for referring segmentation (arXiv 2312.08548), published RefCOCO settings: backbone and text learn at a hundredth of the rate",
        loss="cross_entropy",
        rate=8e-5,
        least_rate=1e-7,
        schedule="cosine",
        warmup=1 / 20,
        decay=0.01,
        batch=3,
        epochs=20,
        slow=(r"unet\.", r"vae\.", r"text\.clip\."),
        geometry="protocol",
        augmentation=Augmentation(flip=0.0, colour=0.0, cut_depth=0.0),
    ),
    "evp-refer-tiny": replace(TINY_DIFFUSION, loss="cross_entropy", batch=8, epochs=1, phases=((0.75, 64, 0), (1.0, 128, 0)), sentences=6),
    "vpd": Recipe(
        source="VPD (arXiv 2303.02153), published NYU settings: the U-Net learns at a hundredth of the rate, the VAE not at all",
        loss="silog",
        rate=5e-4,
        least_rate=3e-5,
        schedule="ramp",
        warmup=0.0,
        decay=0.1,
        batch=3,
        epochs=25,
        trained=VPD_LEARNS,
        slow=(r"unet\.",),
    ),
    "vpd-tiny": TINY_DIFFUSION,
    "moa-depthclip": MOA,
    "moa-depthclip-tiny": replace(
        MOA, source="this project: MoA-DepthCLIP's losses, from nothing", rate=1e-3, least_rate=1e-5, schedule="cosine", warmup=0.03, clip=1.0, trained=(".",)
    ),
    "llm-mde": LLM_MDE,
    "llm-mde-tiny": replace(
        LLM_MDE,
        source="this project: LLM-MDE's loss, from nothing: first the ViT alone, then all, the head ten times as fast as what it listens to",
        rate=1e-2,
        schedule="cosine",
        warmup=0.02,
        batch=16,
        epochs=20,
        clip=1.0,
        trained=(".",),
        slow=(r"(?!head\.)",),
        slow_factor=0.1,
        augmentation=LIGHT,
        autocast=True,
        hint=True,
        hint_alone=0.8,
    ),
    "depthclip-tiny": replace(
        FROM_NOTHING,
        source="this project: DepthCLIP's published formula from seven words to depth, and behind it everything learns (published: zero-shot, nothing does)",
        rate=3e-3,
        decay=1e-4,
        slow=(r"text_features",),  # a step of theirs is a thousand times as large in the logits
    ),
    "depthblip2": BINS,
    "depthblip2-tiny": replace(
        FROM_NOTHING,
        source="this project: DepthBLIP-2's published formula from seven prompts to depth, and behind it everything learns (published: at most the bins do)",
        warmup=0.05,
        decay=0.01,
        epochs=10,
        hint=True,
        hint_alone=0.5,
        trained=(r"image_encoder\.", r"qformer\.(?!former\.encoder\.layer\.2\.(intermediate|output)\.)"),  # nobody looks at the words of the last layer
    ),
}
