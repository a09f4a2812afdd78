"""The loop of ``depth-run`` over all photos: reading and writing run in pools beside the network; results keep their order."""

from __future__ import annotations

import argparse
import json
import os
import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import AccuracyError, DiskFullError, FathomError, InputError
from ..free_memory import give_back_free_memory
from ..outputs.writers import save_as
from ..photo.exif_camera import camera_of
from ..photo.photo import read_photo
from ..photo.preprocess import windows_of
from ..sequences import zip_equal
from .command import say
from .progress import Progress

if TYPE_CHECKING:
    import numpy as np

    from ..photo.depth_map import DepthMap, Intrinsics
    from ..photo.photo import PhotoFile
    from ..pipeline import Pipeline

TRIM_EVERY = 128  # photos; a millisecond each time
MOST_THREADS = 8  # of a pool
MOST_PIXELS = 50_000_000  # of photos between their files and their maps' files; about 14 bytes of memory each


@dataclass(frozen=True)
class _Done:
    """What there is to say about one photo: a map that was written, with warnings, or why there is none."""

    photo: PhotoFile
    depth: DepthMap | None
    facts: dict[str, Any]
    warnings: tuple[str, ...] = ()
    error: FathomError | None = None


class PhotoSession:
    """Photos to files. A broken photo does not stop the others.

    Args:
        arguments: of ``depth-run``.
        camera: of all photos, or ``EXIF`` for the one that each photo names.
        targets: for each photo the files to write, by kind.
    """

    def __init__(self, pipeline: Pipeline, arguments: argparse.Namespace, camera: Intrinsics | str | None, targets: dict[PhotoFile, dict[str, Path]]):
        self.pipeline, self.arguments, self.camera, self.targets = pipeline, arguments, camera, targets
        self.progress: Progress
        self.counting = threading.Lock()
        self.pixels = self.finished = 0  # pixels under way, photos told
        self.failures: list[tuple[PhotoFile, FathomError]] = []
        self.shown: list[tuple[Path, Path]] = []  # photos and the colour pictures that were written of them
        self.windows = len(windows_of(pipeline.protocol(arguments.protocol)))  # of the network at one photo

    def work(self) -> int:
        """Returns the exit code."""
        photos = list(self.targets)
        group = max(1, self.pipeline.batch // self.windows)
        threads = min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, MOST_THREADS)
        ahead = self.pipeline.concurrent + 1 + -(-3 * threads // group)  # groups under way: enough for all pools
        what = "photos" if self.windows == 1 else "windows"
        # Writers mostly wait for the disk, which has to have each file before it gets its name.
        pools = [ThreadPoolExecutor(size, name) for name, size in (("read", threads), ("network", self.pipeline.concurrent + 1), ("write", 2 * threads))]
        reading, network, writing = pools
        flying: deque[tuple[Future, list[Future]]] = deque()  # a group in the network, and the photos that are read for it
        with Progress(len(photos) * self.windows, what, self.arguments.quiet) as self.progress:
            try:
                for start in range(0, len(photos), group):
                    read = [(photo, reading.submit(self._read, photo)) for photo in photos[start : start + group]]
                    flying.append((network.submit(self._predict_group, read, start, writing), [future for _, future in read]))
                    while flying and (len(flying) > ahead or self.pixels > MOST_PIXELS):
                        self._tell(flying.popleft()[0])
                while flying:
                    self._tell(flying.popleft()[0])
                self.progress.advance_to(self.progress.total)
            except BaseException:
                self.pipeline.interrupt()  # else leaving would wait for the network's whole run
                for group, reads in flying:
                    for future in (group, *reads):
                        future.cancel()
                raise
            finally:
                for pool in pools:
                    pool.shutdown(wait=True)
        return self._report()

    def _count(self, pixels: int) -> None:
        with self.counting:
            self.pixels += pixels

    def _read(self, photo: PhotoFile) -> tuple[np.ndarray, Intrinsics | None] | FathomError:
        try:
            pixels = read_photo(photo.path)
            camera = camera_of(self.camera, photo.path, pixels)
        except FathomError as error:
            return error
        self._count(pixels.shape[0] * pixels.shape[1])
        return pixels, camera

    def _predict_group(self, read: list[tuple[PhotoFile, Future]], before: int, writing: ThreadPoolExecutor) -> list[_Done | Future]:
        """Through the network as soon as all are read; what is still being written comes as a future."""
        found = [(photo, future.result()) for photo, future in read]
        maps = iter(self._predict([seen for _, seen in found if not isinstance(seen, FathomError)], before))
        done: list[_Done | Future] = []
        for photo, seen in found:
            if isinstance(seen, FathomError):
                done.append(_Done(photo, None, {}, error=seen))
                continue
            (pixels, _), result = seen, next(maps)
            if isinstance(result, FathomError):
                self._count(-pixels.shape[0] * pixels.shape[1])
                done.append(_Done(photo, None, {}, error=result))
            else:
                done.append(writing.submit(self._save, photo, pixels, result))
        return done

    def _predict(self, photos: list[tuple[np.ndarray, Intrinsics | None]], before: int) -> list[DepthMap | FathomError]:
        """A map, or why there is none, for each photo; ``before`` counts the photos before these."""
        flags = self.arguments

        def seen(count: int) -> None:
            with self.counting:
                self.progress.advance_to(before * self.windows + count)

        if not photos:
            return []
        images, cameras = zip_equal(*photos)
        try:
            return self.pipeline.predict_batch(images, flags.protocol, list(cameras), flags.prompt, seen)
        except (InputError, AccuracyError) as error:
            if len(photos) == 1:
                return [error]
            return [result for index, photo in enumerate(photos) for result in self._predict([photo], before + index)]  # each alone, to know which

    def _save(self, photo: PhotoFile, pixels: np.ndarray, depth: DepthMap) -> _Done:
        try:
            warnings = self._write(photo, pixels, depth)
        except DiskFullError:
            raise
        except InputError as error:
            return _Done(photo, None, {}, error=error)
        finally:
            self._count(-pixels.shape[0] * pixels.shape[1])
        return _Done(photo, depth, depth.summary(), tuple(warnings))

    def _write(self, photo: PhotoFile, pixels: np.ndarray, depth: DepthMap) -> list[str]:
        flags, warnings = self.arguments, []
        for kind, path in self.targets[photo].items():
            warnings += save_as(kind, depth, pixels, path, flags.force, (flags.colormap, flags.near, flags.far)).warnings
        return warnings

    def _tell(self, group: Future) -> None:
        """Wait for a group and print what came of it."""
        for item in group.result():
            self.finished += 1
            if not self.finished % TRIM_EVERY:
                give_back_free_memory()
            done = item.result() if isinstance(item, Future) else item
            with self.counting:
                for remark in self.pipeline.remarks.new():
                    self.progress.message(remark)
                if done.error is not None:
                    self._fail(done.photo, done.error)
                    continue
                for warning in done.warnings:
                    self.progress.alarm(f"warning: {done.photo.path}: {warning}")
                if "color" in self.targets[done.photo]:
                    self.shown.append((done.photo.path, self.targets[done.photo]["color"]))
                self._print(done.photo, done.depth, done.facts)

    def _print(self, photo: PhotoFile, depth: DepthMap, facts: dict[str, Any]) -> None:
        height, width = depth.values.shape
        assumed = depth.camera == "assumed"
        if self.arguments.json:
            unit = "_m" if depth.kind == "metric" else ""
            named = {f"{key}{unit}" if key in ("min", "median", "max") else key: value for key, value in facts.items()}
            files = {kind: str(path) for kind, path in self.targets[photo].items()}
            head = {"photo": str(photo.path), "width": width, "height": height, "kind": depth.kind, "unit": depth.unit, "protocol": depth.protocol}
            if depth.correction:
                head["correction"] = depth.correction
            if assumed:
                head["camera"] = "assumed"
            head["precision"] = getattr(self.pipeline.manifest, "computes", "fp32")  # a bundle is FP32
            times = {"time_ms": round(depth.network_ms, 3), "waiting_ms": round(depth.waiting_ms, 3)}
            self.progress.result(json.dumps({**head, **named, **times, "untrained": depth.origin.untrained, "files": files}))
            return
        unit = {"metric": " m", "relative": " (relative)", "mask": " (mask)"}[depth.kind]
        beyond = f", {depth.below_near + depth.above_far} px beyond the trained range" if depth.below_near + depth.above_far else ""
        untrained = ", UNTRAINED WEIGHTS" if depth.origin.untrained else ""
        untrained += ", camera assumed" if assumed else ""
        untrained += f", {depth.correction}" if depth.correction else ""
        values = f"{_number(facts['min'])} / {_number(facts['median'])} / {_number(facts['max'])}{unit}"
        picture = next((f"  {self.targets[photo][kind]}" for kind in ("color", "png16") if kind in self.targets[photo]), "")
        told = f"{photo.path}  {width}x{height}  {values}  valid {facts['valid_share']:.1%}  {depth.network_ms:.0f} ms{beyond}{untrained}"
        self.progress.result(told + picture)

    def _fail(self, photo: PhotoFile, error: FathomError) -> None:
        self.failures.append((photo, error))
        if self.arguments.json:
            self.progress.result(json.dumps({"photo": str(photo.path), "error": str(error), "exit_code": error.exit_code}))

    def _report(self) -> int:
        for photo, error in self.failures:
            words = str(error)
            say(f"error: {words if str(photo.path) in words else f'{photo.path}: {words}'}")
        if self.failures and len(self.targets) > 1:
            say(f"{len(self.failures)} of {len(self.targets)} photos failed")
        return max((error.exit_code for _, error in self.failures), default=0)


def _number(value: float) -> str:
    """Three decimals, or three digits where that would show less."""
    return f"{value:.3f}" if value == 0 or abs(value) >= 0.1 else f"{value:.3g}"
