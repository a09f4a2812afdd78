"""TensorRT-RTX compiles its kernels on the user's card; this keeps them, so that the second start is quick."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

from ..artefact.manifest import PlanManifest
from ..cuda.device import Device
from ..errors import FathomError, InputError
from ..files import whole_file
from .user_cache import cache_folder

MAX_NBYTES = 512 << 20


class RuntimeCache:
    """The compiled kernels of one plan's engines, on disk under the hash of those engines.

    Attributes:
        cache: TensorRT-RTX's object, for the contexts.
        remark: what was found, in words: a hit, or which fact made it a miss.
    """

    def __init__(self, trt: ModuleType, engine: Any, manifest: PlanManifest, device: Device):
        """Read what an earlier run left. A broken or foreign file is a miss, never an error.

        Args:
            engine: any engine of the plan; it makes the object.
        """
        digest = hashlib.sha256("".join(manifest.files[stage.engine].sha256 for stage in manifest.stages).encode()).hexdigest()
        self._facts = {
            "tensorrt_rtx": trt.__version__,
            "target": device.target,
            "gpu": device.name,
            "driver": f"{device.driver[0]}.{device.driver[1]}",
        }
        self.cache = engine.create_runtime_config().create_runtime_cache()
        self._kept = 0
        try:
            self._path: Path | None = cache_folder("tensorrt-rtx") / f"{digest}.bin"
            self.remark = self._read(self._path)
        except InputError as error:
            self._path, self.remark = None, f"kernel cache: not used, {error}"

    def _read(self, path: Path) -> str:
        try:
            facts = json.loads(path.with_suffix(".json").read_text())
            if path.stat().st_size > MAX_NBYTES:
                return f"kernel cache: miss, more than {MAX_NBYTES >> 20} MiB"
            raw = path.read_bytes()
        except FileNotFoundError:
            return "kernel cache: miss, the first run of this plan here"
        except (OSError, ValueError):
            return "kernel cache: miss, it cannot be read"
        if not isinstance(facts, dict) or facts.get("sha256") != hashlib.sha256(raw).hexdigest():
            return "kernel cache: miss, its bytes changed"
        for name, here in self._facts.items():
            if facts.get(name) != here:
                return f"kernel cache: miss, {name} was {facts.get(name)} and is {here}"
        if not self.cache.deserialize(raw):
            return "kernel cache: miss, TensorRT-RTX does not take it any more"
        self._kept = len(raw)
        return f"kernel cache: hit ({len(raw) >> 10} KiB)"

    def refused_by(self, stage: str) -> None:
        """Note in ``remark`` that an engine refused the cache."""
        self.remark = f"kernel cache: stage {stage} does not take it and compiles its kernels at every start"

    def save(self) -> None:
        """Write it if it grew."""
        if self._path is None:
            return
        try:
            with memoryview(self.cache.serialize()) as view:
                raw = bytes(view)
            if not self._kept < len(raw) <= MAX_NBYTES:
                return
            for path, content in (
                (self._path, raw),
                (self._path.with_suffix(".json"), json.dumps({**self._facts, "sha256": hashlib.sha256(raw).hexdigest()}).encode()),
            ):
                with whole_file(path, force=True) as part:
                    part.write_bytes(content)
            self._kept = len(raw)
        except (FathomError, OSError, MemoryError, TypeError) as error:  # a full disk must not end a run that went well
            self.remark = f"kernel cache: not written, {error}"
