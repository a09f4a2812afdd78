"""CLIP's text tower as files of Stable Diffusion and EVP carry it, and the features that it gives sentences."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from ...runtime.errors import InputError
from ..checkpoint import Checkpoint, Key, KeyTable, complain, fill
from ..clip.clip_tokenizer import VOCABULARY, published_tokenizer
from ..position_buffers import restore_position_buffers
from .caption_text import HEAD_WIDTH
from .evp_refer import TINY_TOKENIZER

BATCH = 64
MAX_CAPTION_FILE = 1 << 28
POSITIONS = "embeddings.position_ids"  # counts from 0


def clip_tower(checkpoint: Checkpoint, prefix: str, width: int) -> CLIPTextModel:
    """The text tower of a file; its sizes are read from the shapes of its tensors.

    Args:
        prefix: before every name of the tower, up to ``text_model.``.
        width: of the token embeddings that the network takes.

    Raises:
        InputError: if a tensor is missing, unexpected, misshapen or not finite.
    """
    tensors = {n.removeprefix(prefix): tensor for n, tensor in checkpoint.tensors.items() if n.startswith(prefix) and n != prefix + POSITIONS}
    sizes = ("embeddings.token_embedding.weight", "embeddings.position_embedding.weight", "encoder.layers.0.mlp.fc1.weight")
    complain(f"{checkpoint.file} does not fit CLIP's text tower", "missing", [prefix + name for name in sizes if name not in tensors])
    (vocabulary, wide), (positions, _), (mlp, _) = (tensors[name].shape for name in sizes)
    if wide != width:
        raise InputError(f"{checkpoint.file} has token embeddings of width {wide}", wanted=f"{width}", fix="give the file of Stable Diffusion 1.5")
    layers = 1 + max(int(found[1]) for name in tensors if (found := re.match(r"encoder\.layers\.(\d+)\.", name)))
    with torch.device("meta"):
        tower = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=vocabulary,
                hidden_size=width,
                intermediate_size=mlp,
                num_hidden_layers=layers,
                num_attention_heads=max(1, width // HEAD_WIDTH),
                max_position_embeddings=positions,
                hidden_act="quick_gelu",
                bos_token_id=vocabulary - 2,
                eos_token_id=vocabulary - 1,
            )
        )
    table = {name.removeprefix("text_model."): Key(name, tuple(tensor.shape)) for name, tensor in tower.state_dict().items()}
    fill(tower, Checkpoint(checkpoint.file, checkpoint.nbytes, checkpoint.sha256, tensors), KeyTable(table), "CLIP's text tower")
    restore_position_buffers(tower)
    return tower.eval()


def states_of(tower: CLIPTextModel, sentences: Sequence[str], length: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Hidden states behind the last norm [B, length, width] of some sentences at a time, and each one's last real place [B].

    Longer sentences are cut as CLIP's tokenizer cuts them: the last token is the end.
    """
    size = tower.config.vocab_size
    tokenizer = Tokenizer.from_str((published_tokenizer(None) if size == VOCABULARY else TINY_TOKENIZER).decode())
    for start in range(0, len(sentences), BATCH):
        some = sentences[start : start + BATCH]
        rows, ends = np.full((len(some), length), size - 1), []
        for row, sentence in enumerate(some):
            ids = tokenizer.encode(sentence).ids[: length - 1]
            ids = [*ids, size - 1] if ids[-1] != size - 1 else ids
            rows[row, : len(ids)] = ids
            ends.append(len(ids) - 1)
        with torch.no_grad():
            yield tower(input_ids=torch.from_numpy(rows)).last_hidden_state, torch.tensor(ends)


def mean_states(tower: CLIPTextModel, sentences: Sequence[str], length: int) -> Tensor:
    """Mean of the hidden states over all sentences, [1, length, width]."""
    total = sum(states.double().sum(0, keepdim=True) for states, _ in states_of(tower, sentences, length))
    return (total / len(sentences)).float()


def end_vectors(tower: CLIPTextModel, sentences: Sequence[str], length: int) -> Tensor:
    """The hidden state behind the last norm at each sentence's end token, [sentences, width], without a projection and of any length."""
    return torch.cat([states[torch.arange(len(states)), ends] for states, ends in states_of(tower, sentences, length)])


def mean_vector(tower: CLIPTextModel, sentences: Sequence[str], length: int) -> Tensor:
    """Mean of ``end_vectors`` over all sentences, [1, 1, width]."""
    return end_vectors(tower, sentences, length).double().mean(dim=0)[None, None].float()


def read_captions(path: str | Path) -> list[str]:
    """The captions of a file: a JSON list of sentences, a JSON object from photo to sentence, or one sentence a line.

    Raises:
        InputError: if there is none, or the file is of another form.
    """
    path, wanted = Path(path), "a JSON list of captions, an object from photo to caption, or a text file with one a line"
    try:
        if path.stat().st_size > MAX_CAPTION_FILE:
            raise InputError(f"{path.name} has {path.stat().st_size} bytes", wanted=f"at most {MAX_CAPTION_FILE}")
        text = path.read_text("utf-8")
        found = json.loads(text) if path.suffix == ".json" else text.splitlines()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})", wanted=wanted) from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path.name} is broken ({error})", wanted=wanted) from error
    captions = list(found.values()) if isinstance(found, dict) else found
    if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
        raise InputError(f"{path.name} holds other things than captions", wanted=wanted)
    captions = [words for caption in captions if (words := " ".join(caption.split()))]
    if not captions:
        raise InputError(f"{path.name} holds no caption", wanted=wanted)
    return captions
