"""The photos on which the engines are worst, as small pictures with their error maps, so that a record can be looked at without the data."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ...runtime.errors import FathomError
from ..evaluation.evaluation import Evaluation, Pixels, compared, counted, scored
from ..evaluation.shaping import shape_pair
from .words import camera_of, words_of

if TYPE_CHECKING:
    from ...datasets.source import Source
    from .accuracy import Row

WORST = 5
WIDTH = 200
SPAN = 0.5  # relative errors at the ends of the colours
GREY = (128, 128, 128)
NEARER, FARTHER = np.array([33, 102, 172.0]), np.array([178, 24, 43.0])  # the ends of ColorBrewer's RdBu, which the colour-blind can tell apart


def worst_images(rows: list[dict[str, Any]], metric: str = "abs_rel") -> list[str]:
    """Ids of the images with the greatest mean error over all rows that scored them one by one, the worst first.

    Args:
        rows: of an accuracy record.
    """
    totals: dict[str, list[float]] = {}
    for row in rows:
        for group in row["groups"]:
            if len(group["ids"]) == len(group["scores"]):
                for name, score in zip(group["ids"], group["scores"], strict=True):
                    if score["values"] is not None:
                        totals.setdefault(name, []).append(score["values"][metric])
    return sorted(totals, key=lambda name: (-sum(totals[name]) / len(totals[name]), name))[:WORST]


def draw_worst(rows: list[Row], ids: list[str], source: Source, count: int, evaluation: Evaluation) -> list[dict[str, Any]]:
    """Each of these images with its truth and every row's relative error, as data URLs; the networks run once more on them, each by its row's protocol.

    Args:
        count: of samples that were measured.

    Returns:
        per image ``id``, ``photo``, ``truth``, ``near_m`` and ``far_m`` (ends of the truth's colours) and ``errors``: per row ``name`` and
        ``picture``, blue where the prediction is too near and red where it is too far.
    """
    samples = {sample.id: sample for sample in (source[number] for number in range(count)) if sample.id in ids}
    found: dict[str, dict[str, Any]] = {}
    for name in ids:
        rgb, truth_m, valid = shape_pair(samples[name].rgb, samples[name].depth_m, samples[name].valid, evaluation.shape)
        mask = counted(evaluation, truth_m, valid)
        near, far = (float(value) for value in np.percentile(truth_m[mask], [2, 98]))
        found[name] = {"id": name, "photo": _jpeg(rgb), "truth": _truth(truth_m, mask, near, far), "near_m": round(near, 3), "far_m": round(far, 3)}
        found[name]["errors"] = []
    for row in rows:
        with row.open() as pipeline:
            for name in ids:
                rgb, truth_m, valid = shape_pair(samples[name].rgb, samples[name].depth_m, samples[name].valid, evaluation.shape)
                try:
                    camera, words = camera_of(pipeline.contract, samples[name], evaluation.shape), words_of(pipeline.contract, samples[name])
                    depth = pipeline.predict(rgb, row.facts["protocol"], camera, words)
                except FathomError:
                    continue
                seen, mask, _ = scored(evaluation, depth.values, depth.valid, truth_m, valid)
                prediction, truth = compared(evaluation, Pixels(seen[mask], truth_m[mask].astype(np.float64), 0))
                share = np.zeros(truth_m.shape)
                share[mask] = prediction / truth - 1
                found[name]["errors"].append({"name": row.name, "picture": _png(signed_colours(share, mask))})
    return list(found.values())


def signed_colours(share: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """White where the error is 0, full colour from ``SPAN`` on, grey where nothing was counted; uint8 [H, W, 3].

    Args:
        share: prediction / truth - 1, [H, W].
        mask: which pixels count, bool [H, W].
    """
    strength = np.clip(np.abs(share) / SPAN, 0, 1)[..., None]
    end = np.where((share > 0)[..., None], FARTHER, NEARER)
    colours = 255 * (1 - strength) + end * strength
    return np.where(mask[..., None], np.rint(colours), GREY).astype(np.uint8)


def _truth(truth_m: np.ndarray, mask: np.ndarray, near: float, far: float) -> str:
    from ...runtime.outputs.colormap import colorize

    return _png(colorize(np.where(mask, truth_m, 0).astype(np.float32), mask, near, max(far, near + 1e-3), "turbo", reverse=True))


def _small(pixels: np.ndarray, resample: Image.Resampling) -> Image.Image:
    image = Image.fromarray(np.ascontiguousarray(pixels[..., :3]))
    return image.resize((WIDTH, max(1, round(WIDTH * image.height / image.width))), resample)


def _jpeg(pixels: np.ndarray) -> str:
    return _url(_small(pixels, Image.Resampling.LANCZOS), "JPEG", quality=82)


def _png(pixels: np.ndarray) -> str:
    return _url(_small(pixels, Image.Resampling.NEAREST).quantize(64), "PNG", optimize=True)


def _url(image: Image.Image, kind: str, **options: Any) -> str:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(stream.getvalue()).decode()}"
