"""``depth-train``: a network of the catalog learns from depth pictures, by its paper's recipe."""

from __future__ import annotations

import argparse
import importlib.util
import json
import shlex
from collections.abc import Callable
from pathlib import Path

from ...runtime.commands.command import common_flags, run_command
from ...runtime.commands.progress import Progress
from ...runtime.errors import UsageError, missing_package

DEFAULTS = {"seed": 0, "store": "fp32", "shots": 0, "hold_back": 0, "ema": 0.0, "accumulate": 1}
WORDS = (  # flags in the command that is written on the card, in its order
    *("shots", "weights", "visual_weights", "backbone", "variant", "scene", "texts", "captions", "learn", "steps", "batch", "lr"),
    *("hint_alone", "precision", "ema", "hold_back", "accumulate", "seed", "store"),
)
PACKAGES = ("torch", "diffusers", "transformers", "safetensors")
EPILOG = """\
examples:
  depth-train --model evp-tiny --data rooms:2000 --val rooms:50:7 -o evp-tiny.safetensors
  depth-train --model evp --weights sd15.safetensors --data nyu:nyu_depth_v2_labeled.mat --val nyu:nyu_depth_v2_labeled.mat:test -o evp.safetensors
  depth-train --model llm-mde --variant paper --weights bert.safetensors --visual-weights vit.safetensors --data nyu:FILE.mat --hold-back 50 -o llm.safetensors
  depth-train --quantise evp/precision_plan.json --data nyu:nyu_depth_v2_labeled.mat -o evp-learned/
  torchrun --nproc-per-node 8 -m fathom.models.training.train_command --model vpd --weights sd15.ckpt --data nyu-folder:nyu:train.txt -o vpd.safetensors
The weights are read back by depth-export --weights; they say their variant and settings themselves. Beside them lie the log
(.log.jsonl), the model card (.md) and, until the run is over, its state: an interrupted run goes on with --resume and ends with the same numbers.

data:
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line of ``depth-train``."""
    from ...datasets.source import GRAMMAR

    parser = argparse.ArgumentParser(
        prog="depth-train",
        description="Train a depth network by its paper's recipe.",
        epilog=EPILOG + "  " + GRAMMAR.replace("\n", "\n  "),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--model", metavar="NAME", help="a network of the catalog that has a recipe (--list)")
    parser.add_argument("--list", action="store_true", help="list the recipes, and leave")
    parser.add_argument("--data", metavar="DATA", action="append", help="what to learn from; may be repeated; DATA*N: each sample counts N times")
    parser.add_argument("--shots", type=_positive, default=0, metavar="N", help="learn from only N samples of the data, drawn by the seed")
    parser.add_argument("--val", metavar="DATA", action="append", default=[], help="what to measure on; the first one also during training; may be repeated")
    parser.add_argument("-o", "--output", metavar="FILE", help="the weights to write, .safetensors; with --quantise a bundle")
    quantise = "instead of a recipe: the precision_plan.json inside a calibrated bundle, whose INT8 or FP8 is distilled from its FP32; --data need no depth"
    parser.add_argument("--quantise", metavar="PLAN", help=quantise)
    start = parser.add_argument_group("start")
    start.add_argument(
        "--weights", metavar="FILE", help="checkpoint to start from: the network's own, or what its authors began with (small networks need none)"
    )
    start.add_argument("--visual-weights", metavar="FILE", help="the image encoder's checkpoint, for networks that are published in two files")
    start.add_argument("--backbone", metavar="NAME", help="take over VAE and U-Net from the demo weights of another small network, such as evp-tiny")
    start.add_argument("--random-init", action="store_true", help="start a full-size network from random numbers")
    start.add_argument("--variant", metavar="NAME", help="which published set of constants, such as nyu or kitti")
    start.add_argument("--scene", metavar="NAME", help="kind of room to measure with, for networks that must be told and data that does not say")
    start.add_argument("--set", metavar="NAME=N", action="append", default=[], help="a number of the network that the paper varies, such as experts=8")
    start.add_argument("--texts", metavar="FILE", help="captions whose mean is EVP's one text, read by the CLIP of the file it starts from")
    start.add_argument("--captions", metavar="FILE", help="with --set captions=1: a JSON object from the pictures' ids, or paths that end so, to captions")
    recipe = parser.add_argument_group("instead of the recipe's")
    recipe.add_argument("--learn", metavar="PART", help="clip: EVP's text tower too; qformer: DepthBLIP-2's Q-Former instead of its bins")
    recipe.add_argument("--steps", type=_positive, metavar="N", help="steps of the optimiser (default: the recipe's epochs)")
    recipe.add_argument("--batch", type=_positive, metavar="N", help="pictures per step and process")
    recipe.add_argument("--lr", type=float, metavar="X", help="highest learning rate; the lowest moves with it")
    hint = "share of the steps in which only the backbone learns, by its hint, at a fraction of the time (default: the recipe's; 0 with --weights)"
    recipe.add_argument("--hint-alone", type=_share, metavar="X", help=hint)
    recipe.add_argument("--precision", choices=("fp32", "bf16", "fp16"), help="of products and convolutions while learning; weights and loss stay FP32")
    recipe.add_argument("--ema", type=_share, default=0.0, metavar="X", help="validate and write a moving average of the weights, such as 0.999")
    how = parser.add_argument_group("how")
    how.add_argument(
        "--hold-back",
        type=_positive,
        default=0,
        metavar="N",
        help="learn from all but N samples, and choose the best weights by those (.best.safetensors)",
    )
    how.add_argument("--accumulate", type=_positive, default=1, metavar="N", help="compute each step's pictures in N parts, for less memory")
    how.add_argument("--workers", type=_positive, default=0, metavar="N", help="threads that make the next steps' batches")
    how.add_argument("--seed", type=_seed, default=DEFAULTS["seed"], metavar="N", help="of weights, order and augmentation (default: %(default)s)")
    how.add_argument("--every", type=_positive, metavar="N", help="steps between validations and saved states (default: 200; an epoch where patience counts)")
    how.add_argument("--store", choices=("fp32", "fp16"), default=DEFAULTS["store"], help="how the weights are written (default: %(default)s)")
    how.add_argument("--cache", metavar="DIR", help="keep every sample that was read or rendered in this folder")
    how.add_argument("--device", default="cpu", metavar="NAME", help="cpu, cuda or cuda:N (default: %(default)s)")
    how.add_argument("--threads", type=_positive, default=None, metavar="N", help="CPU threads (default: torch's choice)")
    how.add_argument("--resume", action="store_true", help="go on with the interrupted run that makes the same output")
    common_flags(parser)
    return parser


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 10**9):
        raise argparse.ArgumentTypeError(f"a whole number from 1 was wanted, got {text!r}")
    return int(text)


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"a share from 0 to below 1 was wanted, got {text!r}")
    return value


def _seed(text: str) -> int:
    return 0 if text == "0" else _positive(text)


def main(argv: list[str] | None = None, learn_quantised: Callable[[argparse.Namespace, argparse.Namespace], int] | None = None) -> int:
    """Run ``depth-train``; returns the exit code.

    Args:
        learn_quantised: does what ``--quantise`` asks for, from the arguments and their defaults.
    """
    parser = build_parser()
    arguments = parser.parse_args(argv)
    if arguments.list:
        return _list(arguments)
    for flag, name in (("model", "--model"), ("data", "--data"), ("output", "-o")):
        if not (getattr(arguments, flag) or (flag == "model" and arguments.quantise)):
            parser.error(f"{name} is needed")
    if arguments.quantise:
        if learn_quantised is None:
            parser.error("--quantise is for depth-train; this module alone has no ONNX")
        return run_command(lambda: learn_quantised(arguments, parser.parse_args([])))
    return run_command(lambda: _run(arguments))


def command_words(arguments: argparse.Namespace) -> str:
    """The command that makes the same weights, in the shortest form: what only says how to compute or where to keep things is left out."""
    words = ["depth-train", "--model", arguments.model]
    for flag in ("data", "val", "set"):
        for value in getattr(arguments, flag):
            words += [f"--{flag}", value]
    for flag in WORDS:
        value = getattr(arguments, flag)
        if value not in (None, DEFAULTS.get(flag)):
            words += [f"--{flag.replace('_', '-')}", str(value)]
    if arguments.random_init:
        words.append("--random-init")
    return shlex.join([*words, "-o", Path(arguments.output).name])


def _list(arguments: argparse.Namespace) -> int:
    from .recipes.recipes import RECIPES

    for name, recipe in RECIPES.items():
        facts = {"name": name, "loss": recipe.loss, "lr": recipe.rate, "batch": recipe.batch, "epochs": recipe.epochs, "source": recipe.source}
        words = "{name}: {loss}, lr {lr:g}, batch {batch}, {epochs} epochs\n  {source}".format(**facts)
        print(json.dumps(facts) if arguments.json else words)
    return 0


def _run(arguments: argparse.Namespace) -> int:
    from ...runtime.memory_limit import refuse_limit_for_pytorch

    refuse_limit_for_pytorch()
    for package in PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise missing_package(package, "export", "networks are trained with it")
    from .session import Session

    output = Path(arguments.output)
    if output.suffix != ".safetensors":
        raise UsageError(f"-o {output} is no .safetensors file", wanted="a name that ends in .safetensors")
    session = Session.prepare(arguments, output, command_words(arguments))
    with Progress(session.run.steps, "steps", arguments.quiet) as progress:
        result = session.train(arguments.resume, progress.message, progress.advance_to)
    if result is not None:
        if arguments.json:
            print(json.dumps(result))
        else:
            print(f"{output}  loss {result['loss']:.4f}  card {result['card']}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
