"""The library of our operators that the engines of plain TensorRT call; needs nothing but the standard library."""

from __future__ import annotations

import re
from dataclasses import dataclass

LIBRARY_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,127}")
RELEASE = re.compile(r"\d{1,3}\.\d{1,3}")
SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class PluginLibrary:
    """The library that the engines of a plan call, which is not in the plan.

    Args:
        file: its name, without a folder.
        sha256: of its bytes, 64 hexadecimal digits; no other library is loaded for this plan.
        tensorrt: release of the headers that it was compiled against, ``major.minor``.

    Raises:
        ValueError: if a value is not of that form.
    """

    file: str
    sha256: str
    tensorrt: str

    def __post_init__(self):
        for what, value, form in (("file", self.file, LIBRARY_NAME), ("sha256", self.sha256, SHA256), ("tensorrt", self.tensorrt, RELEASE)):
            if not form.fullmatch(value):
                raise ValueError(f"operators.library.{what}: {value!r}")
