"""What each stage's precision costs in metres: the FP32 chain with one stage of the engine in it, photo by photo."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...runtime.artefact.bundle import BundleDirectory
from ...runtime.backend import open_backend
from ...runtime.errors import FathomError
from ...runtime.pipeline import Pipeline

if TYPE_CHECKING:
    from ...datasets.source import Source
    from .evaluation import Evaluation

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
    engine: str | Path, bundle: str | Path, source: Source, count: int, evaluation: Evaluation, protocol: str | None, threads: int | None
) -> list[dict[str, Any]]:
    """For every stage of an engine: how far the map moves when this stage alone is the engine's and all others are the bundle's in FP32.

    Args:
        engine: a plan for ONNX Runtime.
        bundle: that it was built from.
        count: of samples; the first ``PHOTOS`` of them are looked at.

    Returns:
        ``name``, ``precision``, ``depth_change_m`` (mean of |map - FP32 map|; None for maps that are not metres) and ``depth_change``
        (the same over the mean of the FP32 map).

    Raises:
        FathomError: if the stages cannot be run one by one.
    """
    from .shaping import shape_pair
    from .words import words_of

    photos: list[tuple[np.ndarray, str | None]] = []
    with Pipeline.open(engine, None, threads) as other:
        for number in range(min(count, PHOTOS)):
            sample = source[number]
            photos.append((shape_pair(sample.rgb, sample.depth_m, sample.valid, evaluation.shape)[0], words_of(other.contract, sample)))
        precisions = {stage.spec.name: stage.precision for stage in other.manifest.stages}
        if not hasattr(other.backend, "run_stage"):
            raise FathomError("the engine's stages cannot be run one by one on this backend")
        artefact = BundleDirectory.open(bundle, verify=False)
        mixed = OneStageBackend(open_backend(artefact, "cpu", threads), other.backend)
        with Pipeline(artefact, mixed, 1) as chain:
            if [stage.name for stage in mixed.stages] != list(precisions):
                raise FathomError("bundle and engine have other stages")
            return _costs(chain, mixed, precisions, photos, protocol)


def _costs(chain: Pipeline, mixed: OneStageBackend, precisions: dict[str, str], photos: list[Any], protocol: str | None) -> list[dict[str, Any]]:
    wanted = [chain.predict(photo, protocol, prompt=scene) for photo, scene in photos]
    found = []
    for name, precision in precisions.items():
        mixed.stage = name
        moved = [np.abs(chain.predict(photo, protocol, prompt=scene).values - depth.values) for (photo, scene), depth in zip(photos, wanted, strict=True)]
        metres = float(np.mean([np.mean(move) for move in moved])) if wanted[0].kind == "metric" else None
        share = float(np.mean([np.mean(move) / np.mean(np.abs(depth.values)) for move, depth in zip(moved, wanted, strict=True)]))
        found.append({"name": name, "precision": precision, "depth_change_m": metres, "depth_change": share})
    return found
