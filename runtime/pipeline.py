"""From a photo to its depth map: the one class that users of the runtime need."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from itertools import islice
from pathlib import Path
from typing import Union

import numpy as np

from .artefact.bundle import BundleDirectory
from .artefact.contract import Protocol
from .artefact.manifest import GREATEST_BATCH, PlanManifest
from .artefact.plan import PlanFile
from .artefact.trust import ANY, Trust
from .backend import Backend, open_backend
from .errors import AccuracyError, UsageError
from .memory_limit import refuse_small_limit
from .photo.depth_map import DepthMap, Intrinsics, Origin
from .photo.postprocess import assumed_view, focal_scale
from .photo.preprocess import Window, check_photo, window_tensor, windows_of
from .photo.shaped_photo import ShapedPhoto
from .remarks import Remarks
from .scale.correction import corrected
from .sequences import zip_equal
from .submission import Submissions
from .text.encoder import TextEncoder

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
        remarks: what was opened and what memory it takes, in words; grows when photos have to be shaped on the CPU, or their camera assumed.
        concurrent: how many predictions in flight keep the device busy.
        scale: a ``CameraScale`` that corrects every map made while it is set; None for no correction.
        mask_edges: while True, flying pixels of every map made are marked not valid.
    """

    def __init__(self, artefact: PlanFile | BundleDirectory, backend: Backend, batch: int | None = None):
        self.manifest, self.contract = artefact.manifest, artefact.manifest.contract
        self._artefact, self._backend = artefact, backend
        self.remarks = Remarks(*((artefact.signed,) if artefact.signed else ()), *backend.remarks)
        self._closing, self._permits, self.concurrent = threading.Lock(), threading.Semaphore(backend.concurrent), backend.concurrent
        self._min_batch, opt_batch, self._max_batch = self._batches()
        self._submissions = Submissions(backend.concurrent + 1, (backend.concurrent + 1) * self._min_batch)
        self.batch = opt_batch if batch is None else batch
        if not 1 <= self.batch <= self._max_batch:
            raise UsageError(f"a batch of {batch}", wanted=f"1 to {self._max_batch} for this artefact", fix="change --batch, or build with another batch range")
        facts = self.manifest.network
        self.origin = Origin(facts.called, artefact.manifest_sha256, facts.untrained, facts.scene)
        self.scale, self.mask_edges, self._text = None, False, None
        if self.contract.text is not None:
            file = self.contract.text.tokenizer
            ids = next(t.dtype for spec in self.manifest.specs() for t in spec.inputs if t.name == self.contract.text.ids)
            self._text = TextEncoder(self.contract.text, self.contract.input, artefact.read(file) if file else b"", ids)
            if self._text.reads_picture and hasattr(backend, "predict_photos"):
                self.remarks.add("the words that describe a photo to the network are worked out on the CPU")

    @classmethod
    def open(
        cls,
        path: str | Path,
        device: str | int | None = None,
        threads: int | None = None,
        batch: int | None = None,
        verify: bool = True,
        streams: int = 1,
        trust: Trust = ANY,
    ) -> Pipeline:
        """Open a plan (file) or a bundle (directory).

        Args:
            device: ``cpu``, ``cuda``, ``cuda:N``, or the number of a GPU; None for the artefact's own.
            threads: CPU threads of one operator; None for all cores.
            batch: windows per network run; None for what the plan was built for, 1 for a bundle.
            verify: compare every file with its SHA-256 first.
            streams: TensorRT: network runs that may be on the GPU at the same time, each with its own memory.
            trust: whose signature, or which manifest's SHA-256, is wanted; every file is then compared too, whatever ``verify`` says.

        Raises:
            InputError: if it is neither, or broken, or not signed by whom ``trust`` names.
            ChecksumError: if its bytes changed.
            EnvironmentMismatchError: if this machine cannot execute it.
            OutOfMemoryError: if a limit of this process leaves too little memory.
            UsageError: if device, threads or batch do not fit.
        """
        artefact = BundleDirectory.open(path, verify, trust) if Path(path).is_dir() else PlanFile.open(path, verify, trust)
        backend = None
        try:
            refuse_small_limit(artefact.manifest)
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
            intrinsics: of the camera, kept with the map; (fx, fy, cx, cy) in pixels. A network whose metres depend on the focal length needs it.
            prompt: words, for a network that is asked in words; the name of the scene, for one that must be told.

        Raises:
            ValueError: if the image is not of that form.
            InputError: if the protocol does not apply to a picture of this size, or the camera cannot be that of this photo.
            AccuracyError: if the network puts out NaN, Inf or a constant; the tensor is named.
            UsageError: if there is no such protocol, or the prompt is missing or not wanted.
        """
        return self.predict_batch([image], protocol, intrinsics, prompt)[0]

    __call__ = predict

    def submit(self, image: np.ndarray, protocol: str | None = None, intrinsics: Camera | None = None, prompt: str | None = None) -> Future[DepthMap]:
        """``predict`` in the background, so that the next photo is prepared while the network works on this one.

        If the engine has a minimum batch above 1, waiting photos share one run. Blocks while (``concurrent`` + 1) times the minimum batch of
        photos wait. Errors come out of the future; arguments as in ``predict``.

        Raises:
            ValueError: if the pipeline is closed.
        """

        def work(some: list[tuple[np.ndarray, Camera | None]]) -> list[DepthMap]:
            images, cameras = zip_equal(*some)
            return self._predict(images, cameras, protocol, prompt)

        windows = next((len(windows_of(known)) for known in self.contract.protocols if protocol in (None, known.name)), self._min_batch)
        return self._submissions.submit(work, (protocol, prompt), max(1, self._min_batch // windows), (image, intrinsics))

    def predict_batch(
        self,
        images: Sequence[np.ndarray],
        protocol: str | None = None,
        intrinsics: Camera | list[Intrinsics | None] | None = None,
        prompt: str | None = None,
        on_progress: Callable[[int], None] | None = None,
    ) -> list[DepthMap]:
        """Depth of several photos of any sizes, whose windows share the network's batches; see ``predict``. Each may have its own ``Intrinsics`` or None.

        Args:
            on_progress: called after every network run with the number of windows that have gone through so far.
        """
        own = isinstance(intrinsics, list) and all(one is None or isinstance(one, Intrinsics) for one in intrinsics)
        return self._predict(images, intrinsics if own else [intrinsics] * len(images), protocol, prompt, on_progress)

    def _predict(
        self,
        images: Sequence[np.ndarray],
        cameras: Sequence[Camera | None],
        protocol: str | None,
        prompt: str | None,
        on_progress: Callable[[int], None] | None = None,
    ) -> list[DepthMap]:
        chosen = self.protocol(protocol)
        photos = [ShapedPhoto(check_photo(image), self.contract, chosen) for image in images]
        known = [Intrinsics.of_photo(camera, photo.photo) for camera, photo in zip_equal(cameras, photos)]
        scales = [focal_scale(self.contract.output, photo.placed, camera) for camera, photo in zip_equal(known, photos)]
        if self.contract.output.focal_assumed and None in known:
            self.remarks.add(assumed_view(self.contract.output, photos[known.index(None)].size[1]))
        maps = self._on_gpu(photos, chosen, prompt, on_progress)
        if maps is None:
            done = 0
            windows = ((photo, window) for photo in photos for window in photo.windows)
            while some := list(islice(windows, self.batch)):
                for (photo, window), item in zip(some, self._run(some, prompt)):  # what follows is padding of the batch
                    photo.assembly.add(window, item)
                if on_progress is not None:
                    done += len(some)
                    on_progress(done)
            maps = [photo.assembly.finish() for photo in photos]
        facts = {"protocol": chosen.name, "origin": self.origin}
        finished = []
        for photo, camera, scale, (values, valid) in zip_equal(photos, known, scales, maps):
            values = values if scale == 1 else values * np.float32(scale)
            own = {"network_ms": photo.network_ms, "waiting_ms": photo.waiting_ms, "intrinsics": camera}
            own["camera"] = "" if not self.contract.output.focal_px else "told" if camera else "assumed"
            finished.append(DepthMap.of(values, valid, self.contract.output, **facts, **own))
        return corrected(finished, self.scale, self.mask_edges, prompt)

    def _on_gpu(
        self, photos: list[ShapedPhoto], protocol: Protocol, prompt: str | None, on_progress: Callable[[int], None] | None
    ) -> list[tuple[np.ndarray, np.ndarray]] | None:
        """Maps that were made without leaving the GPU, or None if the backend cannot do that, or not with these photos."""
        predict_photos = getattr(self._backend, "predict_photos", None)
        if predict_photos is None:
            return None
        windows = len(windows_of(protocol))
        group = max(1, self.batch // windows)
        maps: list[tuple[np.ndarray, np.ndarray]] = []
        for start in range(0, len(photos), group):
            some = photos[start : start + group]
            words = self._words(some, prompt)
            asked = time.perf_counter()
            with self._permits:
                self._refuse_closed()
                found = predict_photos([photo.photo for photo in some], [photo.placed for photo in some], protocol, self.batch, words)
            if found.why_cpu:
                self.remarks.add(f"photos are shaped on the CPU: {found.why_cpu}")
                return None
            maps += found.maps
            for photo in some:
                photo.network_ms = found.network_ms / len(some)
                photo.waiting_ms = max((time.perf_counter() - asked) * 1e3 - found.network_ms, 0.0)
            if on_progress is not None:
                on_progress(len(maps) * windows)
        return maps

    def _words(self, photos: list[ShapedPhoto], prompt: str | None) -> dict[str, np.ndarray]:
        """The text tensors of all windows of some photos; none for a network that takes no words."""
        if self._text is None:
            return _no_text(prompt)
        windows = [(photo, window) for photo in photos for window in photo.windows]
        return self._text.one_by_one((window_tensor(photo.picture, window, self.contract.input) for photo, window in windows), len(windows), prompt)

    def protocol(self, name: str | None = None) -> Protocol:
        """The protocol of that name, or the default.

        Raises:
            UsageError: if there is none.
        """
        for protocol in self.contract.protocols:
            if name in (None, protocol.name):
                return protocol
        raise UsageError(f"there is no protocol {name!r}", wanted=" or ".join(p.name for p in self.contract.protocols))

    def _run(self, windows: list[tuple[ShapedPhoto, Window]], prompt: str | None) -> np.ndarray:
        image, output = self.contract.input, self.contract.output.tensor
        tensor = np.zeros((max(len(windows), self._min_batch), 3, *image.canvas), np.float32)
        for (photo, window), out in zip(windows, tensor):
            window_tensor(photo.picture, window, image, out)
        tensor[len(windows) :] = tensor[len(windows) - 1]  # an engine with a minimum batch gets the last window again
        inputs = {image.tensor: tensor, **(self._text(tensor, prompt) if self._text else _no_text(prompt))}
        asked = time.perf_counter()
        with self._permits:
            self._refuse_closed()
            begun = time.perf_counter()
            timed_run = getattr(self._backend, "timed_run", None)  # a device has a clock of its own
            found, network_ms = timed_run(inputs, frozenset({output})) if timed_run else (self._backend.run(inputs, frozenset({output})), None)
            ended = time.perf_counter()
            values = found[output]
            if not np.isfinite(values).all():
                self._blame(inputs)
        network_ms = (ended - begun) * 1e3 if network_ms is None else network_ms
        for photo, _ in windows:
            photo.network_ms += network_ms / len(windows)
            photo.waiting_ms += max((ended - asked) * 1e3 - network_ms, 0.0) / sum(other is photo for other, _ in windows)
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
        """Wait for what is under way and release everything; may be called twice. Submitted photos that did not start are dropped."""
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


def _no_text(prompt: str | None) -> dict[str, np.ndarray]:
    if prompt is not None:
        raise UsageError("this network takes no words", fix="leave --prompt out")
    return {}
