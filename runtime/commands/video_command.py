"""``depth-run`` on videos: a colour video, and on request the depth of every frame, for each of them."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import FathomError, InputError, UsageError
from ..outputs import writers
from ..outputs.colormap import colorize
from ..sequences import zip_equal
from ..video.video import ColorVideo, Frame, VideoSource, is_live, shown, stem_of
from ..video.video_run import VideoFacts, failure_of, run_video
from .progress import Progress

if TYPE_CHECKING:
    from ..photo.depth_map import DepthMap, Intrinsics
    from ..pipeline import Pipeline

FRAME_SUFFIX = {"png16": "_depth.png", "npy": "_depth.npy", "ply": ".ply"}
NO_DEPTH = (64, 64, 64)


def place_videos(sources: list[str], out: Path, kinds: tuple[str, ...], force: bool) -> dict[str, dict[str, Path]]:
    """Where the results of each video go: ``NAME_color.mp4``, and the frames in the folder ``NAME``.

    Raises:
        InputError: if something is there already and ``force`` is False.
        UsageError: if two videos have the same name.
    """
    stems = [stem_of(source) for source in sources]
    if len(set(stems)) != len(stems):
        raise UsageError(f"two videos are called {next(stem for stem in stems if stems.count(stem) > 1)}", fix="run them one by one, with another --output")
    places = {}
    for source, stem in zip_equal(sources, stems):
        places[source] = {"color": out / f"{stem}_color.mp4"} if "color" in kinds else {}
        if set(kinds) & FRAME_SUFFIX.keys():
            places[source]["frames"] = out / stem
        for path in places[source].values():
            if path.exists() and not force:
                raise InputError(f"{path} exists already", wanted="free names", fix="another --output, or --force to replace")
    return places


def run_videos(pipeline: Pipeline, arguments: argparse.Namespace, camera: Intrinsics | None, kinds: tuple[str, ...], places: dict[str, dict[str, Path]]) -> int:
    """Show each video to the network; returns the exit code. A broken one does not stop the others."""
    code = 0
    for source, place in places.items():
        try:
            _Video(pipeline, arguments, camera, kinds, source, place).work()
        except InputError as error:
            code = max(code, _report(arguments, source, error))
        except _SomeFramesFailedError as failed:
            code = max(code, _report(arguments, source, failed.error))
    return code


class _SomeFramesFailedError(Exception):
    def __init__(self, error: FathomError):
        super().__init__(str(error))
        self.error = error


class _Video:
    """One video and what is written of it."""

    def __init__(
        self, pipeline: Pipeline, arguments: argparse.Namespace, camera: Intrinsics | None, kinds: tuple[str, ...], source: str, place: dict[str, Path]
    ):
        self.pipeline, self.arguments, self.camera, self.kinds, self.source, self.place = pipeline, arguments, camera, kinds, source, place
        self.range: tuple[float, float] | None = None  # of the colours, one for the whole video
        self.color: ColorVideo | None = None
        self.progress: Progress

    def work(self) -> None:
        """Raises InputError if the video is broken; what was written before stays only of the frames, not of the colour video."""
        flags = self.arguments
        made = False
        with VideoSource(self.source) as source:
            if "frames" in self.place:
                made = not self.place["frames"].exists()
                self.place["frames"].mkdir(parents=True, exist_ok=True)
            try:
                with Progress(source.frames, "frames", flags.quiet) as self.progress:
                    if "color" in self.place:
                        self.color = ColorVideo(self.place["color"], source.rate, flags.force)
                    if is_live(self.source):
                        self.progress.message(f"{shown(self.source)}: Ctrl-C ends it")
                    facts = run_video(source, self._predict, self._write, self.pipeline.interrupt, self.progress.advance_to)
                if self.color is not None:
                    self.color.close()
            except BaseException:
                if self.color is not None:
                    self.color.drop()
                if made and "frames" in self.place and not any(self.place["frames"].iterdir()):
                    shutil.rmtree(self.place["frames"])
                raise
        self._print(facts)
        if (error := failure_of(facts, shown(self.source))) is not None:
            raise _SomeFramesFailedError(error)

    def _predict(self, pixels: np.ndarray) -> Any:
        return self.pipeline.submit(pixels, self.arguments.protocol, self.camera, self.arguments.prompt)

    def _write(self, frame: Frame, depth: DepthMap | None) -> None:
        if self.color is not None:
            self.color.write(self._colors(frame, depth), frame.time_s)
        if depth is None or "frames" not in self.place:
            return
        for kind in set(self.kinds) & FRAME_SUFFIX.keys():
            path = self.place["frames"] / f"{frame.number:06d}{FRAME_SUFFIX[kind]}"
            if kind == "png16":
                writers.save_png16(depth, path, self.arguments.force)
            elif kind == "npy":
                writers.save_npy(depth, path, self.arguments.force)
            else:
                writers.save_ply(depth, frame.pixels, path, self.arguments.force)

    def _colors(self, frame: Frame, depth: DepthMap | None) -> np.ndarray:
        if depth is None:
            return np.full(frame.pixels.shape, NO_DEPTH, np.uint8)
        if self.range is None:  # metric: the trained range; relative: what the first frame shows
            near, far = self.arguments.near, self.arguments.far
            if depth.kind == "metric":
                near, far = depth.near if near is None else near, depth.far if far is None else far
            self.range = writers.color_range(depth, near, far)
        return colorize(depth.values, depth.valid, *self.range, self.arguments.colormap, reverse=depth.larger_is == "far")

    def _print(self, facts: VideoFacts) -> None:
        files = {kind: str(path) for kind, path in self.place.items()}
        untrained = self.pipeline.origin.untrained
        if self.arguments.json:
            numbers = {"frames": facts.frames, "failed": facts.failed, "dropped": facts.dropped, "seconds": round(facts.seconds, 3), "fps": round(facts.fps, 3)}
            print(json.dumps({"video": shown(self.source), **numbers, "untrained": untrained, "files": files}), flush=True)
            return
        dropped = f", {facts.dropped} dropped" if facts.dropped else ""
        words = f"{facts.frames} frames in {facts.seconds:.1f} s, {facts.fps:.2f} fps end to end{dropped}{', UNTRAINED WEIGHTS' if untrained else ''}"
        print(f"{shown(self.source)}  {words}", flush=True)


def _report(arguments: argparse.Namespace, source: str, error: FathomError) -> int:
    if arguments.json:
        print(json.dumps({"video": shown(source), "error": str(error), "exit_code": error.exit_code}), flush=True)
    print(f"error: {error}", file=sys.stderr)
    return error.exit_code
