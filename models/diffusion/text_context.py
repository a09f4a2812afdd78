"""The text side of EVP and VPD: fixed CLIP embeddings, the adapter that tunes them, and text packs that replace them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ...runtime.artefact.text_input import TextInput
from ...runtime.errors import InputError
from ..checkpoint import read_tensors
from ..nyu_scenes import SCENES


class TextAdapter(nn.Module):
    """A residual refinement of text features: linear, exact GELU, linear."""

    def __init__(self, width: int):
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, text: Tensor) -> Tensor:
        return self.fc(text)


class TextContext(nn.Module):
    """c + gamma * adapter(c) of stored embeddings: the context of every cross-attention of the U-Net.

    Args:
        shape: of the stored embeddings: [1, tokens, width] (EVP: hidden states of the caption mean) or [classes, width] (VPD: one
            pooled vector per scene).
    """

    def __init__(self, shape: tuple[int, ...]):
        super().__init__()
        self.register_buffer("class_embeddings", torch.zeros(shape))
        self.gamma = nn.Parameter(torch.full(shape[-1:], 1e-4))
        self.text_adapter = TextAdapter(shape[-1])

    def forward(self, rows: Tensor | None = None) -> Tensor:
        """The context [1, T, width]; with ``rows`` int64 [B, 1], of each the class of that number as its only token [B, 1, width]."""
        text = self.class_embeddings if rows is None else self.class_embeddings[rows]
        return text + self.gamma * self.text_adapter(text)

    def randomise(self, seed: int) -> None:
        """Random embeddings with the spread of CLIP's, and a ``gamma`` with which the adapter's weights show in the output."""
        generator = torch.Generator().manual_seed(seed)
        self.gamma.uniform_(-0.5, 0.5, generator=generator)
        self.class_embeddings.normal_(generator=generator)


def scene_choice() -> TextInput:
    """The contract's words for a network that takes the kind of room with each photo: its row in the class embeddings."""
    return TextInput("choice", "scene", "", 1, 0, "", "{text}", SCENES)


def read_text_pack(path: str | Path, tensor: str, shape: tuple[int, ...]) -> Tensor:
    """The text embeddings of a text pack, a safetensors file with exactly one tensor.

    Args:
        tensor: its wanted name, ``context`` (EVP) or ``class_embeddings`` (VPD).
        shape: its wanted shape.

    Raises:
        InputError: if the file is broken, or holds another tensor, another shape, or numbers that are not finite.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise InputError(f"{path.name} is no text pack", wanted=f"a .safetensors file with one tensor {tensor!r} of shape {list(shape)}")
    found = read_tensors(path)
    have = ", ".join(f"{name} {list(value.shape)}" for name, value in list(found.items())[:4])
    if set(found) != {tensor} or tuple(found[tensor].shape) != shape or not found[tensor].is_floating_point():
        raise InputError(f"the text pack {path.name} holds {len(found)} tensor(s): {have}", wanted=f"exactly {tensor!r} {list(shape)}, floating point")
    text = found[tensor].to(torch.float32, copy=True)
    if not text.isfinite().all():
        raise InputError(f"the text pack {path.name} holds numbers that are not finite", fix="make it again")
    return text
