"""A colour video being written, through PyAV."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import EnvironmentMismatchError, InputError
from ..files import full_disk_told, whole_file
from .video import av_errors, import_av, short

ENCODERS = ("libx264", "libopenh264", "mpeg4")
TICKS = 90_000  # per second, as in MPEG


class ColorVideo:
    """A video file being written; it appears under its name when ``close()`` is called, and only if it holds a frame.

    Raises:
        InputError: if the file exists and ``force`` is False, or cannot be written.
        EnvironmentMismatchError: if this PyAV can encode no video.
    """

    def __init__(self, path: Path, rate: Fraction, force: bool = False, aspect: Fraction = Fraction(1)):
        self._av, self._rate, self._last, self._path, self.aspect = import_av(), rate, -1, path, aspect
        self._file = ExitStack()
        self._part = self._file.enter_context(whole_file(path, force))
        self._container: Any = None
        self._stream: Any = None

    def write(self, pixels: np.ndarray, time_s: float) -> None:
        """Add a frame.

        Args:
            pixels: uint8 [H, W, 3], RGB; all of one size, whose odd last row or column is left out.

        Raises:
            InputError: if a side has one pixel, or the file cannot be written; DiskFullError if the disk is full.
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
                with suppress(*av_errors(self._av)):
                    self._container.close()
            raise _DroppedError

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """PyAV's error for a full disk and the like as one of our errors."""
        try:
            with full_disk_told(self._path):
                yield
        except av_errors(self._av) as error:
            raise InputError(f"{self._path} cannot be written ({short(error)})", fix="check the disk and the permissions of its folder") from error


class _DroppedError(Exception):
    pass
