"""What an earlier ``depth-run`` has done already, and whether new results may stand beside it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..fleet.job import MOST_RECORD_BYTES, RECORD, FleetJob, read_record, write_record
from ..scale.camera_scale import SCALE_NAME

if TYPE_CHECKING:
    from ..photo.photo import PhotoFile
    from ..pipeline import Pipeline

    Targets = dict[PhotoFile, dict[str, Path]]

ENDINGS = ("_depth.png", "_depth.npy", "_depth.exr", "_color.png", "_color.mp4", ".ply")
SEVERAL = "several"  # value of a fact in which the results of a folder differ


def split_done(targets: Targets) -> tuple[Targets, Targets]:
    """Photos all of whose files are there, and the others. Files get their name only when they are whole, so that being there says enough."""
    done = {photo: files for photo, files in targets.items() if all(path.is_file() for path in files.values())}
    return done, {photo: files for photo, files in targets.items() if photo not in done}


class ResultFolder:
    """A folder of results, with ``_depth-run.json`` and ``scale.json`` in it, which say what made them: most files have no room for that.

    The two never say of a file what is not so, whenever the run ends: where results of two meanings lie beside each other, the record has
    ``"several"`` for what differs, and a folder of several scales is refused.

    Args:
        out: the folder, which exists.
        job: this run.
        replaced: files that the run makes again, and folders in which it makes all frames again.
    """

    def __init__(self, out: Path, job: FleetJob, replaced: set[Path]):
        self.out, self.job, self.replaced = out, job, replaced
        self.at_the_end = False

    def begin(self, skip: bool, done: bool) -> None:
        """Look at what is there, and write what can be said before the first result.

        Args:
            skip: whether results that are there pass for this run's.
            done: whether there are such results.

        Raises:
            InputError: if they are of another plan or of other options, nothing says what they are, or results of two scales would lie in
                one folder.
        """
        now, before = self.job.record(), self._record()
        changed = self.job.changed(before) if before else set()
        if skip and done and not before:
            raise InputError(
                f"nothing says what made the results in {self.out}",
                wanted=f"a folder with {RECORD}",
                fix="another --output, or --force instead of --skip-existing",
            )
        if skip and changed:
            was = f"the results in {self.out} were made with another {min(changed).replace('_', ' ')}"
            raise InputError(was, wanted="one meaning per folder", fix="another --output, or --force instead of --skip-existing")
        told = self._scale_text()
        other_scale = "scale" in changed or told != ("" if self.job.scale is None else self.job.scale.json())
        if before and not changed and not (other_scale and told):
            self._write({**before, **now})  # more of the same
            return
        results = list(self._results())
        left = next((path for path in results if path not in self.replaced and path.parent not in self.replaced), None)
        if other_scale and left is not None:
            was = f"{self.out / SCALE_NAME} says that the results in its folder have another scale" if told else f"nothing says that {left} has this scale"
            raise InputError(was, wanted="one scale per folder", fix="another --output, or --force with the photos of all results in it")
        self.at_the_end = bool(results) and left is None
        if not results:
            self._write(now)
        elif before:
            write_record(self.out, {**before, **now, **dict.fromkeys(changed, SEVERAL)})
        if self.at_the_end:
            with suppress(FileNotFoundError):
                (self.out / SCALE_NAME).unlink()

    def finish(self, whole: bool) -> str:
        """Say what the results are now; returns words of warning, or ``""``.

        Args:
            whole: whether all files were made.
        """
        if self.at_the_end and whole:
            self._write(self.job.record())
        elif self.at_the_end:
            return f"{self.out} holds results of an earlier run with another plan or other options, beside those of this one"
        if {path.name for path in self.out.iterdir()} <= {RECORD, SCALE_NAME}:
            for name in (RECORD, SCALE_NAME):  # of nothing, nothing need be said
                with suppress(FileNotFoundError):
                    (self.out / name).unlink()
        return ""

    def _record(self) -> dict[str, Any]:
        with suppress(OSError), open(self.out / RECORD, "rb") as file:
            return read_record(file.read(MOST_RECORD_BYTES))
        return {}

    def _scale_text(self) -> str:
        path = self.out / SCALE_NAME
        return path.read_text(errors="replace") if path.is_file() else ""

    def _results(self) -> Iterator[Path]:
        folders = [self.out, *{path.parent for path in self.replaced} - {self.out}]
        found = itertools.chain(self.out.glob("*/*"), *(folder.iterdir() for folder in folders if folder.is_dir()))
        return (path for path in found if path.name.endswith(ENDINGS))

    def _write(self, record: dict[str, Any]) -> None:
        write_record(self.out, record)
        if self.job.scale is not None:
            self.job.scale.write(self.out / SCALE_NAME, force=True)


def refuse_other_results(done: Targets, pipeline: Pipeline, protocol: str | None) -> None:
    """Files that were put into a folder by hand are not known to its record: what PNG files say of themselves must be what comes now.

    Raises:
        InputError: naming the first file of another network, protocol or scale.
    """
    from PIL import Image

    scale = "" if pipeline.scale is None else pipeline.scale.words
    wanted = {"Manifest-SHA256": pipeline.origin.sha256, "Protocol": pipeline.protocol(protocol).name, "Correction": scale}
    for path in (files[kind] for files in done.values() for kind in ("png16", "color") if kind in files):
        texts: dict[str, Any] = {}
        with suppress(OSError, ValueError, SyntaxError), Image.open(path, formats=("PNG",)) as image:
            texts = image.text
        for key, value in wanted.items():
            if (found := texts.get(f"Fathom-{key}", "")) != value:
                was = f"{path} is of another {key.split('-')[0].lower()} ({found[:40] or 'none'})"
                raise InputError(was, wanted=f"{value[:40] or 'none'}, as what comes now", fix="another --output, or --force instead of --skip-existing")
