"""A finished engine asked about itself on the machine that compiled it; needs nothing but the standard library."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from ...runtime.artefact.engine_layers import attention_words, read_layers
from ...runtime.errors import BuildFailedError, PrecisionError


def load_engine(trt: ModuleType, logger: Any, plan: Any, stage: str) -> Any:
    """Deserialise what was just compiled.

    Raises:
        BuildFailedError: if TensorRT does not take it.
    """
    logger.forget()
    runtime = trt.Runtime(logger)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise BuildFailedError(f"stage {stage}: the engine that was just compiled cannot be loaded ({logger.errors()})")
    return engine


def layer_information(trt: ModuleType, engine: Any, keep: str = "") -> str:
    """What the engine inspector tells, in JSON.

    Args:
        keep: file to write it to; empty for none.
    """
    inspector = engine.create_engine_inspector()
    information = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
    if keep:
        Path(keep).write_text(information)
    return information


def ask_engine(trt: ModuleType, logger: Any, plan: Any, request: dict[str, Any], send: Callable[..., None]) -> str:
    """What a finished engine tells of its layers, in words; empty where it cannot be loaded and nobody asked for its layers.

    The types of a strongly typed engine are those of its graph; layers were merged, so what is held against the graph is only what merging
    cannot change: something reads or writes FP16 (INT8) where products of the graph do, and nothing does where all of it is FP32.

    Args:
        plan: the serialised engine.
        request: see ``build.build_engine``.
        send: sends one event to the parent.

    Raises:
        BuildFailedError: if its layers were asked for and it cannot be loaded.
        PrecisionError: if it tells of layers in other types only.
    """
    try:
        information = layer_information(trt, load_engine(trt, logger, plan, request["stage"]), request["layers"])
    except BuildFailedError as failure:
        if request["layers"]:
            raise
        send("log", text=failure.was)  # too little memory for engine and compiler at once says nothing about the engine
        return ""
    try:
        layers = read_layers(information)
    except ValueError as silence:
        return str(silence)
    kinds = Counter(kind for one in layers for kind in {*one.reads, *one.writes})
    wanted = {kind for kind, nodes in (("half", request["fp16"]), ("int8", request["int8"]), ("fp8", request.get("fp8"))) if nodes and kinds}
    wrong = [f"no layer of the engine reads or writes {kind}" for kind in sorted(wanted - kinds.keys())]
    if request["precision"] == "fp32":
        wrong += [f"{kinds[kind]} layers of the engine read or write {kind}" for kind in ("half", "bfloat16") if kinds[kind]]
    if wrong:
        fix = "report it with the version of TensorRT"
        raise PrecisionError(f"stage {request['stage']}: {'; '.join(wrong)}", wanted="the types of the typed graph", fix=fix)
    counts = ", ".join(f"{count} with {kind}" for kind, count in sorted(kinds.items()))
    return "; ".join(filter(None, (f"{len(layers)} layers, {counts}", attention_words(layers))))
