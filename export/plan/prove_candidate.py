"""A finished plan runs its own case before it gets its name, on a machine that can run it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from ...runtime.artefact.plan import PlanFile
from ...runtime.errors import AccuracyError, DeviceLostError, EnvironmentMismatchError, OutOfMemoryError
from ...runtime.examination import examine_plan
from ...runtime.files import whole_file


def rejected_path(path: Path) -> Path:
    """Where a plan that failed is kept: ``x.rejected.plan`` for ``x.plan``."""
    return path.with_name(f"{path.stem}.rejected{path.suffix}")


def prove_candidate(candidate: Path, path: Path, on_message: Callable[[str], None]) -> None:
    """Run the engines of a TensorRT plan against its golden tensors, alone and chained, in two starts.

    Args:
        candidate: the plan, on the file system of ``path``.
        path: the name that was asked for.
        on_message: told what was proved, or why nothing could be proved here.

    Raises:
        AccuracyError: if a stage does not give them; the plan is then at ``rejected_path(path)``.
        InputError, FathomError: if an engine is broken or does not run.
    """
    with PlanFile.open(candidate, verify=False) as plan:
        if plan.manifest.backend == "onnxruntime" or not plan.manifest.goldens:
            return
        try:
            found = examine_plan(plan)
        except (EnvironmentMismatchError, OutOfMemoryError) as error:
            if isinstance(error, DeviceLostError):
                raise
            on_message(f"the engines were not run on this machine ({error.was}): the plan certifies itself at its first start")
            return
        except AccuracyError as error:
            rejected = rejected_path(path)
            with whole_file(rejected, force=True) as part:
                os.replace(candidate, part)
            raise AccuracyError(f"{error.was}; the plan is kept as {rejected} for study", wanted=error.wanted, fix=error.fix) from error
    on_message(found.words)
