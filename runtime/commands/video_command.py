"""``depth-run`` on videos: a colour video, and on request the depth of every frame, for each of them."""

from __future__ import annotations

import argparse
import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ..errors import DiskFullError, FathomError, InputError, UsageError
from ..outputs import writers
from ..outputs.colormap import colorize
from ..outputs.scale_bar import PAPER, frame_for
from ..photo.depth_map import DepthMap
from ..sequences import zip_equal
from ..video.color_video import ColorVideo
from ..video.video import Frame, VideoSource, is_live, shown, stems_of
from ..video.video_run import VideoFacts, failure_of, run_video
from .command import printable, say, warn
from .progress import Progress

if TYPE_CHECKING:
    from ..photo.depth_map import Intrinsics
    from ..pipeline import Pipeline

FRAME_SUFFIX = {"png16": "_depth.png", "npy": "_depth.npy", "exr": "_depth.exr", "ply": ".ply"}
NO_DEPTH = (64, 64, 64)
RANGE_S = 1.0  # the colours of a video go as far as the depth of its first frames: those of a second,
MOST_WAITING = 8  # but no more of them, because they wait in memory until the range is known


def place_videos(sources: list[str], out: Path, kinds: tuple[str, ...], force: bool, skip: bool = False) -> dict[str, dict[str, Path]]:
    """Where the results of each video go: ``NAME_color.mp4``, and the frames in the folder ``NAME``.

    Args:
        skip: leave out videos whose colour video is there, which is the last thing that is made of them; what is there of others is replaced.

    Raises:
        InputError: if something is there already and ``force`` is False.
        UsageError: if two videos have the same name, or ``skip`` is asked for without colour videos.
    """
    if skip and "color" not in kinds:
        raise UsageError("--skip-existing and frames alone", wanted="color among the kinds of --save: the colour video says that a video is done")
    stems = stems_of(sources)
    if len(set(stems)) != len(stems):
        raise UsageError(f"two videos are called {next(stem for stem in stems if stems.count(stem) > 1)}", fix="run them one by one, with another --output")
    places = {}
    for source, stem in zip_equal(sources, stems):
        places[source] = {"color": out / f"{stem}_color.mp4"} if "color" in kinds else {}
        if set(kinds) & FRAME_SUFFIX.keys():
            places[source]["frames"] = out / stem
        if skip and places[source]["color"].exists():
            del places[source]
            continue
        for path in places[source].values():
            if path.exists() and not (force or skip):
                raise InputError(f"{path} exists already", wanted="free names", fix="another --output, or --force to replace")
    return places


def run_videos(pipeline: Pipeline, arguments: argparse.Namespace, camera: Intrinsics | None, kinds: tuple[str, ...], places: dict[str, dict[str, Path]]) -> int:
    """Show each video to the network; returns the exit code. A broken one does not stop the others, a full disk does."""
    code = 0
    for source, place in places.items():
        try:
            _Video(pipeline, arguments, camera, kinds, source, place).work()
        except DiskFullError:
            raise
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
        self.waiting: list[tuple[Frame, DepthMap | None]] = []  # for the range
        self.surround: tuple[np.ndarray, tuple[int, int]] | None = None
        self.size = (0, 0)  # of the first frame
        self.next = 0  # number of the frame to come
        self.lossy, self.first_loss = 0, ""  # frames of which a format could not hold everything
        self.progress: Progress

    def work(self) -> None:
        """Raises InputError if nothing of the video can be decoded; what was decoded is kept otherwise, and the rest told."""
        flags = self.arguments
        made = False
        with VideoSource(self.source) as source:
            for path in self.place.values():
                path.parent.mkdir(parents=True, exist_ok=True)
            if "frames" in self.place:
                made = not self.place["frames"].exists()
                self.place["frames"].mkdir(parents=True, exist_ok=True)
            try:
                with Progress(source.frames, "frames", flags.quiet) as self.progress:
                    self.source_video = source
                    if "color" in self.place:
                        self.color = ColorVideo(self.place["color"], source.rate, flags.force)
                    if is_live(self.source):
                        self.progress.message(f"{shown(self.source)}: Ctrl-C ends it")
                    facts = run_video(source, self._predict, self._write, self.pipeline.interrupt, self.progress.advance_to)
                    for words in self.pipeline.remarks.new():
                        self.progress.message(words)
                if self.color is not None:
                    self._show_waiting()
                    self.color.close()
                if not made:
                    self._drop_later_frames()
            except BaseException:
                if self.color is not None:
                    self.color.drop()
                if made and "frames" in self.place and not any(self.place["frames"].iterdir()):
                    shutil.rmtree(self.place["frames"])
                raise
            damaged, missing = source.damaged, source.missing() if facts.frames else 0
        self._print(facts, damaged, missing)
        if self.lossy:
            warn(f"{shown(self.source)}: in {self.lossy} of {facts.frames} frames a format could not hold everything; the first: {self.first_loss}")
        if damaged or missing:
            was = f"{shown(self.source)}: {damaged} frames are damaged and {missing} that its header promises did not come"
            raise _SomeFramesFailedError(InputError(f"{was}; the {facts.frames} that could be decoded are done", fix="copy or record it again"))
        if (error := failure_of(facts, shown(self.source))) is not None:
            raise _SomeFramesFailedError(error)

    def _predict(self, pixels: np.ndarray) -> Any:
        return self.pipeline.submit(pixels, self.arguments.protocol, self.camera, self.arguments.prompt)

    def _write(self, frame: Frame, depth: DepthMap | None) -> None:
        if self.color is not None:
            self._show(frame, depth)
        if "frames" not in self.place:
            return
        flags, lost = self.arguments, []
        for kind in self._frame_kinds():
            for number in range(self.next, frame.number + (depth is None)):  # dropped, or without depth: an earlier run's is not theirs
                with suppress(FileNotFoundError):
                    self._frame_path(number, kind).unlink()
            if depth is not None:
                path = self._frame_path(frame.number, kind)
                lost += writers.save_as(kind, depth, frame.pixels, path, flags.force, (flags.colormap, flags.near, flags.far)).warnings
        self.next = frame.number + 1
        if lost:
            self.lossy, self.first_loss = self.lossy + 1, self.first_loss or lost[0]

    def _frame_kinds(self) -> list[str]:
        return sorted(set(self.kinds) & FRAME_SUFFIX.keys())

    def _frame_path(self, number: int, kind: str) -> Path:
        return self.place["frames"] / f"{number:06d}{FRAME_SUFFIX[kind]}"

    def _drop_later_frames(self) -> None:
        """Frames of an earlier run that had more of them are none of this video."""
        for kind in self._frame_kinds() if "frames" in self.place else ():
            suffix = FRAME_SUFFIX[kind]
            for path in self.place["frames"].glob(f"*{suffix}"):
                number = path.name[: -len(suffix)]
                if number.isdecimal() and path.name == f"{int(number):06d}{suffix}" and int(number) >= self.next:
                    path.unlink()

    def _show(self, frame: Frame, depth: DepthMap | None) -> None:
        """Into the colour video, once the first frames have said from where to where the colours go."""
        if self.range is not None:
            self._write_colors(frame, depth)
            return
        self.waiting.append((frame, depth))
        decided = self.arguments.near is not None and self.arguments.far is not None
        if decided or len(self.waiting) >= MOST_WAITING or frame.time_s - self.waiting[0][0].time_s >= RANGE_S:
            self._show_waiting()

    def _show_waiting(self) -> None:
        maps = [depth for _, depth in self.waiting if depth is not None]
        if not self.waiting:
            return
        output = self.pipeline.contract.output
        asked = (None, None) if output.kind == "mask" else (self.arguments.near, self.arguments.far)
        if maps:
            ranges = np.array([writers.color_range(depth, *asked) for depth in maps])
            self.range = (float(ranges[:, 0].min()), float(ranges[:, 1].max()))
        else:
            self.range = writers.asked_range(output.near, output.far, *asked)
        waiting, self.waiting = self.waiting, []
        for frame, depth in waiting:
            self._write_colors(frame, depth)

    def _write_colors(self, frame: Frame, depth: DepthMap | None) -> None:
        if depth is None:
            colors = np.full(frame.pixels.shape, NO_DEPTH, np.uint8)
        else:
            colors = colorize(depth.values, depth.valid, *self.range, self.arguments.colormap, reverse=depth.larger_is == "far")
        if self.surround is None:
            if depth is None:  # nothing has depth so far: the bar of an empty map
                size, far = frame.pixels.shape[:2], np.float32(max(self.range[1], 1e-3))
                depth = DepthMap.of(np.full(size, far), np.ones(size, bool), self.pipeline.contract.output)
            self.surround = _of_the_videos_shape(*frame_for(depth, *self.range, self.arguments.colormap), frame.pixels.shape[:2])
            self.size = colors.shape[:2]
        (picture, (x, y)), (height, width) = self.surround, self.size
        if colors.shape[:2] != self.size:  # a recording whose size changes; its depth is written at each frame's own size
            colors = np.array(Image.fromarray(colors).resize((width, height), Image.Resampling.NEAREST))
        picture[y : y + height, x : x + width] = colors
        self.color.aspect = self.source_video.aspect
        self.color.write(picture, frame.time_s)

    def _print(self, facts: VideoFacts, damaged: int, missing: int) -> None:
        files = {kind: str(path) for kind, path in self.place.items()}
        untrained = self.pipeline.origin.untrained
        if self.arguments.json:
            numbers = {
                "frames": facts.frames,
                "failed": facts.failed,
                "dropped": facts.dropped,
                "damaged": damaged,
                "missing": missing,
                "seconds": round(facts.seconds, 3),
                "fps": round(facts.fps, 3),
            }
            corrected = {"correction": self.pipeline.scale.words} if self.pipeline.scale else {}
            print(json.dumps({"video": shown(self.source), **numbers, **corrected, "untrained": untrained, "files": files}), flush=True)
            return
        dropped = f", {facts.dropped} dropped" if facts.dropped else ""
        words = f"{facts.frames} frames in {facts.seconds:.1f} s, {facts.fps:.2f} fps end to end{dropped}{', UNTRAINED WEIGHTS' if untrained else ''}"
        words += f", {self.pipeline.scale.words}" if self.pipeline.scale else ""
        print(printable(f"{shown(self.source)}  {words}"), flush=True)


def _of_the_videos_shape(image: Image.Image, place: tuple[int, int], size: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int]]:
    """The frame with margins at its sides, so that width to height stays the video's: players, walls of screens and editors expect that shape.

    Args:
        place: of the map in it (x, y).
        size: of the video, height and width.
    """
    height, width = size
    wide = max(image.width, round(image.height * width / height / 2) * 2)
    tall = max(image.height, round(wide * height / width / 2) * 2)
    left = (wide - image.width) // 2
    framed = Image.new("RGB", (wide, tall), PAPER)
    framed.paste(image, (left, 0))
    return np.array(framed), (place[0] + left, place[1])


def _report(arguments: argparse.Namespace, source: str, error: FathomError) -> int:
    if arguments.json:
        print(json.dumps({"video": shown(source), "error": str(error), "exit_code": error.exit_code}), flush=True)
    say(f"error: {error}")
    return error.exit_code
