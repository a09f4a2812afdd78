"""What a finished engine of TensorRT 8 tells of its layers: which nodes of the graph became which, and in what types they read and write."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ...runtime.errors import PrecisionError

BETWEEN_NAMES = re.compile(r" \+ | \|\| |, |\.\.\.|[(){}\[\]]")  # "a + b", "PWN(a, b)", "{ForeignNode[a...b]}"
TYPES = ((re.compile(r"fp32|float", re.I), "float"), (re.compile(r"fp16|half", re.I), "half"), (re.compile(r"int8", re.I), "int8"))
REGION = "ForeignNode["  # compiled as a whole by Myelin: only the first and the last of its layers are named, and nothing inside is told


@dataclass
class NodeTypes:
    """In what a node computes: ``float``, ``half``, ``int8``.

    Args:
        reads: types of its layer's inputs.
        own: types of its layer's inputs and outputs, without what crosses the boundary of the stage: that type is the neighbour's choice too.
    """

    reads: set[str] = field(default_factory=set)
    own: set[str] = field(default_factory=set)


def layer_types(information: str, nodes: Iterable[str], boundaries: set[str]) -> dict[str, NodeTypes]:
    """What the engine tells of each node.

    Args:
        information: of the engine inspector, in JSON; the engine was built with detailed verbosity.
        nodes: names of the graph's nodes. Those that the engine does not name, or only as the end of a region, are not in the result.
        boundaries: names of the FP16 tensors that the stage takes and makes.

    Raises:
        PrecisionError: if the engine tells nothing.
    """
    try:
        layers = json.loads(information)["Layers"]
    except (ValueError, KeyError, TypeError) as error:
        raise PrecisionError(f"the engine does not tell of its layers ({error})", fix="report it with the version of TensorRT") from error
    known, found = set(nodes), {}
    detailed = [layer for layer in layers if isinstance(layer, dict)]
    if layers and not detailed:
        raise PrecisionError("the engine tells the names of its layers and nothing else", fix="report it with the version of TensorRT")
    for layer in detailed:
        name = str(layer.get("Name", ""))
        if REGION in name or name.startswith("Reformatting CopyNode"):
            continue
        inputs, outputs = (layer.get(side, ()) for side in ("Inputs", "Outputs"))
        reads, own = _types(inputs, set()), _types([*inputs, *outputs], boundaries)
        for part in BETWEEN_NAMES.split(name):
            node = part.strip()
            node = node if node in known else re.sub(r"_\d+$", "", node)
            if node in known:
                types = found.setdefault(node, NodeTypes())
                types.reads.update(reads)
                types.own.update(own)
    return found


def _types(tensors: Any, without: set[str]) -> set[str]:
    told = set()
    for tensor in tensors:
        if isinstance(tensor, dict) and tensor.get("Name") not in without:
            words = str(tensor.get("Format/Datatype", ""))
            told.update(kind for pattern, kind in TYPES if pattern.search(words))
    return told
