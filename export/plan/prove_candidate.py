"""A finished plan runs its own case before it gets its name, on a machine that can run it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from ...runtime.errors import AccuracyError, DeviceLostError, EnvironmentMismatchError, OutOfMemoryError
from ...runtime.files import whole_file
from ..child.child import run_child


def rejected_path(path: Path) -> Path:
    """Where a plan that failed is kept: ``x.rejected.plan`` for ``x.plan``."""
    return path.with_name(f"{path.stem}.rejected{path.suffix}")


def prove_candidate(candidate: Path, path: Path, constrained: bool, on_message: Callable[[str], None], device: int = 0) -> None:
    """Run the engines of a TensorRT plan against its golden tensors in a child process, alone and chained, in two starts.

    Args:
        candidate: the plan, with golden tensors, on the file system of ``path``.
        path: the name that was asked for.
        constrained: whether the engines are for TensorRT 8, which may be at home in another Python.
        on_message: told what was proved, or why nothing could be proved here.
        device: number of the GPU.

    Raises:
        AccuracyError: if a stage does not give them; the plan is then at ``rejected_path(path)``.
        BuildFailedError: if the engines take their process with them.
        InputError, FathomError: if an engine is broken or does not run.
    """
    try:
        found = run_child({"task": "prove8" if constrained else "prove", "plan": str(candidate)}, what="the plan's own case", device=device)
    except DeviceLostError:
        raise
    except (EnvironmentMismatchError, OutOfMemoryError) as error:
        on_message(f"the engines were not run on this machine ({error.was}): the plan certifies itself at its first start")
    except AccuracyError as error:
        rejected = rejected_path(path)
        with whole_file(rejected, force=True) as part:
            os.replace(candidate, part)
        raise AccuracyError(f"{error.was}; the plan is kept as {rejected} for study", wanted=error.wanted, fix=error.fix) from error
    else:
        on_message(found.values["says"])
