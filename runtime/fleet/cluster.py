"""Ray as this tool uses it: started or joined, quiet, and shared out between pipelines."""

from __future__ import annotations

import logging
import os
import re
import socket
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from typing import Any

from ..errors import EnvironmentMismatchError, FathomError, UsageError, missing_package

ADDRESS = re.compile(r"auto|ray://[^/\s]+|[A-Za-z0-9_.\[\]:-]+:[0-9]{1,5}")
LOCAL = "local"
CPUS_LEFT = 1.1  # of each machine, as Ray counts: its listing of files takes a whole one, and waits for ever where the actors hold them all
READER_CPUS = 0.25
ALIVE = "Alive"
CONNECT_S = 10.0


@dataclass(frozen=True)
class Shares:
    """Actors and what each may take.

    Args:
        actors: how many pipelines.
        cpus, gpus: of one actor, as Ray counts them.
        threads: of one pipeline on CPUs; None for all that a GPU's pipeline wants.
    """

    actors: int
    cpus: float
    gpus: float
    threads: int | None


def check_address(address: str) -> str:
    """The address itself.

    Raises:
        UsageError: if it cannot be one; most likely an input stands behind the flag.
    """
    if address != LOCAL and not ADDRESS.fullmatch(address):
        raise UsageError(f"--ray {address}", wanted="auto, HOST:PORT, ray://HOST:PORT, or nothing for a Ray of its own", fix="write the inputs before --ray")
    return address


@contextmanager
def joined(address: str, quiet: bool) -> Iterator[Any]:
    """The package ``ray``, connected to a cluster, or to one of its own that ends with this.

    Raises:
        EnvironmentMismatchError: if Ray is not installed, or cannot be reached.
    """
    for variable, value in (("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0"), ("RAY_BACKEND_LOG_LEVEL", "fatal")):  # what Ray has to say to its developers
        os.environ.setdefault(variable, value)
    warnings.filterwarnings("ignore", module=r"ray\.")
    try:
        import ray.data
    except ImportError as error:
        raise missing_package("ray", "ray", "Ray Data, which --ray hands the photos to") from error
    _reach(address)
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        about = {"include_dashboard": False} if address == LOCAL else {}
        with _hushed():
            ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False, **about)
    except Exception as error:  # ConnectionError, ValueError, RuntimeError: whatever stood in the way
        raise EnvironmentMismatchError(f"no Ray at {address} ({' '.join(str(error).split())[:300]})", fix="ray start --head, and its address") from error
    try:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = not quiet
        context.print_on_execution_start = False
        with redirect_stdout(sys.stderr):  # where Ray tells of workers that died; results alone go to stdout
            yield ray
    finally:
        with redirect_stdout(sys.stderr), suppress(Exception):  # a cluster that is gone cannot be left
            ray.shutdown()


def _reach(address: str) -> None:
    """Ray waits for minutes for an address at which nothing is."""
    host, colon, port = address.partition("://")[2 if "://" in address else 0].rpartition(":")
    if not colon or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise EnvironmentMismatchError(f"no Ray at {address} ({error})", wanted="a cluster that is up", fix="ray start --head, and its address") from error


@contextmanager
def _hushed() -> Iterator[None]:
    """What libraries below Python write to stderr while Ray starts is kept away; what goes wrong is an exception."""
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


def shares(ray: Any, gpu: bool, threads: int | None) -> Shares:
    """One pipeline per GPU, or one for every so many CPUs.

    Args:
        gpu: whether the plan runs on GPUs.
        threads: CPUs of one pipeline; None for all of a machine, but no more than 4.

    Raises:
        EnvironmentMismatchError: if the cluster has no GPU, or no machine with so many CPUs.
    """
    have = ray.cluster_resources()
    if gpu:
        actors = int(have.get("GPU", 0))
        if not actors:
            raise EnvironmentMismatchError(
                "this Ray knows of no GPU", wanted="one GPU for each pipeline", fix="ray start --num-gpus N, or a plan for onnxruntime"
            )
        return Shares(actors, 0.0, 1.0, threads)
    cpus = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node.get(ALIVE)]
    each = threads or max(1, min(4, max(cpus, default=1)))
    actors = sum(count // each for count in cpus)
    if not actors:
        raise EnvironmentMismatchError(f"no machine of this Ray has {each} CPUs", wanted="as many as --threads", fix="a smaller --threads")
    return Shares(actors, round(max(0.0, min((count - CPUS_LEFT) / (count // each) for count in cpus if count >= each)), 4), 0.0, each)


@contextmanager
def told() -> Iterator[None]:
    """A worker's ``FathomError``, which Ray wraps several times, as itself.

    Raises:
        FathomError: what the worker raised, or what Ray says if it was something else.
    """
    try:
        yield
    except (FathomError, KeyboardInterrupt):
        raise
    except Exception as error:
        seen: list[Any] = []
        waiting: list[Any] = [error]
        while waiting:
            cause = waiting.pop()
            if cause is None or any(cause is other for other in seen):
                continue
            if isinstance(cause, FathomError):
                raise cause from error
            seen.append(cause)
            waiting += [cause.__cause__, cause.__context__, getattr(cause, "cause", None)]
        words = " ".join(str(error).split())
        raise FathomError(f"Ray gave up ({type(error).__name__}: {words[:600]})", fix="start the same command again: it does what is missing") from error


def fetcher(ray: Any, path: str, anywhere: bool) -> Callable[[], bytes] | None:
    """Lets workers on other machines have the plan's bytes by way of Ray's object store, which keeps one copy per machine.

    Args:
        anywhere: whether there are other machines.
    """
    if not anywhere or os.path.isdir(path):
        return None
    import numpy as np

    held = ray.put(np.fromfile(path, np.uint8))
    return lambda: ray.get(held).tobytes()
