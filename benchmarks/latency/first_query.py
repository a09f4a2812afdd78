"""A process that opens one subject and answers one query: cold start, and the memory of the host, of that subject alone.

python -m fathom.benchmarks.latency.first_query '{"artefact": "x.plan", "device": null, "threads": 2, "protocol": null, "mode": ""}'
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from ...runtime.errors import FathomError
from ...runtime.process_memory import process_nbytes

LIMIT_S = 1800


def first_query(
    artefact: str,
    device: str | None,
    threads: int | None,
    protocol: str | None = None,
    mode: str = "",
    weights: str | None = None,
    options: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Start the process and wait for its one query; the page cache is warm, as after a first start.

    Args:
        protocol: how its made-up photo is shown; None for the artefact's first.
        mode: of PyTorch, or "" for a plan or bundle on the runtime.
        weights, options: of PyTorch; see ``pytorch_latency.open_torch``.

    Returns:
        ``cold_start_ms`` (``import``, ``open``, ``first_query``, and ``total`` from the start of the process), ``host_peak_nbytes`` and
        ``host_anonymous_nbytes`` (what is not a mapped file, at the end).

    Raises:
        FathomError: if it fails; its last words are in the message.
    """
    request = json.dumps(
        {"artefact": artefact, "device": device, "threads": threads, "protocol": protocol, "mode": mode, "weights": weights, "options": options or {}}
    )
    start = time.perf_counter()
    try:
        done = subprocess.run([sys.executable, "-m", __name__, request], capture_output=True, text=True, timeout=LIMIT_S, env=_environment())
    except subprocess.TimeoutExpired as error:
        raise FathomError(f"no answer within {LIMIT_S} s") from error
    total_ms = (time.perf_counter() - start) * 1e3
    if done.returncode:
        last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), f"exit code {done.returncode}")
        raise FathomError(last.strip())
    found = json.loads(done.stdout.splitlines()[-1])
    found["cold_start_ms"]["total"] = round(total_ms, 1)
    return found


def _environment() -> dict[str, str]:
    package = sys.modules[__name__.partition(".")[0]].__path__[0]
    above = str(Path(package).parent) if Path(package).name == "fathom" else ""
    paths = [above, *(path for path in sys.path if path), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in dict.fromkeys(paths) if path)}


def main(argv: list[str]) -> int:
    """The child."""
    request, start = json.loads(argv[0]), time.perf_counter()
    from .opening import any_camera, made_up_photo, open_pipeline, open_torch_pipeline

    if request["mode"]:
        from .pytorch_latency import import_torch

        import_torch()
    else:
        import onnxruntime  # noqa: F401
    imported = time.perf_counter()
    if request["mode"]:
        pipeline = open_torch_pipeline(
            request["artefact"], request["mode"], request["device"] or "cpu", request["threads"], request["weights"], request["options"]
        )
    else:
        pipeline = open_pipeline(request["artefact"], request["device"], request["threads"])
    opened = time.perf_counter()
    protocol = pipeline.protocol(request["protocol"])
    photo = made_up_photo(protocol)
    asked = time.perf_counter()
    pipeline.predict(photo, protocol.name, any_camera(photo), _words(pipeline))
    answered = time.perf_counter()
    status = _status()
    pipeline.close()
    times = {"import": imported - start, "open": opened - imported, "first_query": answered - asked}
    print(json.dumps({"cold_start_ms": {name: round(1e3 * value, 1) for name, value in times.items()}, **status}))
    return 0


def _words(pipeline: Any) -> str | None:
    text = pipeline.contract.text
    return None if text is None else text.some_words("the chair")


def _status() -> dict[str, int | None]:
    """Of this process, from Linux; None elsewhere."""
    found = process_nbytes()
    return {f"host_{what}_nbytes": found.get(key) for what, key in (("peak", "VmHWM"), ("anonymous", "RssAnon"))}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
