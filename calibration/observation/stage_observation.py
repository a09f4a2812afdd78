"""What was seen of one stage: histograms, peaks and samples, and the ranges that follow from them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ..graph.stage_graph import StageGraph
from ..quantisation.formats import INT8, Format
from ..quantisation.layer_error import Samples, best_range, layers_of
from ..ranges.observers import LAYER_OUTPUT, OBSERVERS, Histogram
from ..ranges.table import TensorRange

UNSUITED = "mse"  # the rule for a tensor of whose readers nothing was sampled


@dataclass
class StageObservation:
    """What was seen in one stage.

    Args:
        histograms: of every activation that INT8 or FP8 can need.
        channels: greatest magnitude per channel [C] of the activations of matrix products (for SmoothQuant).
        peaks: greatest magnitude of every floating-point tensor.
        samples: rows that layers read, by ``layer_error.sample_key``: [count, width].
        suited: format, tensor -> the observer with which the outputs of the layers that read it are least noisy (see ``suit``).
    """

    histograms: dict[str, Histogram] = field(default_factory=dict)
    channels: dict[str, np.ndarray] = field(default_factory=dict)
    peaks: dict[str, float] = field(default_factory=dict)
    samples: Samples = field(default_factory=dict)
    suited: dict[tuple[str, str], str] = field(default_factory=dict)
    _known: dict[tuple[str, str], TensorRange] = field(default_factory=dict)

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
        """Choose an observer for every tensor by the error that a format makes in the outputs of the layers that read it."""
        by_rule = {rule: self.ranges(rule) for rule in OBSERVERS}
        for name in self.histograms:
            if layers := layers_of(graph, name, self.samples, form=form):
                self.suited[form.name, name], _ = best_range(layers, {rule: by_rule[rule][name].amax for rule in OBSERVERS})

    def to_arrays(self) -> dict[str, np.ndarray]:
        """For the journal."""
        arrays = {f"h|{n}": np.concatenate([h.counts, np.array([h.exponent])]) for n, h in self.histograms.items()}
        arrays |= {f"m|{n}": np.array(h.amax) for n, h in self.histograms.items()}
        arrays |= {f"c|{n}": values for n, values in self.channels.items()}
        arrays |= {f"s|{n}": rows for n, rows in self.samples.items()}
        return arrays | {f"p|{n}": np.array(peak) for n, peak in self.peaks.items()}

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> StageObservation:
        """From the journal."""
        seen = cls()
        for key, values in arrays.items():
            kind, _, name = key.partition("|")
            if kind == "h":
                seen.histograms[name] = Histogram(int(values[-1]), values[:-1], float(arrays[f"m|{name}"]))
            elif kind == "c":
                seen.channels[name] = values
            elif kind == "s":
                seen.samples[name] = values
            elif kind == "p":
                seen.peaks[name] = float(values)
        return seen
