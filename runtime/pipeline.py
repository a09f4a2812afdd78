"""From a photo to its depth map: the one class that users of the runtime meet."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Union

import numpy as np

from .artefact.bundle import BundleDirectory
from .artefact.contract import Contract, Protocol
from .artefact.manifest import PlanManifest
from .artefact.plan import MANIFEST, PlanFile
from .backend import Backend, open_backend
from .errors import AccuracyError, InputError, UsageError
from .photo.depth_map import DepthMap, Intrinsics, Origin
from .photo.postprocess import Assembly
from .photo.preprocess import Window, check_photo, check_windows, place_steps, shape_photo, window_tensor, windows_of
from .submission import Submissions
from .text.encoder import TextEncoder

GREATEST_BATCH = 1024
Camera = Union[Intrinsics, "Sequence[float]"]


class Pipeline:
    """An opened plan or bundle. May be used from several threads; close it, or use it as a context manager.

    ONNX Runtime runs one network at a time. A TensorRT plan has a thread of its own that owns the GPU, whoever calls, and its pre- and
    post-processing run on the GPU too where the protocol allows it.

    Attributes:
        manifest: of the artefact.
        contract: input, output and protocols.
        origin: which network this is.
        batch: how many windows go through the network together.
        remarks: what was opened and what it takes, in words.
        concurrent: how many predictions may be under way at the same time and are worth it.
    """

    def __init__(self, artefact: PlanFile | BundleDirectory, backend: Backend, batch: int | None = None):
        self.manifest, self.contract = artefact.manifest, artefact.manifest.contract
        self._artefact, self._backend, self.remarks = artefact, backend, backend.remarks
        self._closing, self._permits, self.concurrent = threading.Lock(), threading.Semaphore(backend.concurrent), backend.concurrent
        self._submissions = Submissions(backend.concurrent + 1, backend.concurrent + 1)
        self._min_batch, opt_batch, self._max_batch = self._batches()
        self.batch = opt_batch if batch is None else batch
        if not 1 <= self.batch <= self._max_batch:
            raise UsageError(f"a batch of {batch}", wanted=f"1 to {self._max_batch} for this artefact", fix="change --batch, or build with another batch range")
        facts = self.manifest.network
        self.origin = Origin(f"{facts.name} {facts.variant}".strip(), _manifest_sha256(artefact), facts.untrained)
        self._text = None
        if self.contract.text is not None:
            ids = next(t.dtype for spec in self.manifest.specs() for t in spec.inputs if t.name == self.contract.text.ids)
            self._text = TextEncoder(self.contract.text, self.contract.input, _read(artefact, self.contract.text.tokenizer), ids)

    @classmethod
    def open(
        cls,
        path: str | Path,
        device: str | int | None = None,
        threads: int | None = None,
        batch: int | None = None,
        verify: bool = True,
        streams: int = 1,
    ) -> Pipeline:
        """Open a plan (file) or a bundle (directory).

        Args:
            device: ``cpu``, ``cuda``, ``cuda:N``, or the number of a GPU; None for the artefact's own.
            threads: CPU threads of one operator; None for all cores.
            batch: windows per network run; None for what the plan was built for, 1 for a bundle.
            verify: compare every file with its SHA-256 first.
            streams: TensorRT: network runs that may be on the GPU at the same time, each with its own memory.

        Raises:
            InputError: if it is neither, or broken.
            ChecksumError: if its bytes changed.
            EnvironmentMismatchError: if this machine cannot execute it.
            UsageError: if device, threads or batch do not fit.
        """
        artefact = BundleDirectory.open(path, verify) if Path(path).is_dir() else PlanFile.open(path, verify)
        backend = None
        try:
            backend = open_backend(artefact, device, threads, streams)
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

    def submit(self, image: np.ndarray, protocol: str | None = None, intrinsics: Camera | None = None, prompt: str | None = None) -> Future[DepthMap]:
        """``predict`` in the background, so that the next photo is prepared while the network works on this one.

        Blocks while as many photos wait as are under way. Errors come out of the future; arguments as in ``predict``.

        Raises:
            ValueError: if the pipeline is closed.
        """
        return self._submissions.submit(self.predict, image, protocol, intrinsics, prompt)

    def predict_batch(
        self,
        images: Sequence[np.ndarray],
        protocol: str | None = None,
        intrinsics: Camera | None = None,
        prompt: str | None = None,
        seen: Callable[[int], None] | None = None,
    ) -> list[DepthMap]:
        """Depth of several photos of any sizes, whose windows share the network's batches; see ``predict``.

        Args:
            seen: told after every network run how many windows have gone through so far.
        """
        chosen = self.protocol(protocol)
        if intrinsics is not None and not isinstance(intrinsics, Intrinsics):
            intrinsics = Intrinsics(*map(float, intrinsics))
        photos = [_Photo(check_photo(image), self.contract, chosen) for image in images]
        maps = self._on_gpu(photos, chosen, seen) if self._text is None and prompt is None else None
        if maps is None:
            done = 0
            windows = ((photo, window) for photo in photos for window in photo.windows)
            while some := list(islice(windows, self.batch)):
                for (photo, window), item in zip(some, self._run(some, prompt)):  # what follows is padding of the batch
                    photo.assembly.add(window, item)
                if seen is not None:
                    done += len(some)
                    seen(done)
            maps = [photo.assembly.finish() for photo in photos]
        facts = {"intrinsics": intrinsics, "protocol": chosen.name, "origin": self.origin}
        return [DepthMap.of(values, valid, self.contract.output, **facts) for values, valid in maps]

    def _on_gpu(self, photos: list[_Photo], protocol: Protocol, seen: Callable[[int], None] | None) -> list[tuple[np.ndarray, np.ndarray]] | None:
        """Maps that were made without leaving the GPU, or None if the backend or the protocol does not allow it."""
        predict_photos = getattr(self._backend, "predict_photos", None)
        if predict_photos is None:
            return None
        windows = len(windows_of(protocol))
        group = max(1, self.batch // windows)
        maps: list[tuple[np.ndarray, np.ndarray]] = []
        for start in range(0, len(photos), group):
            some = photos[start : start + group]
            with self._permits:
                self._refuse_closed()
                found = predict_photos([photo.photo for photo in some], [photo.placed for photo in some], protocol, self.batch)
            if found is None:
                return None
            maps += found
            if seen is not None:
                seen(len(maps) * windows)
        return maps

    def protocol(self, name: str | None = None) -> Protocol:
        """The protocol of that name, or the default.

        Raises:
            UsageError: if there is none.
        """
        for protocol in self.contract.protocols:
            if name in (None, protocol.name):
                return protocol
        raise UsageError(f"there is no protocol {name!r}", wanted=" or ".join(p.name for p in self.contract.protocols))

    def _run(self, windows: list[tuple[_Photo, Window]], prompt: str | None) -> np.ndarray:
        image, output = self.contract.input, self.contract.output.tensor
        tensor = np.zeros((max(len(windows), self._min_batch), 3, *image.canvas), np.float32)
        for (photo, window), out in zip(windows, tensor):
            window_tensor(photo.picture, window, image, out)
        tensor[len(windows) :] = tensor[len(windows) - 1]  # an engine with a least batch gets the last window again
        inputs = {image.tensor: tensor, **(self._text(tensor, prompt) if self._text else _no_text(prompt))}
        with self._permits:
            self._refuse_closed()
            values = self._backend.run(inputs, frozenset({output}))[output]
            if not np.isfinite(values).all():
                self._blame(inputs)
        return values

    def _refuse_closed(self) -> None:
        if self._backend is None:
            raise ValueError("the pipeline is closed")

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
                    fix="build with another precision; if it was fp32, the weights are broken",
                )

    def _batches(self) -> tuple[int, int, int]:
        if isinstance(self.manifest, PlanManifest):
            return self.manifest.batch
        name = self.contract.input.tensor
        size = next(tensor.shape[0] for spec in self.manifest.specs() for tensor in spec.inputs if tensor.name == name)
        return (size, size, size) if isinstance(size, int) else (1, 1, GREATEST_BATCH)

    @property
    def backend(self) -> Backend:
        """What executes the engines, for measurements.

        Raises:
            ValueError: if the pipeline is closed.
        """
        self._refuse_closed()
        return self._backend

    def interrupt(self) -> None:
        """Make a prediction that is under way in another thread end soon, with an error, and refuse any other."""
        if (backend := self._backend) is not None:
            backend.interrupt()

    def close(self) -> None:
        """Wait for what is under way and free everything; may be called twice. Submitted photos that did not start are dropped."""
        with self._closing:
            self._submissions.close()
            for _ in range(self.concurrent):
                self._permits.acquire()
            backend, self._backend = self._backend, None
            for _ in range(self.concurrent):
                self._permits.release()
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
        self.photo, self.placed = photo, place_steps(protocol.steps, *photo.shape[:2])
        size = self.placed[-1].after if self.placed else photo.shape[:2]
        check_windows(protocol, contract.input, *size)
        self.windows = windows_of(protocol)
        self._contract, self._protocol, self._picture, self._assembly = contract, protocol, None, None

    @property
    def picture(self) -> np.ndarray:
        """float32 [h, w, 3] in [0, 1]."""
        if self._picture is None:
            self._picture = shape_photo(self.photo, self.placed)
        return self._picture

    @property
    def assembly(self) -> Assembly:
        """Where its windows' outputs go."""
        if self._assembly is None:
            self._assembly = Assembly(self._contract, self._protocol, self.placed, self.photo.shape[:2])
        return self._assembly


def _no_text(prompt: str | None) -> dict[str, np.ndarray]:
    if prompt is not None:
        raise UsageError("this network takes no words", fix="leave --prompt out")
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
