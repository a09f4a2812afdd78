"""Our own operators in a plan: how many are in which stage, and the plugin library that the engines of plain TensorRT want."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from .plugin_library import PluginLibrary
from .spec import NAME, fields

OPERATORS = ("BinsExpectation", "GroupNormSilu", "CrossAttention")
MOST = 1 << 16


@dataclass(frozen=True)
class OperatorUse:
    """Where our operators are in a plan.

    Args:
        counts: stage of the bundle -> operator -> how many; empty for a plan without.
        runs_as: ``bodies`` (plain operators, in ONNX Runtime), ``kernel-stages`` (our kernels between engines) or ``plugins`` (inside them).
        library: for ``plugins``.

    Raises:
        ValueError: if the parts do not go together.
    """

    counts: dict[str, dict[str, int]]
    runs_as: str
    library: PluginLibrary | None = None

    def __post_init__(self):
        if self.runs_as not in ("bodies", "kernel-stages", "plugins") or (self.runs_as == "plugins") != (self.library is not None):
            raise ValueError(f"operators.runs_as: {self.runs_as!r} {'with' if self.library else 'without'} a library")
        for stage, counts in self.counts.items():
            if not NAME.fullmatch(stage) or not isinstance(counts, dict):
                raise ValueError(f"operators.counts: {stage!r}")
            for operator, count in counts.items():
                if operator not in OPERATORS or not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= MOST:
                    raise ValueError(f"operators.counts.{stage}: {count!r} of {operator!r}")
        if not self.counts or not all(self.counts.values()):
            raise ValueError("operators.counts: a stage without operators")

    @property
    def words(self) -> str:
        """For people."""
        how = {"bodies": "as plain operators", "kernel-stages": "as kernel stages between the engines", "plugins": "as plugins"}[self.runs_as]
        of = f" of {self.library.file}, for TensorRT {self.library.tensorrt}, sha256 {self.library.sha256[:12]}…" if self.library else ""
        return f"{count_words(self.counts)} ({how}{of})"

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        data: dict[str, Any] = {"counts": self.counts, "runs_as": self.runs_as}
        if self.library:
            data["library"] = {"file": self.library.file, "sha256": self.library.sha256, "tensorrt": self.library.tensorrt}
        return data

    @classmethod
    def from_json(cls, data: Any) -> OperatorUse:
        """From JSON values.

        Raises:
            ValueError: if a key is missing, unknown or of the wrong kind.
        """
        kinds: dict[str, Any] = {"counts": dict, "runs_as": str, "library": (dict, type(None))}
        counts, runs_as, library = fields({"library": None, **data} if isinstance(data, dict) else data, "operators", **kinds)
        found = PluginLibrary(*fields(library, "operators.library", file=str, sha256=str, tensorrt=str)) if library is not None else None
        return cls(counts, runs_as, found)


def count_words(counts: dict[str, dict[str, int]]) -> str:
    """Stages with their operators, for people."""
    return "; ".join(f"{stage}: {', '.join(f'{found[name]} {name}' for name in OPERATORS if name in found)}" for stage, found in counts.items())


def total(uses: Iterable[dict[str, int]]) -> dict[str, int]:
    """Sum of several counts, by operator."""
    found: dict[str, int] = {}
    for counts in uses:
        for operator, count in counts.items():
            found[operator] = found.get(operator, 0) + count
    return found
