"""``depth-inspect``: what is in a bundle or a plan."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..sequences import zip_equal
from .command import common_flags, run_command
from .layer_table import layer_facts, layer_table


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="depth-inspect", description="Show what is in a bundle (directory) or a plan (file), after checking every byte of it."
    )
    parser.add_argument("artefact", metavar="BUNDLE|PLAN", help="what depth-export or depth-build made")
    told = "the file that depth-build --layers wrote beside the plan: also show the layers that move most bytes, and whether attention was fused"
    parser.add_argument("--layers", metavar="FILE", help=told)
    common_flags(parser, force=False)
    return parser


def read_manifest(path: str | Path) -> Any:
    """The checked manifest of a bundle directory or plan file, after every SHA-256 was compared.

    Raises:
        InputError: if it is neither.
        ChecksumError: if bytes changed.
    """
    with open_artefact(path) as artefact:
        return artefact.manifest


def open_artefact(path: str | Path, verify: bool = True, trust: Any = None) -> Any:
    """A bundle directory or plan file; see ``BundleDirectory.open`` and ``PlanFile.open``."""
    from ..artefact.bundle import BundleDirectory
    from ..artefact.plan import PlanFile
    from ..artefact.trust import ANY

    path, trust = Path(path), trust or ANY
    return BundleDirectory.open(path, verify, trust) if path.is_dir() else PlanFile.open(path, verify, trust)


def describe(manifest: Any) -> str:
    """A manifest in words and a table, for people."""
    from ..artefact.manifest import PlanManifest

    plan = isinstance(manifest, PlanManifest)
    network, contract = manifest.network, manifest.contract
    image, output = contract.input, contract.output
    lines = [
        f"{'plan' if plan else 'bundle'} of {network.name}{f' ({network.variant})' if network.variant else ''}, {network.parameters / 1e6:,.2f} M parameters",
        f"weights   {network.weights['kind']}"
        + "".join(f", {network.weights[key]}" for key in ("file", "licence") if network.weights[key])
        + (f", sha256 {network.weights['sha256'][:12]}…" if network.weights["sha256"] else ""),
        *(f"warning   {warning}" for warning in network.weights["warnings"]),
    ]
    if network.untrained and not network.weights["warnings"]:
        lines.append("warning   the weights are untrained: the depth means nothing")
    if plan:
        targets, batch = ", ".join(manifest.targets), ":".join(map(str, manifest.batch))
        lines.append(f"engines   {manifest.backend} {manifest.backend_version}, {manifest.precision}, for {targets}, batch {batch} (min:opt:max)")
        if manifest.backend == "onnxruntime" and manifest.targets == ("cuda",) and manifest.precision == "fp16":
            lines.append("note      FP16 is real: typed graphs for the CUDA provider; checked on a CPU only, which computes them partly in FP32")
        if manifest.operators:
            lines.append(f"operators {manifest.operators.words}")
        if manifest.simulated:
            lines.append("warning   FP16 is simulated: tensors are rounded as an FP16 engine stores them, sums are FP32; for measuring accuracy")
    lines += [
        f"input     {image.tensor}: window {image.window[0]}x{image.window[1]} on a canvas of {image.canvas[0]}x{image.canvas[1]} (height x width), RGB",
        f"output    {output.tensor}: {output.kind}" + (f", {output.near:g} to {output.far:g} {output.unit}".rstrip() if output.kind != "mask" else ""),
    ]
    if output.focal_px:
        without = "assumed" if output.focal_assumed else "refused"
        lines.append(f"camera    metres for a focal length of {output.focal_px:g} pixels: {without} without --intrinsics")
    for protocol in contract.protocols:
        forwards = (len(protocol.lefts) + len(protocol.fill_lefts)) * (1 + protocol.flip)
        lines.append(f"protocol  {protocol.name}: {forwards} forward{'s' if forwards > 1 else ''} per photo; {protocol.source}")
    lines += ["", *_stage_table(manifest, plan), ""]
    if not plan and manifest.parity:
        lines.append("parity    " + ("passed" if manifest.parity.get("passed") else "see --json"))
    lines.append("made with " + ", ".join(f"{name} {version}" for name, version in manifest.made_with.items()))
    lines.append(f"files     {len(manifest.files)}, {sum(f.size for f in manifest.files.values()) / 1e6:,.1f} MB; every SHA-256 is right")
    return "\n".join(lines)


def _stage_table(manifest: Any, plan: bool) -> list[str]:
    rows = [("stage", "precision", "MB", "" if plan else "folded into constants")]
    for stage in manifest.stages:
        nbytes = sum(manifest.files[name].size for name in manifest.stage_files(stage))
        folded = "" if plan else ", ".join(f"{count} {kind}" for kind, count in stage.folded.items())
        rows.append((stage.spec.name, stage.precision, f"{nbytes / 1e6:,.1f}", folded))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip_equal(row, widths)).rstrip() for row in rows]
    for stage in manifest.stages:
        takes, makes = (", ".join(f"{t.name}{_shape(t)}" for t in tensors) for tensors in (stage.spec.inputs, stage.spec.outputs))
        table += ["", f"{stage.spec.name}  takes {takes}", f"{' ' * len(stage.spec.name)}  makes {makes}"]
    return table


def _shape(tensor: Any) -> str:
    return "[" + ",".join("B" if size == "batch" else str(size) for size in tensor.shape) + "]"


def _read_layers(path: str, manifest: Any) -> Any:
    from ..artefact.engine_layers import read_layers_file
    from ..artefact.manifest import PlanManifest

    if not isinstance(manifest, PlanManifest):
        raise UsageError("--layers tells of a plan's engines, and this is a bundle", fix="give the plan that it was written beside")
    return read_layers_file(path, manifest)


def main(argv: list[str] | None = None) -> int:
    """Run ``depth-inspect``; returns the exit code."""
    arguments = _parser().parse_args(argv)

    def body() -> int:
        with open_artefact(arguments.artefact) as artefact:
            manifest, digest = artefact.manifest, artefact.manifest_sha256
        layers = _read_layers(arguments.layers, manifest) if arguments.layers else None
        if arguments.json:
            from ..artefact.manifest_json import manifest_to_json

            told = {} if layers is None else {"layers": layer_facts(layers)}
            print(json.dumps({**manifest_to_json(manifest), "manifest_sha256": digest, **told}, allow_nan=False))
        else:
            print(f"{describe(manifest)}\nmanifest  sha256 {digest}")
            if layers is not None:
                print("\n".join(["", *layer_table(layers)]))
        return 0

    return run_command(body)


if __name__ == "__main__":
    sys.exit(main())
