"""A plan's proof on this machine, kept so that the next start does not have to repeat it."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..artefact.plan import MANIFEST
from ..errors import FathomError, InputError
from ..files import whole_file
from ..tensorrt.user_cache import cache_folder
from .proof import Proof, prove

if TYPE_CHECKING:
    from ..artefact.plan import PlanFile

FORMAT = "fathom-certificate-1"
MAX_NBYTES = 1 << 16
WITHOUT = "this plan carries no golden tensors and cannot certify itself: it is from an earlier release; depth-build makes one that can"


class Certificate:
    """The proof of one plan for one TensorRT release, GPU and driver.

    Args:
        plan: open.
        environment: what the proof depends on beside the plan, as strings under ``tensorrt``, ``gpu``, ``target`` and ``driver``.
    """

    def __init__(self, plan: PlanFile, environment: dict[str, str]):
        digest = hashlib.sha256(plan.read(MANIFEST)).hexdigest()  # it lists the SHA-256 of everything else
        self._facts = {"format": FORMAT, "plan_sha256": digest, **environment}

    def _path(self) -> Path:
        name = hashlib.sha256(json.dumps(self._facts, sort_keys=True).encode()).hexdigest()
        return cache_folder("certificates") / f"{name}.json"

    def read(self) -> str:
        """What was proved, in words; empty if this plan was not proved here. A file that is broken or is for something else is ignored."""
        try:
            path = self._path()
            if path.stat().st_size > MAX_NBYTES:
                return ""
            found = json.loads(path.read_text())
        except (InputError, OSError, ValueError):
            return ""
        if not isinstance(found, dict) or any(found.get(name) != value for name, value in self._facts.items()):
            return ""
        return found["says"] if isinstance(found.get("says"), str) else ""

    def write(self, proof: Proof) -> str:
        """Keep a proof that holds. Returns where it is now, in words: a cache that cannot be written is no failure."""
        rows = [{"stage": r.stage, "mode": r.mode, "tensor": r.tensor, "rms": r.found.rms, "gain": r.found.gain} for r in proof.rows]
        content: dict[str, Any] = {**self._facts, "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "says": proof.words}
        try:
            path = self._path()
            with whole_file(path, force=True) as part:
                part.write_text(json.dumps({**content, proof.measure: proof.error, "rows": rows}, indent=1, allow_nan=False))
        except (FathomError, OSError) as error:
            return f"the certificate could not be kept ({error})"
        return "the certificate is kept for later starts"


def certify(plan: PlanFile, backend: Any) -> str:
    """Prove a plan on an open TensorRT backend unless that was done here before: every stage runs once, on golden tensors.

    Args:
        backend: of this plan, with ``environment``.

    Returns:
        a remark: what was proved, when, and what it took.

    Raises:
        AccuracyError: if the engines do not give the plan's golden tensors; the first wrong stage is named.
    """
    if not plan.manifest.goldens:
        return WITHOUT
    certificate = Certificate(plan, backend.environment)
    if says := certificate.read():
        return f"certified on this machine before ({says})"
    start = time.perf_counter()
    proof = prove(plan, backend, ("isolated",))
    proof.require(backend.environment["gpu"])
    took = time.perf_counter() - start
    return f"certified now, by one run of the plan's own case in {took:.2f} s ({proof.words}); {certificate.write(proof)}"
