"""One pipeline of a run on Ray: rows with the bytes of photos in, files or rows of metres out."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import AccuracyError, DiskFullError, EnvironmentMismatchError, FathomError, InputError
from ..outputs.writers import save_as
from ..pipeline import Pipeline
from ..sequences import zip_equal
from ..serving.photo_service import OUTPUTS, Ask, PhotoService, facts_of, map_of
from .job import FleetJob
from .plan_on_node import plan_on_node

if TYPE_CHECKING:
    from ..photo.depth_map import DepthMap

TOGETHER = 8  # photos in the network's queue at a time; what they became is written while the next ones are there
WRITERS = 4
DONE, THERE, BROKEN_PHOTO = "done", "there", "broken"


class PhotoWorker:
    """What Ray calls with batches; opened once per actor.

    Args:
        job: what to do.
        names: key of a photo -> name of its outputs; rows with other keys are passed over.
        columns: names of the columns with the picture and with the key.
        fetch: gets the bytes of the plan where the machine has none; None if nobody has them.
        report: told of broken photos (key, words, exit code), of the machine and how often the plan was read there, where maps travel on as rows; None
            where results are rows about files, which say so themselves.
    """

    def __init__(
        self,
        job: FleetJob,
        names: Mapping[str, str],
        columns: tuple[str, str],
        fetch: Callable[[], bytes] | None = None,
        report: Callable[[list[tuple[str, str, int]], str, int], None] | None = None,
    ):
        self.job, self.names, self.columns, self.report = job, names, columns, report
        self.error: FathomError | None = None  # an actor that fails to start is started again; one that works can say why it cannot
        self.plan_reads = 0
        try:
            path, self.plan_reads = plan_on_node(job.plan, job.manifest_sha256, job.run, fetch)
            self.pipeline = Pipeline.open(path, job.device, job.threads, job.batch, verify=False, streams=job.streams)
            self.pipeline.scale, self.pipeline.mask_edges = job.scale, job.mask_edges
            self.service = PhotoService(self.pipeline, job.protocol)
            self.writers = ThreadPoolExecutor(WRITERS, "fathom-write")
        except FathomError as error:
            self.error = error

    def __call__(self, batch: Any) -> Any:
        """A ``pyarrow.Table`` of photos to one of results.

        Raises:
            FathomError: if no photo could be worked on here, such as without memory or disk.
        """
        if self.error is not None:
            raise self.error
        pictures, keys = (batch[name].to_pylist() for name in self.columns)
        photos = [(str(key), _bytes_of(picture)) for key, picture in zip_equal(keys, pictures) if str(key) in self.names]
        results: list[Any] = []
        for start in range(0, len(photos), TOGETHER):
            results += self._some(photos[start : start + TOGETHER])
        return self._table([result.result() if isinstance(result, Future) else result for result in results])

    def _some(self, photos: list[tuple[str, bytes]]) -> list[Any]:
        """For each photo a result or a future of one: (key, status, words, exit code, map)."""
        waiting = [(key, raw) for key, raw in photos if not self._is_there(key)]
        answers = iter(self.service.answer([Ask((raw,), self.job.prompt, self.job.camera) for _, raw in waiting]))
        found: dict[str, Any] = {}
        for key, _ in waiting:
            answer = next(answers)
            if isinstance(answer, (InputError, AccuracyError)):
                found[key] = (key, BROKEN_PHOTO, str(answer), answer.exit_code, None)
            elif isinstance(answer, FathomError):
                raise answer
            else:
                ((pixels, depth),) = answer
                found[key] = self.writers.submit(self._save, key, pixels, depth) if self.job.out else (key, DONE, "", 0, depth)
        return [found.get(key, (key, THERE, "", 0, None)) for key, _ in photos]

    def _is_there(self, key: str) -> bool:
        """Whether another worker, killed after it had written them, has done this photo already: whole files need no second look."""
        return bool(self.job.out) and not self.job.force and all(path.exists() for path in self.job.targets(self.names[key]).values())

    def _save(self, key: str, pixels: np.ndarray, depth: DepthMap) -> tuple[str, str, str, int, None]:
        job, warnings = self.job, []
        try:
            for kind, path in job.targets(self.names[key]).items():
                path.parent.mkdir(parents=True, exist_ok=True)
                warnings += save_as(kind, depth, pixels, path, True, (job.colormap, job.near, job.far)).warnings
        except (DiskFullError, EnvironmentMismatchError):
            raise
        except FathomError as error:
            return (key, BROKEN_PHOTO, str(error), error.exit_code, None)
        except OSError as error:
            return (key, BROKEN_PHOTO, f"{job.out} cannot be written ({error.strerror})", InputError.exit_code, None)
        return (key, DONE, "; ".join(warnings), 0, None)

    def _table(self, results: list[tuple[str, str, str, int, DepthMap | None]]) -> Any:
        import pyarrow

        node, reads = platform.node(), self.plan_reads
        if self.report is None:
            kinds = {"key": pyarrow.string(), "status": pyarrow.string(), "words": pyarrow.string(), "exit_code": pyarrow.int32()}
            columns = {name: pyarrow.array([result[index] for result in results], kind) for index, (name, kind) in enumerate(kinds.items())}
            return pyarrow.table(
                {
                    **columns,
                    "node": pyarrow.array([node] * len(results), pyarrow.string()),
                    "plan_reads": pyarrow.array([reads] * len(results), pyarrow.int32()),
                }
            )
        broken = [(key, words, code) for key, status, words, code, _ in results if status == BROKEN_PHOTO]
        self.report(broken, node, reads)
        return _map_table([(self.names[key], key, depth) for key, status, _, _, depth in results if status == DONE], self.pipeline)


def _map_table(maps: list[tuple[str, str, DepthMap]], pipeline: Pipeline) -> Any:
    """One row per map: what it is called, how large it is, its values row by row (NaN where there is no depth), and what they mean."""
    import pyarrow

    kind = pipeline.contract.output.kind
    number = pyarrow.uint8() if kind == "mask" else pyarrow.float32()
    facts = [facts_of(depth) for _, _, depth in maps]
    texts, wholes = ("kind", "unit", "larger_is", "protocol", "network", "manifest_sha256"), ("width", "height", "below_near", "above_far", "not_positive")
    columns = {
        "name": pyarrow.array([name for name, _, _ in maps], pyarrow.string()),
        "photo": pyarrow.array([key for _, key, _ in maps], pyarrow.string()),
        OUTPUTS[kind]: pyarrow.array([map_of(depth).ravel() for _, _, depth in maps], pyarrow.large_list(number)),
        **{word: pyarrow.array([fact[word] for fact in facts], pyarrow.int32()) for word in wholes},
        **{word: pyarrow.array([fact[word] for fact in facts], pyarrow.float32()) for word in ("min", "median", "max", "valid_share")},
        **{word: pyarrow.array([fact[word] for fact in facts], pyarrow.string()) for word in texts},
        "correction": pyarrow.array([depth.correction for _, _, depth in maps], pyarrow.string()),
        "untrained": pyarrow.array([fact["untrained"] for fact in facts], pyarrow.bool_()),
    }
    return pyarrow.table(columns)


def _bytes_of(value: Any) -> bytes:
    """The picture in a cell; a struct holds it in ``bytes``, nothing is an empty file."""
    while isinstance(value, dict):
        value = value.get("bytes")
    return value or b""
