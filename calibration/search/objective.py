"""What a change of precision may cost, in depth metrics, and what it did cost."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from ...runtime.errors import UsageError


@dataclass(frozen=True)
class Budget:
    """How far a network may move from its FP32 self.

    Args:
        abs_rel: greatest change of abs_rel as a share of the FP32 one (0.005 for 0.5 %).
        delta1: greatest change of delta1, absolute (0.002 for 0.2 percentage points).
        moved: greatest mean of |depth - FP32 depth| / FP32 depth: unchanged metrics on a few photos do
            not prove an unchanged map.

    A change for the better counts as much: on other photos it is one for the worse.
    """

    abs_rel: float = 0.005
    delta1: float = 0.002
    moved: float = 0.02

    def __post_init__(self):
        for name in ("abs_rel", "delta1", "moved"):
            value = getattr(self, name)
            if not isinstance(value, float) or not math.isfinite(value) or not 0 < value <= 1:
                raise ValueError(f"budget {name}: {value!r}, wanted a share between 0 and 1")

    @classmethod
    def parse(cls, text: str) -> Budget:
        """From ``abs_rel=0.5%,delta1=0.2pp,moved=2%``; a metric that is not named keeps its usual bound.

        Raises:
            UsageError: if the text is not of that form.
        """
        units = {"abs_rel": "%", "delta1": "pp", "moved": "%"}
        found: dict[str, float] = {}
        for part in text.split(","):
            match = re.fullmatch(r"\s*(\w+)\s*=\s*([0-9]*\.?[0-9]+)\s*(%|pp)\s*", part)
            if not match or units.get(match[1]) != match[3] or match[1] in found or not 0 < float(match[2]) <= 100:
                raise UsageError(
                    f"--budget {text!r}", wanted="abs_rel=NUMBER%,delta1=NUMBERpp,moved=NUMBER% (of the FP32 value; percentage points; of the FP32 depth)"
                )
            found[match[1]] = float(match[2]) / 100
        return cls(**found)

    def to_json(self) -> dict[str, float]:
        """As JSON values."""
        return {"abs_rel": self.abs_rel, "delta1": self.delta1, "moved": self.moved}


@dataclass(frozen=True)
class Score:
    """What a choice of precisions did.

    Args:
        abs_rel, delta1: means over the photos; NaN if it failed.
        abs_rel_change: relative to FP32.
        delta1_change: absolute.
        disagreement: mean of |depth - FP32 depth| / FP32 depth: how much moved, whether or not the truth noticed.
        abs_rel_error, delta1_error: standard errors of the two changes, by bootstrap over the scenes: a few photos prove little; None of a single photo.
        failure: why there is no depth at all (NaN, infinity, constant), naming the tensor; ``""`` if there is.
    """

    abs_rel: float
    delta1: float
    abs_rel_change: float
    delta1_change: float
    disagreement: float
    abs_rel_error: float | None = 0.0
    delta1_error: float | None = 0.0
    failure: str = ""

    def within(self, budget: Budget) -> bool:
        """Whether the changes stay within the budget, their standard errors, where there are any, included."""
        return not self.failure and all(found <= bound for found, bound in self._bounded(budget))

    def used(self, budget: Budget) -> float:
        """The greatest part of a bound of the budget that is used up; above 1 if it is broken, infinite if there is no depth."""
        return math.inf if self.failure else max(found / bound for found, bound in self._bounded(budget))

    def _bounded(self, budget: Budget) -> tuple[tuple[float, float], ...]:
        """What counts against each bound of a budget, and the bound."""
        abs_rel, delta1 = abs(self.abs_rel_change) + (self.abs_rel_error or 0.0), abs(self.delta1_change) + (self.delta1_error or 0.0)
        return (abs_rel, budget.abs_rel), (delta1, budget.delta1), (self.disagreement, budget.moved)

    def mild(self, budget: Budget) -> bool:
        """Whether the depth moved no further than allowed: what a few photos can tell."""
        return not self.failure and self.disagreement <= budget.moved

    @property
    def harm(self) -> float:
        """For ranking: the disagreement, infinite if it failed."""
        return math.inf if self.failure else self.disagreement

    def to_json(self) -> dict[str, Any]:
        """As JSON values; numbers that do not exist are null."""
        numbers = ("abs_rel", "delta1", "abs_rel_change", "delta1_change", "disagreement", "abs_rel_error", "delta1_error")
        values = {name: getattr(self, name) for name in numbers}
        return {name: value if value is not None and math.isfinite(value) else None for name, value in values.items()} | {"failure": self.failure}


def failed(reason: str) -> Score:
    """The score of a choice that gives no depth."""
    nothing = math.nan
    return Score(nothing, nothing, nothing, nothing, nothing, nothing, nothing, reason)
