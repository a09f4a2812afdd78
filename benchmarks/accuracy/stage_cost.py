"""What each stage's precision costs in metres: the FP32 chain with one stage of the engine in it, photo by photo."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...runtime.artefact.bundle import BundleDirectory
from ...runtime.backend import open_backend
from ...runtime.errors import AccuracyError, FathomError, InputError
from ...runtime.pipeline import Pipeline

if TYPE_CHECKING:
    from ...datasets.source import Source
    from ...runtime.photo.depth_map import DepthMap
    from ..evaluation.evaluation import Evaluation

PHOTOS = 4


class OneStageBackend:
    """Runs a chain in one backend but for a stage, which it takes from another; see ``runtime.backend.Backend``.

    Args:
        base: with ``run_stage``.
        other: with ``run_stage``; has the same stages.
        stage: whose tensors come from ``other``; "" for none.
    """

    def __init__(self, base: Any, other: Any, stage: str = ""):
        self._base, self._other, self.stage = base, other, stage
        self.stages, self.concurrent, self.remarks = base.stages, 1, ()

    def run(self, inputs: dict[str, np.ndarray], keep: frozenset[str] = frozenset()) -> dict[str, np.ndarray]:
        """All tensors, or those that are kept."""
        values = dict(inputs)
        for stage in self.stages:
            backend = self._other if stage.name == self.stage else self._base
            values |= backend.run_stage(stage.name, {tensor.name: values[tensor.name] for tensor in stage.inputs})
        return {name: values[name] for name in keep} if keep else values

    def interrupt(self) -> None:
        """See ``runtime.backend.Backend``."""
        self._base.interrupt()
        self._other.interrupt()

    def close(self) -> None:
        """Close the first; the other belongs to a pipeline of its own."""
        self._base.close()


def stage_costs(
    engine: str | Path, bundle: str | Path, source: Source, count: int, evaluation: Evaluation, protocol: str, threads: int | None
) -> list[dict[str, Any]]:
    """For every stage of an engine: how far the map moves when this stage alone is the engine's and all others are the bundle's in FP32.

    Args:
        engine: a plan for ONNX Runtime.
        bundle: that it was built from.
        count: of samples; the first ``PHOTOS`` of them that fit the evaluation and the protocol are looked at.
        protocol: by which the engine's row was scored.

    Returns:
        ``name``, ``precision``, ``depth_change_m`` (mean of |map - FP32 map| where both are valid; None for maps that are not metres) and
        ``depth_change`` (the same over the mean of the FP32 map there).

    Raises:
        FathomError: if the stages cannot be run one by one, or no photo fits.
    """
    with Pipeline.open(engine, None, threads) as other:
        precisions = {stage.spec.name: stage.precision for stage in other.manifest.stages}
        if not hasattr(other.backend, "run_stage"):
            raise FathomError("the engine's stages cannot be run one by one on this backend")
        artefact = BundleDirectory.open(bundle, verify=False)
        mixed = OneStageBackend(open_backend(artefact, "cpu", threads), other.backend)
        with Pipeline(artefact, mixed, 1) as chain:
            if [stage.name for stage in mixed.stages] != list(precisions):
                raise FathomError("bundle and engine have other stages")
            looks = _looks(chain, source, count, evaluation, protocol)
            return [_cost(chain, mixed, name, precision, looks) for name, precision in precisions.items()]


def _looks(chain: Pipeline, source: Source, count: int, evaluation: Evaluation, protocol: str) -> list[tuple[tuple[Any, ...], DepthMap]]:
    """What ``Pipeline.predict`` is given for each photo, as when it was scored, and the FP32 map of it."""
    from ..evaluation.evaluation import counted
    from ..evaluation.shaping import shape_pair
    from .words import camera_of, words_of

    found: list[tuple[tuple[Any, ...], DepthMap]] = []
    for sample in (source[number] for number in range(count)):
        try:
            rgb, truth_m, valid = shape_pair(sample.rgb, sample.depth_m, sample.valid, evaluation.shape)
            if not counted(evaluation, truth_m, valid).any():
                continue
            given = (rgb, protocol, camera_of(chain.contract, sample, evaluation.shape), words_of(chain.contract, sample))
            found.append((given, chain.predict(*given)))
        except (AccuracyError, InputError, ValueError):
            continue  # no part of the score either
        if len(found) == PHOTOS:
            break
    if not found:
        raise FathomError("no photo fits")
    return found


def _cost(chain: Pipeline, mixed: OneStageBackend, name: str, precision: str, looks: list[tuple[tuple[Any, ...], DepthMap]]) -> dict[str, Any]:
    mixed.stage = name
    moved, shares = [], []
    for given, wanted in looks:
        depth = chain.predict(*given)
        both = depth.valid & wanted.valid
        if both.any():
            moved.append(float(np.mean(np.abs(depth.values - wanted.values)[both])))
            shares.append(moved[-1] / float(np.mean(np.abs(wanted.values[both]))))
    if not moved:
        raise FathomError(f"with the engine's stage {name} no pixel is valid that was before")
    metres = float(np.mean(moved)) if looks[0][1].kind == "metric" else None
    return {"name": name, "precision": precision, "depth_change_m": metres, "depth_change": float(np.mean(shares))}
