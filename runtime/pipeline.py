"""From a photo to its depth map: the one class that users of the runtime meet."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from hashlib import sha256
from itertools import islice
from pathlib import Path

import numpy as np

from .backend import Backend, open_backend
from .bundle import BundleDirectory
from .contract import Contract, Protocol
from .depth_map import DepthMap, Intrinsics, Origin
from .errors import AccuracyError, InputError, UsageError
from .manifest import PlanManifest
from .plan import MANIFEST, PlanFile
from .postprocess import Assembly
from .preprocess import Window, check_photo, check_windows, place_steps, shape_photo, window_tensor, windows
from .text import TextEncoder

GREATEST_BATCH = 1024
Camera = Intrinsics | Sequence[float]


class Pipeline:
    """An opened plan or bundle. May be used from several threads (one network run at a time); close it, or use it as a context manager.

    Attributes:
        manifest: of the artefact.
        contract: input, output and protocols.
        origin: which network this is.
        batch: how many windows go through the network together.
    """

    def __init__(self, artefact: PlanFile | BundleDirectory, backend: Backend, batch: int | None = None):
        self.manifest, self.contract = artefact.manifest, artefact.manifest.contract
        self._artefact, self._backend, self._lock = artefact, backend, threading.Lock()
        self._least, usual, self._greatest = self._batches()
        self.batch = usual if batch is None else batch
        if not 1 <= self.batch <= self._greatest:
            raise UsageError(f"a batch of {batch}", wanted=f"1 to {self._greatest} for this artefact", mend="change --batch, or build with another batch range")
        facts = self.manifest.network
        self.origin = Origin(f"{facts.name} {facts.variant}".strip(), _manifest_sha256(artefact), facts.untrained)
        self._text = None
        if self.contract.text is not None:
            self._text = TextEncoder(self.contract.text, self.contract.input, _read(artefact, self.contract.text.tokenizer))

    @classmethod
    def open(cls, path: str | Path, device: str | None = None, threads: int | None = None, batch: int | None = None, verify: bool = True) -> Pipeline:
        """Open a plan (file) or a bundle (directory).

        Args:
            device: ``cpu`` or ``cuda``; None for the artefact's own.
            threads: CPU threads of one operator; None for all cores.
            batch: windows per network run; None for what the plan was built for, 1 for a bundle.
            verify: compare every file with its SHA-256 first.

        Raises:
            InputError: if it is neither, or broken.
            ChecksumError: if its bytes changed.
            EnvironmentMismatchError: if this machine cannot execute it.
            UsageError: if device, threads or batch do not fit.
        """
        artefact = BundleDirectory.open(path, verify) if Path(path).is_dir() else PlanFile.open(path, verify)
        backend = None
        try:
            backend = open_backend(artefact, device, threads)
            return cls(artefact, backend, batch)
        except BaseException:
            if backend is not None:
                backend.close()
            artefact.close()
            raise

    def predict(self, image: np.ndarray, protocol: str | None = None, intrinsics: Camera | None = None, prompt: str | None = None) -> DepthMap:
        """Depth of one photo.

        Args:
            image: uint8 [H, W, 3], RGB.
            protocol: one of the contract's; None for its first.
            intrinsics: of the camera, kept with the map; (fx, fy, cx, cy) in pixels.
            prompt: words, for a network that is asked in words.

        Raises:
            ValueError: if the image is not of that form.
            InputError: if the protocol does not apply to a picture of this size.
            AccuracyError: if the network puts out NaN, Inf or a constant; the tensor is named.
            UsageError: if there is no such protocol, or the prompt is missing or not wanted.
        """
        return self.predict_batch([image], protocol, intrinsics, prompt)[0]

    __call__ = predict

    def predict_batch(
        self, images: Sequence[np.ndarray], protocol: str | None = None, intrinsics: Camera | None = None, prompt: str | None = None
    ) -> list[DepthMap]:
        """Depth of several photos of any sizes, whose windows share the network's batches; see ``predict``."""
        chosen = self.protocol(protocol)
        if intrinsics is not None and not isinstance(intrinsics, Intrinsics):
            intrinsics = Intrinsics(*map(float, intrinsics))
        assemblies = [_Photo(check_photo(image), self.contract, chosen) for image in images]
        looks = ((photo, window) for photo in assemblies for window in photo.windows)
        while some := list(islice(looks, self.batch)):
            for (photo, window), item in zip(some, self._run(some, prompt), strict=False):  # what follows is padding of the batch
                photo.assembly.add(window, item)
        facts = {"intrinsics": intrinsics, "protocol": chosen.name, "origin": self.origin}
        return [DepthMap.of(*photo.assembly.finish(), self.contract.output, **facts) for photo in assemblies]

    def protocol(self, name: str | None = None) -> Protocol:
        """The protocol of that name, or the default.

        Raises:
            UsageError: if there is none.
        """
        for protocol in self.contract.protocols:
            if name in (None, protocol.name):
                return protocol
        raise UsageError(f"there is no protocol {name!r}", wanted=" or ".join(p.name for p in self.contract.protocols))

    def _run(self, looks: list[tuple[_Photo, Window]], prompt: str | None) -> np.ndarray:
        image, output = self.contract.input, self.contract.output.tensor
        tensor = np.zeros((max(len(looks), self._least), 3, *image.canvas), np.float32)
        for (photo, window), out in zip(looks, tensor, strict=False):
            window_tensor(photo.picture, window, image, out)
        tensor[len(looks) :] = tensor[len(looks) - 1]  # an engine with a least batch gets the last window again
        inputs = {image.tensor: tensor, **(self._text(tensor, prompt) if self._text else _no_text(prompt))}
        with self._lock:
            if self._backend is None:
                raise ValueError("the pipeline is closed")
            values = self._backend.run(inputs, frozenset({output}))[output]
            if not np.isfinite(values).all():
                self._blame(inputs)
        return values

    def _blame(self, inputs: dict[str, np.ndarray]) -> None:
        """Run again with every tensor kept and name the first one that is not finite."""
        tensors = [(stage.name, tensor.name) for stage in self._backend.stages for tensor in stage.outputs]
        kept = self._backend.run(inputs, frozenset(name for _, name in tensors))
        for stage, name in tensors:
            bad = int(kept[name].size - np.isfinite(kept[name]).sum())
            if bad:
                raise AccuracyError(
                    f"stage {stage} puts out {bad} NaN or infinite values of {kept[name].size} in tensor {name}",
                    wanted="finite numbers everywhere",
                    mend="build with another precision; if it was fp32, the weights are broken",
                )

    def _batches(self) -> tuple[int, int, int]:
        if isinstance(self.manifest, PlanManifest):
            return self.manifest.batch
        name = self.contract.input.tensor
        size = next(tensor.shape[0] for spec in self.manifest.specs() for tensor in spec.inputs if tensor.name == name)
        return (size, size, size) if isinstance(size, int) else (1, 1, GREATEST_BATCH)

    def interrupt(self) -> None:
        """Make a prediction that is under way in another thread end soon, with an error, and refuse any other."""
        if (backend := self._backend) is not None:
            backend.interrupt()

    def close(self) -> None:
        """Free everything; may be called twice."""
        with self._lock:
            backend, self._backend = self._backend, None
            if backend is not None:
                backend.close()
                self._artefact.close()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Photo:
    """One photo on its way: shaped on first use, so that a long list does not lie shaped in memory at once."""

    def __init__(self, photo: np.ndarray, contract: Contract, protocol: Protocol):
        self._photo, self._placed = photo, place_steps(protocol.steps, *photo.shape[:2])
        size = self._placed[-1].after if self._placed else photo.shape[:2]
        check_windows(protocol, contract.input, *size)
        self.windows = windows(protocol)
        self._contract, self._protocol, self._picture, self._assembly = contract, protocol, None, None

    @property
    def picture(self) -> np.ndarray:
        """float32 [h, w, 3] in [0, 1]."""
        if self._picture is None:
            self._picture = shape_photo(self._photo, self._placed)
        return self._picture

    @property
    def assembly(self) -> Assembly:
        """Where its windows' outputs go."""
        if self._assembly is None:
            self._assembly = Assembly(self._contract, self._protocol, self._placed, self._photo.shape[:2])
        return self._assembly


def _no_text(prompt: str | None) -> dict[str, np.ndarray]:
    if prompt is not None:
        raise UsageError("this network takes no words", mend="leave --prompt out")
    return {}


def _manifest_sha256(artefact: PlanFile | BundleDirectory) -> str:
    if isinstance(artefact, BundleDirectory):
        return artefact.manifest_sha256
    with artefact.view(MANIFEST) as view:
        return sha256(view).hexdigest()


def _read(artefact: PlanFile | BundleDirectory, name: str) -> bytes:
    if isinstance(artefact, BundleDirectory):
        try:
            return artefact.path(name).read_bytes()
        except OSError as error:
            raise InputError(f"{name} cannot be read ({error.strerror})") from error
    with artefact.view(name) as view:
        return bytes(view)
