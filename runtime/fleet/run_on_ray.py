"""Photos through a pool of pipelines on Ray, by Ray's own readers and writers; exactly once in effect.

A photo's files appear whole or not at all, the same input always gives the same bytes, and what is there already is not asked for. So it does no harm when Ray
does a piece of work twice, or a run ends in the middle: the next one does what is missing.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..errors import InputError
from .cluster import READER_CPUS, Shares, fetcher, told
from .job import FleetJob
from .sources import Rows, Sources
from .worker import BROKEN_PHOTO, DONE, PhotoWorker

BATCH = 16  # photos that an actor gets at a time
OWN = re.compile(r"depth-run_[0-9a-f]{16}_.+\.parquet")  # names of files of rows: --force removes these and no others


@dataclass
class Outcome:
    """What became of the photos that were asked for.

    Args:
        done: keys of those that were made now.
        broken: key -> words and exit code.
        warnings: key -> what a format could not hold.
        plan_reads: machine -> how often the plan was read from one end to the other.
    """

    done: set[str] = field(default_factory=set)
    broken: dict[str, tuple[str, int]] = field(default_factory=dict)
    warnings: dict[str, str] = field(default_factory=dict)
    plan_reads: dict[str, int] = field(default_factory=dict)


def run_files(ray: Any, job: FleetJob, sources: Sources, names: dict[str, str], shared: Shares, on_done: Callable[[int], None]) -> Outcome:
    """Files of every photo in ``names``.

    Args:
        names: key -> name of the outputs, of those that are missing.
        on_done: told how many photos came back, again and again.

    Raises:
        FathomError: what makes going on senseless.
    """
    outcome = Outcome()
    with told():
        fetch = fetcher(ray, job.plan, _has_other_machines(ray))
        for columns, dataset in _datasets(ray, sources, names):
            mapped = _mapped(ray, dataset, shared, (job, names, columns, fetch))
            for table in mapped.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                for row in table.to_pylist():
                    _take(row, outcome)
                on_done(table.num_rows)
    return outcome


def run_rows(ray: Any, job: FleetJob, sources: Sources, names: dict[str, str], shared: Shares, out: str, filesystem: Any) -> Outcome:
    """A folder of Parquet with one row for each photo in ``names``.

    Args:
        out: path for ``filesystem``, which is pyarrow's, or None for a local folder.

    Raises:
        FathomError: what makes going on senseless.
    """
    outcome = Outcome()
    with told():
        ledger = ray.remote(num_cpus=0)(_Ledger).remote()
        fetch = fetcher(ray, job.plan, _has_other_machines(ray))
        provider = _file_names(job.run)
        for columns, dataset in _datasets(ray, sources, names):

            def report(broken: list[tuple[str, str, int]], node: str, reads: int) -> None:
                ray.get(ledger.add.remote(broken, node, reads))

            mapped = _mapped(ray, dataset, shared, (job, names, columns, fetch, report))
            mapped.write_parquet(out, filesystem=filesystem, filename_provider=provider, ray_remote_args={"num_cpus": READER_CPUS})
        broken, outcome.plan_reads = ray.get(ledger.all.remote())
        outcome.broken = {key: (words, code) for key, words, code in broken}
    return outcome


def _file_names(run: str) -> Any:
    """Ray's provider of names that fit ``OWN``."""
    from ray.data.datasource import FilenameProvider

    class Names(FilenameProvider):
        def get_filename_for_task(self, write_uuid: str, task_index: int) -> str:
            return f"depth-run_{run}_{write_uuid}_{task_index:06}.parquet"

        def get_filename_for_block(self, block: Any, write_uuid: str, task_index: int, block_index: int) -> str:  # what older releases of Ray ask for
            return self.get_filename_for_task(write_uuid, task_index)

    return Names()


class _Ledger:
    """Keeps what the workers of a run report; telling it twice changes nothing."""

    def __init__(self):
        self.broken: dict[str, tuple[str, str, int]] = {}
        self.reads: dict[str, int] = {}

    def add(self, broken: list[tuple[str, str, int]], node: str, reads: int) -> None:
        self.broken.update({item[0]: item for item in broken})
        self.reads[node] = max(self.reads.get(node, 0), reads)

    def all(self) -> tuple[list[tuple[str, str, int]], dict[str, int]]:
        return list(self.broken.values()), self.reads


def _datasets(ray: Any, sources: Sources, names: dict[str, str]) -> list[tuple[tuple[str, str], Any]]:
    """Ray's datasets of what is missing, each with its columns for the picture and the key."""
    found: list[tuple[tuple[str, str], Any]] = []
    for filesystem, paths in sources.files:
        missing = [path for path in paths if path in names]
        if missing:
            about = {"include_paths": True, "ignore_missing_paths": True, "num_cpus": READER_CPUS}
            found.append((("bytes", "path"), ray.data.read_binary_files(missing, filesystem=filesystem, **about)))
    for rows in sources.rows:
        found.append(((rows.picture, rows.name), _read_rows(ray, rows)))
    return found


def _read_rows(ray: Any, rows: Rows) -> Any:
    read = ray.data.read_parquet(rows.path, filesystem=rows.filesystem, columns=[rows.picture, rows.name], num_cpus=READER_CPUS)
    return read.repartition(target_num_rows_per_block=2 * BATCH)  # else a large file would be the work of one actor


def _mapped(ray: Any, dataset: Any, shared: Shares, arguments: tuple[Any, ...]) -> Any:
    pool = ray.data.ActorPoolStrategy(size=max(1, min(shared.actors, -(-len(arguments[1]) // BATCH))))
    takes = {"num_cpus": shared.cpus, **({"num_gpus": shared.gpus} if shared.gpus else {})}
    return dataset.map_batches(PhotoWorker, batch_size=BATCH, batch_format="pyarrow", compute=pool, fn_constructor_args=arguments, **takes)


def _take(row: dict[str, Any], outcome: Outcome) -> None:
    outcome.plan_reads[row["node"]] = max(outcome.plan_reads.get(row["node"], 0), row["plan_reads"])
    if row["status"] == BROKEN_PHOTO:
        outcome.broken[row["key"]] = (row["words"], row["exit_code"])
        return
    outcome.done.add(row["key"])
    if row["status"] == DONE and row["words"]:
        outcome.warnings[row["key"]] = row["words"]


def _has_other_machines(ray: Any) -> bool:
    return sum(bool(node.get("Alive")) for node in ray.nodes()) > 1


def own_rows(out: str, system: Any) -> tuple[list[str], list[str]]:
    """Files of rows in a folder of Parquet: those that runs of ours wrote, and others.

    Args:
        system: pyarrow's file system.
    """
    import pyarrow.fs

    items = system.get_file_info(pyarrow.fs.FileSelector(out, allow_not_found=True))
    rows = [item for item in items if item.type == pyarrow.fs.FileType.File and item.extension == "parquet" and item.base_name[0] not in "_."]
    own = [item.path for item in rows if OWN.fullmatch(item.base_name)]
    return own, [item.path for item in rows if item.path not in set(own)]


def finished_rows(out: str, system: Any) -> tuple[set[str], list[str]]:
    """Keys of the photos that a folder of Parquet holds, and the files in it that killed runs did not bring to an end.

    Raises:
        InputError: if a photo is in it twice, or a file that no run of ours wrote holds no photos.
        OSError: if it cannot be read.
    """
    import pyarrow
    import pyarrow.parquet

    own, others = own_rows(out, system)
    found: set[str] = set()
    halves: list[str] = []
    for path in (*own, *others):
        try:
            with system.open_input_file(path) as file:
                keys = pyarrow.parquet.read_table(file, columns=["photo"])["photo"].to_pylist()
        except (pyarrow.ArrowInvalid, KeyError) as error:
            if path not in own:
                was = f"{path} is no whole Parquet with a column 'photo' ({' '.join(str(error).split())[:200]})"
                raise InputError(was, wanted="nothing but what depth-run --ray wrote", fix="remove it yourself, or another --output") from error
            halves.append(path)
            continue
        if len(set(keys)) < len(keys) or found & set(keys):
            raise InputError(f"{path} holds a photo that is in {out} twice", wanted="one row for each photo", fix="--force makes it anew")
        found.update(keys)
    return found, halves
