"""LLM-MDE as it begins: timm's ``vit_base_patch16_224``, ``bert-base-uncased``, and everything between and behind them new.

Adapters begin by changing nothing (A at random, B zero). BERT's own queries, keys and values are kept, also where the published code
replaces them by random ones.
"""

from __future__ import annotations

import math
import re

import torch
from torch import nn

from ...checkpoint import Checkpoint, Key, KeyTable, fill
from ...llm_mde.llm_mde import LlmMde
from ...lora import LoraLinear, LoraQkv
from ...network import WeightsOrigin
from ...position_buffers import restore_position_buffers
from .new_layers import reset

LICENCE = "Apache-2.0 (vit_base_patch16_224 and bert-base-uncased)"
VIT_SPARE = re.compile(r"head\.(weight|bias)|pre_logits\..+|fc_norm\..+")
BERT_SPARE = re.compile(r"cls\..+|(bert\.)?pooler\..+|(bert\.)?embeddings\.position_ids")
ADAPTER = re.compile(r".+\.(lora_[AB]|linear_[ab]_[qv]\.weight)")


def vit_keys(vit: nn.Module) -> dict[str, Key]:
    """timm's name -> ours, for every tensor but the adapters'."""
    return {name.replace(".qkv.qkv.", ".qkv."): Key(name, tuple(tensor.shape)) for name, tensor in vit.state_dict().items() if not ADAPTER.fullmatch(name)}


def bert_keys(llm: nn.Module, names: set[str]) -> dict[str, Key]:
    """The file's name -> ours, for every tensor but the adapters'. Files begin every name with ``bert.`` or none, and older ones, that of the
    hub too, call a norm's weight and bias gamma and beta."""
    prefix = "bert." if any(name.startswith("bert.") for name in names) else ""
    old = any(name.endswith("LayerNorm.gamma") for name in names)
    table = {}
    for own, tensor in llm.state_dict().items():
        if not ADAPTER.fullmatch(own):
            name = re.sub(r"LayerNorm\.weight$", "LayerNorm.gamma", re.sub(r"LayerNorm\.bias$", "LayerNorm.beta", own)) if old else own
            table[prefix + name] = Key(own, tuple(tensor.shape))
    return table


def start_from_vit_and_bert(network: LlmMde, vit: Checkpoint, bert: Checkpoint, seed: int) -> None:
    """Fill a network made on the meta device.

    Raises:
        InputError: if a tensor of one of the files is missing, unexpected, misshapen or not finite.
    """
    for part, checkpoint, table, spare, what in (
        (network.vit, vit, vit_keys(network.vit), VIT_SPARE, "vit_base_patch16_224"),
        (network.llm, bert, bert_keys(network.llm, set(bert.tensors)), BERT_SPARE, "bert-base-uncased"),
    ):
        adapters = {name: torch.zeros(tensor.shape) for name, tensor in part.state_dict().items() if ADAPTER.fullmatch(name)}
        wanted = table | {name: Key(name, tuple(tensor.shape)) for name, tensor in adapters.items()}
        ignored = {name: None for name in checkpoint.tensors if spare.fullmatch(name)}
        fill(part, checkpoint, KeyTable(wanted, counters=adapters, ignored=ignored), f"{what} of {network.name}")
    torch.manual_seed(seed)
    for name, module in network.named_children():
        if name not in ("vit", "llm"):
            reset(module)
    with torch.no_grad():
        for part in network.modules():
            if isinstance(part, LoraLinear):
                nn.init.kaiming_uniform_(part.lora_A, a=math.sqrt(5))
            elif isinstance(part, LoraQkv):
                for layer in (part.linear_a_q, part.linear_a_v):
                    nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5))
    restore_position_buffers(network)
    network.origin = WeightsOrigin("published", f"{vit.file} {bert.file}", bert.sha256, LICENCE)
    network.requires_grad_(False).eval()
