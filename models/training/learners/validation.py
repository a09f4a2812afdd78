"""Three depth metrics on held-out pictures, beside those of two guesses that do not use the picture."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable

import numpy as np
import torch

from ....datasets.depth_metrics import at_median, depth_errors
from ....runtime.errors import AccuracyError, InputError
from ..data.training_data import Batch, Examples

METRICS = ("abs_rel", "rmse", "delta1")


def errors(prediction_m: np.ndarray, truth_m: np.ndarray) -> dict[str, float]:
    """``METRICS`` of two arrays [n] of positive depths.

    Raises:
        AccuracyError: if a prediction is not a positive finite number.
    """
    p = prediction_m.astype(np.float64)
    if not (np.isfinite(p).all() and (p > 0).all()):
        raise AccuracyError(f"{int((~np.isfinite(p)).sum())} predicted depths are not finite and {int((p <= 0).sum())} not positive")
    return depth_errors(p, truth_m, METRICS)


def mean_of(scores: Iterable[dict[str, float]]) -> dict[str, float]:
    """The mean over images, metric by metric."""
    scores = list(scores)
    return {name: float(np.mean([score[name] for score in scores])) for name in METRICS}


def validate(predict: Callable[[Batch], torch.Tensor], examples: Examples, batch: int, device: torch.device) -> dict[str, float]:
    """The network's metrics at its own resolution: per image over its valid pixels, then the mean over images that have any.

    A network of relative depth has no metres: each of its maps is first multiplied so that its median is the truth's.

    Args:
        predict: a batch to metres [B, 1, h, w]; maps of another size than the truth are resized bilinearly.
        examples: what to look at, without any augmentation.

    Raises:
        AccuracyError: if a prediction is not a positive finite number.
        InputError: if no picture has a valid pixel.
    """
    scores = []
    with torch.no_grad():
        for start in range(0, len(examples.samples), batch):
            shown = examples.batch(list(range(start, min(start + batch, len(examples.samples)))))
            found = predict(shown.to(device)).float()
            if found.shape[-2:] != shown.truth_m.shape[-2:]:
                found = torch.nn.functional.interpolate(found, shown.truth_m.shape[-2:], mode="bilinear", align_corners=False)
            for depth, truth, valid in zip(found.cpu().numpy(), shown.truth_m.numpy(), shown.valid.numpy(), strict=True):
                if valid.any():
                    found_m = depth[valid]
                    if examples.contract.output.kind == "relative":
                        found_m = at_median(found_m, truth[valid])
                    scores.append(errors(found_m, truth[valid]))
    if not scores:
        was = f"none of the {len(examples.samples)} pictures to measure on has a known depth that the network can say"
        raise InputError(was, wanted="some that has", fix="give other --val data, or hold others back")
    return mean_of(scores)


def baselines(examples: Examples) -> dict[str, dict[str, float]]:
    """What two blind guesses reach on the same pictures: ``constant`` and ``mean_map``, each made from the *other* pictures of the same
    data set (all rooms are one; real pairs are grouped by where they come from; one that stands alone takes the guess of all others).

    ``constant`` is the median over all other depths; ``mean_map`` their mean at each pixel (the constant where no other one knows it).
    Beside a network of relative depth, both are multiplied to the truth's median too, as ``validate`` does with the network.
    """
    relative = examples.contract.output.kind == "relative"
    one_group = {source.provenance.kind for source in examples.samples.sources} != {"pairs"}
    truths, groups = [], []
    for number in range(len(examples.samples)):
        _, truth, valid, _, scene, _ = examples.example(number)
        if valid.any():
            truths.append(np.where(valid, truth, np.nan).astype(np.float32))
            groups.append("" if one_group else scene)
    if len(truths) < 2:
        return {}
    members = defaultdict(list)
    for truth, group in zip(truths, groups, strict=True):
        members[group].append(truth)
    everyone = Others(truths) if min(map(len, members.values())) == 1 else None
    others = {group: everyone if len(found) == 1 else Others(found) for group, found in members.items()}
    scores = defaultdict(list)
    for truth, group in zip(truths, groups, strict=True):
        constant, mean_map = others[group].guesses(truth)
        valid = np.isfinite(truth)
        for name, guess_m in (("constant", np.full(int(valid.sum()), constant)), ("mean_map", mean_map[valid])):
            scores[name].append(errors(at_median(guess_m, truth[valid]) if relative else guess_m, truth[valid]))
    return {name: mean_of(found) for name, found in scores.items()}


class Others:
    """Depth maps of one size, and what all but one of them say. Sums and order are made once: for each map anew, time grows with their square.

    Args:
        maps: [H, W] each, metres, NaN where unknown.
    """

    def __init__(self, maps: list[np.ndarray]):
        self.depths_m = np.sort(np.concatenate([depth[np.isfinite(depth)] for depth in maps]))  # [known pixels of all]
        self.known, self.total_m = np.zeros(maps[0].shape, np.int64), np.zeros(maps[0].shape)  # float64: one is subtracted again
        for depth in maps:
            self.known += np.isfinite(depth)
            self.total_m += np.nan_to_num(depth.astype(np.float64))

    def guesses(self, own: np.ndarray) -> tuple[float, np.ndarray]:
        """The median of the others' depths, and their mean at each pixel: the median where none of them knows it.

        Args:
            own: one of the maps; there is another one.
        """
        known, depths_m = np.isfinite(own), np.sort(own[np.isfinite(own)])
        left = len(self.depths_m) - len(depths_m)
        median = (self._ranked(depths_m, (left - 1) // 2) + self._ranked(depths_m, left // 2)) / 2
        count = self.known - known
        return median, np.where(count > 0, (self.total_m - np.where(known, own, 0)) / np.maximum(count, 1), median)

    def _ranked(self, own: np.ndarray, rank: int) -> float:
        """The depth of that rank (from 0) among the others, by bisection."""
        low, high = 0, len(self.depths_m) - 1
        while low < high:
            middle = (low + high) // 2
            depth = self.depths_m[middle]
            not_farther = np.searchsorted(self.depths_m, depth, "right") - np.searchsorted(own, depth, "right")
            low, high = (low, middle) if not_farther > rank else (middle + 1, high)
        return float(self.depths_m[low])
