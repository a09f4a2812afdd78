"""Mixtures of precisions against the clock: what ``depth-calibrate`` chose is built and run on the card before it is kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ...calibration.artefact import model_fingerprint
from ...calibration.precision.precision_plan import Choice, PrecisionPlan, RegionPlan
from ...calibration.precision.quantised_stage import Choices
from ...calibration.ranges.table import CalibrationTable
from ...runtime.artefact.bundle import BundleDirectory
from ...runtime.cuda.open_device import open_device
from ...runtime.errors import FathomError
from ..child.scratch import scratch_beside
from ..precision.calibrated import Calibration
from .build_options import BuildOptions
from .time_stages import build_timed, int8_everywhere, run_timed


class MixtureClock:
    """Builds a mixture as TensorRT engines and runs them on the GPU of this machine.

    Args:
        bundle_path: directory made by ``depth-export``.
        beside: engines are built in a scratch folder beside this path, and removed.
        options: backend, batch and memory.
        target: of the card, such as ``sm86``.
    """

    def __init__(self, bundle_path: Path, beside: Path, options: BuildOptions, target: str):
        self._path, self._beside = bundle_path, beside
        self._options = replace(options, targets=(target,) if options.backend == "tensorrt-rtx" else (), operators=(), plugins="")

    def __call__(self, plan: dict[str, Choices]) -> dict[str, float]:
        """Median milliseconds of every stage. Ranges are made up: an engine takes as long with real ones.

        Raises:
            FathomError: see ``time_stages``.
        """
        with BundleDirectory.open(self._path) as bundle, scratch_beside(self._beside) as scratch:
            calibration = mixture(bundle, plan)
            held = {region.choice.precision for region in calibration.plan.regions}
            options = replace(self._options, precision=next((low for low in ("int4", "fp8") if low in held), "int8"))
            build_timed(bundle, options, calibration, scratch, lambda what, done: None)
            return run_timed(scratch / "timed.plan", options)


def clock_if_possible(bundle_path: Path, beside: Path, options: BuildOptions, on_message: Callable[[str], None]) -> MixtureClock | None:
    """A clock where there is a card, else None, with a remark."""
    try:
        device = open_device(options.device)
        target = device.target
        device.close()
    except FathomError as error:
        on_message(f"no mixture can be timed here ({error.was}): their costs are reckoned")
        return None
    return MixtureClock(bundle_path, beside, options, target)


def mixture(bundle: BundleDirectory, plan: dict[str, Choices]) -> Calibration:
    """Plan and table that make a build hold exactly these precisions, with ranges that nobody saw."""
    table: CalibrationTable = int8_everywhere(bundle).table
    regions = []
    for stage, choices in plan.items():
        for number, (nodes, choice) in enumerate(choices.items()):
            plain = Choice(choice.precision, "max" if choice.observer else "")
            regions.append(RegionPlan(stage, f"({number})", "block", nodes, plain, "for timing", {}))
    return Calibration(table, PrecisionPlan(model_fingerprint(bundle.manifest), {}, "", {}, tuple(regions), (), {}, (), ()))
