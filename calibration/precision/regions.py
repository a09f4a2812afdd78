"""The parts of a stage that get a precision of their own, read from the module paths in the node names."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

import onnx

from ..graph.stage_graph import StageGraph

# The first word that a component of the module path matches decides; several spellings of the same thing are one kind.
KINDS: tuple[tuple[str, str], ...] = (
    ("cross-attention", r"(attn2|cross_?attn.*|cross_?attention.*|crossattention|encoder_attn)"),
    ("self-attention", r"(attn|attn1|self_?attn.*|self_?attention.*|attention|mha)"),
    ("feed-forward", r"(ff|ffn|mlp|feed_?forward.*|intermediate.*|fc|c_fc|c_proj|linear[12])"),
    ("norm", r"(.*norm\d*|ln_?\w*|layer_?norm\w*|group_?norm\w*|bn\d*|gn\d*)"),
    ("refinement", r"(.*refine.*|.*imafr.*|.*aggregation.*|.*fpn.*)"),
    ("deconvolution", r"(.*deconv.*|.*upsample.*|upsamplers|up_?conv.*|conv_transpose.*)"),
    ("bins head", r"(.*bins?|bins?_.*|seed_.*|.*attractor.*|.*log_binomial.*)"),
    ("adapter", r"(.*adapter.*|.*lora.*)"),
    ("reprogramming", r"(.*reprogram.*|patch_?embed.*)"),
    ("head", r"(.*head.*|decoder|out_?conv.*|regressor.*|.*predict.*)"),
)
BLOCK = re.compile(r"\d+")
MAX_REGIONS = 48  # per stage; beyond that the smallest neighbours are joined upwards


@dataclass(frozen=True)
class Region:
    """Nodes of one stage that share a precision.

    Args:
        stage: name of the stage.
        path: module path they have in common, or the name of a node in a graph without module paths.
        kind: one of the kinds above, or ``block``.
        nodes: names of the nodes, in running order.
    """

    stage: str
    path: str
    kind: str
    nodes: tuple[str, ...]

    @property
    def name(self) -> str:
        """Stage and path: unique in a network."""
        return f"{self.stage}:{self.path}"


def find_regions(stage: str, graph: StageGraph, most: int = MAX_REGIONS) -> tuple[Region, ...]:
    """Cut a stage into regions; every node is in exactly one.

    A region is the shortest module path that ends in an attention, a feed-forward, a norm or another thing with a name
    (``KINDS``); what has none goes with its block (the path up to the last number). Graphs made elsewhere have no module paths:
    there every weighted node begins a region, which lasts until the next one.

    Args:
        most: how many regions at most; the deepest paths are shortened until it holds.
    """
    nodes = list(graph.model.graph.node)
    if sum("/" in node.name for node in nodes) * 2 < len(nodes):
        return _by_weights(stage, graph, most)
    paths = _paths(nodes)
    depth = max((path.count(".") + 1 for path, _ in paths.values()), default=1)
    while len({path for path, _ in paths.values()}) > most and depth > 1:
        depth -= 1
        paths = {name: _shortened(path, kind, depth) for name, (path, kind) in paths.items()}
    if len({path for path, _ in paths.values()}) > most:
        paths = dict.fromkeys(paths, ("(all)", "block"))
    members: dict[str, list[str]] = {}
    kinds: dict[str, str] = {}
    for name, (path, kind) in paths.items():
        members.setdefault(path, []).append(name)
        kinds.setdefault(path, kind)
    return tuple(Region(stage, path, kinds[path], tuple(names)) for path, names in members.items())


def _shortened(path: str, kind: str, depth: int) -> tuple[str, str]:
    parts = path.split(".")
    return (path, kind) if len(parts) <= depth else (".".join(parts[:depth]), "block")


def _paths(nodes: list[onnx.NodeProto]) -> dict[str, tuple[str, str]]:
    return {node.name: region_path(node.name.rpartition("/")[0]) for node in nodes}


def region_path(module: str) -> tuple[str, str]:
    """Path and kind of the region that a module belongs to."""
    if not module:
        return "(top)", "block"
    parts = module.split(".")
    for end, part in enumerate(parts, 1):
        for kind, pattern in KINDS:
            if re.fullmatch(pattern, part, re.IGNORECASE):
                if kind in ("head", "deconvolution", "refinement") and end < len(parts) and BLOCK.fullmatch(parts[end]):
                    return ".".join(parts[: end + 1]), kind  # decoder.0, decoder.1: one region each
                return ".".join(parts[:end]), kind
    numbers = [end for end, part in enumerate(parts, 1) if BLOCK.fullmatch(part)]
    return ".".join(parts[: numbers[-1]] if numbers else parts[:1]), "block"


def _by_weights(stage: str, graph: StageGraph, most: int) -> tuple[Region, ...]:
    groups: list[tuple[str, str, list[str]]] = []
    for node in graph.model.graph.node:
        weighted = node.op_type in ("Conv", "ConvTranspose", "MatMul", "Gemm") and any(name in graph.constants for name in node.input[1:2])
        if weighted or not groups:
            groups.append((node.name, "deconvolution" if node.op_type == "ConvTranspose" else "block", []))
        groups[-1][2].append(node.name)
    while len(groups) > most:  # join the neighbours that are smallest together
        place = min(range(len(groups) - 1), key=lambda i: len(groups[i][2]) + len(groups[i + 1][2]))
        path, kind, names = groups[place]
        groups[place : place + 2] = [(path, kind, names + groups[place + 1][2])]
    taken = Counter(path for path, _, _ in groups)
    assert all(count == 1 for count in taken.values()), "node names are unique"
    return tuple(Region(stage, path, kind, tuple(names)) for path, kind, names in groups)
