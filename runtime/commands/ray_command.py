"""``depth-run --ray``: the photos of a whole cluster's worth of work; a second start does what is missing."""

from __future__ import annotations

import argparse
import dataclasses
import json
import secrets
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ..artefact.manifest import PlanManifest
from ..artefact.trust import Trust
from ..errors import InputError, UsageError
from ..fleet.cluster import check_address, joined, shares
from ..fleet.job import BROKEN, FleetJob
from ..fleet.places import FilesPlace, ParquetPlace
from ..fleet.run_on_ray import Outcome
from ..fleet.sources import find_sources, is_parquet, is_uri, load_arrow
from ..outputs.writers import refuse_ply, require_exr
from ..photo.depth_map import Origin
from ..ros.bag import is_bag
from ..video.video import is_video
from .command import say, warn
from .inspection import open_artefact
from .progress import Progress

TABLE_ROWS = 20


def run_ray(arguments: argparse.Namespace, trust: Trust, suffixes: dict[str, str], camera: Any, correction: Any, check: Any) -> int:
    """Do what the command line says; returns the exit code. Broken photos are a table at the end, and a Parquet; not a failure.

    Args:
        trust: whose plan it has to be.
        suffixes: kind of file -> its ending.
        check: of ``depth-run``: what a pipeline is asked before the first photo (scene, scale, weights); takes anything with ``contract`` and ``origin``.
    """
    with open_artefact(arguments.engine, False, trust) as artefact:  # every machine compares every byte with this manifest
        manifest, sha256 = artefact.manifest, artefact.manifest_sha256
    start, address = time.monotonic(), check_address(arguments.ray)
    if arguments.show or arguments.topic is not None:
        raise UsageError("--show and --topic with --ray", wanted="photos to files or Parquet", fix="leave them out")
    moving = next((text for text in arguments.inputs if is_bag(text) or is_video(text)), None)
    if moving is not None:
        raise UsageError(f"{moving} with --ray", wanted="photos, lists of them or Parquet", fix="a video or bag without --ray")
    if arguments.device not in (None, "cpu", "cuda"):
        raise UsageError(f"--device {arguments.device} with --ray", wanted="cpu or cuda: Ray gives each pipeline a GPU of its own", fix="leave it out")
    rows = is_parquet(arguments.output)
    if is_uri(arguments.output) and not rows:
        raise UsageError(f"-o {arguments.output} for files", wanted="a folder that all machines share, or a name that ends in .parquet")
    if rows and arguments.save:
        raise UsageError("--save with Parquet", wanted="one of them: a row holds the map itself", fix="leave --save out")
    load_arrow()
    contract, facts = manifest.contract, manifest.network
    protocol = next((known for known in contract.protocols if arguments.protocol in (None, known.name)), None)
    if protocol is None:
        raise UsageError(f"there is no protocol {arguments.protocol!r}", wanted=" or ".join(known.name for known in contract.protocols))
    origin = Origin(facts.called, "", facts.untrained, facts.scene)
    check(SimpleNamespace(contract=contract, origin=origin, protocol=lambda name: protocol))
    kinds = () if rows else arguments.save or ("png16", "color", *(("ply",) if camera else ()))
    if "ply" in kinds:
        refuse_ply(contract.output.kind, camera)
    if "exr" in kinds:
        require_exr()
    gpu = _on_gpu(manifest, arguments.device)

    def remark(text: str) -> None:
        if not arguments.quiet:
            say(text)

    sources = find_sources(arguments.inputs, remark)
    named = {key: getattr(arguments, key) for key in ("mask_edges", "prompt", "colormap", "near", "far", "device", "batch", "streams", "force")}
    job = FleetJob(
        secrets.token_hex(8),
        str(Path(arguments.engine).resolve()),
        sha256,
        "" if rows else str(Path(arguments.output).resolve()),
        tuple((kind, suffixes[kind]) for kind in kinds),
        protocol.name,
        camera,
        correction,
        threads=arguments.threads,
        **named,
    )
    place = ParquetPlace(arguments.output, job, suffixes) if rows else FilesPlace(arguments.output, job, suffixes)
    with _told_by_file_systems(arguments.output), place.alone():
        missing = place.missing(sources)
        there = len(sources.names) - len(missing)
        if there:
            remark(f"{there} of {len(sources.names)} photos are done already")
        outcome, shared, nodes, started = Outcome(), None, 0, time.monotonic()
        if missing:
            with joined(address, arguments.quiet or not sys.stderr.isatty()) as ray:
                shared, nodes, started = shares(ray, gpu, arguments.threads), sum(bool(node.get("Alive")) for node in ray.nodes()), time.monotonic()
                place.begin()
                place.job = dataclasses.replace(job, threads=shared.threads, batch=job.batch or (None if gpu else _least_batch(manifest)))
                with Progress(len(missing), "photos", arguments.quiet or rows or sys.stderr.isatty()) as progress:  # on a terminal Ray draws its own
                    outcome = place.work(ray, sources, missing, shared, progress.advance)
        lost = {
            key: ("it was not there when it was to be read", InputError.exit_code) for key in missing if key not in outcome.done and key not in outcome.broken
        }
        outcome.broken.update(lost)
        place.finish(outcome, sources)
    return _report(arguments, outcome, len(sources.names), there, shared, nodes, (started - start, time.monotonic() - started), origin, correction)


@contextmanager
def _told_by_file_systems(output: str) -> Iterator[None]:
    """What pyarrow's file systems and the operating system say of the output, as an error of ours."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{output} cannot be read or written ({' '.join(str(error).split())[:300]})", fix="check its address, room and permissions") from error


def _least_batch(manifest: Any) -> int:
    """Windows per run on CPUs, which gain nothing by more: then no photo's last bits depend on which others Ray put beside it."""
    return manifest.batch[0] if isinstance(manifest, PlanManifest) else 1


def _on_gpu(manifest: Any, device: str | None) -> bool:
    if device is not None:
        return device != "cpu"
    return isinstance(manifest, PlanManifest) and (manifest.backend != "onnxruntime" or "cuda" in manifest.targets)


def _report(
    arguments: argparse.Namespace,
    outcome: Outcome,
    asked: int,
    there: int,
    shared: Any,
    nodes: int,
    seconds: tuple[float, float],
    origin: Any,
    correction: Any,
) -> int:
    for key, words in sorted(outcome.warnings.items()):
        warn(f"{key}: {words}")
    for key, (words, _) in sorted(outcome.broken.items())[:TABLE_ROWS]:
        say(f"broken: {key}: {words}")
    if outcome.broken:
        more = f", {len(outcome.broken) - TABLE_ROWS} more" if len(outcome.broken) > TABLE_ROWS else ""
        out = arguments.output.partition("?")[0] if is_uri(arguments.output) else arguments.output
        say(f"{len(outcome.broken)} of {asked} photos are broken{more}: {out.rstrip('/')}/{BROKEN}")
    done, (starting_s, working_s) = len(outcome.done), seconds
    facts: dict[str, Any] = {"output": arguments.output, "photos": asked, "done": done, "there": there, "broken": len(outcome.broken)}
    facts.update({"ray": arguments.ray, "nodes": nodes, "actors": shared.actors if shared else 0, "threads": shared.threads if shared else None})
    facts.update({"starting_s": round(starting_s, 2), "working_s": round(working_s, 2), "plan_reads": outcome.plan_reads})
    facts.update({"network": origin.network, "untrained": origin.untrained, **({"correction": correction.words} if correction else {})})
    words = f"{done} photos done, {there} done before, {len(outcome.broken)} broken"
    rate = f" in {working_s:.1f} s ({done / working_s:.1f}/s) by {shared.actors} pipelines" if shared and done else ""
    rate += f"{', UNTRAINED WEIGHTS' if origin.untrained else ''}{f', {correction.words}' if correction else ''}"
    print(json.dumps(facts) if arguments.json else f"{words}{rate} -> {arguments.output}", flush=True)
    return 0 if done or there or not outcome.broken else max(code for _, code in outcome.broken.values())
