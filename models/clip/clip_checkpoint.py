"""Published CLIP weights in every form they come in, checked name by name against the towers they are for."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from ...runtime.files import sha256_of
from ..checkpoint import Checkpoint, Key, KeyTable, fill, read_tensors, strip_prefix
from ..network import WeightsOrigin
from .clip_towers import ClipConfig, build_clip
from .torchscript_archive import is_torchscript, read_torchscript

ANCHOR = "visual.conv1.weight"
OPENAI_SCALARS = ("input_resolution", "context_length", "vocab_size")  # sizes that OpenAI keeps as tensors beside the weights
OPENAI_SHA256 = {  # as they stand in the addresses of the files
    "RN50": "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762",
    "ViT-B-32": "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af",
}


def read_clip(path: str | Path) -> Checkpoint:
    """A CLIP file, or the own file of a network built on CLIP's image tower, by OpenAI's names.

    Forms: OpenAI's TorchScript archive; ``.safetensors`` as open_clip publishes it; a torch file with the state dict, bare or under
    ``state_dict``, with or without the ``module.`` that distributed training adds.

    Raises:
        InputError: if the file is missing, of no such form, or unsafe.
    """
    path = Path(path)
    tensors = read_torchscript(path) if is_torchscript(path) else read_tensors(path)
    return Checkpoint(path.name, path.stat().st_size, sha256_of(path), strip_prefix(tensors, ANCHOR))


def own_table(module: nn.Module, ignored: tuple[str, ...] = ()) -> KeyTable:
    """The table of a file that uses the module's own names, as CLIP's and the networks' own files do."""
    state = module.state_dict()
    counters = {name: torch.zeros((), dtype=torch.int64) for name in state if name.endswith(".num_batches_tracked")}
    return KeyTable({name: Key(name, tuple(tensor.shape)) for name, tensor in state.items()}, counters=counters, ignored=dict.fromkeys(ignored))


def assemble_clip(checkpoint: Checkpoint, config: ClipConfig) -> nn.Module:
    """Both towers with the weights of a file, in FP32.

    Raises:
        InputError: if it holds another network.
        EnvironmentMismatchError: if open_clip is not installed.
    """
    clip = build_clip(config, "meta")
    fill(clip, checkpoint, own_table(clip, OPENAI_SCALARS), f"CLIP {config.name}")
    length = config.context_length
    clip.attn_mask = torch.full((length, length), float("-inf")).triu(1)  # each token sees itself and those before; not in any file
    return clip


def clip_origin(checkpoint: Checkpoint, config: ClipConfig) -> WeightsOrigin:
    """Where CLIP's weights come from. OpenAI publishes them under MIT; whether a file is OpenAI's is known by its SHA-256."""
    file, sha256 = checkpoint.file, checkpoint.sha256
    if sha256 == OPENAI_SHA256.get(config.name):
        return WeightsOrigin("published", file, sha256, "MIT")
    return WeightsOrigin("published", file, sha256, warnings=(f"{file} is not byte by byte the file that OpenAI publishes as CLIP {config.name}.",))
