"""Three ways in which one plan of full-size VPD can know every kind of room, as JSON: what each adds to the plan, and what it costs per photo.

    python -m fathom.benchmarks.studies.vpd_scenes -o benchmarks/results/vpd_scenes.json

Only the 16 cross-attentions of the U-Net differ between the three, so only those are made (random weights), exported and timed, in turns:
``vectors`` has each attention's result for each of the 27 kinds of room as a row of a table, ``keys_and_values`` has those, ``text`` takes
the room's embedding as an input and keeps all projections.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import Tensor, nn

from ...models.diffusion.folding import ChosenTokenAttention, LiveCrossAttention
from ...models.diffusion.stable_diffusion import BackboneConfig, TapUNet
from ...models.nyu_scenes import SCENES
from ...runtime.commands.command import run_command
from ..record.record import study, write_record
from .measured_commands import PACKAGES, system

LATENT = 64  # places along a side of VPD's latent
FORMS = ("vectors", "keys_and_values", "text")


class ChosenKeyValue(LiveCrossAttention):
    """Cross-attention to one token of a table of keys and values, chosen by its number."""

    def __init__(self, attention: nn.Module, contexts: Tensor):
        super().__init__(attention, False)
        with torch.no_grad():
            self.keys, self.values = (nn.Parameter(part(contexts)[:, 0], requires_grad=False) for part in (self.to_k, self.to_v))
        del self.to_k, self.to_v
        self.to_k, self.to_v = (lambda number, table=table: torch.nn.functional.embedding(number, table) for table in (self.keys, self.values))


class CrossAttentions(nn.Module):
    """All cross-attentions of a U-Net, one behind the other where they see the same size, each with its skip.

    Args:
        places: (norm, attention) by side of the map they see.
        form: of ``FORMS``.
        contexts: [27, 1, width].
    """

    def __init__(self, places: dict[int, list[tuple[nn.Module, nn.Module]]], form: str, contexts: Tensor):
        super().__init__()
        make = {"vectors": ChosenTokenAttention, "keys_and_values": ChosenKeyValue, "text": lambda attention, contexts: LiveCrossAttention(attention, False)}
        self.sides = nn.ModuleList(nn.ModuleList(make[form](attention, contexts) for _, attention in found) for found in places.values())
        self.norms = nn.ModuleList(nn.ModuleList(nn.Identity() if form == "vectors" else norm for norm, _ in found) for found in places.values())

    def forward(self, maps: list[Tensor], told: Tensor) -> list[Tensor]:
        found = []
        for x, norms, attentions in zip(maps, self.norms, self.sides, strict=True):
            for norm, attention in zip(norms, attentions, strict=True):
                x = x + attention(norm(x), told)[0]
            found.append(x)
        return found


def cross_attentions(config: BackboneConfig) -> dict[int, list[tuple[nn.Module, nn.Module]]]:
    """Norm and attention of every transformer of the U-Net, with random weights, by the side of the map that they see."""
    with torch.device("meta"):
        unet = TapUNet(config, collect_maps=False)
    sides = [LATENT >> level for level in range(len(unet.down_blocks))]
    levels = [*zip(sides, unet.down_blocks, strict=True), (sides[-1], unet.mid_block), *zip(reversed(sides), unet.up_blocks, strict=True)]
    found: dict[int, list[tuple[nn.Module, nn.Module]]] = {}
    for side, block in levels:
        for transformer in getattr(block, "attentions", None) or ():
            inner = transformer.transformer_blocks[0]
            pair = tuple(part.to_empty(device="cpu").requires_grad_(False) for part in (inner.norm2, inner.attn2))
            for parameter in (parameter for part in pair for parameter in part.parameters()):
                nn.init.normal_(parameter, std=0.02)
            found.setdefault(side, []).append(pair)
    return found


def measure(config: BackboneConfig, rounds: int, threads: int) -> dict[str, Any]:
    """Of every form the bytes of its graph and weights, and the milliseconds of each round."""
    torch.manual_seed(0)
    places = cross_attentions(config)
    contexts = torch.randn(len(SCENES), 1, config.context_width)
    maps = [torch.randn(1, side * side, found[0][1].to_q.in_features) for side, found in places.items()]
    names = [f"map{side}" for side in places]
    sessions, nbytes, took = {}, {}, {form: [] for form in FORMS}
    with tempfile.TemporaryDirectory() as folder:
        for form in FORMS:
            told = contexts[:1] if form == "text" else torch.tensor([[5]])
            path = Path(folder) / f"{form}.onnx"
            program = torch.onnx.export(CrossAttentions(places, form, contexts).eval(), (maps, told), input_names=[*names, "told"], dynamo=True, verbose=False)
            program.save(path, external_data=True)
            nbytes[form] = sum(file.stat().st_size for file in Path(folder).glob(f"{form}.*"))
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = threads
            inputs = dict(zip([*names, "told"], (tensor.numpy() for tensor in (*maps, told)), strict=True))
            sessions[form] = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]), inputs
        for _ in range(rounds + 1):
            for form, (session, inputs) in sessions.items():
                begun = time.perf_counter()
                session.run(None, inputs)
                took[form].append(round((time.perf_counter() - begun) * 1000, 1))
    return {form: {"nbytes": nbytes[form], "p50_ms": statistics.median(took[form][1:]), "sample_times_ms": took[form][1:]} for form in FORMS}


def main(argv: list[str] | None = None) -> int:
    """Measure and write the JSON; returns the exit code."""
    parser = argparse.ArgumentParser(prog="vpd_scenes", description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", required=True)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args(argv)
    return run_command(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    here = system()
    forms = measure(BackboneConfig(), arguments.rounds, arguments.threads)
    write_record(arguments.output, study("vpd_scenes", {"system": here, "threads": arguments.threads, "forms": forms}, PACKAGES), force=True)
    for form, facts in forms.items():
        print(f"{form:16} {facts['nbytes'] / 1e6:8.1f} MB {facts['p50_ms']:8.1f} ms")
    return 0


if __name__ == "__main__":
    sys.exit(main())
