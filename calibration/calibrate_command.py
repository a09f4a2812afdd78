"""``depth-calibrate``: real images in, calibration table and precision plan out."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ..runtime.artefact.bundle import BundleDirectory
from ..runtime.artefact.spec import PRECISIONS
from ..runtime.commands.command import common_flags, run_command, say, warn
from ..runtime.errors import UsageError

if TYPE_CHECKING:
    from .search.clock import Clock

FindClock = Callable[[Path, Callable[[str], None]], "Clock | None"]  # bundle, remarks
CARD_NAMES = "orin-nano, orin-agx, rtx3060, rtx3090, rtx4090, rtx5090, l4, h100 (default: %(default)s)"
EPILOG = """\
exit codes: 0 ok, 2 usage, 3 bad input, 4 the FP32 network itself is broken, 7 out of memory, 130 interrupted
An interrupted calibration is taken up where it stopped when the same command is given again; with other settings, --force throws it away.
example: depth-calibrate evp/ --data nyu:nyu_depth_v2_labeled.mat --budget abs_rel=0.5%,delta1=0.2pp
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="depth-calibrate",
        description="Find the fastest precision of every part of a bundle that keeps its depth, on real images.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bundle", type=Path, help="directory made by depth-export; table and plan are put into it")
    sources = "nyu:FILE.mat[:train] | pairs:DIR[:train] | images:DIR | rooms:N | kitti:DIR:LIST | nyu-folder:DIR; may be given several times"
    parser.add_argument("--data", required=True, action="append", metavar="DATA", help=sources)
    parser.add_argument("--budget", default="abs_rel=0.5%,delta1=0.2pp,moved=2%", metavar="BUDGET", help="greatest change from FP32 (default: %(default)s)")
    parser.add_argument(
        "--precisions",
        default="fp32,bf16,fp16,int8",
        metavar="LIST",
        help="candidates; fp8 for cards that have it (--for), int4 for weights (default: %(default)s)",
    )
    parser.add_argument("--images", type=int, default=512, metavar="N", help="how many images at most; more are drawn by --seed (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of that draw and of the three splits (default: %(default)s)")
    parser.add_argument("--protocol", help="how photos are shown to the network (default: the bundle's first)")
    parser.add_argument("--prompt", action="append", default=[], help="words, for a network that is asked in words; may be given several times")
    parser.add_argument("--memory", type=float, default=8.0, metavar="GIB", help="bound for the observation; less means more passes (default: %(default)s)")
    parser.add_argument("--regions", type=int, default=48, metavar="N", help="most regions per stage; fewer are faster to search (default: %(default)s)")
    parser.add_argument("--hours", type=float, metavar="N", help="how long it may take at most: images, regions and trials are cut to fit (default: no bound)")
    parser.add_argument("--also", default="", metavar="LIST", help="quantise these too: residual-adds, attention-products (default: neither)")
    parser.add_argument("--stage-times", type=Path, metavar="FILE", help="decide by times of a card, made by depth-build --stage-times (default: modelled)")
    parser.add_argument("--for", dest="card", default="rtx3090", metavar="CARD", help="whose published rates the modelled times go by: " + CARD_NAMES)
    common_flags(parser)
    return parser


def main(arguments: list[str] | None = None, find_clock: FindClock | None = None) -> int:
    """Run the command; see ``--help``.

    Args:
        find_clock: what builds and times mixtures on the card of this machine, if ``--stage-times`` says that there is one.
    """
    options = _parser().parse_args(arguments)
    return run_command(lambda: _run(options, find_clock))


def _run(options: argparse.Namespace, find_clock: FindClock | None) -> int:
    from ..runtime.commands.progress import Progress
    from .calibrate import PLAN, TABLE, Settings, add_to_bundle, calibrate, refuse_calibrated
    from .observation.images import Chosen
    from .quantisation.quantize import ALSO
    from .report import report_lines
    from .search.cards import CARDS
    from .search.objective import Budget
    from .search.stage_times import read_stage_times

    precisions = tuple(word.strip() for word in options.precisions.split(","))
    if unknown := set(precisions) - set(PRECISIONS):
        raise UsageError(f"there is no precision {sorted(unknown)[0]!r}", wanted=", ".join(PRECISIONS))
    if options.images < 3 or not 1 <= options.regions <= 4096 or not math.isfinite(options.memory) or not 0.25 <= options.memory <= 4096 or options.seed < 0:
        raise UsageError("a number is out of range", wanted="--images from 3, --regions 1 to 4096, --memory 0.25 to 4096, --seed from 0")
    if options.hours is not None and not 0 < options.hours <= 10000:
        raise UsageError(f"--hours {options.hours:g}", wanted="more than 0, at most 10000")
    also = tuple(word.strip() for word in options.also.split(",") if word.strip())
    if unknown := set(also) - set(ALSO):
        raise UsageError(f"--also {sorted(unknown)[0]!r}", wanted=", ".join(ALSO))
    if options.card not in CARDS:
        raise UsageError(f"--for {options.card!r}: its peak rates are not known", wanted=", ".join(CARDS), fix="take the one nearest to it")
    budget = Budget.parse(options.budget)
    with BundleDirectory.open(options.bundle) as bundle:
        refuse_calibrated(bundle, options.force)
        measured = read_stage_times(options.stage_times, bundle.manifest) if options.stage_times else None
        data = Chosen(*options.data, count=options.images, seed=options.seed)
        journal = options.bundle.absolute().parent / f".{options.bundle.absolute().name}.calibration"
        clock = find_clock(options.bundle, _remark(options.quiet)) if find_clock and measured else None
        settings = Settings(
            budget,
            precisions,
            options.protocol,
            tuple(options.prompt),
            int(options.memory * (1 << 30)),
            options.regions,
            measured,
            CARDS[options.card],
            clock,
            also,
            options.hours,
        )
        ticker = _Ticker(options.quiet, Progress)
        try:
            result = calibrate(bundle, data, settings, journal, ticker, ticker.say(_remark(options.quiet)), options.force)
        finally:
            ticker.close()
        for text in result.table.warnings:
            warn(text)
        add_to_bundle(bundle, result, options.force)
    if options.json:
        for fact in _facts(options.bundle, result):
            print(json.dumps(fact, sort_keys=True))
    else:
        print("\n".join(report_lines(result)))
        _remark(options.quiet)(f"wrote {options.bundle / TABLE} and {options.bundle / PLAN}")
    return 0


def _remark(quiet: bool) -> Callable[[str], None]:
    return lambda text: None if quiet else say(text)


class _Ticker:
    """Turns steps into progress: what is counted changes: images, pictures through a stage, regions, variants."""

    def __init__(self, quiet: bool, progress: type):
        self._quiet, self._make, self._progress, self._what = quiet, progress, None, ""

    def __call__(self, what: str, total: int) -> None:
        """One step of ``what`` is done, of ``total``."""
        if what != self._what:
            self.close()
            self._what, self._progress = what, self._make(total, what, self._quiet)
        self._progress.advance()

    def say(self, remark: Callable[[str], None]) -> Callable[[str], None]:
        """Words for people, with the bar out of the way."""

        def told(text: str) -> None:
            self.close()
            remark(text)

        return told

    def close(self) -> None:
        """Take the bar away."""
        if self._progress is not None:
            self._progress.close()
            self._progress, self._what = None, ""


def _facts(bundle: Path, result) -> list[dict]:
    plan = result.plan
    found = [{"kind": "calibration", "bundle": str(bundle), "images": result.table.images, "warnings": list(result.table.warnings), "tried": result.tried}]
    found += [{"kind": "proof", **plan.proof}]
    found += [{"kind": "verdict", "stage": stage, "text": text} for stage, text in plan.verdicts.items()]
    found += [{"kind": "region", "stage": r.stage, "path": r.path, "choice": r.choice.words, "reason": r.reason} for r in plan.regions]
    return found + [
        {"kind": "variant", "name": v.name, "cost_ms": v.cost_ms, "within": v.within, "pareto": v.pareto, "chosen": v.chosen, **v.score} for v in plan.variants
    ]


if __name__ == "__main__":
    sys.exit(main())
