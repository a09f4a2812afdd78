"""DepthBLIP-2's few-shot recipe as a run: the frozen network runs once on every picture, then its seven bins are fitted."""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ...runtime.errors import InputError, UsageError
from ..blip2.adaptive_bins import fit_bins, folded_bins
from .data.training_data import Examples
from .learners.learners import trained_as
from .learners.losses import l1_and_rmse
from .loop import Run, log_path, write_log
from .state import write_tensors

UNUSED = {  # flags that mean nothing here, with the value that they have when not given
    "resume": False,
    "backbone": None,
    "precision": None,
    "ema": 0.0,
    "hold_back": 0,
    "accumulate": 1,
    "workers": 0,
    "every": None,
    "store": "fp32",
}


def refuse_unused(arguments: argparse.Namespace) -> None:
    """Refuse what the fitting would not heed.

    Raises:
        UsageError: naming the flags.
    """
    given = [f"--{flag.replace('_', '-')}" for flag, absent in UNUSED.items() if getattr(arguments, flag) not in (absent, "fp32")]
    if given:
        was = f"{arguments.model} fits seven bins in one go, in FP32, which {' and '.join(given)} would not change"
        raise UsageError(was, wanted="of the recipe's numbers --steps, --batch or --lr", fix=f"leave out {' and '.join(given)}")


def train_bins(run: Run, on_progress: Callable[[int], None] = lambda step: None) -> dict:
    """Fit the bins and write them under the names of the published code (``depth-export --bins`` reads them).

    Returns:
        What ``loop.train`` returns.

    Raises:
        InputError: if a picture has no valid depth.
    """
    started = time.monotonic()
    examples = Examples(run.data, run.network.contract)
    network = run.network.to(run.device).eval()
    try:
        mlp = fit_bins(_cases(network, examples, run.device), run.steps, run.recipe.batch, run.seed, run.recipe.rate)
    except ValueError as error:
        raise InputError(str(error), fix="leave such pictures out") from error
    told = dataclasses.replace(trained_as(network), fitted_to=network.origin.sha256)
    write_tensors(run.output, {name: tensor.contiguous() for name, tensor in mlp.layers.state_dict().items()}, told.metadata())
    loss = _loss(mlp, network, examples, run.device)
    lines = [{"step": run.steps, "loss": round(loss, 6)}]
    write_log(log_path(run.output), run.facts, lines)
    on_progress(run.steps)
    return {"loss": loss, "wall_s": time.monotonic() - started, "steps": run.steps, "log": lines}


def _cases(network, examples: Examples, device: torch.device) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    with torch.no_grad():
        for number in range(len(examples.samples)):
            shown = examples.batch([number])
            chances = network.head.chances(network.boundaries({"image": shown.image.to(device)})["q"])[0].cpu()
            yield chances, shown.truth_m[0, 0], shown.valid[0, 0]


def _loss(mlp, network, examples: Examples, device: torch.device) -> float:
    network.set_bins(folded_bins(mlp))
    network.to(device)
    losses = []
    with torch.no_grad():
        for number in range(len(examples.samples)):
            shown = examples.batch([number])
            found = network.boundaries({"image": shown.image.to(device)})["depth"].cpu()
            found = torch.nn.functional.interpolate(found, shown.truth_m.shape[-2:], mode="bilinear", align_corners=True)
            losses.append(float(l1_and_rmse(found, shown.truth_m, shown.valid)))
    return sum(losses) / len(losses)
