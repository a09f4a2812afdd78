"""LAVIS' two files for BLIP-2, Q-Former and image encoder, under the names of our modules.

Each of our tensors names the published tensor it comes from; what the file holds beyond these must be on the list of tensors that the
network does without. Facts: LAVIS ``blip2_qformer.py``, ``clip_vit.py``, ``eva_vit.py``, and the key lists of the published files.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

from ..checkpoint import Checkpoint, by_rules, complain, finite

QFORMER_SPARE = re.compile(r"Qformer\.cls\..+|Qformer\.bert\.embeddings\.position_ids|temp|(vision_proj|text_proj|itm_head|llm_proj)\.(weight|bias)")
CLIP_SPARE = re.compile(r"transformer\.resblocks\.23\..+|ln_post\.(weight|bias)|proj")
EVA_SPARE = re.compile(r"blocks\.39\..+|(norm|fc_norm|head)\.(weight|bias)|rope\..+")

QFORMER_NAMES = (
    (r"query_tokens", "query_tokens"),
    (r"text\.(word_embeddings|position_embeddings)\.(.+)", r"Qformer.bert.embeddings.\1.\2"),
    (r"former\.layernorm\.(.+)", r"Qformer.bert.embeddings.LayerNorm.\1"),
    (r"former\.encoder\.layer\.(\d+)\.(attention|crossattention)\.attention\.(.+)", r"Qformer.bert.encoder.layer.\1.\2.self.\3"),
    (r"former\.encoder\.layer\.(.+)", r"Qformer.bert.encoder.layer.\1"),
)
CLIP_NAMES = (
    (r"embeddings\.class_embedding", "class_embedding"),
    (r"embeddings\.position_embedding\.weight", "positional_embedding"),
    (r"embeddings\.patch_embedding\.weight", "conv1.weight"),
    (r"norm_before\.(.+)", r"ln_pre.\1"),
    (r"encoder\.layers\.(\d+)\.self_attn\.([qkv])_proj\.(weight|bias)", r"transformer.resblocks.\1.attn.in_proj_\3#\2"),
    (r"encoder\.layers\.(\d+)\.self_attn\.out_proj\.(.+)", r"transformer.resblocks.\1.attn.out_proj.\2"),
    (r"encoder\.layers\.(\d+)\.layer_norm([12])\.(.+)", r"transformer.resblocks.\1.ln_\2.\3"),
    (r"encoder\.layers\.(\d+)\.mlp\.fc1\.(.+)", r"transformer.resblocks.\1.mlp.c_fc.\2"),
    (r"encoder\.layers\.(\d+)\.mlp\.fc2\.(.+)", r"transformer.resblocks.\1.mlp.c_proj.\2"),
)
EVA_NAMES = (
    (r"embeddings\.class_embedding", "cls_token"),
    (r"embeddings\.position_embedding", "pos_embed"),
    (r"embeddings\.patch_embedding\.(.+)", r"patch_embed.proj.\1"),
    (r"encoder\.layers\.(\d+)\.self_attn\.qkv\.weight", r"blocks.\1.attn.qkv.weight"),
    (r"encoder\.layers\.(\d+)\.self_attn\.qkv\.bias", r"blocks.\1.attn.q_bias#qv"),
    (r"encoder\.layers\.(\d+)\.self_attn\.projection\.(.+)", r"blocks.\1.attn.proj.\2"),
    (r"encoder\.layers\.(\d+)\.layer_norm([12])\.(.+)", r"blocks.\1.norm\2.\3"),
    (r"encoder\.layers\.(\d+)\.mlp\.(.+)", r"blocks.\1.mlp.\2"),
)


class Shelf:
    """The tensors of one file, each of which must be taken or known to be spare."""

    def __init__(self, checkpoint: Checkpoint, spare: re.Pattern, network: str):
        self._tensors, self._kind = checkpoint.tensors, f"{checkpoint.file} does not fit {network}"
        self._left = {name for name in checkpoint.tensors if not spare.fullmatch(name)}
        self._wrong: dict[str, list[str]] = {"missing": [], "unexpected": [], "misshapen": [], "not finite": [], "of another kind": []}

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """The tensor as float32; zeros if something is wrong with it, which ``finish`` will say."""
        self._left.discard(name)
        tensor = self._tensors.get(name)
        if tensor is None:
            self._wrong["missing"].append(name)
        elif tensor.shape != shape:
            self._wrong["misshapen"].append(f"{name} {list(tensor.shape)} instead of {list(shape)}")
        elif not tensor.is_floating_point():
            self._wrong["of another kind"].append(name)
        elif not finite(tensor):
            self._wrong["not finite"].append(name)
        else:
            return tensor.float()
        return torch.zeros(1).expand(shape)

    def finish(self) -> None:
        """Raise InputError naming what is missing, unexpected, misshapen, not finite or no number; nothing if all is well."""
        for what, names in (self._wrong | {"unexpected": sorted(self._left)}).items():
            complain(self._kind, what, names)


def load_qformer(qformer: nn.Module, ln_vision: nn.Module, checkpoint: Checkpoint, network: str) -> None:
    """Fill a ``QFormer`` and the image encoder's last norm from LAVIS' Q-Former file.

    Raises:
        InputError: if a tensor is missing, unexpected, misshapen, not finite or no number.
    """
    shelf, state = Shelf(checkpoint, QFORMER_SPARE, network), {}
    for name, ours in qformer.state_dict().items():
        state[name] = shelf.take(by_rules(name, QFORMER_NAMES), tuple(ours.shape))
    norm = {name: shelf.take(f"ln_vision.{name}", tuple(ours.shape)) for name, ours in ln_vision.state_dict().items()}
    shelf.finish()
    qformer.load_state_dict(state, assign=True)
    ln_vision.load_state_dict(norm, assign=True)


def load_image_encoder(encoder: nn.Module, kind: str, checkpoint: Checkpoint, network: str) -> None:
    """Fill an ``ImageEncoder`` (all but ``ln_vision``) from ``clip_vit_L.pth`` (``clip``) or ``eva_vit_g.pth`` (``eva``).

    Raises:
        InputError: if a tensor is missing, unexpected, misshapen, not finite or no number.
    """
    rules, spare = (CLIP_NAMES, CLIP_SPARE) if kind == "clip" else (EVA_NAMES, EVA_SPARE)
    shelf, state = Shelf(checkpoint, spare, network), {}
    for name, ours in encoder.state_dict().items():
        if name.startswith("ln_vision."):
            continue
        source, _, part = by_rules(name, rules).partition("#")
        size, *rest = ours.shape
        if part == "qv":  # the key projection has no bias
            query, value = (shelf.take(source.replace("q_bias", f"{which}_bias"), (size // 3,)) for which in "qv")
            state[name] = torch.cat([query, torch.zeros(size // 3), value])
        elif part:
            whole = shelf.take(source, (3 * size, *rest))
            state[name] = whole["qkv".index(part) * size :][:size].clone()
        else:
            state[name] = shelf.take(source, tuple(ours.shape))
    shelf.finish()
    state |= {f"ln_vision.{name}": ours for name, ours in encoder.ln_vision.state_dict().items()}
    encoder.load_state_dict(state, assign=True)
