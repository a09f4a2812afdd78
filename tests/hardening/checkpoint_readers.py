"""Readers of trained weights: safetensors, PyTorch's checkpoints, TorchScript."""

from __future__ import annotations

import io
import json
import random
import struct
import zipfile
from pathlib import Path
from typing import Any

from hardening.mutate import MAGICS, PICKLE_TOKENS, damage_bytes, damage_json, damage_zip, json_bytes, unzipped


def tensors() -> dict[str, Any]:
    import torch

    torch.manual_seed(0)
    return {"a.weight": torch.randn(4, 3), "a.bias": torch.zeros(4), "b.half": torch.randn(5).half(), "b.count": torch.tensor(7)}


def safetensors_seeds(folder: Path) -> list[bytes]:
    from safetensors.torch import save

    return [save(tensors(), {"format": "pt"}), save({"x": tensors()["a.weight"].to(dtype=__import__("torch").bfloat16)})]


def safetensors_damage(draw: random.Random, seed: bytes) -> bytes:
    if draw.random() < 0.4:
        return damage_bytes(draw, seed)
    length = struct.unpack("<Q", seed[:8])[0]
    header = json_bytes(draw, damage_json(draw, json.loads(seed[8 : 8 + length])))
    return struct.pack("<Q", len(header)) + header + seed[8 + length :]


def read_checkpoint(path: Path) -> Any:
    from fathom.models.checkpoint import read_checkpoint

    read_checkpoint(path, "a.weight")


def torch_seeds(folder: Path) -> list[bytes]:
    import torch

    buffers = [io.BytesIO() for _ in range(3)]
    torch.save(tensors(), buffers[0])
    torch.save({"model": tensors(), "epoch": 3, "optimizer": {"lr": 0.1, "state": [1, 2]}}, buffers[1])
    torch.save(tensors(), buffers[2], _use_new_zipfile_serialization=False)
    return [buffer.getvalue() for buffer in buffers]


def torch_damage(draw: random.Random, seed: bytes) -> bytes:
    if draw.random() < 0.3 or not zipfile.is_zipfile(io.BytesIO(seed)):
        return damage_bytes(draw, seed, (*MAGICS, *PICKLE_TOKENS))
    return damage_zip(draw, unzipped(seed), PICKLE_TOKENS)


def torchscript_seeds(folder: Path) -> list[bytes]:
    import warnings

    import torch
    from torch import nn

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        buffer = io.BytesIO()
        torch.jit.save(torch.jit.trace(nn.Sequential(nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4)).eval(), torch.zeros(1, 3, 5, 5)), buffer)
    return [buffer.getvalue()]


def read_torchscript(path: Path) -> Any:
    from fathom.models.clip.torchscript_archive import is_torchscript, read_torchscript

    is_torchscript(path)
    read_torchscript(path)
