"""What ``depth-export`` and ``depth-build`` share: steps on stderr, the closing line, parsing of their flags. Imports nothing heavy."""

from __future__ import annotations

import argparse
import gc
import importlib.util
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ...runtime.commands.command import run_command, say
from ...runtime.commands.progress import Progress
from ...runtime.errors import EnvironmentMismatchError, UsageError, missing_package

BACKENDS = ("onnxruntime", "tensorrt", "tensorrt-rtx")  # those of runtime/artefact/manifest.py, which would load NumPy; a test compares them
STEPS = 1000
GIB = 1 << 30
FEW_COLLECTIONS = (100_000, 50, 100)  # of gc.set_threshold


class StepReporter:
    """Shows how far the work is: a bar on a terminal, else a line when a stage begins and one every ten seconds."""

    def __init__(self, quiet: bool):
        self._progress = Progress(STEPS, "steps", quiet)
        self._last = ""

    def __call__(self, what: str, done: float) -> None:
        """``done`` from 0 to 1."""
        if what != self._last:
            self._last = what
            self._progress.message(what)
        self._progress.advance(max(0, int(done * STEPS) - self._progress.done))

    def close(self) -> None:
        """Take the bar away."""
        self._progress.close()


def run_and_close(program: str, path: str, quiet: bool, body: Callable[[Callable[[str], None], StepReporter], int | None]) -> int:
    """Run the work of a command; the last line on stderr says how it ended.

    Args:
        program: ``depth-export`` or ``depth-build``.
        path: what it makes.
        quiet: no remarks and no closing line.
        body: takes ``on_message`` (remarks for people) and the progress reporter.
    """
    start, reporter = time.monotonic(), StepReporter(quiet)

    def on_message(text: str) -> None:
        if not quiet:
            say(text)

    def work() -> int:
        try:
            return body(on_message, reporter) or 0
        finally:
            reporter.close()

    with few_collections():
        code = run_command(work)
    on_message(f"{'FAILED' if code else 'PASSED'} | {program} | {time.monotonic() - start:.1f} s | {path}")
    return code


@contextmanager
def few_collections() -> Iterator[None]:
    """Python looks for cycles of objects a hundred times less often: a traced network is millions of objects that stay, and looking through
    all of them again and again took a third of an export's time.
    """
    before = gc.get_threshold()
    gc.set_threshold(*FEW_COLLECTIONS)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def require_packages(names: tuple[str, ...], extra: str, why: str, fix: str = "") -> None:
    """Before anything heavy is imported.

    Args:
        names: of the modules.
        extra: of this package that brings them.
        why: they are wanted.
        fix: what brings them instead of the extra.

    Raises:
        EnvironmentMismatchError: naming the first package that is missing and the ``pip install`` that mends it.
    """
    for name in names:
        try:
            found = importlib.util.find_spec(name)
        except (ImportError, ValueError):
            found = None
        if found is None:
            missing = missing_package(name, extra, why)
            raise EnvironmentMismatchError(missing.was, wanted=missing.wanted, fix=fix or missing.fix)


def refuse_empty_values(parser: argparse.ArgumentParser) -> None:
    """An empty word, as a shell variable that is not set gives, would be taken for a flag that was left out."""

    def filled(text: str) -> str:
        if not text:
            raise argparse.ArgumentTypeError("its value is empty; leave it out, or look whether a shell variable is set")
        return text

    parser.register("type", None, filled)  # None: of flags that name no type of their own


def build_flags(parser: argparse._ActionsContainer) -> tuple[str, ...]:
    """The flags of ``depth-build``, which ``depth-export -o x.plan`` takes too; returns their names. What was not given is None."""
    operators = "our own operators instead of the graph's, such as GroupNormSilu, or vae:GroupNormSilu for one stage (default: none; see docs/plugins.md)"
    layers = "TensorRT: also write what the engines tell of their layers, for depth-inspect --layers"
    targets = "tensorrt-rtx: compute capabilities, such as sm86,sm89 (default: all); onnxruntime: cpu or cuda"
    precisions = "of engines (default: fp32); fp16 is simulated for onnxruntime on a CPU, to measure it; int8, fp8, int4 are for bundles calibrated for them"
    flags = (
        parser.add_argument("--backend", choices=BACKENDS, help="what runs the plan (default: onnxruntime)"),
        parser.add_argument("--precision", choices=("fp32", "fp16", "int8", "fp8", "int4"), help=precisions),
        parser.add_argument("--target", metavar="SM,SM", help=targets),
        parser.add_argument("--batch", metavar="N|MIN:OPT:MAX", help="pictures per run, fixed or a range (default: 1)"),
        parser.add_argument("--memory", metavar="GIB", type=_gib, help="stop a compiler that takes more (default: most of what is available)"),
        parser.add_argument("--workspace", metavar="GIB", type=_gib, help="tensorrt: scratch memory that a layer may take on the GPU (default: all)"),
        parser.add_argument("--timing-cache", metavar="FILE", help="tensorrt: what was measured while building (default: in the user's cache)"),
        parser.add_argument("--device", metavar="N", type=_number, help="TensorRT: the GPU to build for and to run on (default: 0)"),
        parser.add_argument("--layers", metavar="FILE", help=layers),
        parser.add_argument("--operators", metavar="[STAGE:]OP,OP", help=operators),
        parser.add_argument("--plugins", metavar="FILE", help="tensorrt: the library of these operators; without it they run between the engines"),
    )
    return tuple(action.dest for action in flags)


def build_options(arguments: argparse.Namespace) -> Any:
    """``BuildOptions`` from the flags.

    Raises:
        UsageError: if they make no sense together.
        EnvironmentMismatchError: if the compiler is not installed.
    """
    from ..operators.choice import parse_choices
    from ..plan.build import BuildOptions

    targets = tuple(word.strip().lower() for word in (arguments.target or "").split(",") if word.strip())
    backend = arguments.backend or "onnxruntime"
    small = {name: getattr(arguments, name) or "" for name in ("timing_cache", "layers", "plugins")}
    limits = {"limit_nbytes": arguments.memory or 0, "workspace_nbytes": arguments.workspace or 0, "device": arguments.device or 0}
    own = parse_choices(arguments.operators or "")
    options = BuildOptions(backend, arguments.precision or "fp32", targets, parse_batch(arguments.batch or "1"), **limits, **small, operators=own)
    if backend == "onnxruntime":
        require_packages(("onnxruntime",), "build", "ONNX Runtime optimises the graphs")
    else:
        from ...runtime.jetson import tensorrt_fix
        from ...runtime.tensorrt.loading import EXTRAS, MODULES
        from ..child.child import TENSORRT_PYTHON

        if backend != "tensorrt" or not os.environ.get(TENSORRT_PYTHON):
            require_packages((MODULES[backend],), EXTRAS[backend], f"{backend} engines are compiled by it", tensorrt_fix(backend, ""))
    return options


def parse_batch(text: str) -> tuple[int, int, int]:
    """``4`` or ``1:4:16``.

    Raises:
        UsageError: if it is neither.
    """
    parts = text.split(":")
    try:
        numbers = tuple(int(part) for part in parts)
    except ValueError:
        numbers = ()
    if len(numbers) == 1:
        return numbers * 3
    if len(numbers) != 3:
        raise UsageError(f"--batch {text!r}", wanted="a number, or MIN:OPT:MAX")
    return numbers


def _gib(text: str) -> int:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.1 <= value <= 1 << 14:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of GiB")
    return int(value * GIB)


def _number(text: str) -> int:
    if not text.isdecimal() or len(text) > 3:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of a GPU, as nvidia-smi -L counts them")
    return int(text)


def file_nbytes(path: str) -> int:
    """Size of a file in bytes."""
    return os.stat(path).st_size
