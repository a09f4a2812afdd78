"""PyTorch as a backend of the runtime's own pipeline: the same pre- and post-processing, the unfolded network in between.

The only file of this folder that may import models and torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..runtime.artefact.bundle import BundleDirectory
from ..runtime.artefact.spec import StageSpec
from ..runtime.errors import EnvironmentMismatchError, InputError, OutOfMemoryError, UsageError, missing_package
from ..runtime.pipeline import Pipeline


class TorchBackend:
    """Runs a network's ``boundaries`` in FP32 (TF32 off); see ``runtime.backend.Backend``.

    Args:
        network: a ``models.network.DepthNetwork`` in eval mode.
        stages: of the artefact it stands in for.
        device: ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        EnvironmentMismatchError: if this PyTorch has no such device.
    """

    def __init__(self, network, stages: tuple[StageSpec, ...], device: str = "cpu"):
        import torch

        if device != "cpu":
            if not torch.cuda.is_available():
                raise EnvironmentMismatchError("this PyTorch has no CUDA", fix="install the CUDA build of PyTorch, or leave out --device")
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        self._device = torch.device(device)
        self._network, self.stages = network if device == "cpu" else network.to(self._device), stages
        self.concurrent, self.remarks = 1, ()

    def run(self, inputs: dict[str, np.ndarray], keep: frozenset[str] = frozenset()) -> dict[str, np.ndarray]:
        """All tensors in ``keep``, or the network's output."""
        import torch

        names = keep or {self._network.contract.output.tensor}
        try:
            with torch.inference_mode():
                tensors = self._network.boundaries({name: torch.from_numpy(values).to(self._device) for name, values in inputs.items()})
        except torch.OutOfMemoryError as error:
            raise OutOfMemoryError("PyTorch ran out of memory", fix="use a smaller --batch") from error
        return {name: tensors[name].float().cpu().numpy() for name in names}

    def interrupt(self) -> None:
        """PyTorch cannot be stopped in the middle; the run ends by itself."""

    def close(self) -> None:
        """Let the network go."""
        self._network = None


def open_reference(
    bundle: str | Path, weights: str | Path | None = None, batch: int | None = None, device: str | None = None, options: Mapping[str, str] | None = None
) -> Pipeline:
    """The network a bundle was exported from, in PyTorch, behind the bundle's own contract.

    Args:
        bundle: directory made by ``depth-export``.
        weights: the checkpoint it was exported from; not needed where the network ships with demo weights or has random ones.
        batch: windows per network run.
        device: of PyTorch, the CPU if None.
        options: what else the export was given (``visual_weights``, ``text_pack``, ``texts``, ``bins``, ``tokenizer``); see ``models.catalog.load``.

    Raises:
        InputError: if the bundle is broken or ``weights`` is not the file it was made from.
        UsageError: if the bundle is of a foreign network, or weights are missing.
        EnvironmentMismatchError: if PyTorch is not installed.
    """
    if not Path(bundle).is_dir():
        raise UsageError(f"{bundle} is no folder", wanted="a bundle made by depth-export; its manifest says which network PyTorch should run")
    artefact = BundleDirectory.open(bundle)
    try:
        network = load_network(artefact, weights, options)
        return Pipeline(artefact, TorchBackend(network, artefact.manifest.specs(), device or "cpu"), batch)
    except BaseException:
        artefact.close()
        raise


def load_network(artefact: BundleDirectory, weights: str | Path | None, given: Mapping[str, str] | None = None):
    """The PyTorch network of an open bundle, on the CPU; arguments and errors as in ``open_reference``."""
    facts = artefact.manifest.network
    origin = facts.weights
    try:
        from ..models import catalog
    except ImportError as error:
        raise missing_package(error.name or "torch", "export", "PyTorch, to run the reference") from error
    if facts.name not in catalog.NETWORKS:
        raise UsageError(f"the bundle holds the network {facts.name!r}, which Fathom has no PyTorch form of", wanted=f"one of {', '.join(catalog.NETWORKS)}")
    if weights is None and origin["kind"] not in ("demo", "random-init"):
        raise UsageError(f"{facts.name} was exported from {origin['file'] or 'a checkpoint'}", fix="give that file with --reference-weights")
    scene = facts.config.get("scene") if "scene" in catalog.NETWORKS[facts.name].options else None  # what kind of room VPD was exported for
    settings = {name: facts.config[name] for name in catalog.NETWORKS[facts.name].settings if name in facts.config}
    demo = weights is None and origin["kind"] == "demo"  # whose settings are the network's own
    options = {"variant": facts.variant or None, "scene": scene, "settings": None if demo else settings, **(given or {})}
    network = catalog.load(facts.name, weights, random_init=weights is None and not demo, **options)
    if network.origin.sha256 != origin["sha256"]:
        raise InputError(
            f"the bundle was exported from weights with SHA-256 {origin['sha256'][:12] or 'unknown'}…, PyTorch has {network.origin.sha256[:12] or 'none'}…",
            wanted="the same weights on both sides",
            fix="give the file it was exported from with --reference-weights, or export again",
        )
    if json.loads(json.dumps(network.config_json())) != facts.config:
        raise InputError("the bundle's network was configured otherwise than PyTorch's", wanted="one configuration", fix="export again with this release")
    return network.eval()
