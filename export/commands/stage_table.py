"""The stages of every full-size network, with parameters, multiply-accumulates and tensors: ``python -m fathom.export.commands.stage_table > docs/stages.md``.

Nothing is computed: networks are made on PyTorch's meta device, where tensors have shapes and no values, so the table needs neither
weights nor memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from ...models.catalog import NETWORKS
from ...models.network import DepthNetwork
from ...runtime.artefact.spec import TensorSpec

HEADING = """# Stages of the full-size networks

Written by `python -m fathom.export.commands.stage_table > docs/stages.md`; a test holds this page to the code. Batch 1. *Weights* are the numbers a stage
holds after constants were folded; *GMAC* are 1e9 multiply-accumulates of matrix products and convolutions (norms, activations and
interpolation are not counted). What is folded is in the last column: counts by kind.
"""


@dataclass(frozen=True)
class StageRow:
    """One stage: numbers it holds, GMAC of one forward, its tensors, and what was folded."""

    name: str
    weights: int
    gmac: float
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    folded: dict[str, int]


def blank_network(name: str, variant: str) -> DepthNetwork:
    """A full-size network of the catalog on the meta device."""
    with torch.device("meta"):
        if name == "evp":
            from ...models.diffusion.evp import EVP, OFFICIAL

            return EVP(OFFICIAL, variant)
        if name == "evp-refer":
            from ...models.diffusion.evp_refer import OFFICIAL, EVPRefer

            return EVPRefer(OFFICIAL, b"", variant)
        if name == "vpd":
            from ...models.diffusion.vpd import OFFICIAL, VPD

            return VPD(OFFICIAL, None, variant)
        if name == "depthclip":
            from ...models.clip.depthclip import OFFICIAL, DepthClip

            return DepthClip(OFFICIAL, variant, "meta")
        if name == "moa-depthclip":
            from ...models.clip.moa_depthclip import OFFICIAL, MoaDepthClip

            return MoaDepthClip(OFFICIAL, variant, "meta")
        if name == "depthblip2":
            from ...models.blip2.depthblip2 import OFFICIAL, DepthBlip2, of_variant

            return DepthBlip2(of_variant(OFFICIAL, variant), variant)
        from ...models.llm_mde.llm_mde import OFFICIAL, LlmMde, of_variant

        return LlmMde(of_variant(OFFICIAL, variant), variant)


def stage_rows(name: str, variant: str) -> tuple[int, tuple[StageRow, ...]]:
    """Parameters of the unfolded network, and its stages."""
    rows = []
    with torch.device("meta"), torch.no_grad():
        network = blank_network(name, variant).to("meta")
        parameters = sum(p.numel() for p in network.parameters())
        for stage in network.stages():
            inputs = [_blank(tensor) for tensor in stage.spec.inputs]
            with FlopCounterMode(display=False) as counter:
                stage.module(*inputs)
            held = {id(t): t.numel() for t in (*stage.module.parameters(), *stage.module.buffers()) if t.is_floating_point()}
            rows.append(StageRow(stage.spec.name, sum(held.values()), counter.get_total_flops() / 2e9, stage.spec.inputs, stage.spec.outputs, stage.folded))
    return parameters, tuple(rows)


def _blank(tensor: TensorSpec) -> torch.Tensor:
    shape = [1 if isinstance(size, str) else size for size in tensor.shape]
    return torch.zeros(shape, dtype=getattr(torch, tensor.dtype), device="meta")


def page() -> str:
    """The whole page in Markdown."""
    parts = [HEADING]
    for name, entry in NETWORKS.items():
        if name.endswith("-tiny"):
            continue
        for variant in entry.variants:
            parameters, rows = stage_rows(name, variant)
            parts.append(f"\n## {name}, {variant}\n\n{entry.summary}. {parameters:,} parameters before folding.\n")
            parts.append("| stage | weights | GMAC | takes | makes | folded |\n|---|---|---|---|---|---|")
            for row in rows:
                takes, makes = (", ".join(f"`{t.name}` {_shape(t)}" for t in tensors) for tensors in (row.inputs, row.outputs))
                folded = ", ".join(f"{count} {kind}" for kind, count in row.folded.items())
                parts.append(f"| {row.name} | {row.weights:,} | {row.gmac:.2f} | {takes} | {makes} | {folded} |")
            parts.append(f"| all | {sum(r.weights for r in rows):,} | {sum(r.gmac for r in rows):.2f} | | | |")
    return "\n".join(parts) + "\n"


def _shape(tensor: TensorSpec) -> str:
    return "[" + ", ".join("B" if isinstance(size, str) else str(size) for size in tensor.shape) + "]"


if __name__ == "__main__":
    print(page(), end="")
