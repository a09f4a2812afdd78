"""Fixed prompts through CLIP's text tower, once, when a network is loaded: no exported stage holds a text tower."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .clip_towers import open_clip


def token_ids(prompts: tuple[str, ...], context_length: int = 77) -> Tensor:
    """Byte-pair ids with start and end tokens, zeros after them, int64 [prompts, context_length].

    Raises:
        ValueError: if there is no prompt, one is empty, or one does not fit (open_clip would cut it silently).
        EnvironmentMismatchError: if open_clip is not installed.
    """
    tokenizer = open_clip().tokenizer.SimpleTokenizer(context_length=context_length)
    if not prompts:
        raise ValueError("there are no prompts")
    for prompt in prompts:
        count = len(tokenizer.encode(prompt))
        if not 0 < count <= context_length - 2:
            raise ValueError(f"the prompt {prompt!r} has {count} tokens, wanted 1 to {context_length - 2}")
    return tokenizer(list(prompts))


def image_templates() -> tuple[Callable[[str], str], ...]:
    """The 80 sentences about a thing with which OpenAI scored CLIP on ImageNet, each a function of the thing's name.

    Raises:
        EnvironmentMismatchError: if open_clip is not installed.
    """
    return tuple(open_clip().zero_shot_metadata.OPENAI_IMAGENET_TEMPLATES)


@torch.inference_mode(False)
@torch.no_grad()
def prompt_features(clip: nn.Module, prompts: tuple[str, ...]) -> Tensor:
    """Text features of unit length, float32 [prompts, embed_dim].

    Raises:
        ValueError: see ``token_ids``.
    """
    return clip.encode_text(token_ids(prompts, clip.context_length), normalize=True).float()
