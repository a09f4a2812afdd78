"""How far masks of plans differ from PyTorch's: their overlap, and the share of pixels that change sides, photo by photo and sentence by sentence."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from ...datasets.mask_metrics import MaskTotals
from ...datasets.sample import Sample
from ...runtime.errors import AccuracyError
from ...runtime.pipeline import Pipeline
from ..pytorch_reference import open_reference


def compare_masks(bundle: Path, plans: dict[str, Path], samples: Iterable[Sample], prompts: Sequence[str], threads: int | None = None) -> dict[str, dict]:
    """Masks of plans against those of the network in PyTorch.

    Args:
        bundle: of a network that draws masks.
        plans: name -> plan.
        samples: pictures; their depth is not looked at.
        prompts: what every picture is asked for.
        threads: of ONNX Runtime.

    Returns:
        ``pytorch``: ``asked`` (photos times sentences), ``drawn`` (mean share of pixels in the mask); for every plan ``changed_pixels``
        (mean share that changed sides) and ``oIoU``, the overlap with PyTorch's masks.

    Raises:
        AccuracyError: if a network gives no mask, or PyTorch's masks are empty everywhere: then nothing was compared.
    """
    asked = [(sample.rgb, prompt) for sample in samples for prompt in prompts]
    with open_reference(bundle) as pipeline:
        wanted = [_mask(pipeline, *question) for question in asked]
    if not any(mask.any() for mask in wanted):
        raise AccuracyError(f"all {len(asked)} masks of PyTorch are empty", wanted="words for something that is in the pictures")
    found: dict[str, dict] = {"pytorch": {"asked": len(asked), "drawn": float(np.mean([mask.mean() for mask in wanted]))}}
    for name, plan in plans.items():
        totals, changed = MaskTotals(), []
        with Pipeline.open(plan, threads=threads) as pipeline:
            for question, truth in zip(asked, wanted, strict=True):
                mask = _mask(pipeline, *question)
                totals = totals.add(mask, truth)
                changed.append(float((mask != truth).mean()))
        found[name] = {"changed_pixels": float(np.mean(changed)), "most_changed": max(changed), "oIoU": totals.metrics()["oIoU"]}
    return found


def _mask(pipeline: Pipeline, photo: np.ndarray, prompt: str) -> np.ndarray:
    depth = pipeline.predict(photo, prompt=prompt)
    if depth.kind != "mask":
        raise AccuracyError("this network gives depth, not masks", wanted="a network for referring segmentation")
    return depth.values > 0.5
