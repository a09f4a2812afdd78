"""What finished engines tell of their layers: the file that ``depth-build --layers`` writes beside a plan, and how it is read."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..files import read_text

if TYPE_CHECKING:
    from .manifest import PlanManifest  # would load NumPy, which the Python that compiles need not have

FORMAT, VERSION = "fathom-layers", 1
LIMIT_NBYTES = 1 << 28
KINDS = (  # words in "Format/Datatype" -> our word, bytes of an element; the first that fits counts
    (re.compile(r"bf16|bfloat", re.I), "bfloat16", 2),
    (re.compile(r"fp16|half|float16", re.I), "half", 2),
    (re.compile(r"fp8|float8", re.I), "fp8", 1),
    (re.compile(r"fp32|float", re.I), "float", 4),
    (re.compile(r"int64", re.I), "int64", 8),
    (re.compile(r"int32", re.I), "int32", 4),
    (re.compile(r"int8|bool", re.I), "int8", 1),
)
FUSED_TACTIC, FUSED_NAME = re.compile(r"(?:^|_)f?mha_"), re.compile(r"^_*(?:mye\d+_)?gem[mv]_mha_v\d")  # _gemm_mha_v2, _gemv_mha_v1, fmha_v2
SOFTMAX = re.compile(r"soft_?max", re.I)
REGION = "ForeignNode["  # TensorRT 8: what is inside is not told


@dataclass(frozen=True)
class EngineLayer:
    """One layer of a finished engine.

    Args:
        name, kind: as the engine calls them.
        reads, writes: types of its tensors, ``float``, ``half``, ``bfloat16``, ``int8``, ...
        nbytes: of its inputs, outputs and weights, for a batch of one where the batch is free.
        tactic: name of the kernel; empty if it is not told.
        attention: ``fused`` for an attention kernel, ``softmax`` for a softmax that is none, ``untold`` for a region of TensorRT 8, else empty.
    """

    name: str
    kind: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    nbytes: int
    tactic: str
    attention: str


def read_layers(information: str) -> tuple[EngineLayer, ...]:
    """The layers that an engine inspector's JSON tells of, in running order.

    Raises:
        ValueError: if it tells nothing, or names only (the engine was built without detailed verbosity).
    """
    try:
        layers = json.loads(information)["Layers"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"the engine does not tell of its layers ({error})") from error
    if not isinstance(layers, list) or not all(isinstance(layer, dict) for layer in layers):
        raise ValueError("the engine tells the names of its layers and nothing else")
    return tuple(map(_layer, layers))


def _layer(told: dict[str, Any]) -> EngineLayer:
    name, kind, tactic = (str(told.get(key, "")) for key in ("Name", "LayerType", "TacticName"))
    reads, writes = ([_tensor(tensor) for tensor in told.get(side) or () if isinstance(tensor, dict)] for side in ("Inputs", "Outputs"))
    weights = sum(_weights(told.get(key)) for key in ("Weights", "Bias"))
    if FUSED_TACTIC.search(tactic) or FUSED_NAME.match(name):
        attention = "fused"
    elif REGION in name:
        attention = "untold"
    else:
        attention = "softmax" if SOFTMAX.search(" ".join((name, kind, str(told.get("Metadata", ""))))) else ""
    types = (tuple(sorted({word for word, _ in side if word})) for side in (reads, writes))
    return EngineLayer(name, kind, *types, sum(nbytes for _, nbytes in [*reads, *writes]) + weights, tactic, attention)


def _tensor(told: dict[str, Any]) -> tuple[str, int]:
    """Type and bytes of a tensor."""
    word, size = _kind(str(told.get("Format/Datatype", "")))
    for dim in told.get("Dimensions") or ():
        size *= max(1, int(dim))
    return word, size


def _weights(told: Any) -> int:
    return _kind(str(told.get("Type", "")))[1] * max(0, int(told.get("Count", 0))) if isinstance(told, dict) else 0


def _kind(words: str) -> tuple[str, int]:
    return next(((word, size) for pattern, word, size in KINDS if pattern.search(words)), ("", 0))


def attention_words(layers: tuple[EngineLayer, ...]) -> str:
    """Whether attention was fused, in words; empty if nothing points to attention."""
    fused, alone, untold = (sum(layer.attention == kind for layer in layers) for kind in ("fused", "softmax", "untold"))
    parts = [f"attention fused in {_count(fused, 'layer')}"] if fused else []
    parts += [f"softmax outside of such in {_count(alone, 'layer')}"] if alone else []
    parts += [f"{_count(untold, 'region')} not told"] if untold else []
    return ", ".join(parts)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def layers_json(manifest: PlanManifest, information: dict[str, str]) -> str:
    """The text of the file beside a plan.

    Args:
        information: stage -> the inspector's JSON, for every stage that is an engine of TensorRT's.
    """
    stages = [
        {"stage": stage.spec.name, "engine_sha256": manifest.files[stage.engine].sha256, "information": json.loads(information[stage.spec.name])}
        for stage in manifest.stages
        if stage.spec.name in information
    ]
    facts = {"format": FORMAT, "format_version": VERSION, "backend": manifest.backend, "backend_version": manifest.backend_version}
    return json.dumps({**facts, "targets": list(manifest.targets), "stages": stages}, allow_nan=False)


def read_layers_file(path: str | Path, manifest: PlanManifest) -> dict[str, tuple[EngineLayer, ...]]:
    """Stage -> its layers, out of the file that was written beside this very plan.

    Raises:
        InputError: if it cannot be read, is no such file, or tells of other engines.
    """
    try:
        found = json.loads(read_text(path, LIMIT_NBYTES))
        if (found["format"], found["format_version"]) != (FORMAT, VERSION):
            raise ValueError(f"its format is {found['format']} {found['format_version']}")
        told = {stage["stage"]: (stage["engine_sha256"], json.dumps(stage["information"])) for stage in found["stages"]}
        layers = {stage: read_layers(information) for stage, (_, information) in told.items()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} does not tell of layers ({error})", wanted="the file that depth-build --layers wrote") from error
    engines = {stage.spec.name: manifest.files[stage.engine].sha256 for stage in manifest.stages}
    strange = [stage for stage, (sha, _) in told.items() if engines.get(stage) != sha]
    if strange:
        raise InputError(f"{path} tells of another engine of stage {strange[0]}", wanted="the file that was written beside this plan")
    return layers
