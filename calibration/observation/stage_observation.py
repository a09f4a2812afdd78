"""What was seen of one stage: histograms, peaks and samples, and the ranges that follow from them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ..graph.stage_graph import StageGraph
from ..quantisation.formats import INT8, Format
from ..quantisation.layer_error import Samples, best_on_other_scenes, layers_of
from ..quantisation.quantize import quantisable
from ..ranges.observers import LAYER_OUTPUT, OBSERVERS, Histogram
from ..ranges.table import TensorRange

UNSUITED = "max"  # the rule for a tensor of whose readers nothing was sampled


@dataclass
class StageObservation:
    """What was seen in one stage.

    Args:
        histograms: of every activation that INT8 or FP8 can need.
        channels: greatest magnitude per channel [C] of what matrix products and convolutions read.
        lows, highs: least and greatest value of the same.
        peaks: greatest magnitude of every floating-point tensor.
        samples: rows that layers read, by ``layer_error.sample_key``: [count, width].
        folds: fold of scenes, tensor -> what ``histograms`` holds of that fold (see ``folds_of``).
        origins: fold of every row of the samples, [count].
        suited: format, tensor -> the observer that suits the layers that read it (see ``suit``).
    """

    histograms: dict[str, Histogram] = field(default_factory=dict)
    channels: dict[str, np.ndarray] = field(default_factory=dict)
    lows: dict[str, np.ndarray] = field(default_factory=dict)
    highs: dict[str, np.ndarray] = field(default_factory=dict)
    peaks: dict[str, float] = field(default_factory=dict)
    samples: Samples = field(default_factory=dict)
    folds: dict[int, dict[str, Histogram]] = field(default_factory=dict)
    origins: dict[str, np.ndarray] = field(default_factory=dict)
    suited: dict[tuple[str, str], str] = field(default_factory=dict)
    _known: dict[tuple[str, str], TensorRange] = field(default_factory=dict)

    def look(self, fold: int, name: str, values: np.ndarray) -> None:
        """Count the magnitudes of a tensor of a photo of a fold.

        Raises:
            AccuracyError: if a value is NaN or infinite.
        """
        one = Histogram()
        one.add(values, name)
        for held in (self.histograms, self.folds.setdefault(fold, {})):
            held.setdefault(name, Histogram()).merge(one)

    def elsewhere(self, name: str) -> dict[int, Histogram]:
        """Fold -> what a tensor was on all other folds; empty if it was seen on one alone."""
        parts = {fold: held[name] for fold, held in self.folds.items() if name in held}
        found: dict[int, Histogram] = {}
        for fold in sorted(parts) if len(parts) > 1 else ():
            found[fold] = Histogram()
            for other in parts:
                if other != fold:
                    found[fold].merge(parts[other])
        return found

    def ranges(self, observer: str, form: Format = INT8) -> dict[str, TensorRange]:
        """The range of every observed activation by one rule; ``LAYER_OUTPUT`` takes for every tensor the one that suits it in a format."""
        found = {}
        for name, histogram in self.histograms.items():
            rule = self.suited.get((form.name, name), UNSUITED) if observer == LAYER_OUTPUT else observer
            if (name, rule) not in self._known:
                self._known[name, rule] = TensorRange(OBSERVERS[rule](histogram), rule, histogram.amax)
            found[name] = self._known[name, rule]
        return found

    def suit(self, graph: StageGraph, form: Format = INT8) -> None:
        """Choose an observer for every tensor by the error that a format makes in the outputs of the layers it suits, on scenes the range was not read
        from: ``max``, unless another one is better on every fold (see ``best_on_other_scenes``)."""
        able = quantisable(graph, form)
        for name in self.histograms:
            if layers := layers_of(graph, name, self.samples, able, form=form):
                ranges = {fold: {rule: read(held) for rule, read in OBSERVERS.items()} for fold, held in self.elsewhere(name).items()}
                greatest = layers_of(graph, name, self.samples, able, form=form, greatest=True)
                self.suited[form.name, name] = best_on_other_scenes(layers, greatest, self.origins, ranges)

    def with_ranges_of(self, other: StageObservation) -> StageObservation:
        """What was seen here and there, for ranges and peaks; observers, samples and folds are those of here."""
        both = StageObservation(samples=self.samples, folds=self.folds, origins=self.origins, suited=self.suited)
        for seen in (self, other):
            for name, histogram in seen.histograms.items():
                both.histograms.setdefault(name, Histogram()).merge(histogram)
        for held, mine, others in ((both.channels, self.channels, other.channels), (both.highs, self.highs, other.highs)):
            held |= {name: np.maximum(values, others.get(name, values)) for name, values in mine.items()}
        both.lows |= {name: np.minimum(values, other.lows.get(name, values)) for name, values in self.lows.items()}
        both.peaks |= {name: max(peak, other.peaks.get(name, peak)) for name, peak in self.peaks.items()}
        return both

    def to_arrays(self) -> dict[str, np.ndarray]:
        """For the journal."""
        parts = [(f"{fold}|{name}", histogram) for fold, held in self.folds.items() for name, histogram in held.items()]
        arrays = {f"h|{n}": np.concatenate([h.counts, np.array([h.exponent])]) for n, h in parts}
        arrays |= {f"m|{n}": np.array(h.amax) for n, h in parts}
        arrays |= {f"c|{n}": values for n, values in self.channels.items()}
        arrays |= {f"l|{n}": values for n, values in self.lows.items()} | {f"t|{n}": values for n, values in self.highs.items()}
        arrays |= {f"s|{n}": rows for n, rows in self.samples.items()}
        arrays |= {f"o|{n}": folds for n, folds in self.origins.items()}
        return arrays | {f"p|{n}": np.array(peak) for n, peak in self.peaks.items()}

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> StageObservation:
        """From the journal."""
        seen = cls()
        for key, values in arrays.items():
            kind, _, name = key.partition("|")
            if kind == "h":
                fold, _, tensor = name.partition("|")
                part = Histogram(int(values[-1]), values[:-1], float(arrays[f"m|{name}"]))
                seen.folds.setdefault(int(fold), {})[tensor] = part
                seen.histograms.setdefault(tensor, Histogram()).merge(part)
            elif kind == "c":
                seen.channels[name] = values
            elif kind in ("l", "t"):
                (seen.lows if kind == "l" else seen.highs)[name] = values
            elif kind == "s":
                seen.samples[name] = values
            elif kind == "o":
                seen.origins[name] = values
            elif kind == "p":
                seen.peaks[name] = float(values)
        return seen
