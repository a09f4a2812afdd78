"""What becomes of photos, and how far it is from the truth and from what FP32 makes of them: one photo after the other, whatever their size."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ...datasets.depth_metrics import at_median, depth_errors
from ...datasets.sample import Sample
from ...runtime.errors import InputError
from ..graph.chain import Chain, ShapedPhoto

SMALLEST_DEPTH = 1e-9
REMEMBER_NBYTES = 512 << 20  # of maps and truths; those of the other photos are made anew each time


@dataclass(frozen=True)
class Map:
    """What became of one photo: values float32 [H, W] and valid bool [H, W]; for a mask also how probable the object is in every window,
    float32 [windows, h, w]."""

    values: np.ndarray
    valid: np.ndarray
    object_share: np.ndarray | None = None


Truth = tuple[np.ndarray, np.ndarray]  # what a map should be, float32 [H, W], and where that counts, bool [H, W]


class Targets:
    """What maps of some photos are compared with: the truth where there is one, and what the FP32 network makes of them.

    Args:
        chain: the FP32 network.
        sample: gives the image of a number, with its depth.
        outputs: by number of the photo, what the network puts out for every window of it.

    Attributes:
        truth: see ``Evaluator``.
        numbers: of the photos that the metrics are taken of.
        edged: of those whose mask has an edge.

    Raises:
        InputError: if no pixel has a usable depth, or the words find nothing, or nothing else, in any image.
        AccuracyError: if the FP32 network gives no depth.
    """

    def __init__(self, chain: Chain, sample: Callable[[int], Sample], outputs: dict[int, list[np.ndarray]]):
        self._chain, self._sample, self._outputs = chain, sample, outputs
        self._shaped: dict[int, ShapedPhoto] = {}
        self._remembered: dict[int, tuple[Map, Truth | None]] = {}
        self._room = REMEMBER_NBYTES
        output = chain.contract.output
        self._mask, self._relative, self._near, self._far = output.kind == "mask", output.kind == "relative", output.near, output.far
        self._known = output.kind == "metric" or (self._relative and output.larger_is == "far")
        true, positive, self.edged = set(), set(), set()
        for number in outputs:
            reference, truth = self._look(number)
            if truth is not None:
                true.add(number)
            if (reference.valid & (reference.values > 0)).any():
                positive.add(number)
            if self._mask and 0 < reference.values[reference.valid].mean() < 1:
                self.edged.add(number)
        self._fitted = self._relative and bool(true)
        self.truth = "ground truth" + ", fitted by the median" * self._fitted if true else "fp32 mask" if self._mask else "fp32 output"
        self.numbers = tuple(number for number in outputs if self._mask or number in (true or positive))
        if self._mask and not self.edged:
            raise InputError(
                f"{' and '.join(map(repr, chain.prompts)) or 'the object'}: nowhere, or everywhere, in each of the {len(outputs)} images",
                wanted="words for something that is in the images: a mask without an edge says nothing",
                fix="give another --prompt, or other images",
            )
        if not self.numbers:
            raise InputError("no pixel of the images has a depth above zero", fix="give other images")

    def compare(self, number: int, outputs: list[np.ndarray]) -> tuple[tuple[float, float] | None, float]:
        """What a network puts out for the windows of a photo: abs_rel and delta1, or what stands for them of a mask (see ``Evaluator``; None if the photo
        is none of ``numbers``), and how far the map is apart from that of FP32.

        Raises:
            AccuracyError: if it is NaN, infinite or constant.
        """
        reference, truth = self._look(number)
        found = self._map(number, outputs)
        return self._errors(found, reference, truth) if number in self.numbers else None, apart(found, reference)

    def _errors(self, found: Map, reference: Map, truth: Truth | None) -> tuple[float, float]:
        wanted, counts = truth if truth is not None else (reference.values, reference.valid & (self._mask | (reference.values > 0)))
        values, wanted = found.values[counts], wanted[counts]
        if self._mask:
            changed, either = float(np.mean(values != wanted)), float(np.mean((values > 0) | (wanted > 0)))
            return changed / either if either else 0.0, 1 - changed
        # a precision may push a depth to zero or below: that is a wrong depth, not the end of the search
        values = np.maximum(at_median(values, wanted) if self._fitted else values, SMALLEST_DEPTH)
        errors = depth_errors(values, wanted, ("abs_rel", "delta1"))
        return errors["abs_rel"], errors["delta1"]

    def _map(self, number: int, outputs: list[np.ndarray]) -> Map:
        return Map(*self._chain.assemble(self._shaped[number], outputs), object_share(outputs) if self._mask else None)

    def _look(self, number: int) -> tuple[Map, Truth | None]:
        """What FP32 makes of a photo, and the truth if it has one."""
        if number in self._remembered:
            return self._remembered[number]
        sample = self._sample(number)
        self._shaped[number] = self._chain.shaped(*sample.rgb.shape[:2])
        reference, truth = self._map(number, self._outputs[number]), None
        if self._known:
            near, far = (0, math.inf) if self._relative else (self._near, self._far)
            counts = sample.valid & reference.valid & (sample.depth_m >= near) & (sample.depth_m <= far)
            truth = (sample.depth_m, counts) if counts.any() else None
        nbytes = sum(values.nbytes for values in (reference.values, reference.valid, *(truth or ())))
        if nbytes <= self._room:
            self._room -= nbytes
            self._remembered[number] = reference, truth
        return reference, truth


def apart(found: Map, reference: Map) -> float:
    """How far a map moved: relative, pixel by pixel; of a mask the object's probability."""
    if reference.object_share is not None:
        return float(np.mean(np.abs(found.object_share - reference.object_share)))
    counts = reference.valid & found.valid & (np.abs(reference.values) > 0)
    values = reference.values[counts]
    return float(np.mean(np.abs(found.values[counts] - values) / np.abs(values))) if counts.any() else 0.0


def object_share(tensors: list[np.ndarray]) -> np.ndarray:
    """Probability of the object from logits [batch, 2, h, w] of every window: float32 [windows, h, w]."""
    logits = np.stack([tensor[0] for tensor in tensors]).astype(np.float32)
    return 0.5 * (1 + np.tanh(0.5 * (logits[:, 1] - logits[:, 0])))  # the logistic function, without its overflow
