"""This project's small networks, which start from nothing: hints along the backbone, smaller windows first, a rate for every part."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .papers import LIGHT, MOA, UNREAD
from .recipe import Recipe


@dataclass(frozen=True)
class TinyRecipe(Recipe):
    """A recipe for a network without any checkpoint to start from.

    Args:
        hint: places in the backbone say their depth while they learn (``depth_hint``).
        hint_alone: up to which share of all steps only the backbone is computed, and only the hint learned: its steps are the cheapest.
        phases: for networks that take any window: up to which share of all steps, and the window's width, as ((0.6, 160), (1.0, 224)); empty:
            the network's own window.
        whole_every: every so many steps one sees the network's own window, whatever the phase; 0: none does.
        sentences: for networks that are asked in words, about each picture of a batch.
        edges: weight of ``losses.log_edges`` beside the loss.
        muon: whether matrices and convolutions learn by ``optimiser.Muon``; all else by AdamW.
    """

    hint: bool = False
    hint_alone: float = 0.0
    phases: tuple[tuple[float, int], ...] = ()
    whole_every: int = 0
    sentences: int = 1
    edges: float = 0.0
    muon: bool = False

    def __post_init__(self):
        super().__post_init__()
        if self.sentences < 1 or self.whole_every < 0 or self.edges < 0:
            raise ValueError(f"a sentence, steps from 0 and a weight from 0 were wanted, got {self.sentences}, {self.whole_every} and {self.edges}")
        if not 0 <= self.hint_alone < 1 or (self.hint_alone and not self.hint):
            raise ValueError(f"hint_alone must be a share below 1, of a recipe with hints, got {self.hint_alone}")
        shares = [share for share, _ in self.phases]
        if shares != sorted(set(shares)) or (shares and (shares[0] <= 0 or shares[-1] != 1)):
            raise ValueError(f"growing shares that end with 1 were wanted, got {self.phases}")

    @property
    def sides(self) -> tuple[int, ...]:
        """The sides of all windows that ``phase_at`` may give."""
        return tuple(dict.fromkeys((0, *(side for _, side in self.phases))))

    def carried_on(self) -> TinyRecipe:
        """Without its beginnings: weights that have learned know their hints, and small windows have nothing left to teach them."""
        return replace(self, hint_alone=0.0, phases=())

    def window_at(self, step: int, steps: int) -> int:
        if self.whole_every and step % self.whole_every == 0:
            return 0
        share = step / steps
        return next((side for end, side in self.phases if share < end), 0)


FROM_NOTHING = TinyRecipe(
    source="this project: from nothing, so nothing is slowed down",
    loss="log_l1",
    muon=True,
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
CARELESS = replace(LIGHT, frame=0.3, careless=0.3, turn=3.0, hue=20.0, saturation=0.4)
LONG = replace(
    FROM_NOTHING,
    source="this project: from nothing, whole maps always, at smaller windows first; outlines count; photos as careless hands take them",
    epochs=20,
    hint=True,
    phases=((0.85, 96), (1.0, 160)),
    whole_every=3,
    edges=0.5,
    augmentation=CARELESS,
)
TINY_BLIP2 = replace(
    FROM_NOTHING,
    source="this project: DepthBLIP-2's published formula from seven prompts to depth, and behind it everything learns (published: at most the bins do)",
    warmup=0.05,
    decay=0.01,
    epochs=10,
    hint=True,
    hint_alone=0.5,
    trained=(r"image_encoder\.", rf"qformer\.(?!{UNREAD.format(last=2)})"),
)
TINY: dict[str, TinyRecipe] = {
    "evp-tiny": replace(LONG, trained=(r"(?!text\.clip\.)",)),
    "evp-tiny clip": LONG,
    "evp-refer-tiny": replace(
        FROM_NOTHING,
        source="this project: from nothing, whole pictures at its own window, each asked for four things",
        loss="cross_entropy",
        rate=1.5e-3,
        batch=8,
        hint=True,
        sentences=4,
    ),
    "vpd-tiny": LONG,
    "moa-depthclip-tiny": replace(
        FROM_NOTHING,
        source="this project: MoA-DepthCLIP's losses, from nothing",
        rate=2e-3,
        **{name: getattr(MOA, name) for name in ("loss", "decay", "batch", "epochs")},
    ),
    "llm-mde-tiny": replace(
        FROM_NOTHING,
        source="this project: from nothing, first the ViT alone, then all",
        rate=3e-3,
        epochs=20,
        hint=True,
        hint_alone=0.8,
        augmentation=CARELESS,
    ),
    "depthclip-tiny": replace(
        FROM_NOTHING,
        source="this project: DepthCLIP's published formula from seven words to depth, and behind it everything learns (published: zero-shot, nothing does)",
        rate=3e-3,
        decay=1e-4,
        slow=(r"text_features",),  # a step of theirs is a thousand times as large in the logits
    ),
    "depthblip2-tiny": TINY_BLIP2,
    "depthblip2-tiny qformer": replace(
        TINY_BLIP2, source="this project: of DepthBLIP-2 the Q-Former alone", trained=TINY_BLIP2.trained[1:], hint=False, hint_alone=0.0
    ),
}
