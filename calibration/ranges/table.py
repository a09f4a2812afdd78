"""The calibration table: for every tensor the magnitude INT8 must reach, and where the number comes from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ...runtime.artefact.manifest import SHA256, BundleManifest
from ...runtime.artefact.spec import fields
from ..artefact import read_artefact, require_model, write_artefact
from .observers import OBSERVERS

FORMAT, VERSION = "fathom-calibration-table", 3
FEW_IMAGES, USUAL_IMAGES = 64, 512
MAX_TABLE_BYTES = 256 << 20


@dataclass(frozen=True)
class TensorRange:
    """What is known of one activation.

    Args:
        amax: magnitude that the greatest INT8 step stands for.
        observer: the rule that chose it (a key of ``OBSERVERS``).
        greatest: greatest magnitude that was seen.
        channels: for a smoothed tensor the greatest magnitude per channel, else empty.
        middles: for a centred tensor what is taken from every channel before it is divided, else empty.
    """

    amax: float
    observer: str
    greatest: float
    channels: tuple[float, ...] = ()
    middles: tuple[float, ...] = ()

    def __post_init__(self):
        if self.observer not in OBSERVERS:
            raise ValueError(f"unknown observer {self.observer!r}, wanted one of {', '.join(OBSERVERS)}")
        numbers = (self.amax, self.greatest, *self.channels)
        if not all(isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v) and v >= 0 for v in numbers):
            raise ValueError(f"a range is a finite number of at least 0, got {self.amax!r} of {self.greatest!r}")
        if not all(isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v) for v in self.middles):
            raise ValueError("the middle of a channel is a finite number")
        if self.amax > self.greatest * 1.000001:
            raise ValueError(f"the range {self.amax} is wider than the greatest magnitude {self.greatest}")


@dataclass(frozen=True)
class CalibrationTable:
    """Ranges by stage and tensor, with provenance.

    Args:
        model_sha256: see ``artefact.model_fingerprint``.
        data: provenance of the images (kind, name, sha256, count, seed, skipped).
        protocol: name of the protocol that shaped the images.
        images: how many images the ranges were read from.
        windows: how many network inputs they became.
        warnings: what is odd about the images, as full sentences.
        stages: stage -> tensor -> range of every activation that INT8 can need.
        peaks: stage -> tensor -> greatest magnitude of every floating-point tensor: what FP16 must hold.
        shifts: stage -> node -> mean error that INT8 makes in each of its output channels, which is taken from its bias; only of nodes whose plan wants it.
    """

    model_sha256: str
    data: dict[str, Any]
    protocol: str
    images: int
    windows: int
    warnings: tuple[str, ...]
    stages: dict[str, dict[str, TensorRange]]
    peaks: dict[str, dict[str, float]] = field(default_factory=dict)
    shifts: dict[str, dict[str, tuple[float, ...]]] = field(default_factory=dict)

    def __post_init__(self):
        if not SHA256.fullmatch(self.model_sha256):
            raise ValueError(f"not a SHA-256: {self.model_sha256!r}")
        if self.images < 1 or self.windows < self.images:
            raise ValueError(f"{self.images} images and {self.windows} windows")

    def with_ranges(self, stage: str, ranges: dict[str, TensorRange]) -> CalibrationTable:
        """The same table with some ranges of a stage replaced."""
        return replace(self, stages={**self.stages, stage: {**self.stages[stage], **ranges}})

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "model_sha256": self.model_sha256,
            "data": self.data,
            "protocol": self.protocol,
            "images": self.images,
            "looks": self.windows,
            "warnings": list(self.warnings),
            "stages": {
                stage: {
                    name: {"amax": r.amax, "observer": r.observer, "greatest": r.greatest, "channels": list(r.channels), "middles": list(r.middles)}
                    for name, r in sorted(tensors.items())
                }
                for stage, tensors in self.stages.items()
            },
            "shifts": {stage: {name: list(values) for name, values in sorted(nodes.items())} for stage, nodes in self.shifts.items()},
            "peaks": {stage: dict(sorted(tensors.items())) for stage, tensors in self.peaks.items()},
        }

    @classmethod
    def from_json(cls, data: Any) -> CalibrationTable:
        """From JSON values.

        Raises:
            ValueError: if it is another format or version, or a key is missing, unknown or of the wrong kind.
        """
        kinds = {"format": str, "version": int, "model_sha256": str, "data": dict, "protocol": str, "images": int, "looks": int}
        kinds |= {"warnings": list, "stages": dict, "peaks": dict, "shifts": dict}
        form, version, model, source, protocol, images, windows, warnings, stages, peaks, moved = fields(data, "calibration table", **kinds)
        if (form, version) != (FORMAT, VERSION):
            raise ValueError(f"format {form!r} version {version}, wanted {FORMAT!r} version {VERSION}")
        ranges: dict[str, dict[str, TensorRange]] = {}
        for stage, tensors in stages.items():
            ranges[stage] = {}
            for name, facts in _object(tensors, stage).items():
                number = (int, float)
                kinds = {"amax": number, "observer": str, "greatest": number, "channels": list, "middles": list}
                amax, observer, greatest, channels, middles = fields(facts, name, **kinds)
                ranges[stage][name] = TensorRange(amax, observer, greatest, tuple(channels), tuple(middles))
        for stage, tensors in peaks.items():
            for name, value in _object(tensors, stage).items():
                if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
                    raise ValueError(f"peaks.{stage}.{name}: {value!r} is no finite number")
        shifts: dict[str, dict[str, tuple[float, ...]]] = {}
        for stage, nodes in moved.items():
            for name, values in _object(nodes, stage).items():
                plain = isinstance(values, list) and all(isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v) for v in values)
                if not plain:
                    raise ValueError(f"shifts.{stage}.{name}: finite numbers were wanted")
                shifts.setdefault(stage, {})[name] = tuple(map(float, values))
        return cls(model, source, protocol, images, windows, tuple(map(str, warnings)), ranges, peaks, shifts)


def _object(data: Any, what: str) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise ValueError(f"{what}: an object was wanted")
    return data


def write_table(table: CalibrationTable, path: str | Path, force: bool = False) -> None:
    """Write the table; see ``write_artefact``."""
    write_artefact(table.to_json(), path, force)


def read_table(path: str | Path, manifest: BundleManifest | None = None) -> CalibrationTable:
    """Read a table, and check that it belongs to ``manifest``.

    Raises:
        InputError: if it is missing, no table of a known version, or was made on another network.
    """
    table = read_artefact(path, CalibrationTable.from_json, "is no calibration table", MAX_TABLE_BYTES, "make it with depth-calibrate")
    if manifest is not None:
        require_model(path, table.model_sha256, manifest, "a table", "run depth-calibrate on this bundle")
    return table


def image_warnings(images: int, duplicates: list[tuple[str, str]], evaluation: list[str], kind: str, left_out: Sequence[str] = ()) -> tuple[str, ...]:
    """What to say about the choice of images.

    Args:
        images: how many different ones there are.
        duplicates: pairs of sample names with the same pixels.
        evaluation: names of samples that belong to the split results are reported on.
        kind: word of the ``--data`` grammar.
        left_out: why images were left out, one reason for each.
    """
    found = []
    if left_out:
        shown = "; ".join(left_out[:3])
        found.append(f"{_images(len(left_out))} left out: {shown}{' …' if len(left_out) > 3 else ''}.")
    if images < FEW_IMAGES:
        found.append(f"{images} different images are few: at least {FEW_IMAGES} are wanted, {USUAL_IMAGES} are usual.")
    if duplicates:
        shown = ", ".join(f"{second} = {first}" for first, second in duplicates[:5])
        found.append(f"{_images(len(duplicates))} there twice and counted once: {shown}{' …' if len(duplicates) > 5 else ''}.")
    if evaluation:
        shown = ", ".join(evaluation[:5])
        found.append(
            f"{_images(len(evaluation))} of the evaluation split, results measured on it are not honest: {shown}{' …' if len(evaluation) > 5 else ''}."
        )
    if kind == "rooms":
        found.append("Synthetic rooms are no photographs: calibrate on real images before relying on the result.")
    return tuple(found)


def _images(count: int) -> str:
    return "1 image is" if count == 1 else f"{count} images are"
