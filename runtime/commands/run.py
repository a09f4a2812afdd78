"""``depth-run``: depth maps of photos. Nothing heavy is imported before the work starts."""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import AccuracyError, FathomError, InputError, UsageError
from ..outputs.colormap import COLORMAPS
from ..sequences import zip_equal
from .command import common_flags, run_command, warn
from .progress import Progress

if TYPE_CHECKING:
    import numpy as np

    from ..photo.depth_map import DepthMap, Intrinsics
    from ..photo.photo import PhotoFile
    from ..pipeline import Pipeline

SUFFIX = {"png16": "_depth.png", "npy": "_depth.npy", "color": "_color.png", "ply": ".ply"}
UNTRAINED = "THE WEIGHTS ARE UNTRAINED (random-init): the depth is meaningless and good for benchmarks only"

EPILOG = f"""\
For each photo NAME.jpg these files are written to OUT:
  NAME{SUFFIX["png16"]}  16-bit PNG, millimetres, 0 = no depth (relative output: spread over 1..65535, no unit)
  NAME{SUFFIX["color"]}  colours with a scale bar, for looking at
  NAME{SUFFIX["npy"]}  float32, metres, NaN = no depth
  NAME{SUFFIX["ply"]}        point cloud in metres with the photo's colours; needs --intrinsics
For each video, camera or stream (clip.mp4, /dev/video0, rtsp://…) NAME_color.mp4 is written, with one colour scale for the whole of it, and
with --save png16,npy,ply the depth of every frame in the folder NAME. Ctrl-C ends a camera or stream and keeps what was written.
Folders are searched one level deep; use a quoted glob such as 'photos/**/*.jpg' to go deeper. Outputs of photos from a folder or glob keep
their sub-folders. Results go to stdout, one line per photo (--json: one object); everything else to stderr.
A broken photo does not stop the others: it is reported at the end, and the exit code is 3 (4 if a map came out NaN, infinite or constant).
If an output exists already and --force is not given, nothing is started and the exit code is 3.
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line of ``depth-run``."""
    parser = argparse.ArgumentParser(
        prog="depth-run",
        description="Depth maps of photos and videos.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="photo, folder of photos, glob, video file, /dev/videoN, or rtsp://…")
    parser.add_argument("--engine", required=True, metavar="PLAN|BUNDLE", help="what depth-build (a plan) or depth-export (a bundle) made")
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help="folder for the results; made if it is not there")
    parser.add_argument("--save", type=_kinds, metavar="KINDS", help=f"comma-separated: {','.join(SUFFIX)} (default: png16,color, and ply with --intrinsics)")
    parser.add_argument("--protocol", metavar="NAME", help="how photos are shown to the network (default: the artefact's first; depth-inspect lists them)")
    parser.add_argument("--intrinsics", metavar="FX,FY,CX,CY|FILE", help="camera of all photos, in pixels of the upright photo, or a JSON file that holds it")
    parser.add_argument("--prompt", metavar="TEXT", help="words, for a network that is asked in words")
    parser.add_argument("--batch", type=_positive, metavar="N", help="windows per network run (default: what the plan was built for)")
    parser.add_argument("--threads", type=_positive, metavar="N", help="CPU threads (default: all cores)")
    parser.add_argument("--streams", type=_positive, default=1, metavar="N", help="TensorRT: network runs on the GPU at the same time (default: %(default)s)")
    parser.add_argument("--device", metavar="DEVICE", help="cpu, cuda or cuda:N (default: cpu for ONNX Runtime, cuda for TensorRT)")
    parser.add_argument("--colormap", choices=COLORMAPS, default="turbo", help="colours, near to far from its warm or bright end (default: %(default)s)")
    parser.add_argument("--near", type=float, metavar="VALUE", help="near end of the colour scale (metres, or the relative value); colours only")
    parser.add_argument("--far", type=float, metavar="VALUE", help="far end of the colour scale; colours only (default: 1st and 99th percentile of each photo)")
    common_flags(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run ``depth-run``; returns the exit code."""
    arguments = build_parser().parse_intermixed_args(argv)  # photos may come before, between and after the flags
    return run_command(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    from ..outputs.writers import refuse_ply
    from ..photo.intrinsics_file import read_intrinsics
    from ..photo.photo import find_photos
    from ..pipeline import Pipeline
    from ..video.video import is_video

    if arguments.near is not None and arguments.far is not None and not arguments.near < arguments.far:
        raise UsageError(f"--near {arguments.near:g} and --far {arguments.far:g}", wanted="near below far")
    camera = None if arguments.intrinsics is None else read_intrinsics(arguments.intrinsics)
    out, videos = Path(arguments.output), [text for text in arguments.inputs if is_video(text) and not Path(text).is_dir()]
    if videos and len(videos) < len(arguments.inputs):
        raise UsageError("photos and videos together", wanted="one or the other", fix="run them one after the other")
    kinds = arguments.save or (("color",) if videos else ("png16", "color", *(("ply",) if camera else ())))
    places, targets = {}, {}
    if videos:
        from .video_command import place_videos, run_videos

        places = place_videos(list(dict.fromkeys(videos)), out, kinds, arguments.force)
    else:
        targets = {photo: {kind: out / (photo.stem + SUFFIX[kind]) for kind in kinds} for photo in find_photos(arguments.inputs)}
        _refuse_existing(targets, arguments.force)
    with Pipeline.open(arguments.engine, arguments.device, arguments.threads, arguments.batch, streams=arguments.streams) as pipeline:
        if not arguments.quiet:
            for remark in pipeline.remarks:
                print(remark, file=sys.stderr)
        if "ply" in kinds:
            refuse_ply(pipeline.contract.output.kind, camera)
        pipeline.protocol(arguments.protocol)
        if pipeline.origin.untrained:
            warn(UNTRAINED)
        made = _make_folders(out, targets)
        try:
            if videos:
                return run_videos(pipeline, arguments, camera, kinds, places)
            return _Session(pipeline, arguments, camera, targets).work()
        finally:
            for folder in reversed(made):
                if not any(folder.iterdir()):
                    folder.rmdir()


class _Session:
    """The loop over all photos: while the network works on one group, the next is read and the one before is written."""

    def __init__(self, pipeline: Pipeline, arguments: argparse.Namespace, camera: Intrinsics | None, targets: dict[PhotoFile, dict[str, Path]]):
        from ..photo.preprocess import windows_of

        self.pipeline, self.arguments, self.camera, self.targets = pipeline, arguments, camera, targets
        self.progress: Progress
        self.counting = threading.Lock()
        self.failures: list[tuple[PhotoFile, FathomError]] = []
        self.windows = len(windows_of(pipeline.protocol(arguments.protocol)))  # of the network at one photo

    def work(self) -> int:
        """Returns the exit code."""
        photos = list(self.targets)
        group = max(1, self.pipeline.batch // self.windows)
        what = "photos" if self.windows == 1 else "windows"
        several = self.pipeline.concurrent  # groups under way: one, or as many as keep the GPU busy
        with Progress(len(photos) * self.windows, what, self.arguments.quiet) as self.progress, ThreadPoolExecutor(several) as network:
            flying: deque[tuple[list[tuple[PhotoFile, np.ndarray]], Future]] = deque()
            try:
                for start in range(0, len(photos), group):
                    read = self._read(photos[start : start + group])
                    flying.append((read, network.submit(self._predict, [pixels for _, pixels in read], start)))
                    if len(flying) > several:
                        self._write_oldest(flying)
                while flying:
                    self._write_oldest(flying)
                self.progress.advance_to(self.progress.total)
            except BaseException:
                self.pipeline.interrupt()  # else leaving would wait for the network's whole run
                raise
        return self._report()

    def _write_oldest(self, flying: deque) -> None:
        read, result = flying.popleft()
        self._write(read, result.result())

    def _read(self, photos: list[PhotoFile]) -> list[tuple[PhotoFile, np.ndarray]]:
        from ..photo.photo import read_photo

        read = []
        for photo in photos:
            try:
                read.append((photo, read_photo(photo.path)))
            except FathomError as error:
                self._fail(photo, error)
        return read

    def _predict(self, photos: list[np.ndarray], before: int) -> list[tuple[DepthMap | FathomError, float]]:
        """A map, or why there is none, and the time in milliseconds, for each photo; ``before`` counts the photos before these."""
        flags = self.arguments

        def seen(count: int) -> None:
            with self.counting:
                self.progress.advance_to(before * self.windows + count)

        start = time.perf_counter()
        try:
            maps: list[Any] = self.pipeline.predict_batch(photos, flags.protocol, self.camera, flags.prompt, seen) if photos else []
        except (InputError, AccuracyError) as error:
            if len(photos) == 1:
                maps = [error]
            else:  # one photo spoils the group: each alone, to know which
                return [result for index, photo in enumerate(photos) for result in self._predict([photo], before + index)]
        time_ms = (time.perf_counter() - start) * 1e3 / max(len(photos), 1)
        return [(one, time_ms) for one in maps]

    def _write(self, photos: list[tuple[PhotoFile, np.ndarray]], results: list[tuple[DepthMap | FathomError, float]]) -> None:
        for (photo, pixels), (result, time_ms) in zip_equal(photos, results):
            if isinstance(result, FathomError):
                self._fail(photo, result)
                continue
            for warning in self._save(photo, pixels, result):
                self.progress.alarm(f"warning: {photo.path}: {warning}")
            self._print(photo, result, time_ms)

    def _save(self, photo: PhotoFile, pixels: np.ndarray, depth: DepthMap) -> list[str]:
        from ..outputs import writers

        flags, warnings = self.arguments, []
        for kind, path in self.targets[photo].items():
            if kind == "png16":
                saved = writers.save_png16(depth, path, flags.force)
            elif kind == "npy":
                saved = writers.save_npy(depth, path, flags.force)
            elif kind == "color":
                saved = writers.save_color(depth, path, flags.force, flags.colormap, flags.near, flags.far)
            else:
                saved = writers.save_ply(depth, pixels, path, flags.force)
            warnings += saved.warnings
        return warnings

    def _print(self, photo: PhotoFile, depth: DepthMap, time_ms: float) -> None:
        height, width = depth.values.shape
        facts = depth.summary()
        if self.arguments.json:
            unit = "_m" if depth.kind == "metric" else ""
            named = {f"{key}{unit}" if key in ("min", "median", "max") else key: value for key, value in facts.items()}
            files = {kind: str(path) for kind, path in self.targets[photo].items()}
            head = {"photo": str(photo.path), "width": width, "height": height, "kind": depth.kind, "unit": depth.unit, "protocol": depth.protocol}
            self.progress.result(json.dumps({**head, **named, "time_ms": round(time_ms, 3), "untrained": depth.origin.untrained, "files": files}))
            return
        unit = {"metric": " m", "relative": " (relative)", "mask": " (mask)"}[depth.kind]
        beyond = f", {depth.below_near + depth.above_far} px beyond the trained range" if depth.below_near + depth.above_far else ""
        untrained = ", UNTRAINED WEIGHTS" if depth.origin.untrained else ""
        values = f"{facts['min']:.3f} / {facts['median']:.3f} / {facts['max']:.3f}{unit}"
        self.progress.result(f"{photo.path}  {width}x{height}  {values}  valid {facts['valid_share']:.1%}  {time_ms:.0f} ms{beyond}{untrained}")

    def _fail(self, photo: PhotoFile, error: FathomError) -> None:
        self.failures.append((photo, error))
        if self.arguments.json:
            self.progress.result(json.dumps({"photo": str(photo.path), "error": str(error), "exit_code": error.exit_code}))

    def _report(self) -> int:
        for photo, error in self.failures:
            words = str(error)
            print(f"error: {words if str(photo.path) in words else f'{photo.path}: {words}'}", file=sys.stderr)
        if self.failures and len(self.targets) > 1:
            print(f"{len(self.failures)} of {len(self.targets)} photos failed", file=sys.stderr)
        return max((error.exit_code for _, error in self.failures), default=0)


def _refuse_existing(targets: dict[Any, dict[str, Path]], force: bool) -> None:
    there = [path for files in targets.values() for path in files.values() if path.exists()]
    if there and not force:
        more = f" and {len(there) - 1} more" if len(there) > 1 else ""
        raise InputError(f"{there[0]}{more} exist{'s' if len(there) == 1 else ''} already", wanted="free names", fix="another --output, or --force to replace")
    folders = [path for path in there if path.is_dir()]
    if folders:
        raise InputError(f"{folders[0]} is a folder", wanted="the name of a file", fix="another --output")


def _make_folders(out: Path, targets: dict[Any, dict[str, Path]]) -> list[Path]:
    """Make what is missing, and try that it can be written to; returns what was made, outermost first."""
    import tempfile

    made: list[Path] = []
    for folder in dict.fromkeys([out, *(path.parent for files in targets.values() for path in files.values())]):
        missing = [item for item in (folder, *folder.parents) if not item.exists()]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            made += reversed(missing)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise InputError(f"{folder} cannot be written ({error.strerror})", fix="another --output, or its permissions") from error
    return made


def _kinds(text: str) -> tuple[str, ...]:
    kinds = tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    if not kinds or not set(kinds) <= set(SUFFIX):
        raise argparse.ArgumentTypeError(f"{text!r}; wanted some of {','.join(SUFFIX)}")
    return kinds


def _positive(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1024:
        raise argparse.ArgumentTypeError(f"{text!r}; wanted a whole number from 1 to 1024")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
