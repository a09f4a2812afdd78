"""Loading the package ``tensorrt`` or ``tensorrt_rtx``, for builder and runtime alike; needs nothing but the standard library."""

from __future__ import annotations

import importlib
from types import ModuleType

from ..errors import EnvironmentMismatchError
from ..jetson import tensorrt_fix
from .adapters.releases import tier_of

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
EXTRAS = {"tensorrt": "tensorrt", "tensorrt-rtx": "rtx"}


def import_tensorrt(backend: str) -> ModuleType:
    """The package ``tensorrt`` or ``tensorrt_rtx``.

    Raises:
        EnvironmentMismatchError: if it is missing, cannot be loaded, or is too old.
    """
    name = MODULES[backend]
    try:
        trt = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            fix = tensorrt_fix(backend, f"pip install --force-reinstall {backend}")
            raise EnvironmentMismatchError(f"the package '{name}' is installed in part ({error})", fix=fix) from error
        fix, wanted = tensorrt_fix(backend, f"pip install 'fathom-depth[{EXTRAS[backend]}]'"), f"{backend}, which compiles and executes such engines"
        raise EnvironmentMismatchError(f"the package '{name}' is not installed", wanted=wanted, fix=fix) from error
    except (ImportError, OSError, RuntimeError) as error:
        words = " ".join(str(error).split())
        fix = tensorrt_fix(backend, f"pip install --force-reinstall {backend}")
        raise EnvironmentMismatchError(f"the package '{name}' cannot be loaded ({words})", fix=fix) from error
    if backend == "tensorrt":
        tier_of(trt.__version__)
    return trt
