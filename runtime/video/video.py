"""Frames of video files, cameras and streams, and colour videos, through PyAV."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from ..artefact.contract import MAX_PIXELS_PER_SIDE
from ..errors import EnvironmentMismatchError, InputError, missing_package
from ..files import whole_file
from ..photo.photo import natural_key

SUFFIXES = {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv", ".flv", ".ogv", ".3gp", ".y4m"}
PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}
RESULT = re.compile(r".+_color\.mp4")  # what depth-run writes
STREAM = re.compile(r"(rtsp|rtsps|rtmp|rtmps|srt|udp|tcp|http|https)://\S+")
CAMERA = re.compile(r"/dev/video[0-9]+")
ENCODERS = ("libx264", "libopenh264", "mpeg4")
TICKS = 90_000  # per second, as in MPEG
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


def find_videos(inputs: list[str]) -> list[str]:
    """The inputs of ``depth-run`` with folders and globs of nothing but videos replaced by their videos, in natural order."""
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
        pictures = [item for item in inside if item.suffix.lower() in PICTURES]
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
        self._av, self.live, self._name = _import_av(), is_live(source), shown(source)
        if not self.live and not Path(source).is_file():
            raise InputError(f"{source} does not exist", wanted="a video file, /dev/videoN, or an address such as rtsp://HOST/PATH")
        options: dict[str, Any] = {"format": "v4l2"} if CAMERA.fullmatch(source) else {}
        if STREAM.fullmatch(source):
            options["timeout"] = STREAM_TIMEOUT_S
        try:
            self._container = self._av.open(source, **options)
        except _av_errors(self._av) as error:
            raise InputError(f"{self._name} cannot be opened ({_short(error)})", wanted="a video", fix="play it with ffplay to see what is wrong") from error
        if not self._container.streams.video:
            self.close()
            raise InputError(f"{self._name} holds no pictures", wanted="a video")
        stream = self._container.streams.video[0]
        stream.thread_type = "AUTO"
        rate = stream.average_rate or stream.guessed_rate
        self.rate = Fraction(rate) if rate and 0 < rate <= 1000 else Fraction(25)
        self.frames = 0 if self.live else int(stream.frames)
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
            yield Frame(self.given - 1, last, np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels)
        if first is None:
            raise InputError(f"{self._name} holds no frame that can be decoded", wanted="a video")

    def _decoded(self) -> Iterator[Any]:
        """Frames that decode; each packet that does not counts as one damaged frame, and the next one is tried."""
        errors = _av_errors(self._av)
        packets = self._container.demux(video=0)
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
        """Frames that the header announces but that were neither read nor damaged; known once all were read."""
        return 0 if self.live else max(self.frames - self.given - self.damaged, 0)

    def close(self) -> None:
        """Close it."""
        self._container.close()

    def __enter__(self) -> VideoSource:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class ColorVideo:
    """A video file being written; it appears under its name when ``close()`` is called, and only if it holds a frame.

    Raises:
        InputError: if the file exists and ``force`` is False, or cannot be written.
        EnvironmentMismatchError: if this PyAV can encode no video.
    """

    def __init__(self, path: Path, rate: Fraction, force: bool = False, aspect: Fraction = Fraction(1)):
        self._av, self._rate, self._last, self._path, self.aspect = _import_av(), rate, -1, path, aspect
        self._file = ExitStack()
        self._part = self._file.enter_context(whole_file(path, force))
        self._container: Any = None
        self._stream: Any = None

    def write(self, pixels: np.ndarray, time_s: float) -> None:
        """Add a frame.

        Args:
            pixels: uint8 [H, W, 3], RGB; all of one size, whose odd last row or column is left out.
        """
        even = pixels[: pixels.shape[0] // 2 * 2, : pixels.shape[1] // 2 * 2]
        if not even.size:
            was = f"frames of {pixels.shape[1]}x{pixels.shape[0]} pixels make no colour video"
            raise InputError(was, wanted="at least 2x2", fix="--save npy or png16 keeps the depth of every frame")
        with self._errors():
            if self._container is None:
                self._open(even.shape[1], even.shape[0])
            frame = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(even), format="rgb24")
            frame.pts = self._last = max(round(time_s * TICKS), self._last + 1)
            frame.time_base = Fraction(1, TICKS)
            self._container.mux(self._stream.encode(frame))

    def _open(self, width: int, height: int) -> None:
        name = next((name for name in ENCODERS if name in self._av.codecs_available), None)
        if name is None:
            raise EnvironmentMismatchError(f"this PyAV encodes none of {', '.join(ENCODERS)}", fix="pip install --force-reinstall av, or --save png16")
        self._container = self._av.open(str(self._part), "w", format="mp4")
        self._stream = self._container.add_stream(name, rate=self._rate)
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
        self._stream.codec_context.time_base = Fraction(1, TICKS)
        if self.aspect != 1:
            self._stream.codec_context.sample_aspect_ratio = self.aspect
        self._stream.bit_rate = max(width * height * 4, 500_000)

    def close(self) -> None:
        """Finish the file; may be called twice.

        Raises:
            InputError: if it holds no frame, or the disk is full.
        """
        if self._file is None:
            return
        file, self._file = self._file, None
        with file, self._errors():
            if self._container is None:
                raise InputError(f"{self._path} would hold no frame", wanted="at least one")
            self._container.mux(self._stream.encode(None))
            self._container.close()

    def drop(self) -> None:
        """Leave nothing behind; may be called twice, and after ``close()``."""
        if self._file is None:
            return
        file, self._file = self._file, None
        with suppress(_DroppedError), file:
            if self._container is not None:
                with suppress(*_av_errors(self._av)):
                    self._container.close()
            raise _DroppedError

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """PyAV's error for a full disk and the like as one of our errors."""
        try:
            yield
        except _av_errors(self._av) as error:
            raise InputError(f"{self._path} cannot be written ({_short(error)})", fix="check the disk and the permissions of its folder") from error


class _DroppedError(Exception):
    pass


def _import_av() -> Any:
    os.environ.setdefault("AV_LOG_FORCE_NOCOLOR", "1")
    try:
        import av
    except ImportError as error:
        raise missing_package("av", "video", "PyAV, which reads and writes video") from error
    av.logging.set_level(av.logging.FATAL)  # what fails is raised
    return av


def _av_errors(av: Any) -> tuple[type[Exception], ...]:
    """What PyAV raises: most of it OSErrors and ValueErrors too, but not all."""
    return (av.error.FFmpegError, OSError, ValueError)


def _short(error: BaseException) -> str:
    words = shown(" ".join(str(error).split()))
    return words if len(words) <= 200 else words[:200] + "…"
