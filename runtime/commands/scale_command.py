"""``depth-calibrate-scale``: one scale and shift for a camera from a few measured distances."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError, UsageError
from .command import common_flags, run_command

if TYPE_CHECKING:
    from ..photo.depth_map import DepthMap

EPILOG = """\
MEASUREMENTS is a CSV; paths in it are relative to it. A line is a distance in metres at a pixel of a photo (column and row from 0, in the
upright photo), or the depth picture of a whole photo, registered to it: 16-bit PNG in millimetres, or NPY in metres.
    hall.jpg,320,240,2.45
    hall2.jpg,hall2_depth.png
The correction depth_m = scale * network + shift is written to PLAN's name with .scale.json, for depth-run --scale, only if the measurements
prove it at 99 %; else the command says "no change", writes nothing, and leaves with 0. Several photos at different distances prove most.
"""


def main(argv: list[str] | None = None) -> int:
    """Run ``depth-calibrate-scale``; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="depth-calibrate-scale",
        description="The scale and shift of one camera from measured distances.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("measurements", metavar="MEASUREMENTS", help="CSV of photo,column,row,metres or photo,depth-picture")
    parser.add_argument("--engine", required=True, metavar="PLAN|BUNDLE", help="whose metres are measured")
    parser.add_argument("-o", "--output", metavar="FILE", help="where the correction goes (default: beside the plan); one file per camera")
    parser.add_argument("--protocol", metavar="NAME", help="as depth-run will be given it")
    parser.add_argument("--scene", metavar="NAME", help="as depth-run will be given it, for a network that must be told")
    words = "camera of the photos (exif: what each says of its own); the correction then refuses another camera"
    parser.add_argument("--intrinsics", metavar="FX,FY,CX,CY|FILE|exif", help=words)
    parser.add_argument("--ray", action="store_true", help="distances run from the lens to the point, as a tape does off the axis; needs --intrinsics")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: all cores)")
    parser.add_argument("--device", metavar="DEVICE", help="as in depth-run")
    common_flags(parser)
    parser.set_defaults(prompt=None)
    arguments = parser.parse_args(argv)
    return run_command(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    import numpy as np

    from ..files import refuse_existing
    from ..photo.exif_camera import camera_of
    from ..photo.intrinsics_file import read_intrinsics
    from ..photo.photo import read_photo
    from ..pipeline import Pipeline
    from ..scale.camera_scale import CAMERA_TOLERANCE, CameraScale, beside
    from ..scale.fit import fit_scale
    from ..scale.measurements import compare, read_measurements
    from .run import tell_scene

    camera = None if arguments.intrinsics is None else read_intrinsics(arguments.intrinsics)
    if arguments.ray and camera is None:
        raise UsageError("--ray without a camera", fix="--intrinsics fx,fy,cx,cy or --intrinsics camera.json")
    if arguments.threads is not None and arguments.threads < 1:
        raise UsageError(f"--threads {arguments.threads}", wanted="1 or more")
    out = Path(arguments.output) if arguments.output else beside(arguments.engine)
    refuse_existing(out, arguments.force)
    lines = read_measurements(arguments.measurements)
    photos = list(dict.fromkeys(line.photo for line in lines))
    pairs, owners, seen = [], [], None
    with Pipeline.open(arguments.engine, arguments.device, arguments.threads) as pipeline:
        if pipeline.contract.output.kind != "metric":
            raise UsageError(f"the network's output is {pipeline.contract.output.kind}, without a unit", wanted="metric depth")
        tell_scene(pipeline, arguments)
        for number, photo in enumerate(photos):
            pixels = read_photo(photo)
            depth = pipeline.predict(pixels, arguments.protocol, camera_of(camera, photo, pixels), arguments.prompt)
            seen = seen or depth
            if abs(_focal_widths(depth) - _focal_widths(seen)) > CAMERA_TOLERANCE * _focal_widths(seen):
                raise InputError(f"{photo} is of another camera than {photos[0]}", wanted="photos of one camera", fix="a file of measurements for each")
            found = [pair for line in lines if line.photo == photo for pair in compare(line, depth, arguments.ray)]
            pairs += found
            owners += [number] * len(found)
        protocol, origin = pipeline.protocol(arguments.protocol).name, pipeline.origin
    said, real = np.array(pairs).T
    fit = fit_scale(said, real, np.array(owners))
    facts = {
        "changed": fit.changed,
        "scale": fit.scale,
        "shift_m": fit.shift_m,
        "scale_interval_99": fit.interval,
        "measurements": len(pairs),
        "photos": len(photos),
        "error_before": fit.error_before,
        "error_after": fit.error_after,
        "untrained": origin.untrained,
        "file": str(out) if fit.changed else None,
    }
    words = "no change: the measurements do not prove that the metres are off"
    if fit.changed:
        known = (seen.intrinsics.fx, seen.values.shape[1]) if seen.intrinsics else (0.0, 0)
        numbers = (len(pairs), len(photos), fit.error_before, fit.error_after)
        try:
            made_with = (origin.network, origin.sha256, protocol, arguments.prompt or origin.scene)
            correction = CameraScale(fit.scale, fit.shift_m, out.name, *made_with, *known, *numbers)
        except ValueError as error:
            raise InputError(f"the measurements ask for {error}", wanted="distances in metres, at pixels of these photos") from error
        correction.write(out, arguments.force)
        words = f"{correction.words}; written to {out}"
    low, high = fit.interval
    tail = f"mean error {fit.error_before:.1%} before, {fit.error_after:.1%} after; scale alone {low:.3f} to {high:.3f} at 99 %"
    print(json.dumps(facts) if arguments.json else f"{words}\n{len(pairs)} measurements in {len(photos)} photos, {tail}", flush=True)
    return 0


def _focal_widths(depth: DepthMap) -> float:
    """The focal length of its camera in widths of the photo; 0 if it is not known."""
    return depth.intrinsics.fx / depth.values.shape[1] if depth.intrinsics else 0.0


if __name__ == "__main__":
    sys.exit(main())
