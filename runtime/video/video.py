"""Frames of video files, cameras and streams, through PyAV."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from ..artefact.contract import MAX_PIXELS_PER_SIDE
from ..errors import InputError, missing_package
from ..photo.photo import is_named_as_photo, is_own_result, natural_key, unique_stems
from ..sequences import zip_equal

SUFFIXES = {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv", ".flv", ".ogv", ".3gp", ".y4m"}
SUFFIXES.update({".3g2", ".264", ".265", ".asf", ".divx", ".dv", ".f4v", ".h264", ".h265", ".hevc", ".m2v", ".mjpeg", ".mjpg", ".mxf", ".vob", ".wtv"})
RESULT = re.compile(r".+_color\.mp4")  # what depth-run writes
STREAM = re.compile(r"(rtsp|rtsps|rtmp|rtmps|srt|udp|tcp|http|https)://\S+")
CAMERA = re.compile(r"/dev/video[0-9]+")
DURATION_IN_HEADER = ("matroska,webm", "flv", "asf")  # MP4 and AVI count their frames; the others know no end
STREAM_TIMEOUT_S = 10


@dataclass(frozen=True)
class Frame:
    """One picture: its number from 0, its time from the start, its pixels uint8 [H, W, 3], RGB."""

    number: int
    time_s: float
    pixels: np.ndarray


def is_video(text: str) -> bool:
    """Whether an input of ``depth-run`` is a video file, a camera or the address of a stream."""
    return is_live(text) or Path(text).suffix.lower() in SUFFIXES


def find_videos(inputs: list[str], on_message: Callable[[str], None] = lambda text: None) -> list[str]:
    """The inputs of ``depth-run`` with folders and globs of nothing but videos replaced by their videos, in natural order.

    Args:
        on_message: called with a sentence about videos that are left out because they lie among photos.
    """
    found: list[str] = []
    for text in inputs:
        path = Path(text)
        if path.is_dir():
            inside = [item for item in path.iterdir() if item.is_file() and not item.name.startswith(".")]
        elif glob.has_magic(text) and not path.exists() and not is_live(text):
            inside = [Path(name) for name in glob.iglob(text, recursive=True)]
        else:
            inside = []
        videos = [str(item) for item in inside if item.suffix.lower() in SUFFIXES and not RESULT.fullmatch(item.name)]
        pictures = [item for item in inside if is_named_as_photo(item) and not is_own_result(item)]
        if videos and pictures:
            on_message(f"{len(videos)} videos among the photos of {text} are left out ({Path(videos[0]).name}): run them by themselves")
        found += sorted(videos, key=natural_key) if videos and not pictures else [text]
    return found


def is_live(text: str) -> bool:
    """Whether frames come in real time: a camera, or a stream."""
    return bool(STREAM.fullmatch(text) or CAMERA.fullmatch(text))


def shown(source: str) -> str:
    """A source for people and logs: without the user name and password that an address may hold."""
    return re.sub(r"//[^/@\s]*@", "//", source)


def stem_of(source: str) -> str:
    """A file name for what a source gives: the file's own, or made from the address without its password."""
    if not is_live(source):
        return Path(source).stem
    return re.sub(r"[^A-Za-z0-9]+", "_", re.sub(r"^[a-z]+://|^/dev/", "", shown(source))).strip("_") or "stream"


def stems_of(sources: list[str]) -> list[str]:
    """``stem_of`` each; of files that are called the same, the suffix is kept, or as many folders as it takes."""
    files = [source for source in sources if not is_live(source)]
    stems = dict(zip_equal(files, unique_stems([(os.path.realpath(file), Path(file).name) for file in files])))
    return [stems[source] if source in stems else stem_of(source) for source in sources]


class VideoSource:
    """An open video, camera or stream; iterate over it once. ``close()`` may be called twice.

    Attributes:
        live: a camera or stream: it does not wait.
        aspect: width of a pixel over its height, as frames are given (upright).
        given, damaged: how many frames were decoded so far, and how many could not be.
        rate: frames per second, as the source says; 25 if it does not say.
        frames: how many there are, as the source says; 0 if it does not say.
    """

    def __init__(self, source: str):
        """Open it.

        Raises:
            InputError: if it is not there or no video.
            EnvironmentMismatchError: if PyAV is not installed.
        """
        self._av, self.live, self._name = import_av(), is_live(source), shown(source)
        if not self.live and not Path(source).is_file():
            raise InputError(f"{source} does not exist", wanted="a video file, /dev/videoN, or an address such as rtsp://HOST/PATH")
        options: dict[str, Any] = {"format": "v4l2"} if CAMERA.fullmatch(source) else {}
        if STREAM.fullmatch(source):
            options["timeout"] = STREAM_TIMEOUT_S
        try:
            self._container = self._av.open(source, **options)
        except av_errors(self._av) as error:
            raise InputError(f"{self._name} cannot be opened ({short(error)})", wanted="a video", fix="play it with ffplay to see what is wrong") from error
        if not self._container.streams.video:
            self.close()
            raise InputError(f"{self._name} holds no pictures", wanted="a video")
        stream = self._stream = self._container.streams.best("video") or self._container.streams.video[0]  # the first may be a cover
        stream.thread_type = "AUTO"
        rate = stream.average_rate or stream.guessed_rate
        self.rate = Fraction(rate) if rate and 0 < rate <= 1000 else Fraction(25)
        self.frames = 0 if self.live else int(stream.frames)
        self._end_s = 0.0
        self.aspect = Fraction(stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio or 1) or Fraction(1)
        self.given = self.damaged = 0
        if max(stream.codec_context.width, stream.codec_context.height) > MAX_PIXELS_PER_SIDE:
            self.close()
            raise InputError(
                f"{self._name} has frames of {stream.codec_context.width}x{stream.codec_context.height}", wanted=f"at most {MAX_PIXELS_PER_SIDE} per side"
            )

    def __iter__(self) -> Iterator[Frame]:
        """All frames in order, upright, at times that never go back. What cannot be decoded is counted and left out.

        Raises:
            InputError: if no frame can be decoded.
        """
        step, first, last, shift = 1 / float(self.rate), None, 0.0, 0.0
        for frame in self._decoded():
            time_s = float(frame.time) if frame.time is not None else self.given * step
            first = time_s if first is None else first
            if self.given and time_s - first + shift <= last:  # the clock began again: two recordings in one file
                shift = last + step - (time_s - first)
            last = time_s - first + shift
            pixels = frame.to_ndarray(format="rgb24")
            turns = round(getattr(frame, "rotation", 0) / 90) % 4
            if turns % 2 and not self.given:
                self.aspect = 1 / self.aspect
            self.given += 1
            self._end_s = last + step
            yield Frame(self.given - 1, last, np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels)
        if first is None:
            raise InputError(f"{self._name} holds no frame that can be decoded", wanted="a video")

    def _decoded(self) -> Iterator[Any]:
        """Frames that decode; each packet that does not counts as one damaged frame, and the next one is tried."""
        errors = av_errors(self._av)
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except errors:  # the file breaks off here
                self.damaged += 1
                return
            try:
                frames = packet.decode()
            except errors:
                self.damaged += 1
                continue
            for frame in frames:
                if getattr(frame, "is_corrupt", False):
                    self.damaged += 1
                else:
                    yield frame

    def missing(self) -> int:
        """Frames that the header announces, by number or by its duration, but that were neither read nor damaged; known once all were read."""
        if self.live:
            return 0
        wanted = self.frames or round(self._promised_s() * float(self.rate))
        return max(wanted - self.given - self.damaged, 0)

    def _promised_s(self) -> float:
        """What the header says of the length where it cannot say how many frames there are; 0 if it is not to be trusted: where frames came at no
        constant rate, the last one may stand for long, and sound may go on after the pictures."""
        step, seen_s = 1 / float(self.rate), (self.given + self.damaged) / float(self.rate)
        if self._container.format.name not in DURATION_IN_HEADER or abs(self._end_s - seen_s) > max(2 * step, seen_s / 20):
            return 0.0
        whole_s, alone = (self._container.duration or 0) / 1e6, len(self._container.streams) == 1
        return whole_s if whole_s - self._end_s > (1.5 * step if alone else max(1.0, whole_s / 20)) else 0.0

    def close(self) -> None:
        """Close it."""
        self._container.close()

    def __enter__(self) -> VideoSource:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def import_av() -> Any:
    """PyAV, which says nothing of its own.

    Raises:
        EnvironmentMismatchError: if it is not installed.
    """
    os.environ.setdefault("AV_LOG_FORCE_NOCOLOR", "1")
    try:
        import av
    except ImportError as error:
        raise missing_package("av", "video", "PyAV, which reads and writes video") from error
    av.logging.set_level(av.logging.FATAL)  # what fails is raised
    return av


def av_errors(av: Any) -> tuple[type[Exception], ...]:
    """What PyAV raises: most of it OSErrors and ValueErrors too, but not all."""
    return (av.error.FFmpegError, OSError, ValueError)


def short(error: BaseException) -> str:
    """The words of an error on one line, without passwords."""
    words = shown(" ".join(str(error).split()))
    return words if len(words) <= 200 else words[:200] + "…"
