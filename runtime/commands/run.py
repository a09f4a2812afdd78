"""``depth-run``: depth maps of photos. Nothing heavy is imported before the work starts."""

from __future__ import annotations

import argparse
import math
import os
import sys
from pathlib import Path
from typing import Any

from ..errors import InputError, UsageError
from ..outputs.colormap import COLORMAPS
from .command import common_flags, run_command, say, warn

SUFFIX = {"png16": "_depth.png", "npy": "_depth.npy", "exr": "_depth.exr", "color": "_color.png", "ply": ".ply"}
UNTRAINED = "THE WEIGHTS ARE UNTRAINED (random-init): the depth is meaningless and good for benchmarks only"

EPILOG = f"""\
For each photo NAME.jpg these files are written to OUT:
  NAME{SUFFIX["png16"]}  16-bit PNG, millimetres, 0 = no depth (relative output: spread over 1..65535, no unit)
  NAME{SUFFIX["color"]}  colours with a scale bar, for looking at
  NAME{SUFFIX["npy"]}  float32, metres, NaN = no depth
  NAME{SUFFIX["exr"]}  OpenEXR, 32-bit metres in the channel Z, NaN = no depth; needs [exr]
  NAME{SUFFIX["ply"]}        point cloud in metres with the photo's colours; needs --intrinsics
A bag (x.mcap with -o y.mcap) gives 32FC1 metres and CameraInfo beside its pictures' topic, with --save ply a PointCloud2 too.
For each video, camera or stream (clip.mp4, /dev/video0, rtsp://…) NAME_color.mp4 is written, with one colour scale for the whole of it, and
with --save png16,npy,ply the depth of every frame in the folder NAME. Ctrl-C ends a camera or stream and keeps what was written.
Folders (of photos, or of videos) are searched one level deep; use a quoted glob such as 'photos/**/*.jpg' to go deeper. Outputs of photos
from a folder or glob keep their sub-folders. Results go to stdout, one line per photo that ends with the path of its picture (--json: one
object per photo); everything else to stderr.
A broken photo does not stop the others: it is reported at the end, and the exit code is 3 (4 if a map came out NaN, infinite or constant).
_depth-run.json in OUT says with what plan and options its results were made; with --scale every result names the correction, and scale.json holds it.
With --ray (extra [ray]) the photos go through a pool of pipelines on Ray: one per GPU, or one for every --threads CPUs. INPUT may also be a list (x.txt),
rows of Parquet (x.parquet) or a bucket (s3://…, gs://…), OUT a folder of Parquet (x.parquet). A second start does what is missing.
If an output exists already and neither --force nor --skip-existing is given, nothing is started and the exit code is 3.
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
    parser.add_argument("inputs", nargs="*", metavar="INPUT", help="photo, folder of photos or videos, glob, video file, /dev/videoN, or rtsp://…")
    parser.add_argument("--engine", required=True, metavar="PLAN|BUNDLE", help="what depth-build (a plan) or depth-export (a bundle) made")
    parser.add_argument("--require-key", metavar="KEY", help="run only what this minisign public key signed: its file, or its line (SECURITY.md)")
    parser.add_argument("--require-sha256", metavar="HEX", help="run only the plan or bundle whose manifest has this SHA-256, which depth-inspect prints")
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help="folder for the results; made if it is not there")
    parser.add_argument("--save", type=_kinds, metavar="KINDS", help=f"comma-separated: {','.join(SUFFIX)} (default: png16,color, and ply with --intrinsics)")
    parser.add_argument("--skip-existing", action="store_true", help="leave out photos (and videos) whose results are there: take up a long job")
    parser.add_argument("--protocol", metavar="NAME", help="how photos are shown to the network (default: the artefact's first; depth-inspect lists them)")
    words = "camera of all photos, in pixels of the upright photo, or a JSON file that holds it; exif: what each photo says of its own"
    parser.add_argument("--intrinsics", metavar="FX,FY,CX,CY|FILE|exif", help=words)
    parser.add_argument("--scale", metavar="FILE|FACTOR[,SHIFT]", help="correct metres by this: what depth-calibrate-scale wrote, or numbers")
    parser.add_argument("--mask-edges", action="store_true", help="no depth where it floats between a near and a far surface (flying pixels)")
    parser.add_argument("--topic", metavar="TOPIC", help="bags: the pictures; may be left out if there is one such topic")
    parser.add_argument("--prompt", metavar="TEXT", help="words, for a network that is asked in words")
    parser.add_argument("--scene", metavar="NAME", help="kind of room, for a network that must be told (depth-inspect lists what it knows)")
    parser.add_argument("--batch", type=_positive, metavar="N", help="windows per network run (default: what the plan was built for)")
    parser.add_argument("--threads", type=_positive, metavar="N", help="CPU threads (default: all cores)")
    parser.add_argument("--streams", type=_positive, default=1, metavar="N", help="TensorRT: network runs on the GPU at the same time (default: %(default)s)")
    parser.add_argument("--device", metavar="DEVICE", help="cpu, cuda or cuda:N (default: cpu for ONNX Runtime, cuda for TensorRT)")
    parser.add_argument("--colormap", choices=COLORMAPS, default="turbo", help="colours, near to far from its warm or bright end (default: %(default)s)")
    parser.add_argument("--near", type=_finite, metavar="VALUE", help="near end of the colour scale (metres, or the relative value); colours only")
    parser.add_argument("--far", type=_finite, metavar="VALUE", help="its far end; colours only (default: 1st and 99th percentile of each photo)")
    parser.add_argument("--ray", nargs="?", const="local", metavar="ADDRESS", help="run on Ray: a cluster (auto, HOST:PORT), or one of its own; put it last")
    parser.add_argument("--show", action="store_true", help="open the results for a quick look; without a display: tile them on one PNG in OUT, and name it")
    common_flags(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run ``depth-run``; returns the exit code."""
    parser, words = build_parser(), list(sys.argv[1:] if argv is None else argv)
    end = words.index("--") if "--" in words else len(words)
    arguments = parser.parse_intermixed_args(words[:end])  # photos may come before, between and after the flags
    arguments.inputs += words[end + 1 :]  # after -- everything is a photo, whatever it begins with
    if not arguments.inputs:
        parser.error("the following arguments are required: INPUT")
    return run_command(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    from ..artefact.trust import Trust
    from ..fleet.job import FleetJob
    from ..outputs.writers import refuse_ply, require_exr
    from ..photo.exif_camera import EXIF
    from ..photo.intrinsics_file import read_intrinsics
    from ..photo.photo import TILES, find_photos, refuse_as_results
    from ..pipeline import Pipeline
    from ..scale.camera_scale import read_scale
    from ..video.video import find_videos, is_video
    from .bag_command import is_bag, place_bag, run_bag
    from .earlier_results import ResultFolder, refuse_other_results, split_done
    from .photo_session import PhotoSession

    if arguments.skip_existing and arguments.force:
        raise UsageError("--skip-existing and --force", wanted="one of them")
    if arguments.near is not None and arguments.far is not None and not arguments.near < arguments.far:
        raise UsageError(f"--near {arguments.near:g} and --far {arguments.far:g}", wanted="near below far")
    camera = None if arguments.intrinsics is None else read_intrinsics(arguments.intrinsics)
    correction = None if arguments.scale is None else read_scale(arguments.scale)
    trust = Trust.of(arguments.require_sha256, arguments.require_key)
    if arguments.ray is not None:
        from .ray_command import run_ray

        if camera == EXIF:
            raise UsageError("--intrinsics exif with --ray", wanted="one camera for all photos", fix="leave out --ray, or give fx,fy,cx,cy")
        return run_ray(arguments, trust, SUFFIX, camera, correction, lambda pipeline: _before_photos(pipeline, arguments, correction))
    out, bag = Path(arguments.output), any(is_bag(text) for text in arguments.inputs)
    if bag:
        place_bag(arguments, out)
    elif arguments.topic is not None:
        raise UsageError("--topic without a bag", wanted="a file that ends in .mcap")

    def remark(text: str) -> None:
        if not arguments.quiet:
            say(text)

    inputs = [] if bag else find_videos(arguments.inputs, remark)
    videos = [text for text in inputs if is_video(text) and not Path(text).is_dir()]
    if videos and len(videos) < len(inputs):
        raise UsageError("photos and videos together", wanted="one or the other", fix="run them one after the other")
    if bag and arguments.skip_existing:
        raise UsageError("--skip-existing and a bag", wanted="photos or videos")
    if (videos or bag) and camera == EXIF:
        fix = "leave it to the bag's CameraInfo, or give fx,fy,cx,cy" if bag else "give fx,fy,cx,cy"
        raise UsageError("--intrinsics exif and a video or bag", wanted="photos", fix=fix)
    if (videos or bag) and arguments.show:
        raise UsageError("--show and a video or bag", wanted="photos", fix="leave out --show, and open what is written")
    kinds = arguments.save or (("color",) if videos else ("png16", "color", *(("ply",) if camera else ())))
    kinds = kinds if "color" in kinds or not arguments.show else (*kinds, "color")
    if "exr" in kinds:
        require_exr()
    done = {}
    places, targets = {}, {}
    if bag:
        pass
    elif videos:
        from .video_command import place_videos, run_videos

        places = place_videos(list(dict.fromkeys(videos)), out, kinds, arguments.force, arguments.skip_existing)
    else:
        targets = {photo: {kind: out / (photo.stem + SUFFIX[kind]) for kind in kinds} for photo in find_photos(inputs, remark)}
        tiles = [out / TILES] if arguments.show else []
        refuse_as_results({os.path.realpath(photo.path) for photo in targets}, ((photo.path, files.values()) for photo, files in targets.items()))
        if arguments.skip_existing:
            done, targets = split_done(targets)
            remark(f"{len(done)} of {len(done) + len(targets)} photos are done already")
        _refuse_existing([*(path for files in targets.values() for path in files.values()), *tiles], arguments.force or arguments.skip_existing)
    with Pipeline.open(arguments.engine, arguments.device, arguments.threads, arguments.batch, streams=arguments.streams, trust=trust) as pipeline:
        for words in pipeline.remarks.new():
            remark(words)
        if "ply" in kinds and not bag:
            refuse_ply(pipeline.contract.output.kind, camera)
        _before_photos(pipeline, arguments, correction)
        pipeline.scale, pipeline.mask_edges = correction, arguments.mask_edges
        if bag:
            return run_bag(pipeline, arguments, camera, out)
        made = _make_folders(out, targets)
        options = {key: getattr(arguments, key) for key in ("mask_edges", "prompt", "colormap", "near", "far")}
        protocol, named = pipeline.protocol(arguments.protocol).name, tuple((kind, SUFFIX[kind]) for kind in kinds)
        job = FleetJob("", arguments.engine, pipeline.origin.sha256, str(out), named, protocol, camera, correction, **options)
        replaced = {path for files in (*targets.values(), *places.values()) for path in files.values()} if arguments.force else set()
        folder, code = ResultFolder(out, job, replaced), None
        try:
            folder.begin(arguments.skip_existing, bool(done) or len(places) < len(videos))
            refuse_other_results(done, pipeline, arguments.protocol)
            arguments.force = arguments.force or arguments.skip_existing  # of a photo that was under way, some files may be there
            if videos:
                code = run_videos(pipeline, arguments, camera, kinds, places)
            else:
                session = PhotoSession(pipeline, arguments, camera, targets)
                code = session.work()
                if arguments.show:
                    _show(session.shown, out / TILES, arguments)
            return code
        finally:
            if words := folder.finish(code == 0):
                warn(words)
            for path in reversed(made):
                if not any(path.iterdir()):
                    path.rmdir()


def _before_photos(pipeline: Any, arguments: argparse.Namespace, correction: Any) -> None:
    """Refuse what does not fit the network, and say what a user should know, before the first photo."""
    from ..scale.camera_scale import beside
    from ..scale.correction import refuse_scale

    protocol = pipeline.protocol(arguments.protocol).name
    tell_scene(pipeline, arguments)
    if correction is not None:
        refuse_scale(correction, pipeline.contract.output.kind, pipeline.origin, protocol, arguments.prompt)
    elif (left := beside(arguments.engine)).is_file() and not arguments.quiet:
        say(f"{left} is not used; --scale {left} corrects the metres by it")
    if pipeline.origin.untrained:
        warn(UNTRAINED)


def tell_scene(pipeline: Any, arguments: argparse.Namespace) -> None:
    """The scene goes in where the words do; whatever is missing or unknown is told before the first photo."""
    from ..text.encoder import checked_choice

    text = pipeline.contract.text
    choice = text is not None and text.kind == "choice"
    if arguments.scene is not None and not choice:
        raise UsageError("this network takes no scene", fix="leave --scene out")
    if choice:
        if arguments.prompt is not None:
            raise UsageError("this network takes no words but the kind of scene", fix="give --scene NAME instead of --prompt")
        arguments.prompt = checked_choice(text, arguments.scene)


def _show(pairs: list[tuple[Path, Path]], path: Path, arguments: argparse.Namespace) -> None:
    """Tile photos and maps, hand that to the desktop where there is one, and name it last."""
    from ..outputs.tiles import save_tiles
    from .show import open_picture, viewer

    if not pairs:
        return
    count = save_tiles(pairs, path, arguments.force)
    if count < len(pairs) and not arguments.quiet:
        say(f"{path} shows the first {count} of {len(pairs)} photos")
    if (program := viewer()) and not open_picture(path, program):
        warn(f"{program} could not be started; open the picture yourself")
    print(path, file=sys.stderr if arguments.json else sys.stdout)


def _refuse_existing(paths: list[Path], force: bool) -> None:
    there = [path for path in paths if os.path.exists(path)]  # False for a name that cannot be
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


def _finite(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r}; wanted a finite number")
    return value


def _positive(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1024:
        raise argparse.ArgumentTypeError(f"{text!r}; wanted a whole number from 1 to 1024")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
