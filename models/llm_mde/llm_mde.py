"""LLM-MDE (Xia et al. 2024): image tokens, rewritten in a language model's words, pass through BERT behind a prompt about the image.

The prompt is written and tokenised at run time from the picture's own statistics (``contract.text``). Its length differs from picture
to picture, so it has a fixed budget of tokens with a mask, and the image's tokens keep the positions that they would have right behind
an unpadded prompt. What the head then looks at is a choice (``LlmMdeConfig.head_sees``): the published code keeps the first 310 outputs,
so behind a prompt of 116 tokens the image's last two are lost and all others are two places late (``first``, the official variants give
its numbers for one picture at any length); the paper variants give every image token its own place (``image``).

The paper also tries a prompt that is the same for every picture, and none at all (``LlmMdeConfig.prompting``). Then there is no padding and no
text at run time, and the head has a place for every output.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.functional import interpolate
from transformers import BertConfig, BertModel

from ...runtime.artefact.contract import IMAGENET_MEAN, IMAGENET_STD, Contract, ImageInput, OutputContract, Protocol, Require, Resize, TextInput
from ...runtime.artefact.spec import StageSpec, TensorSpec
from ...runtime.text.encoder import TextEncoder
from ..checkpoint import Checkpoint, Key, KeyTable, by_rules, fill, read_checkpoint
from ..lora import LoraLinear, merge_adapters
from ..network import DepthNetwork, Stage, WeightsOrigin
from ..position_buffers import restore_position_buffers
from ..prompt_tokens import BERT_VOCABULARY, DEPTH_CLASSES, PAD, bert_words, compact_words, tokenizer_json
from ..random_init import draw_weights
from .head_outputs import SEEN
from .language_depth_decoder import LanguageDepthDecoder, LanguageToDepth
from .language_stages import FixedInFront, MaskedBert, PlainBert, PromptInFront
from .reprogramming import FoldedReprogramming, Reprogramming, ReprogrammingConfig
from .vit import VisionTransformer, VitConfig

TOKENIZER = "constants/tokenizer.json"
DATASET = "Dataset description: Monocular depth estimation is the process of inferring the distance of objects in a scene from a single 2D image."
TEMPLATES = {  # the first is the published sentence, run-on words and odd brackets included: BERT has been trained on it
    "position-statistics": f"<|start_prompt|>{DATASET}Task description: estimate the photo's depthInput statistics:"
    "min value on the x axis {min_x},min value on the y axis {min_y},max value on the x axis {max_x},max value on the y axis {max_y},"
    "median value on the x axis {median_x},median value on the y axis {median_y},the depth class of input is {class}<|<end_prompt>|>",
    "level-statistics": f"<|start_prompt|>{DATASET} Task description: estimate the depth of the photo. Input statistics: "
    "min pixel value {min}, max pixel value {max}, median pixel value {median}, the depth class of input is {class}<|<end_prompt>|>",
}
FIXED = f"<|start_prompt|>{DATASET} Task description: estimate the depth of the photo.<|<end_prompt>|>"  # what does not depend on the picture
PROMPTING = ("none", "fixed", "adaptive")
CLASS_TOPS = {"position-statistics": (1.0, 1.5, 2.0, 2.25, 2.5, 2.75, 3.0), "level-statistics": (36.0, 72.0, 109.0, 145.0, 182.0, 218.0, 255.0)}


@dataclass(frozen=True)
class LlmMdeConfig:
    """Sizes and choices of LLM-MDE.

    Args:
        vit, reprogramming: the two vision parts.
        window: height and width in pixels of the picture; the depth map has the same size.
        drop: which of the ViT's tokens is left out: ``last`` (published code: the class token stays, the last patch goes) or ``class``.
        llm_layers, llm_heads, llm_mlp, vocabulary, positions: of the language model, as wide as the words.
        llm_lora_rank: adapters on its q, k and v; 0 if they are merged already, as in files of the published code.
        prompt: ``position-statistics`` (published code) or ``level-statistics`` (the paper's words: pixel values).
        prompt_tokens: budget of the prompt, longer than the longest.
        head_prompt_tokens: outputs of the prompt that the head has places for, before the image's.
        head_sees: ``first`` (published code): the first outputs, prompt and image together, whatever the prompt's length; zeros where a
            short prompt leaves places free, which the published code refuses. ``image``: the image's outputs always in the same places.
        code: side of the code that the head makes, three channels.
        far_m: 0 for relative depth in [0, 1]; else the sigmoid counts from 0 to this many metres.
        vit_rank, vit_alpha, llm_rank: of the adapters, instead of the variant's; rank 0 keeps that part frozen. The factor of the ViT's is
            alpha / rank, the language model's alpha is 1.
        prompting: number in ``PROMPTING``, None for ``adaptive``: the picture writes the prompt.
        compact_vocabulary: token ids count only the words that occur, as tiny networks do.

    Raises:
        ValueError: if the parts do not fit each other.
    """

    vit: VitConfig
    reprogramming: ReprogrammingConfig
    window: tuple[int, int] = (480, 640)
    drop: str = "last"
    llm_layers: int = 12
    llm_heads: int = 12
    llm_mlp: int = 3072
    llm_lora_rank: int = 0
    vocabulary: int = BERT_VOCABULARY
    positions: int = 512
    prompt: str = "position-statistics"
    prompt_tokens: int = 116
    head_prompt_tokens: int = 114
    head_sees: str = "first"
    code: int = 32
    far_m: float = 0.0
    compact_vocabulary: bool = False
    vit_rank: int | None = None
    vit_alpha: int | None = None
    llm_rank: int | None = None
    prompting: int | None = None

    def __post_init__(self):
        if self.drop not in ("last", "class") or self.prompt not in TEMPLATES or self.prompting not in (None, *range(len(PROMPTING))):
            raise ValueError(f"drop {self.drop!r}, prompt {self.prompt!r} or prompting {self.prompting!r} (0 to {len(PROMPTING) - 1}) is unknown")
        if self.head_sees not in SEEN:
            raise ValueError(f"head_sees {self.head_sees!r} is unknown, wanted one of {', '.join(SEEN)}")
        if self.reprogramming.image_width != self.vit.width or self.reprogramming.text_width % self.llm_heads:
            raise ValueError("reprogramming must take the ViT's width, and heads divide the width of the words")
        if (not 0 < self.head_prompt_tokens <= self.prompt_tokens and self.adaptive) or self.prompt_tokens + self.vit.patches > self.positions:
            raise ValueError("the head's prompt tokens must fit the budget, and the whole sequence the positions")
        if min(*self.window, self.llm_layers, self.llm_mlp, self.vocabulary, self.code) < 1 or self.llm_lora_rank < 0 or self.far_m < 0:
            raise ValueError("positive sizes were wanted")

    @property
    def adaptive(self) -> bool:
        """Whether the picture writes the prompt."""
        return self.prompting in (None, PROMPTING.index("adaptive"))

    @property
    def width(self) -> int:
        """Of the words and the language model."""
        return self.reprogramming.text_width

    @property
    def head_tokens(self) -> int:
        """Tokens that the head mixes: 310 as published."""
        return self.head_prompt_tokens + self.vit.patches


OFFICIAL = LlmMdeConfig(VitConfig(lora_rank=160), ReprogrammingConfig())
PAPER = replace(
    OFFICIAL,
    vit=VitConfig(lora_rank=96),
    reprogramming=ReprogrammingConfig(heads=12, head_width=64, keys_as_values=False),
    drop="class",
    llm_lora_rank=32,
    prompt="level-statistics",
    prompt_tokens=84,
    head_prompt_tokens=84,
    head_sees="image",
)
TINY = LlmMdeConfig(
    window=(96, 128),
    vit=VitConfig(image=96, patch=12, width=128, blocks=4, heads=4, mlp=256, lora_rank=4),
    reprogramming=ReprogrammingConfig(image_width=128, text_width=192, heads=3, head_width=64, prototypes=64),
    llm_layers=3,
    llm_heads=4,
    llm_mlp=384,
    vocabulary=len(compact_words()),
    positions=192,
    code=24,
    compact_vocabulary=True,
)
TINY_PAPER = replace(
    TINY,
    reprogramming=ReprogrammingConfig(image_width=128, text_width=192, heads=4, head_width=32, prototypes=64, keys_as_values=False),
    drop="class",
    llm_lora_rank=4,
    prompt="level-statistics",
    prompt_tokens=84,
    head_prompt_tokens=84,
    head_sees="image",
)
VARIANTS = ("official", "official-metric", "paper", "paper-metric")
FAR_M = 10.0
PAPERS = {OFFICIAL: PAPER, TINY: TINY_PAPER}


def of_variant(config: LlmMdeConfig, variant: str) -> LlmMdeConfig:
    """What ``config`` (``OFFICIAL`` or ``TINY``) is in a variant: ``official`` or ``paper``, each also with depth in metres (``-metric``).

    Raises:
        ValueError: if the variant is unknown.
    """
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}, wanted one of {', '.join(VARIANTS)}")
    chosen = {name: getattr(config, name) for name in ("vit_rank", "vit_alpha", "llm_rank", "prompting")}
    config = replace(config, **dict.fromkeys(chosen))
    config = replace(PAPERS[config] if variant.startswith("paper") else config, **chosen)
    vit, rank = config.vit, config.vit.lora_rank if config.vit_rank is None else config.vit_rank
    scale = vit.lora_scale if config.vit_alpha is None or not rank else config.vit_alpha / rank
    llm = config.llm_lora_rank if config.llm_rank is None else config.llm_rank
    config = replace(config, vit=replace(vit, lora_rank=rank, lora_scale=scale), llm_lora_rank=llm)
    if not config.adaptive:
        config = replace(config, prompt_tokens=len(fixed_ids(config)), head_prompt_tokens=len(fixed_ids(config)))
    return replace(config, far_m=FAR_M) if variant.endswith("-metric") else config


def fixed_ids(config: LlmMdeConfig) -> tuple[int, ...]:
    """Token ids of the prompt that is the same for every picture; empty for none, or where the picture writes it."""
    if config.prompting != PROMPTING.index("fixed"):
        return ()
    return tuple(Tokenizer.from_str(tokenizer_json(compact_words() if config.compact_vocabulary else bert_words()).decode()).encode(FIXED).ids)


def contract(config: LlmMdeConfig) -> Contract:
    """A photo in one window at the published size; relative depth unless the config counts in metres."""
    height, width = config.window
    words = compact_words() if config.compact_vocabulary else bert_words()
    size = config.vit.image if config.prompt == "position-statistics" else 0
    metric = config.far_m > 0
    exact = (Require(480, 640),) + (() if config.window == (480, 640) else (Resize(height, width, "bilinear-antialias"),))
    return Contract(
        ImageInput("image", config.window, config.window, IMAGENET_MEAN, IMAGENET_STD),
        OutputContract("depth", *(("metric", "m", 0.0, config.far_m) if metric else ("relative", "", 0.0, 1.0)), "far", "bilinear"),
        (
            Protocol("single-image", (Resize(height, width, "bilinear-antialias"),), (0,), (), False, "the whole photo, one look"),
            Protocol("nyu-benchmark", exact, (0,), (), False, "LLM-MDE, published evaluation code; it scores maps stretched to [0, 1] per image"),
        ),
        None
        if not config.adaptive
        else TextInput(
            config.prompt,
            "prompt_ids",
            "prompt_mask",
            config.prompt_tokens,
            words[PAD],
            TOKENIZER,
            TEMPLATES[config.prompt],
            DEPTH_CLASSES,
            CLASS_TOPS[config.prompt],
            size,
        ),
    )


class LlmMde(DepthNetwork):
    """LLM-MDE, unfolded: adapters apart, prototypes mixed at every call, transformers' BERT behind an attention mask."""

    def __init__(self, config: LlmMdeConfig, variant: str):
        super().__init__()
        self.name, self.variant, self.config = "llm-mde-tiny" if config.compact_vocabulary else "llm-mde", variant, config
        self.contract = contract(config)
        self.origin = WeightsOrigin("random-init")
        self.vit = VisionTransformer(config.vit)
        self.prototypes = nn.Linear(config.vocabulary, config.reprogramming.prototypes)
        self.reprogramming = Reprogramming(config.reprogramming)
        self.l2d = LanguageToDepth(config.width)
        sizes = BertConfig(
            vocab_size=config.vocabulary,
            hidden_size=config.width,
            num_hidden_layers=config.llm_layers,
            num_attention_heads=config.llm_heads,
            intermediate_size=config.llm_mlp,
            max_position_embeddings=config.positions,
        )
        self.llm = BertModel(sizes, add_pooling_layer=False)
        if config.llm_lora_rank:
            for layer in self.llm.encoder.layer:
                for name in ("query", "key", "value"):  # loralib's factor: its alpha is 1
                    setattr(layer.attention.self, name, LoraLinear(config.width, config.width, config.llm_lora_rank, 1 / config.llm_lora_rank))
        self.head = DepthHead(config)
        self.eval().requires_grad_(False)
        self._text: TextEncoder | None = None

    def config_json(self) -> dict[str, Any]:
        """The config with its parts."""
        return asdict(self.config)

    def artefact_files(self) -> dict[str, bytes]:
        """The tokenizer, where there are words at run time."""
        if not self.config.adaptive:
            return {}
        return {TOKENIZER: tokenizer_json(compact_words() if self.config.compact_vocabulary else bert_words())}

    def example_inputs(self, batch: int = 1, seed: int = 0) -> dict[str, Tensor]:
        """Smooth seeded pictures and the prompts that they write."""
        inputs = super().example_inputs(batch, seed)
        if not self.config.adaptive:
            return inputs
        self._text = self._text or TextEncoder(self.contract.text, self.contract.input, self.artefact_files()[TOKENIZER])
        text = self._text(inputs["image"].numpy())
        return inputs | {name: torch.from_numpy(values) for name, values in text.items()}

    def mixed_words(self) -> Tensor:
        """The text prototypes [prototypes, width]: a learned mixture over the whole vocabulary."""
        return self.prototypes(self.llm.embeddings.word_embeddings.weight.T).T

    def tokens(self, image: Tensor) -> Tensor:
        """What the ViT says of ``image`` [B,3,H,W]: [B, patches, width]."""
        return vit_tokens(self.vit, image, self.config)

    def boundaries(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Every stage's tensors, of ``image`` [B,3,H,W] and, where the picture writes the prompt, ``prompt_ids`` [B,P] and ``prompt_mask`` [B,P]."""
        config, image = self.config, inputs["image"]
        fixed = torch.tensor(fixed_ids(config), dtype=torch.int64, device=image.device).expand(len(image), -1)  # [B,P]
        ids, mask = (inputs["prompt_ids"], inputs["prompt_mask"]) if config.adaptive else (fixed, torch.ones(fixed.shape, device=image.device))
        found = {"vit_tokens": self.tokens(image)}
        found["reprog"] = self.reprogramming(found["vit_tokens"], self.mixed_words())
        found["llm_in"] = torch.cat([self.llm.embeddings.word_embeddings(ids), self.l2d(found["reprog"])], dim=1)
        batch, budget, patches = len(image), config.prompt_tokens, config.vit.patches
        behind = mask.sum(dim=1, keepdim=True).long() + torch.arange(patches, device=image.device)  # right behind the prompt's last real token
        places = torch.cat([torch.arange(budget, device=image.device).expand(batch, -1), behind], dim=1)
        whole = torch.cat([mask, torch.ones(batch, patches, device=image.device)], dim=1)
        out = self.llm(inputs_embeds=found["llm_in"], attention_mask=whole, position_ids=places).last_hidden_state
        found["llm_out"] = SEEN[config.head_sees](out, mask, config.head_tokens)
        return found | {"depth": self.head(found["llm_out"], image)}

    def stages(self) -> tuple[Stage, ...]:
        """``vit`` -> ``reprogramming`` -> ``prompt`` -> ``llm`` -> ``head``; the picture goes into the first and the last."""
        config = self.config
        image = TensorSpec("image", "float32", ("batch", 3, *config.window))
        tokens = TensorSpec("vit_tokens", "float32", ("batch", config.vit.patches, config.vit.width))
        reprog = TensorSpec("reprog", "float32", ("batch", config.vit.patches, config.width))
        llm_in = TensorSpec("llm_in", "float32", ("batch", config.prompt_tokens + config.vit.patches, config.width))
        llm_out = TensorSpec("llm_out", "float32", ("batch", config.head_tokens, config.width))
        depth = TensorSpec("depth", "float32", ("batch", 1, *config.window))
        vit, vit_adapters = merge_adapters(self.vit)
        encoder, llm_adapters = merge_adapters(self.llm.encoder)
        prototypes = config.reprogramming.prototypes
        words, embeddings = self.llm.embeddings.word_embeddings, self.llm.embeddings
        if config.adaptive:
            prompt, folded = PromptInFront(words, self.l2d), {}
            bert = MaskedBert(embeddings, encoder, config.prompt_tokens, config.vit.patches, config.head_tokens, SEEN[config.head_sees])
        else:
            prompt = FixedInFront(words(torch.tensor(fixed_ids(config), dtype=torch.int64, device=words.weight.device)), self.l2d)
            bert, folded = PlainBert(embeddings, encoder, config.head_tokens), {"prompt_tokens": config.prompt_tokens} if config.prompt_tokens else {}
        kinds = (("ids", "int64"), ("mask", "float32")) if config.adaptive else ()
        told = [TensorSpec(f"prompt_{name}", dtype, ("batch", config.prompt_tokens)) for name, dtype in kinds]
        adapters = [{"adapters": count} if count else {} for count in (vit_adapters, llm_adapters)]
        return (
            Stage(StageSpec("vit", (image,), (tokens,)), VitTokens(vit, config), (), adapters[0]),
            Stage(
                StageSpec("reprogramming", (tokens,), (reprog,)), FoldedReprogramming(self.reprogramming, self.mixed_words()), (), {"prototypes": prototypes}
            ),
            Stage(StageSpec("prompt", (reprog, *told[:1]), (llm_in,)), prompt, (), folded),
            Stage(StageSpec("llm", (llm_in, *told[1:]), (llm_out,)), bert, (), adapters[1]),
            Stage(StageSpec("head", (llm_out, image), (depth,)), self.head.folded(), (), {"batch_norms": 6}),
        )


def vit_tokens(vit: nn.Module, image: Tensor, config: LlmMdeConfig) -> Tensor:
    """image [B,3,H,W] -> [B, patches, width]: shrunk without filtering, one token left out."""
    tokens = vit(interpolate(image, (config.vit.image, config.vit.image), mode="bilinear", align_corners=False))
    return tokens[:, :-1] if config.drop == "last" else tokens[:, 1:]


class DepthHead(nn.Module):
    """llm_out [B, T, D] and image [B, 3, H, W] -> depth [B, 1, H, W]: tokens mixed to a small code, stretched over the picture."""

    def __init__(self, config: LlmMdeConfig):
        super().__init__()
        self.code, self.far = config.code, config.far_m or 1.0
        self.token_mix = nn.Linear(config.head_tokens, 3)
        self.channel_mix = nn.Linear(config.width, config.code**2)
        self.decoder = LanguageDepthDecoder()

    def forward(self, llm_out: Tensor, image: Tensor) -> Tensor:
        depth = self.decoder(self.code_map(llm_out), image).sigmoid()
        return depth * self.far if self.far != 1.0 else depth

    def code_map(self, llm_out: Tensor) -> Tensor:
        """The code [B, 3, code, code] before it is stretched."""
        mixed = self.channel_mix(self.token_mix(llm_out.transpose(1, 2)).transpose(1, 2))  # [B,3,code^2]
        return mixed.unflatten(2, (self.code, self.code))

    def folded(self) -> nn.Module:
        """The same with the batch norms in the convolutions."""
        other = DepthHead.__new__(DepthHead)
        nn.Module.__init__(other)
        other.code, other.far, other.token_mix, other.channel_mix = self.code, self.far, self.token_mix, self.channel_mix
        other.decoder = self.decoder.folded()
        return other.eval()


class VitTokens(nn.Module):
    """The stage ``vit``."""

    def __init__(self, vit: nn.Module, config: LlmMdeConfig):
        super().__init__()
        self.vit, self.config = vit, config
        self.eval()

    def forward(self, image: Tensor) -> Tensor:
        return vit_tokens(self.vit, image, self.config)


def random_llm_mde(variant: str = "official", config: LlmMdeConfig = OFFICIAL, seed: int = 0) -> LlmMde:
    """A network with random weights, the same for the same seed; ``config`` is ``OFFICIAL`` or ``TINY``."""
    network = LlmMde(of_variant(config, variant), variant)
    draw_weights(network, seed)
    return network


# What the published code's training saves (``model_state_dict``), by our names; "deocder" is how it is written there.
PUBLISHED_NAMES = (
    (r"vit\.(.+)", r"vit_lora.lora_vit.\1"),
    (r"prototypes\.(.+)", r"mapping_layer.\1"),
    (r"reprogramming\.(.+)", r"cross_att.\1"),
    (r"l2d\.(.+)", r"l2d_module.\1"),
    (r"llm\.embeddings\.word_embeddings\.weight", "llm_model.embeddings.word_embeddings.weight"),
    (r"llm\.(.+)", r"llm_decoder.\1"),
    (r"head\.token_mix\.(.+)", r"mapping_layer4.\1"),
    (r"head\.channel_mix\.(.+)", r"mapping_layer5.\1"),
    (r"head\.decoder\.(.+)", r"l2d_deocder.\1"),
)
PUBLISHED_SPARE = re.compile(
    r"vit_backbone\..+|vit_lora\.proj_3d\..+|vit_lora\.lora_vit\.head\..+|vit_lora\.head\..+"  # the same tensors again; classifiers
    r"|word_embeddings|llm_decoder\.embeddings\.word_embeddings\.weight|llm_model\.(?!embeddings\.word_embeddings).+"  # words again; an unused BERT
    r"|llm_decoder\.pooler\..+|llm_decoder\.embeddings\.(position_ids|token_type_ids)|cross_att\.value_projection\..+|mapping_layer[23]\..+"
    r"|llm_decoder\.encoder\.layer\.\d+\.attention\.self\.(query|key|value)\.lora_[AB]"
)
MERGED = "The language model's adapters are taken as merged, because the published training saves in eval mode, where loralib has merged them."


def load_llm_mde(weights: Path | str, variant: str = "official", config: LlmMdeConfig = OFFICIAL) -> LlmMde:
    """The network with trained weights. No trained weights were ever published; files come from the published training code or from Fathom.

    Args:
        weights: what the published code saves (``test_model_121.pth``; variants ``official`` and ``official-metric``), or a
            ``.safetensors`` with this network's own state. The rank of the adapters is read from the file.
        variant: see ``of_variant``.
        config: ``OFFICIAL`` or ``TINY``.

    Raises:
        InputError: if the file is unsafe, or tensors are missing, unexpected, misshapen or not finite.
        ValueError: if the variant is unknown.
    """
    checkpoint, config = read_checkpoint(weights, "mapping_layer5.weight"), of_variant(config, variant)
    own = "head.token_mix.weight" in checkpoint.tensors
    config = replace(config, vit=replace(config.vit, lora_rank=_rank(checkpoint)))
    with torch.device("meta"):
        network = LlmMde(config, variant)
    wanted = {}
    for name, tensor in network.state_dict().items():
        wanted[name if own else _published_name(name, config)] = Key(name, tuple(tensor.shape))
    spare = {} if own else {name: None for name in checkpoint.tensors if PUBLISHED_SPARE.fullmatch(name) and name not in wanted}
    counters = {name: torch.zeros((), dtype=torch.int64) for name in wanted if name.endswith("num_batches_tracked")}
    fill(network, checkpoint, KeyTable(wanted, ignored=spare, counters=counters), f"llm-mde {variant}")
    restore_position_buffers(network)
    adapted = any(name.endswith(".lora_A") for name in spare)
    network.origin = WeightsOrigin("trained", checkpoint.file, checkpoint.sha256, warnings=(MERGED,) if adapted else ())
    return network.eval().requires_grad_(False)


def _rank(checkpoint: Checkpoint) -> int:
    ends = ("vit.blocks.0.attn.qkv.linear_a_q.weight", "vit_lora.lora_vit.blocks.0.attn.qkv.linear_a_q.weight")
    return next((checkpoint.tensors[name].shape[0] for name in ends if name in checkpoint.tensors), 0)


def _published_name(name: str, config: LlmMdeConfig) -> str:
    found = by_rules(name, PUBLISHED_NAMES)
    return found if config.vit.lora_rank else found.replace("vit_lora.lora_vit.", "vit_lora.")
