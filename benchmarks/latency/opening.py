"""The things that are timed, opened: plans and bundles on the runtime, the PyTorch network behind the same pipeline."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...runtime.artefact.contract import Protocol, Require
from ...runtime.artefact.manifest import BundleManifest
from ...runtime.artefact.manifest_json import manifest_bytes
from ...runtime.errors import FathomError, InputError
from ...runtime.photo.preprocess import place_steps
from ...runtime.pipeline import Pipeline

if TYPE_CHECKING:
    from .latency import Subject

TUNING_RUNS = 3
PHOTO_SIZES = ((480, 640), (375, 1242))  # of NYU and of KITTI


def open_pipeline(artefact: str | Path, device: str | None = None, threads: int | None = None) -> Pipeline:
    """A plan or a bundle on the runtime, one window per run.

    Raises:
        FathomError: see ``Pipeline.open``.
    """
    return Pipeline.open(artefact, device, threads, batch=1)


def open_torch_pipeline(
    bundle: str | Path, mode: str, device: str, threads: int | None, weights: str | None = None, options: Mapping[str, str] | None = None
) -> Pipeline:
    """The network that a bundle was exported from, behind the bundle's own pre- and post-processing; see ``pytorch_latency.open_torch``.

    Raises:
        FathomError: see ``pytorch_latency.open_torch``.
    """
    from .pytorch_latency import open_torch

    return open_torch(bundle, mode, device, threads, weights, options)


def open_subject(name: str, artefact: str, opened: Callable[[], Pipeline], facts: dict[str, Any], free_mib: Callable[[], float | None] | None) -> Subject:
    """A subject with what is known of it; one that cannot be opened says why.

    Args:
        artefact: plan or bundle that it is opened from.
        opened: opens its pipeline.
        facts: what identifies it besides its manifest.
        free_mib: free memory of the device that it takes memory of, or None.
    """
    from .latency import Subject

    before, start = free_mib() if free_mib else None, time.perf_counter()
    try:
        pipeline = opened()
    except FathomError as error:
        return Subject(name, facts=facts, artefact=artefact, skip_reason=str(error), skip_code=error.exit_code)
    open_ms = (time.perf_counter() - start) * 1e3
    after = free_mib() if free_mib else None
    taken = round((before - after) * 2**20) if before is not None and after is not None and after <= before else None  # else others gave memory back
    subject = Subject(name, pipeline.backend, pipeline, artefact=artefact, facts=facts | identity(pipeline, facts["backend"]), remarks=pipeline.remarks)
    subject.open_ms, subject.memory = round(open_ms, 1), {"device_nbytes": taken}
    return subject


def identity(pipeline: Pipeline, backend: str = "") -> dict[str, Any]:
    """What an engine is known by: the same words as in a row of accuracy."""
    manifest = pipeline.manifest
    bundle = isinstance(manifest, BundleManifest)
    return {
        "network": manifest.network.called,
        "manifest_sha256": hashlib.sha256(manifest_bytes(manifest)).hexdigest(),
        "backend": backend or ("onnxruntime" if bundle else manifest.backend),
        "precision": "fp32" if bundle else "/".join(sorted({stage.precision for stage in manifest.stages})),
        "untrained": manifest.network.untrained,
    }


def fastest_threads(artefact: str | Path, cores: int | None = None) -> int:
    """How many threads ONNX Runtime is fastest with, of 1, 2, 4 … and all cores.

    Raises:
        FathomError: if the artefact cannot be opened or run.
    """
    cores = cores or os.cpu_count() or 1
    candidates = sorted({2**power for power in range(cores.bit_length()) if 2**power <= cores} | {cores})
    taken: dict[int, float] = {}
    for threads in candidates:
        with open_pipeline(artefact, "cpu", threads) as pipeline:
            prompt = pipeline.contract.text.some_words("the chair") if pipeline.contract.text is not None else None
            photo, times = made_up_photo(pipeline.protocol()), []
            for _ in range(TUNING_RUNS + 1):
                start = time.perf_counter()
                pipeline.predict(photo, None, any_camera(photo), prompt)
                times.append(time.perf_counter() - start)
            taken[threads] = min(times[1:])
    return min(taken, key=taken.__getitem__)


def made_up_photo(protocol: Protocol | None = None) -> np.ndarray:
    """Ramps of colour, uint8 [H, W, 3]: the first of ``PHOTO_SIZES`` that the protocol takes, or the size that it requires.

    Raises:
        InputError: if it takes none of them.
    """
    height, width = PHOTO_SIZES[0] if protocol is None else _size_for(protocol)
    rows, columns = np.mgrid[0:height, 0:width]
    return np.stack([rows * 255 // (height - 1), columns * 255 // (width - 1), (rows + columns) * 255 // (height + width - 2)], axis=2).astype(np.uint8)


def any_camera(photo: np.ndarray) -> tuple[float, float, float, float]:
    """fx, fy, cx, cy in pixels of a photo [H, W, 3], for networks whose metres depend on a camera; how long they take does not."""
    height, width = photo.shape[:2]
    return float(width), float(width), (width - 1) / 2, (height - 1) / 2


def _size_for(protocol: Protocol) -> tuple[int, int]:
    sizes = (*PHOTO_SIZES, *((step.height, step.width) for step in protocol.steps[:1] if isinstance(step, Require)))
    for size in sizes:
        try:
            place_steps(protocol.steps, *size)
        except InputError:
            continue
        return size
    raise InputError(f"no made-up photo fits the protocol {protocol.name}", wanted="a photo that it takes", fix="name one with --photo, or another --protocol")


def greatest_batch(manifest: Any) -> int:
    """That an artefact takes; of a bundle with a free batch there is none, and 1024 stands for it."""
    if not isinstance(manifest, BundleManifest):
        return manifest.batch[2]
    name = manifest.contract.input.tensor
    size = next(tensor.shape[0] for spec in manifest.specs() for tensor in spec.inputs if tensor.name == name)
    return size if isinstance(size, int) else 1024


def weights_nbytes(manifest: Any) -> int:
    """Of all engines and their weights, as they lie in the artefact."""
    return sum(manifest.files[name].size for stage in manifest.stages for name in manifest.stage_files(stage))


def tensors_nbytes(manifest: Any) -> int:
    """Most memory that tensors between stages take at one time, for one window: each lives from its maker to its last reader."""
    from ...runtime.artefact.spec import DTYPES

    specs = manifest.specs()
    last_use = {tensor.name: place for place, spec in enumerate(specs) for tensor in spec.inputs}
    sizes = {
        tensor.name: DTYPES[tensor.dtype].itemsize * int(np.prod([size if isinstance(size, int) else 1 for size in tensor.shape], dtype=np.int64))
        for spec in specs
        for tensor in (*spec.inputs, *spec.outputs)
    }
    alive = {tensor.name for spec in specs for tensor in spec.inputs} - {tensor.name for spec in specs for tensor in spec.outputs}
    most = 0
    for place, spec in enumerate(specs):
        alive |= {tensor.name for tensor in spec.outputs}
        most = max(most, sum(sizes[name] for name in alive))
        alive = {name for name in alive if last_use.get(name, len(specs)) > place}
    return most
