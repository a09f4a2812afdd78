"""What a quantised network does to the depth of the pairs that prove it, with how sure that is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ...datasets.depth_metrics import depth_errors
from ...datasets.pairs import Pairs
from ...datasets.sample import Sample
from ...runtime.artefact.contract import Contract
from ...runtime.photo.postprocess import Assembly
from ...runtime.photo.preprocess import network_inputs, place_steps, windows_of

METRICS = ("abs_rel", "delta1")
DRAWS = 4000
Maps = dict[str, tuple[np.ndarray, np.ndarray]]
Run = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]  # photo [H, W, 3] -> values [H, W], valid [H, W]


class Network:
    """A network behind the contract's preprocessing: photo in, map on the photo's pixels out.

    Args:
        tensors: from the network's input to its output.
    """

    def __init__(self, tensors: Callable[[np.ndarray], np.ndarray], contract: Contract):
        self._tensors, self._contract, self._protocol = tensors, contract, contract.protocols[0]

    def __call__(self, photo: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Values float32 [H, W] and valid bool [H, W]."""
        placed = place_steps(self._protocol.steps, *photo.shape[:2])
        whole = Assembly(self._contract, self._protocol, placed, photo.shape[:2])
        for window, tensor in zip(windows_of(self._protocol), network_inputs(photo, self._contract, self._protocol, 1), strict=True):
            whole.add(window, self._tensors(tensor)[0])
        return whole.finish()


def of_file(file: Path, contract: Contract) -> Network:
    """An ONNX file. Q/DQ run as they are written: ONNX Runtime has integer kernels on a CPU, but none that compute in FP8, so nothing is fused."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return Network(lambda tensor: session.run([contract.output.tensor], {contract.input.tensor: tensor})[0], contract)


def of_outputs(inputs: np.ndarray, outputs: np.ndarray, contract: Contract) -> Network:
    """What was computed elsewhere for the inputs [N, C, H, W] of these pairs."""
    known = {tensor.tobytes(): made for tensor, made in zip(inputs, outputs, strict=True)}
    return Network(lambda tensor: known[tensor[0].tobytes()][None], contract)


def judge(run: Run, pairs: Pairs, contract: Contract, reference: Maps) -> dict[str, Any]:
    """``abs_rel`` and ``delta1`` of every pair, and ``moved``: the mean of |depth - FP32 depth| / FP32 depth; ``reference`` is filled by the first arm."""
    rows: dict[str, dict[str, float]] = {}
    for sample in pairs:
        values, valid = run(sample.rgb)
        wide, also_valid = reference.setdefault(sample.id, (values, valid))
        counts = valid & also_valid & (wide > 0)
        moved = float(np.mean(np.abs(values[counts] - wide[counts]) / wide[counts]))
        rows[sample.id] = _errors(sample, values, valid, contract) | {"moved": moved}
    return rows


def _errors(sample: Sample, values: np.ndarray, valid: np.ndarray, contract: Contract) -> dict[str, float]:
    counts = valid & sample.valid & (sample.depth_m >= contract.output.near) & (sample.depth_m <= contract.output.far)
    return depth_errors(np.maximum(values[counts], 1e-3), sample.depth_m[counts], METRICS)


def summary(rows: list[dict[str, dict[str, float]]], base: dict[str, dict[str, float]], scenes: dict[str, str]) -> dict[str, Any]:
    """An arm over all seeds.

    Args:
        rows: what ``judge`` said of every seed.
        base: of the FP32 network.
        scenes: pair -> scene.

    Returns:
        means over seeds and pairs of ``moved``, ``abs_rel``, ``delta1``, the relative changes of the latter two from FP32, ``moved_95``: bounds between which
        the mean lies in 95 of 100 draws of scenes, ``moved_by_seed``, and ``nyu``: ``moved`` and the change of abs_rel on the pairs of NYU alone.
    """
    found: dict[str, Any] = {metric: _mean(rows, metric) for metric in ("moved", *METRICS)}
    for metric in METRICS:
        found[f"{metric}_change"] = found[metric] / _mean([base], metric) - 1
    found["moved_95"] = bounds({name: _mean([{name: row[name]} for row in rows], "moved") for name in base}, scenes)
    found["moved_by_seed"] = [_mean([row], "moved") for row in rows]
    nyu = [name for name in base if name.startswith("nyu")]
    if nyu:
        some = [{name: row[name] for name in nyu} for row in rows]
        change = _mean(some, "abs_rel") / _mean([{name: base[name] for name in nyu}], "abs_rel") - 1
        found["nyu"] = {"moved": _mean(some, "moved"), "abs_rel_change": change}
    return found


def ahead(ours: list[dict[str, dict[str, float]]], theirs: list[dict[str, dict[str, float]]], scenes: dict[str, str]) -> dict[str, Any]:
    """By how much less ours moves the depth than theirs, photo by photo: the mean, and its 95 % bounds over draws of scenes."""
    less = {name: float(np.mean([row[name]["moved"] for row in theirs]) - np.mean([row[name]["moved"] for row in ours])) for name in scenes}
    return {"less": float(np.mean(list(less.values()))), "less_95": bounds(less, scenes)}


def bounds(values: dict[str, float], scenes: dict[str, str]) -> list[float]:
    """Between which the mean lies in 95 of 100 draws of whole scenes with replacement (seed 0)."""
    groups: dict[str, list[float]] = {}
    for name, value in values.items():
        groups.setdefault(scenes[name], []).append(value)
    sums, sizes = np.array([sum(group) for group in groups.values()]), np.array([len(group) for group in groups.values()])
    drawn = np.random.default_rng(0).integers(0, len(sums), (DRAWS, len(sums)))
    means = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    return [float(bound) for bound in np.percentile(means, (2.5, 97.5))]


def _mean(rows: list[dict[str, dict[str, float]]], metric: str) -> float:
    return float(np.mean([pair[metric] for row in rows for pair in row.values()]))
