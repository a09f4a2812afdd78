"""Photos of many callers through one pipeline: what a server's request asks, and the answer or the reason why there is none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import AccuracyError, FathomError, InputError
from ..photo.photo import decode_photo
from ..photo.preprocess import check_photo, windows_of
from ..sequences import zip_equal

if TYPE_CHECKING:
    from ..photo.depth_map import DepthMap, Intrinsics
    from ..pipeline import Pipeline

OUTPUTS = {"metric": "depth_m", "relative": "depth_relative", "mask": "mask"}  # kind -> name of the output tensor: the name says what the numbers are
DECODERS = 4


@dataclass(frozen=True)
class Ask:
    """One request.

    Args:
        photos: each the bytes of a picture file, or uint8 [H, W, 3] RGB.
        prompt: words, or the kind of scene, for a network that takes them.
        camera: as such, or fx, fy, cx, cy in pixels of the upright photo.
    """

    photos: tuple[bytes | np.ndarray, ...]
    prompt: str | None = None
    camera: Intrinsics | tuple[float, ...] | None = None


class PhotoService:
    """Answers requests; those that ask alike share the network's batches.

    Args:
        pipeline: open; it stays the caller's.
        protocol: how photos are shown; None for the artefact's first.
    """

    def __init__(self, pipeline: Pipeline, protocol: str | None = None):
        self.pipeline, self.protocol = pipeline, pipeline.protocol(protocol).name
        self._decoders = ThreadPoolExecutor(DECODERS, "fathom-decode")

    def answer(self, asks: Sequence[Ask]) -> list[list[tuple[np.ndarray, DepthMap]] | FathomError]:
        """The photos of each request with their maps, or its error; one request's error costs no other request anything.

        Returns:
            for each request pairs of uint8 [H, W, 3] and its map, or a ``FathomError``.
        """
        answers: list[Any] = [self._decoders.submit(self._decoded, ask) for ask in asks]
        answers = [future.result() for future in answers]
        alike: dict[Any, list[int]] = {}
        for index, (ask, found) in enumerate(zip_equal(asks, answers)):
            if not isinstance(found, FathomError):
                alike.setdefault((ask.prompt, ask.camera), []).append(index)
        for (prompt, camera), members in alike.items():
            maps = iter(self._predict([answers[index] for index in members], prompt, camera))
            for index in members:
                found = next(maps)
                answers[index] = found if isinstance(found, FathomError) else list(zip_equal(answers[index], found))
        return answers

    def _decoded(self, ask: Ask) -> list[np.ndarray] | FathomError:
        return _result(lambda: [decode_photo(photo) if isinstance(photo, bytes) else check_photo(photo) for photo in ask.photos])

    def _predict(self, groups: list[list[np.ndarray]], prompt: str | None, camera: Any) -> list[Any]:
        """For each group of photos its maps or its error."""
        if self.pipeline.batch < 2 * len(windows_of(self.pipeline.protocol(self.protocol))):  # nothing to share: one is shaped while another is in the network
            futures = [[self.pipeline.submit(photo, self.protocol, camera, prompt) for photo in group] for group in groups]
            return [_result(lambda group=group: [future.result() for future in group]) for group in futures]
        together = _result(lambda: self.pipeline.predict_batch([photo for group in groups for photo in group], self.protocol, camera, prompt))
        if not isinstance(together, FathomError):
            maps = iter(together)
            return [[next(maps) for _ in group] for group in groups]
        if len(groups) == 1 or not isinstance(together, (InputError, AccuracyError)):
            return [together] * len(groups)
        return [answer for group in groups for answer in self._predict([group], prompt, camera)]  # each alone, to know which

    def warm_up(self) -> None:
        """Run a made-up picture once, so that the first caller does not wait for what happens once.

        Raises:
            FathomError: if the network cannot run here.
        """
        contract = self.pipeline.contract
        text = contract.text
        steps = self.pipeline.protocol(self.protocol).steps
        height, width = next(((step.height, step.width) for step in steps if step.op == "require"), _large_enough(steps, contract.input.window))
        rows, columns = np.ogrid[:height, :width]
        photo = np.stack([rows * 255 // height + 0 * columns, columns * 255 // width + 0 * rows, (rows * 7 + columns * 5) % 256], axis=-1).astype(np.uint8)
        prompt = None if text is None else text.some_words("the chair")
        camera = (contract.output.focal_px, contract.output.focal_px, width / 2, height / 2) if contract.output.focal_px else None
        with suppress(AccuracyError):  # a made-up picture may well have no depth; what matters ran
            self.pipeline.predict(photo, self.protocol, camera, prompt)

    def close(self) -> None:
        """End the threads; the pipeline stays open."""
        self._decoders.shutdown(wait=True)


def map_of(depth: DepthMap) -> np.ndarray:
    """What a server sends of a map: float32 [H, W], NaN where there is no depth; for a mask uint8, 0 or 1."""
    return depth.values.astype(np.uint8) if depth.kind == "mask" else np.where(depth.valid, depth.values, np.float32(np.nan))


def facts_of(depth: DepthMap) -> dict[str, Any]:
    """What the numbers of a map mean, and how they lie; JSON values."""
    height, width = depth.values.shape
    head = {"kind": depth.kind, "unit": depth.unit, "larger_is": depth.larger_is, "width": width, "height": height, "protocol": depth.protocol}
    origin = {"network": depth.origin.network, "manifest_sha256": depth.origin.sha256, "untrained": depth.origin.untrained}
    return {**head, **origin, **depth.summary(), "network_ms": round(depth.network_ms, 3)}


def _result(work: Callable[[], Any]) -> Any:
    """What it returns, or its error, if that is the caller's to know."""
    try:
        return work()
    except FathomError as error:
        return error
    except ValueError as error:  # such as a camera that cannot be
        return InputError(str(error))


def _large_enough(steps: Sequence[Any], window: tuple[int, int]) -> tuple[int, int]:
    """A photo's size that no crop of these steps refuses."""
    sides = [(step.top + step.height, step.left + step.width) for step in steps if step.op == "crop"]
    return max([window[0], *(height for height, _ in sides)]), max([window[1], *(width for _, width in sides)])
