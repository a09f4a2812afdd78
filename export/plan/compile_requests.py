"""What a compiler's process is asked to do."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx

from ...runtime.artefact.plugin_library import PluginLibrary
from ..graph.product_types import products_by_type
from .build_options import PLANNED, BuildOptions


def onnxruntime_request(options: BuildOptions, name: str, graph: Path, scratch: Path) -> tuple[dict[str, Any], dict[str, Path]]:
    """The request for a stage in ONNX Runtime, and which files will be made, by their names in the plan."""
    folder = scratch / f"{name}.scratch"
    folder.mkdir()
    made = {f"engines/{name}.onnx": scratch / f"{name}.onnx", f"engines/{name}.weights": scratch / f"{name}.weights"}
    target, weights = (str(made[f"engines/{name}{suffix}"]) for suffix in (".onnx", ".weights"))
    request = {"task": "onnxruntime", "stage": name, "source": str(graph), "target": target, "weights": weights, "scratch": str(folder)}
    return {**request, "cuda": options.cuda}, made


def plugin_facts(options: BuildOptions, library: PluginLibrary | None) -> dict[str, Any] | None:
    """The library of our operators, for a compiler's process; None for none."""
    return {"library": asdict(library), "path": str(Path(options.plugins).resolve())} if library else None


def tensorrt_request(options: BuildOptions, name: str, graph: Path, target: Path, library: PluginLibrary | None, quantised: dict[str, str]) -> dict[str, Any]:
    """The request for an engine of a typed graph; see ``tensorrt.build.build_engine``.

    Args:
        quantised: of the stage's quantised nodes, to what.
    """
    products = products_by_type(graph)
    layers = {layer for kind in products.values() for layer in kind}
    return {
        "task": "tensorrt",
        "stage": name,
        "backend": options.backend,
        "source": str(graph),
        "target": str(target),
        "targets": list(options.targets),
        "batch": list(options.batch),
        "precision": options.precision,
        "fp16": products.get(onnx.TensorProto.FLOAT16, []),
        "fp32": products.get(onnx.TensorProto.FLOAT, []),
        "bf16": products.get(onnx.TensorProto.BFLOAT16, []),
        "plugins": plugin_facts(options, library),
        **{low: sorted(layers & {node for node, kind in quantised.items() if kind == low}) for low in PLANNED},
    }
