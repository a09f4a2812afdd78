"""Releases of TensorRT and GPUs for which engines were reported that build and run but give wrong results.

A warning, never a refusal: whether this engine is right is found by running the plan's golden tensors (``certificate``).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from ..tensorrt.adapters.releases import release

FILE = Path(__file__).with_name("known_faults.json")


@dataclass(frozen=True)
class KnownFault:
    """One report of wrong results.

    Args:
        backend: ``tensorrt`` or ``tensorrt-rtx``; empty for both.
        first, before: releases from ``first`` to before ``before``; empty for no limit.
        targets: compute capabilities (``sm87``); empty for all.
        precisions: of the plan; empty for all.
        says: what was seen.
        thread: address of the report.
    """

    backend: str
    first: str
    before: str
    targets: tuple[str, ...]
    precisions: tuple[str, ...]
    says: str
    thread: str

    def concerns(self, backend: str, version: str, targets: tuple[str, ...], precision: str) -> bool:
        """Whether a plan may meet it; ``version`` or ``targets`` empty if not known yet: then only faults of every release, or GPU."""
        of_release = (not self.first and not self.before) or bool(version)
        if of_release and version:
            of_release = (not self.first or release(version) >= release(self.first)) and (not self.before or release(version) < release(self.before))
        of_gpu = not self.targets or bool(set(self.targets) & set(targets))
        return self.backend in ("", backend) and of_release and of_gpu and (not self.precisions or precision in self.precisions)

    @property
    def words(self) -> str:
        """The warning: what was reported, and where."""
        return f"known to go wrong on such a release or GPU: {self.says} ({self.thread}); the plan's golden tensors decide"


def known_faults(backend: str, version: str, targets: tuple[str, ...], precision: str) -> tuple[KnownFault, ...]:
    """The reports that concern a plan.

    Args:
        backend: ``tensorrt`` or ``tensorrt-rtx``.
        version: of its package; empty if unknown.
        targets: compute capabilities that the plan is for, or of the GPU here; empty if unknown.
        precision: of the plan.
    """
    faults = [
        KnownFault(item["backend"], item["from"], item["before"], tuple(item["targets"]), tuple(item["precisions"]), item["says"], item["thread"])
        for item in json.loads(FILE.read_text())
    ]
    return tuple(fault for fault in faults if fault.concerns(backend, version, targets, precision))
