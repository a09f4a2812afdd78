"""Is a stage's error what one wrong weight would make? What 1 % of each weight does to the stage travels in the plan.

Rounding and a wrong weight of the same size cannot be told apart by how large they are, but by their direction: a wrong weight moves the
stage's outputs along a line that is known beforehand, rounding along none of its own. So the part of an error along each line is taken by
generalised least squares: expected are noise in every number and a small drift of every weight. A weight is suspected if its line holds a good
part of what 1 % of it would make, and far more, for the noise there is, than rounding puts there.

What rounding does to the weights themselves is known when a plan is built: it is the same in every engine, and is taken away before. What rounding
does to activations depends on which operators an engine joins; a plan carries what several ways of joining them do.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..artefact.plan import PlanFile

PROBES = "goldens/probes.bin"
FORMAT, FORMATS = "fathom-probes-2", ("fathom-probes-1", "fathom-probes-2")  # the first has no ``expected``
STEP = 0.01  # the change of a weight whose effect is kept
TOGETHER, LESS = "each of its weights", "each of its weights, less"  # lines of their own, of + STEP and - STEP: what all of them do is far from straight
SAMPLES = 4096  # of a stage's numbers are looked at, spread evenly over its outputs
MOST_WEIGHTS = 4096
MOST_HEADER_NBYTES = 4 << 20
LEAST_CHANGE = 0.6  # of STEP: where 1 % is wrong, 0.8 and more is found of 99 weights in 100
CLEARNESS = 5.5  # in standard deviations of what rounding puts along the same line
LEAST_NOISE = 0.5  # of what was expected: an engine that rounds less is judged more sharply, down to this
REFOLDED = 0.0625  # of what rounding all weights anew would do, squared
SILENCE = 3e-7  # what sums in another order leave of FP32


@dataclass(frozen=True)
class Resolution:
    """What can be told from rounding in one precision.

    Args:
        rounding: times that of FP16, where what it does was not measured in this precision.
        drift: by how much of ``STEP`` each weight may seem changed with nothing wrong.
        least: 1 % of a weight has to move its stage's outputs by this share of their root mean square to be looked for.
    """

    rounding: float
    drift: float
    least: float


RESOLUTIONS = {
    "fp32": Resolution(2.0**-11, 3e-4, 5e-7),
    "fp16": Resolution(1.0, 1e-2, 1e-5),
    "bf16": Resolution(8.0, 3e-2, 8e-5),
    "int8": Resolution(4.0, 1e-2, 4e-5),
    "fp8": Resolution(32.0, 3e-2, 4e-4),
    "int4": Resolution(1.0, 1e-2, 1e-5),  # its weights are exact in the golden graph too: what rounds is FP16
}


@dataclass(frozen=True)
class Suspect:
    """A weight that would explain a stage's error.

    Args:
        weight: its name in the stage's graph.
        change: by which share of itself it seems wrong.
    """

    weight: str
    change: float

    @property
    def words(self) -> str:
        """For people."""
        return f"its error is what {self.weight} times {1 + self.change:.3f} would make, and no rounding"


@dataclass(frozen=True)
class StageProbes:
    """Lines of one stage, as ``sample`` gives them, each divided by its largest number and stored in 127 steps.

    Args:
        weights: names.
        lines: int8 [weights + noises, samples]; the last ones are what rounding does.
        scales: float32 [weights + noises], the value of 127 steps.
        expected: float32 [samples], the error that the rounding of the weights in this plan's own graph makes, or None. Without it the noises are what
            rounding all weights to FP16 at random does; with it they are what rounding the activations of that graph, and some weights anew, does.
    """

    weights: tuple[str, ...]
    lines: np.ndarray
    scales: np.ndarray
    expected: np.ndarray | None = None

    @classmethod
    def of(cls, weights: tuple[str, ...], lines: np.ndarray) -> StageProbes:
        """From lines as they are, float [weights + noises, samples]."""
        return cls(weights, *_in_steps(lines))

    def measured(self, expected: np.ndarray, noises: np.ndarray, rounding: float) -> StageProbes:
        """The same weights for a typed graph.

        Args:
            expected: the error that its weights make, [samples].
            noises: those that rounding its activations makes, [n, samples].
            rounding: of a weight, times that of FP16: an engine may round some of them anew, as when it multiplies a factor into them.
        """
        count = len(self.weights)
        anew = self.lines[count:] * (self.scales[count:] / 127.0)[:, None] * rounding
        rows = len(anew) + len(noises)
        both = np.concatenate([noises * np.sqrt(rows / len(noises)), anew * np.sqrt(REFOLDED * rows / max(len(anew), 1))])  # so that their mean is the sum
        lines, scales = _in_steps(both)
        return StageProbes(
            self.weights, np.concatenate([self.lines[:count], lines]), np.concatenate([self.scales[:count], scales]), expected.astype(np.float32)
        )

    @property
    def count(self) -> int:
        """How many single weights have a line."""
        return sum(name not in (TOGETHER, LESS) for name in self.weights)

    def suspect(self, error: np.ndarray, precision: str) -> Suspect | None:
        """The weight that explains a stage's error, if one does.

        Args:
            error: of an engine that was given golden inputs, see ``sample``; float [samples].
            precision: of the plan.
        """
        resolution, wide = RESOLUTIONS[precision], self.lines * (self.scales / 127.0).astype(np.float64)[:, None]
        lines, noises = wide[: len(self.weights)], wide[len(self.weights) :] * (resolution.rounding if self.expected is None else 1.0)
        error = error if self.expected is None else error - self.expected
        heard = np.flatnonzero(np.sqrt(np.mean(lines**2, axis=1)) > resolution.least)
        if not len(heard) or not np.isfinite(error).all():
            return None
        names, lines = [self.weights[place] for place in heard], lines[heard]
        noise = max(float(np.sqrt(np.mean(noises**2))), SILENCE)
        fit = _Fit(lines, [name not in (TOGETHER, LESS) for name in names], noise, resolution.drift)
        change, clear = fit(error)
        usual = np.maximum(np.sqrt(np.mean(fit(noises.T)[1] ** 2, axis=1)), 1.0)
        unexplained = np.mean(error**2) - 2 * change * (lines @ error) / len(error) + change**2 * np.mean(lines**2, axis=1)
        in_steps = (change * self.scales[heard] / 127.0) ** 2 / 12  # what a line has lost by being stored in them
        rest = np.sqrt(np.maximum(unexplained - in_steps, 0.0))  # an engine may round more than was expected
        beyond = np.abs(clear) / (CLEARNESS * usual * np.maximum(LEAST_NOISE, rest / noise))
        beyond[np.abs(change) < LEAST_CHANGE] = 0
        beyond[unexplained >= np.mean(error**2)] = 0  # alone it would have done more than was done: lines that are alike share out what is none of theirs
        worst = int(np.argmax(beyond))
        if not beyond[worst] > 1:
            return None
        name, found = names[worst], float(change[worst]) * STEP
        return Suspect(TOGETHER, -found) if name == LESS else Suspect(name, found)


class _Fit:
    """Errors as sums of lines: ``fit(error)`` -> by how many ``STEP`` each weight seems changed, and that over its standard deviation.

    Args:
        lines: float [lines, samples].
        drifts: which of them may be a little off with nothing wrong.
        noise, drift: standard deviations of each sample, and of each weight that drifts in ``STEP``.
    """

    def __init__(self, lines: np.ndarray, drifts: list[bool], noise: float, drift: float):
        self._lines, self._noise = lines, noise
        powers, turn = np.linalg.eigh(lines[drifts] @ lines[drifts].T)
        self._axes = turn.T @ lines[drifts]
        shared = self._axes @ lines.T
        self._kept = shared / (np.maximum(powers, 0.0) + (noise / drift) ** 2)[:, None]
        own = np.sum(lines**2, axis=1)
        self._weight = np.maximum(own - np.sum(self._kept * shared, axis=0), 1e-12 * own)

    def __call__(self, error: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of one error [samples], or of several [samples, n]."""
        pull = (self._lines @ error - self._kept.T @ (self._axes @ error)).T
        return (pull / self._weight).T, (pull / (self._noise * np.sqrt(self._weight))).T


def _in_steps(lines: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scales = np.abs(lines).max(axis=1, initial=0.0).astype(np.float32)
    return np.round(lines * (127.0 / np.where(scales > 0, scales, 1))[:, None]).astype(np.int8), scales


def sample(got: Iterable[np.ndarray], golden: Iterable[np.ndarray]) -> np.ndarray:
    """Errors of a stage's outputs at evenly spread places, each over the root mean square of its golden tensor; float64 [samples].

    Args:
        got: float outputs [n, ...] in the order of the stage's spec.
        golden: what they should be, [1, ...] or [n, ...].
    """
    pairs = [(value[: len(true)] if value.ndim else value, true) for value, true in zip(got, golden)]
    most, parts = SAMPLES // max(len(pairs), 1), []
    for value, true in pairs:
        places = np.arange(min(true.size, most)) * true.size // max(min(true.size, most), 1)
        size = float(np.sqrt(np.mean(true.astype(np.float64) ** 2))) or 1.0
        parts.append((value.reshape(-1)[places].astype(np.float64) - true.reshape(-1)[places].astype(np.float64)) / size)
    return np.concatenate(parts) if parts else np.zeros(0)


def pack_probes(stages: dict[str, StageProbes]) -> bytes:
    """All of a network's, as one file: a line of JSON, then scales, lines and what is expected of each stage in its order."""
    table = [{"name": name, "weights": list(one.weights), "lines": list(one.lines.shape), "expected": one.expected is not None} for name, one in stages.items()]
    head = {"format": FORMAT, "stages": table}
    parts = [
        part.tobytes()
        for one in stages.values()
        for part in (one.scales.astype("<f4"), one.lines, np.zeros(0) if one.expected is None else one.expected.astype("<f4"))
    ]
    return b"".join([json.dumps(head).encode(), b"\n", *parts])


def unpack_probes(raw: bytes) -> dict[str, StageProbes]:
    """What ``pack_probes`` wrote.

    Raises:
        ValueError: if it is something else.
    """
    end = raw.find(b"\n", 0, MOST_HEADER_NBYTES)
    head = json.loads(raw[: max(end, 0)].decode())
    if not isinstance(head, dict) or head.get("format") not in FORMATS:
        raise ValueError("no probes of this version")
    found, at = {}, end + 1
    for stage in head["stages"]:
        name, weights, (rows, samples) = stage["name"], tuple(map(str, stage["weights"])), map(int, stage["lines"])
        size = rows * (4 + samples) + (4 * samples if stage.get("expected") else 0)
        if not (len(weights) < rows <= MOST_WEIGHTS and 0 <= samples <= SAMPLES) or len(raw) - at < size:
            raise ValueError(f"probes of stage {name}: {len(weights)} weights, lines {rows} x {samples}")
        scales = np.frombuffer(raw, "<f4", rows, at)
        lines = np.frombuffer(raw, np.int8, rows * samples, at + 4 * rows).reshape(rows, samples)
        expected = np.frombuffer(raw, "<f4", samples, at + rows * (4 + samples)) if stage.get("expected") else None
        if not (np.isfinite(scales).all() and (expected is None or np.isfinite(expected).all())):
            raise ValueError(f"probes of stage {name}: a number is not finite")
        found[str(name)], at = StageProbes(weights, lines, scales, expected), at + size
    return found


def read_probes(plan: PlanFile) -> dict[str, StageProbes]:
    """Those of a plan by stage; empty if it carries none, as for stages in which trying every weight takes too long.

    Raises:
        InputError: if they are broken.
    """
    if PROBES not in plan.manifest.files:
        return {}
    try:
        return unpack_probes(plan.read(PROBES))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise InputError(f"{PROBES} in {plan.path} cannot be read ({error})", wanted="what depth-export wrote", fix="build it again") from error
