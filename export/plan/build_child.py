"""The child process of ``child.run_child``: one request as a JSON line on stdin, JSON lines on stdout, native noise on stderr."""

from __future__ import annotations

import json
import os
import sys
import threading
from typing import TYPE_CHECKING, Any

from ...runtime.errors import EnvironmentMismatchError, FathomError, OutOfMemoryError, tells_of_no_memory

if TYPE_CHECKING:
    from collections.abc import Callable

    Send = Callable[..., None]


def _task(name: str) -> Callable[[dict[str, Any], Send], dict[str, Any]]:
    if name == "tensorrt":
        from ..tensorrt.build import build_engine as task
    elif name == "tensorrt8":
        from ..tensorrt.constrained_build import build_constrained_engine as task
    elif name == "tensorrt-version":
        from ..tensorrt.constrained_build import tensorrt_version as task
    elif name == "onnxruntime":
        from ..onnxruntime.build import optimise as task
    elif name in ("prove", "prove8"):
        try:
            from ...runtime.examination import examine_file as task
        except ImportError as error:  # the Python that has TensorRT need not have NumPy
            raise EnvironmentMismatchError(f"{sys.executable} has no {error.name}", wanted="what the runtime needs") from error
    elif name == "parity":
        from ..parity.stage_runner import run_stages as task
    elif name == "rounding":
        from ..parity.rounding_probes import measure_rounding as task
    elif name == "inner-tensors":
        from ..parity.stage_runner import inner_tensors as task
    elif name == "first-run":
        from ..parity.stage_runner import first_run as task
    else:
        raise ValueError(f"unknown task {name!r}")
    return task


def main() -> int:
    """Serve one request. Exit code 0 if it ended with a result or a reported error."""
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever native code prints must not break the protocol

    def send(event: str, **facts: Any) -> None:
        channel.write(json.dumps({"event": event, **facts}) + "\n")
        channel.flush()

    request = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        send("result", values=_task(request["task"])(request, send))
    except FathomError as error:
        send("error", kind=type(error).__name__, was=error.was, wanted=error.wanted, fix=error.fix)
    except Exception as error:
        if not tells_of_no_memory(error):
            raise
        send("error", kind=OutOfMemoryError.__name__, was=f"{request.get('stage', request['task'])}: memory ran out ({error})", wanted="", fix="")
    channel.close()
    return 0


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
