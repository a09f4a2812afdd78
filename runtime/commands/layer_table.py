"""The layers of finished engines for ``depth-inspect --layers``: the ones that move most bytes, and whether attention was fused."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ..sequences import zip_equal

if TYPE_CHECKING:
    from ..artefact.engine_layers import EngineLayer

SHOWN, NAME_WIDTH = 10, 72


def largest(layers: dict[str, tuple[EngineLayer, ...]]) -> list[tuple[str, EngineLayer]]:
    """Stage and layer of those whose inputs, outputs and weights have most bytes, the largest first."""
    flat = [(stage, layer) for stage, found in layers.items() for layer in found]
    return sorted(flat, key=lambda pair: -pair[1].nbytes)[:SHOWN]


def attention(layers: dict[str, tuple[EngineLayer, ...]]) -> dict[str, str]:
    """Stage -> whether attention was fused, in words; without the stages in which nothing points to attention."""
    from ..artefact.engine_layers import attention_words

    return {stage: words for stage, found in layers.items() if (words := attention_words(found))}


def layer_facts(layers: dict[str, tuple[EngineLayer, ...]]) -> dict[str, Any]:
    """As JSON values: ``count`` by stage, ``largest``, ``attention``."""
    shown = [{"stage": stage, **asdict(layer)} for stage, layer in largest(layers)]
    return {"count": {stage: len(found) for stage, found in layers.items()}, "largest": shown, "attention": attention(layers)}


def layer_table(layers: dict[str, tuple[EngineLayer, ...]]) -> list[str]:
    """For people, one line each."""
    rows = [("stage", "MB moved", "kind", "reads", "writes", "layer")]
    for stage, layer in largest(layers):
        name = layer.name if len(layer.name) <= NAME_WIDTH else f"{layer.name[: NAME_WIDTH - 1]}…"
        rows.append((stage, f"{layer.nbytes / 1e6:,.2f}", layer.kind or "-", ",".join(layer.reads) or "-", ",".join(layer.writes) or "-", name))
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    count = sum(map(len, layers.values()))
    table = [f"layers    {count} in {len(layers)} engines; those whose inputs, outputs and weights have most bytes:", ""]
    table += ["  ".join(cell.ljust(width) for cell, width in zip_equal(row, widths)).rstrip() for row in rows]
    told = [f"{stage}: {words}" for stage, words in attention(layers).items()]
    return [*table, "", *(told or ["attention: no layer points to any"])]
