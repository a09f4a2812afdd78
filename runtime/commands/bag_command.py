"""``depth-run`` on a bag: the pictures of one topic to depth in another bag."""

from __future__ import annotations

import argparse
import json
from collections import deque
from typing import TYPE_CHECKING, Any

from ..errors import AccuracyError, FathomError, InputError, UsageError
from ..files import refuse_existing
from ..ros.bag import BagSource, BagWriter, is_bag
from ..ros.messages import camera_of, distorted, is_rectified, photo_of, pinhole_info, scaled_info
from .command import say
from .progress import Progress

if TYPE_CHECKING:
    from pathlib import Path

    from ..photo.depth_map import Intrinsics
    from ..pipeline import Pipeline


def place_bag(arguments: argparse.Namespace, out: Path) -> None:
    """Refuse what cannot be done, before the plan is opened.

    Raises:
        UsageError: if there is more than one input, or an option has no meaning for bags.
        InputError: if the output exists.
    """
    if len(arguments.inputs) != 1:
        raise UsageError("a bag together with other inputs", wanted="one bag", fix="run them one after the other")
    if not is_bag(str(out)):
        raise UsageError(f"-o {out} for a bag", wanted="the name of a file that ends in .mcap")
    if not set(arguments.save or ()) <= {"ply"}:
        raise UsageError("--save for a bag", wanted="nothing, or ply for a PointCloud2 beside each map")
    refuse_existing(out, arguments.force)


def run_bag(pipeline: Pipeline, arguments: argparse.Namespace, camera: Intrinsics | None, out: Path) -> int:
    """Show each picture to the network; returns the exit code. A broken picture costs itself alone.

    Args:
        camera: of all pictures; None for what CameraInfo says.
    """
    if pipeline.contract.output.kind != "metric":
        raise InputError(f"the network's output is {pipeline.contract.output.kind}, without a unit", wanted="metric depth: 32FC1 means metres (REP 118)")
    failures: list[FathomError] = []
    facts = {"fathom.network": pipeline.origin.network, "fathom.manifest_sha256": pipeline.origin.sha256}
    facts.update({"fathom.correction": pipeline.scale.words} if pipeline.scale else {})
    facts.update({"fathom.warning": "UNTRAINED WEIGHTS"} if pipeline.origin.untrained else {})
    done, clouds, bent, waiting = 0, "ply" in (arguments.save or ()), False, deque()

    def settle(writer: BagWriter) -> None:
        nonlocal done
        stamp_ns, header, info, photo, future = waiting.popleft()
        try:
            depth = future.result()
        except (InputError, AccuracyError) as error:
            failures.append(error)
            return
        writer.write(stamp_ns, header, depth, info, photo if clouds and depth.intrinsics else None)
        done += 1

    with BagSource(arguments.inputs[0], arguments.topic) as source, BagWriter(out, source.topic, arguments.force, facts) as writer:
        rectified = is_rectified(source.topic)
        with Progress(source.frames, "frames", arguments.quiet) as progress:
            for number, (stamp_ns, message, info) in enumerate(source, 1):
                try:
                    photo = photo_of(message)
                    height, width = photo.shape[:2]
                    known = camera or (camera_of(info, width, height, rectified) if info is not None else None)
                    if clouds and known is None:
                        raise UsageError("a point cloud needs the camera, and the bag has no calibrated CameraInfo", fix="--intrinsics fx,fy,cx,cy")
                    fields = pinhole_info(camera, width, height) if camera else scaled_info(info, width, height, rectified) if info is not None else None
                    if info is not None and not (bent or rectified) and distorted(info):
                        bent = True
                        progress.message("the camera's lens is distorted; depth_image_proc and clouds want rectified pictures (image_rect)")
                    waiting.append((stamp_ns, message.header, fields, photo, _submitted(pipeline, arguments, photo, known)))
                except InputError as error:
                    failures.append(error)
                while len(waiting) > pipeline.concurrent:
                    settle(writer)
                progress.advance_to(number)
            while waiting:
                settle(writer)
            for words in pipeline.remarks.new():
                progress.message(words)
        if not done:
            raise failures[0] if failures else InputError(f"{arguments.inputs[0]}: {source.topic} holds no picture", wanted="at least one")
    for error in failures:
        say(f"error: {error}")
    numbers: dict[str, Any] = {"bag": arguments.inputs[0], "topic": source.topic, "frames": done, "failed": len(failures), "file": str(out)}
    numbers.update({"untrained": pipeline.origin.untrained, **({"correction": pipeline.scale.words} if pipeline.scale else {})})
    words = f"{arguments.inputs[0]} {source.topic}  {done} frames, {len(failures)} failed{', UNTRAINED WEIGHTS' if pipeline.origin.untrained else ''}"
    words += f", {pipeline.scale.words}" if pipeline.scale else ""
    print(json.dumps(numbers) if arguments.json else f"{words} -> {out}", flush=True)
    return max((error.exit_code for error in failures), default=0)


def _submitted(pipeline: Pipeline, arguments: argparse.Namespace, photo: Any, camera: Intrinsics | None) -> Any:
    return pipeline.submit(photo, arguments.protocol, camera, arguments.prompt)
