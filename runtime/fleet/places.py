"""Where the results of a run on Ray go: what is there already, who may write there, and what is said of it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import InputError, UsageError
from ..files import PART, PART_END, whole_file
from ..photo.photo import refuse_as_results
from ..scale.camera_scale import SCALE_NAME
from .job import BROKEN, LOCK, MOST_RECORD_BYTES, RECORD, FleetJob, read_record, write_record
from .run_on_ray import Outcome, finished_rows, own_rows, run_files, run_rows
from .sources import Sources, is_uri, load_arrow


class FilesPlace:
    """Files in a folder, as ``depth-run`` writes them."""

    def __init__(self, output: str, job: FleetJob, suffixes: dict[str, str]):
        self.out, self.job, self.suffixes, self.old, self.scaled = Path(output), job, suffixes, set(), False
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{output} cannot be made ({error.strerror})", fix="another --output, or its permissions") from error

    @contextmanager
    def alone(self) -> Iterator[None]:
        """No other run writes into the folder meanwhile."""
        path = self.out / LOCK
        with open(path, "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX + fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise InputError(f"another depth-run is writing to {self.out}", wanted="one at a time", fix="wait for it, or another --output") from error
            except OSError as error:
                raise InputError(
                    f"{self.out} cannot be locked ({error.strerror}), and two runs in it would mix their results",
                    wanted="a file system with locks",
                    fix="mount it with locks, or another --output",
                ) from error
            try:
                yield
            finally:
                with suppress(OSError):
                    path.unlink()

    def missing(self, sources: Sources) -> dict[str, str]:
        """Key and name of each photo that lacks a file. Changes nothing yet.

        Raises:
            InputError: if the folder holds results of another meaning that this run does not make again, or a result would take the place of a photo.
        """
        record, job, photos = self.out / RECORD, self.job, _local(sources)
        refuse_as_results(photos, ((name, job.targets(name).values()) for name in sources.names.values()))
        raw = record.read_bytes()[:MOST_RECORD_BYTES] if record.is_file() else None
        if raw is not None and not job.force:
            job.refuse_other(raw, str(record))
            return {key: name for key, name in sources.names.items() if not all(path.exists() for path in job.targets(name).values())}
        before = read_record(raw)
        self.scaled = bool(before.get("scale"))
        own = dict(job.suffixes)
        if isinstance(before.get("save"), list):
            own.update({kind: suffix for kind, suffix in self.suffixes.items() if kind in before["save"]})
        if job.force:
            paths = (self.out / (name + suffix) for name in sources.names.values() for suffix in own.values())
            self.old = {path for path in paths if os.path.realpath(path) not in photos}
        if not before or job.changed(before):
            results = (path for path in self.out.rglob("*") if path.name.endswith(tuple(own.values())) and path not in self.old)
            if other := next((path for path in results if os.path.realpath(path) not in photos), None):
                why = "of another plan or other options" if before else "there already, and nothing says what made it"
                fix = "another --output" + (", or the photos of all results in it" if job.force else ", or --force to make all its results again")
                raise InputError(f"{other} is {why}", wanted=f"a folder without other results, or one with {RECORD} of the same", fix=fix)
        scale = self.out / SCALE_NAME
        if job.scale is not None and not job.force and scale.exists() and scale.read_bytes() != job.scale.json().encode():
            raise InputError(f"{scale} is there already, and nothing says what it is of", wanted="a folder without one", fix="another --output, or --force")
        return dict(sources.names)

    def begin(self) -> None:
        """Remove what this run makes again, and say what the results are once there are no others: then an interrupt leaves nothing that is not so."""
        for path in self.old:
            with suppress(FileNotFoundError):
                path.unlink()
        if self.scaled and self.job.scale is None:
            with suppress(FileNotFoundError):
                (self.out / SCALE_NAME).unlink()
        self._write_record()
        if self.job.scale is not None:
            self.job.scale.write(self.out / SCALE_NAME, force=True)

    def _write_record(self) -> None:
        write_record(self.out, self.job.record())

    def work(self, ray: Any, sources: Sources, missing: dict[str, str], shared: Any, on_done: Any) -> Outcome:
        return run_files(ray, self.job, sources, missing, shared, on_done)

    def finish(self, outcome: Outcome, sources: Sources) -> None:
        """Write the table of broken photos, and remove what killed workers left half-written."""
        folders = {path.parent for name in sources.names.values() for path in self.job.targets(name).values()}
        path = self.out / BROKEN
        if outcome.broken:
            with whole_file(path, force=True) as part:
                _write_broken(outcome, str(part), None)
        else:
            with suppress(FileNotFoundError):
                path.unlink()
        for left in (left for folder in folders for left in folder.glob(f"{PART}*{PART_END}")):
            with suppress(OSError):
                left.unlink()


class ParquetPlace(FilesPlace):
    """A folder of Parquet, here or in a bucket."""

    def __init__(self, output: str, job: FleetJob, suffixes: dict[str, str]):
        self.job, self.before, self.old = job, set(), set()
        fs = load_arrow().fs
        if is_uri(output):
            self.filesystem, self.path = fs.FileSystem.from_uri(output)
            self.out = None
        else:
            super().__init__(output, job, suffixes)
            self.filesystem, self.path = None, str(self.out.resolve())
        self.system = self.filesystem or fs.LocalFileSystem()

    @contextmanager
    def alone(self) -> Iterator[None]:
        if self.out is None:  # a bucket knows no locks
            yield
            return
        with super().alone():
            yield

    def missing(self, sources: Sources) -> dict[str, str]:
        """As for files. With --force the files of earlier runs go, and there may be no others: whoever reads the folder would read them too.

        Raises:
            InputError: if there are, or the folder holds rows of another meaning.
            UsageError: if the rows are read from the same folder.
        """
        self._refuse_input(sources)
        fs, record = load_arrow().fs, f"{self.path.rstrip('/')}/{RECORD}"
        known = self.system.get_file_info(record).type == fs.FileType.File
        if self.job.force:
            own, others = own_rows(self.path, self.system)
            if others:
                raise InputError(f"depth-run --ray did not write {others[0]}", wanted="a folder of its own", fix="another --output, or remove it yourself")
            self.old = set(own)
            return dict(sources.names)
        if known:
            with self.system.open_input_stream(record) as file:
                self.job.refuse_other(file.read(MOST_RECORD_BYTES), record)
        self.before, halves = finished_rows(self.path, self.system)
        self.old = set(halves)
        if (self.before or self.old) and not known:
            raise InputError(f"{self.path} holds Parquet, and nothing says what made it", wanted=f"a new folder, or one with {RECORD}", fix="another --output")
        return {key: name for key, name in sources.names.items() if key not in self.before}

    def _refuse_input(self, sources: Sources) -> None:
        def parts(filesystem: Any, path: str) -> tuple[str, ...]:
            kind = "local" if filesystem is None else filesystem.type_name
            return (kind, *PurePosixPath(os.path.realpath(path) if kind == "local" else path).parts)

        out = parts(self.filesystem, self.path)
        for rows in sources.rows:
            read = parts(rows.filesystem, rows.path)
            if read[: len(out)] == out[: len(read)]:  # one lies in the other
                raise UsageError(f"the rows of {rows.path} with -o {self.path}", wanted="results in a folder apart from what is read", fix="another --output")

    def begin(self) -> None:
        for path in self.old:
            self.system.delete_file(path)
        self._write_record()

    def _write_record(self) -> None:
        if self.out is not None:
            super()._write_record()
            return
        self.system.create_dir(self.path, recursive=True)
        with self.system.open_output_stream(f"{self.path.rstrip('/')}/{RECORD}") as file:
            file.write(self.job.record_bytes())

    def work(self, ray: Any, sources: Sources, missing: dict[str, str], shared: Any, on_done: Any) -> Outcome:
        outcome = run_rows(ray, self.job, sources, missing, shared, self.path, self.filesystem)
        found, _ = finished_rows(self.path, self.system)
        outcome.done = found - self.before
        return outcome

    def finish(self, outcome: Outcome, sources: Sources) -> None:
        path = f"{self.path.rstrip('/')}/{BROKEN}"
        if outcome.broken:
            _write_broken(outcome, path, self.system)
        elif self.system.get_file_info(path).type == load_arrow().fs.FileType.File:
            self.system.delete_file(path)


def _local(sources: Sources) -> set[str]:
    """Paths of the photos that are files here."""
    return {path for filesystem, paths in sources.files if filesystem is None for path in paths}


def _write_broken(outcome: Outcome, path: str, filesystem: Any) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = sorted((key, words, code) for key, (words, code) in outcome.broken.items())
    columns = (("photo", pyarrow.string()), ("error", pyarrow.string()), ("exit_code", pyarrow.int32()))
    table = pyarrow.table({name: pyarrow.array([row[index] for row in rows], kind) for index, (name, kind) in enumerate(columns)})
    pyarrow.parquet.write_table(table, path, filesystem=filesystem)
