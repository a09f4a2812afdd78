"""By which number the engines of a network are judged: abs_rel of depth, or how far masks overlap."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Measure:
    """What the scores of a kind of record are called.

    Args:
        metric: that engines are judged by.
        larger_is_better: of that metric.
        others: further metrics of the table.
        heads: of the table's columns for them, the units included.
        samples: what was counted.
    """

    metric: str
    larger_is_better: bool
    others: tuple[str, ...]
    heads: tuple[str, ...]
    samples: str

    def loss(self, row: dict[str, Any]) -> float | None:
        """By what share of the first row's a row is worse: 0 for the first row itself, None where that is not known."""
        if row["difference"] is None:
            return 0.0
        change = row["difference"].get("relative", {}).get(self.metric)
        if change is None:
            return 0.0 if row["difference"].get("absolute", {}).get(self.metric) == 0 else None
        return -change if self.larger_is_better else change

    def error(self, row: dict[str, Any]) -> float:
        """For sorting: the smaller the better."""
        value = row["means"][self.metric]
        return -value if self.larger_is_better else value


DEPTH = Measure("abs_rel", False, ("rmse", "delta1"), ("abs_rel", "its change", "rmse m", "delta1"), "images")
MASKS = Measure("mIoU", True, ("oIoU", "P@0.5", "P@0.9"), ("mIoU", "its change", "oIoU", "P@0.5", "P@0.9"), "sentences")
MEASURES = {"accuracy": DEPTH, "masks": MASKS}
