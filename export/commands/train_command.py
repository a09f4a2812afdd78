"""``depth-train`` on any machine: the papers' recipes, and, with ``--quantise``, a calibrated bundle that learns to compute in fewer bits."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from ...models.training.train_command import main as train_main
from ...runtime.commands.progress import Progress
from ...runtime.errors import UsageError
from .command_line import require_packages

TAKEN = ("quantise", "data", "output", "steps", "batch", "lr", "seed", "device", "threads", "force", "json", "quiet")  # what --quantise goes with


def main(arguments: list[str] | None = None) -> int:
    """Run the command; see ``--help``."""
    return train_main(arguments, _learn)


def _learn(arguments: argparse.Namespace, defaults: argparse.Namespace) -> int:
    others = sorted(name for name, value in vars(arguments).items() if name not in TAKEN and value != getattr(defaults, name))
    if others:
        was = f"--{others[0].replace('_', '-')} with --quantise: the plan's bundle holds the network, and its FP32 form is what is learned from"
        raise UsageError(was, fix="leave it out")
    require_packages(("torch", "onnx", "onnxruntime", "safetensors"), "export", "quantised networks learn with it")
    import torch

    from ...calibration.observation.images import Chosen
    from ...models.training.session import device_for
    from ..quantised_training.distil import Recipe
    from ..quantised_training.learn import learn_quantised

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    given = {"steps": arguments.steps, "batch": arguments.batch, "rate": arguments.lr, "seed": arguments.seed}
    recipe = Recipe(**{name: value for name, value in given.items() if value is not None})
    data = Chosen(*arguments.data, seed=arguments.seed)
    with Progress(recipe.steps, "steps", arguments.quiet) as progress:
        found = learn_quantised(
            Path(arguments.quantise),
            data,
            Path(arguments.output),
            recipe,
            device=device_for(arguments.device),
            force=arguments.force,
            on_message=progress.message,
            on_step=progress.advance_to,
        )
    if arguments.json:
        print(json.dumps(found, allow_nan=False))
    else:
        moved = {name: found[name]["disagreement"] for name in ("before", "after", "fp32")}
        print(f"{arguments.output}  moved {moved['before']:.3%} before, {moved['after']:.3%} after ({moved['fp32']:.3%} unquantised)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
