"""The training loop: every picture, order and change of colour follows from the seed and the step, so a resumed run ends as if it had
never been interrupted."""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ...runtime.errors import AccuracyError, UsageError
from ...runtime.files import whole_file
from ..network import DepthNetwork
from .averaged import Averaged
from .data.kept_samples import KeptSamples
from .data.prefetch import Prefetch
from .learners.learner import Learner
from .learners.learners import learner_for, published_tensors, trained_as
from .optimiser import Muon, takes_muon
from .recipes.recipe import Recipe
from .state import load_state, save_state, state_path, write_tensors

LOG_EVERY = 10  # steps between two lines of the log
STORED_DTYPES = {"fp32": torch.float32, "fp16": torch.float16}
AUTOCAST = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Run:
    """What is trained, on what, for how long.

    Args:
        network: where it starts; it is changed in place.
        recipe: how it learns.
        data: to learn from.
        held_out: to validate on, or None.
        output: the weights to write; log and state lie beside them.
        steps: of the optimiser.
        seed: of order and augmentation.
        every: steps between two validations and between two saved states.
        store: ``fp32`` or ``fp16``, how the weights are written.
        device: where to compute.
        facts: what identifies the run, for ``resume`` and for the log, as JSON values.
        chosen: samples held back from the data, never learned from: the weights of the best validation on them are written too, beside the last
            (``best_path``), and a recipe with patience ends by them. Validation pictures (``held_out``) choose nothing.
        accumulate: parts that a step's pictures are computed in, one after the other; the loss is the mean over the parts.
        ema: decay of the moving average of the weights (``averaged``), or 0.
        workers: threads that make the next steps' batches.
        backbone: a trained network whose VAE and U-Net a network with random weights takes over before the first step, or None.
    """

    network: DepthNetwork
    recipe: Recipe
    data: KeptSamples
    held_out: KeptSamples | None
    output: Path
    steps: int
    seed: int
    every: int
    store: str
    device: torch.device
    facts: dict
    backbone: DepthNetwork | None = None
    chosen: KeptSamples | None = None
    accumulate: int = 1
    ema: float = 0.0
    workers: int = 0

    def __post_init__(self):
        if not 1 <= self.accumulate <= self.recipe.batch or self.workers < 0 or not 0 <= self.ema < 1:
            raise ValueError(
                f"1 to {self.recipe.batch} parts, workers from 0 and a decay below 1 were wanted, got {self.accumulate}, {self.workers}, {self.ema}"
            )
        if self.steps < 1 or self.every < 1 or self.seed < 0 or self.store not in STORED_DTYPES:
            raise ValueError(f"positive steps, a seed from 0 and fp32 or fp16 were wanted, got {self.steps}, {self.every}, {self.seed}, {self.store}")


@dataclass(frozen=True)
class Ranks:
    """This process among those that ``torchrun`` started; alone without it."""

    rank: int = 0
    world: int = 1

    @classmethod
    def join(cls, device: torch.device) -> Ranks:
        """Join the process group that the environment describes (WORLD_SIZE, RANK, MASTER_ADDR, MASTER_PORT)."""
        world = int(os.environ.get("WORLD_SIZE", "1"))
        if world == 1:
            return cls()
        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
        return cls(torch.distributed.get_rank(), world)


def numbers_of_step(step: int, batch: int, count: int, seed: int) -> list[int]:
    """Which samples a step sees: one shuffled pass after the other, each in an order that follows from the seed and the pass."""
    places = range(step * batch, (step + 1) * batch)
    orders = {epoch: np.random.Generator(np.random.PCG64([seed, epoch])).permutation(count) for epoch in {place // count for place in places}}
    return [int(orders[place // count][place % count]) for place in places]


def train(
    run: Run, resume: bool = False, on_message: Callable[[str], None] = lambda text: None, on_progress: Callable[..., None] = lambda step, earlier=False: None
) -> dict:
    """Train and write ``run.output``.

    Args:
        resume: go on from the state beside the output.
        on_message: called with one line for people now and then.
        on_progress: called with the number of steps that are done; with ``earlier=True`` once, where an interrupted run is taken up.

    Returns:
        ``{"loss", "wall_s", "steps", "log"}``: the mean loss of the last tenth, seconds over all parts of the run, and the log's lines.

    Raises:
        AccuracyError: if the loss is not finite, no gradient reaches a parameter that should learn, or a validation gives no depth.
        InputError: if a sample does not fit, or a file cannot be written.
        UsageError: if the state belongs to another run.
    """
    ranks = Ranks.join(run.device)
    recipe, network = run.recipe, run.network.to(run.device, memory_format=torch.channels_last)  # what convolutions are fastest in
    names = _open_for_training(network, recipe)
    learner = learner_for(network, recipe)
    if not resume and network.origin.kind == "random-init":
        learner.start(run.seed)
        if run.backbone is not None:
            take_backbone(learner, learner_for(run.backbone, recipe))
    optimiser = Muon(parameter_groups(names, recipe), lr=recipe.rate)
    averaged = Averaged(names, run.ema)
    scaler = torch.amp.GradScaler(run.device.type, enabled=recipe.precision == "fp16")
    step, earlier_s, lines, losses = 0, 0.0, [], []
    if resume:
        step, earlier_s, losses = load_state(state_path(run.output), network, optimiser, names, run.facts, averaged.tensors, scaler)
        lines = [line for line in read_log(log_path(run.output)) if line.get("step", 0) <= step]
        on_progress(step, earlier=True)
    unused = recipe.hint_alone > 0  # at first only the hint is learned, and most parameters get no gradient
    called = nn.parallel.DistributedDataParallel(learner, find_unused_parameters=unused) if ranks.world > 1 else learner
    windows = Windows(learner, recipe, run.data)
    batches = Prefetch(_batches_of(windows, run, ranks), run.workers, run.steps)
    started, checked, out_of_patience = time.monotonic(), False, False
    on_message(f"{len(names)} tensors learn, {sum(p.numel() for p in names) / 1e6:.2f} M numbers; {len(run.data)} samples, step {step} of {run.steps}")
    while step < run.steps and not out_of_patience:
        share = step / run.steps
        side = recipe.window_at(step, run.steps)
        learner.network = windows.networks[side]
        learner.alone = share < recipe.hint_alone
        _set_modes(learner.network)
        rate = recipe.rate_at(share)
        for group in optimiser.param_groups:
            group["lr"] = rate * group["factor"]
        torch.manual_seed(run.seed * 1_000_003 + step)  # of dropout
        optimiser.zero_grad(set_to_none=True)
        found: dict[str, float] = {}
        for weight, batch in batches(step):
            with torch.autocast(run.device.type, AUTOCAST[recipe.precision], enabled=recipe.precision != "fp32"):
                parts = called(batch.to(run.device))
            for name, value in parts.items():
                found[name] = found.get(name, 0.0) + weight * float(value.detach())
            if not math.isfinite(found["loss"]):
                raise AccuracyError(f"the loss of step {step} is {found['loss']}", wanted="a finite number", fix="train with a lower --lr")
            scaler.scale(weight * parts["loss"]).backward()
        if not (checked or learner.alone):
            _check_gradients(names)
            checked = True
        if recipe.clip:
            scaler.unscale_(optimiser)
            nn.utils.clip_grad_norm_(list(names), recipe.clip, error_if_nonfinite=not scaler.is_enabled())
        scaler.step(optimiser)
        scaler.update()
        step += 1
        averaged.update(step)
        losses.append(found["loss"])
        if step % LOG_EVERY == 0 or step == run.steps:
            numbers = {name: round(value, 6) for name, value in found.items()}
            spent_s = earlier_s + time.monotonic() - started
            lines.append({"step": step, **numbers, "lr": rate, "window": learner.network.contract.input.window[0], "wall_s": round(spent_s, 1)})
        if (step % run.every == 0 or step == run.steps) and ranks.rank == 0:
            learner.network = windows.networks[0 if recipe.whole_every else side]
            with averaged.applied():
                out_of_patience = _validate(learner, run, step, lines, losses, on_message)
            spent_s = earlier_s + time.monotonic() - started
            save_state(state_path(run.output), network, optimiser, names, step, spent_s, run.facts, averaged.tensors, scaler, losses)
            write_log(log_path(run.output), run.facts, lines)
        if ranks.world > 1 and step % run.every == 0:
            said = torch.tensor(float(out_of_patience), device=run.device)
            torch.distributed.broadcast(said, 0)
            out_of_patience = bool(said)
        on_progress(step)
    batches.close()
    wall_s = earlier_s + time.monotonic() - started
    network.eval().requires_grad_(False).to(memory_format=torch.contiguous_format)
    if ranks.rank == 0:
        with averaged.applied():
            _write_weights(run.output, network, run)
        write_log(log_path(run.output), run.facts, lines)
        state_path(run.output).unlink(missing_ok=True)
    if ranks.world > 1:
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
    return {"loss": float(np.mean(losses[-max(1, len(losses) // 10) :])), "wall_s": wall_s, "steps": step, "log": lines}


BACKBONE = ("vae", "unet")


def take_backbone(learner: Learner, other: Learner) -> None:
    """Copy the VAE and U-Net of another network, as VPD and EVP both begin with those of Stable Diffusion. The ratio of the two
    latent divisors is folded into ``conv_in``, so that the U-Net sees the latent it learned on.

    Raises:
        UsageError: if one of the two has none, or they are not of one size.
    """
    network, theirs = learner.network, other.network
    for name in BACKBONE:
        parts = [getattr(each, name, None) for each in (network, theirs)]
        sizes = [part and {key: tuple(tensor.shape) for key, tensor in part.state_dict().items()} for part in parts]
        if parts[0] is None or sizes[0] != sizes[1]:
            was = f"{network.name} cannot begin with the {name} of {theirs.name}"
            raise UsageError(was, wanted="a network with a Stable Diffusion backbone of the same size")
        parts[0].load_state_dict(parts[1].state_dict())
    with torch.no_grad():
        network.unet.conv_in.weight.mul_(learner.latent_divisor / other.latent_divisor)


def parameter_groups(names: dict[Tensor, str], recipe: Recipe) -> list[dict]:
    """The optimiser's groups: slow or not, with weight decay or not (vectors have none), by Muon or not."""
    groups: dict[tuple[bool, bool, bool], list[Tensor]] = {}
    for parameter, name in names.items():
        matrix = recipe.muon and takes_muon(name, parameter)
        groups.setdefault((_matches(recipe.slow, name), parameter.ndim > 1, matrix), []).append(parameter)
    return [
        {"params": members, "weight_decay": recipe.decay if decays else 0.0, "factor": recipe.slow_factor if slow else 1.0, "matrix": matrix}
        for (slow, decays, matrix), members in groups.items()
    ]


def log_path(output: Path) -> Path:
    """Where the log of the run that makes ``output`` lies: JSON lines beside it."""
    return output.with_name(f"{output.stem}.log.jsonl")


def write_log(path: Path, facts: dict, lines: list[dict]) -> None:
    """The run's facts, then its lines."""
    with whole_file(path, force=True) as part:
        part.write_text("".join(json.dumps(line) + "\n" for line in ({"run": facts}, *lines)))


def read_log(path: Path) -> list[dict]:
    """The lines of a log without the run's facts; none if there is no log."""
    return [json.loads(line) for line in path.read_text().splitlines()[1:]] if path.is_file() else []


def _open_for_training(network: DepthNetwork, recipe: Recipe) -> dict[Tensor, str]:
    names = {}
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(_matches(recipe.trained, name))
        if parameter.requires_grad:
            names[parameter] = name
    idle = [pattern for pattern in (*recipe.trained, *recipe.slow) if not any(re.match(pattern, name) for name in names.values())]
    if idle:
        raise UsageError(f"the recipe of {network.name} names {', '.join(idle)}, which the network does not have")
    return names


def _matches(patterns: tuple[str, ...], name: str) -> bool:
    return any(re.match(pattern, name) for pattern in patterns)


def _set_modes(network: nn.Module) -> None:
    """Training mode where something learns; frozen parts keep the statistics and the certainty of inference."""
    network.train()
    for module in network.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()


def _check_gradients(names: dict[Tensor, str]) -> None:
    unreached = sorted(name for parameter, name in names.items() if parameter.grad is None)
    if unreached:
        raise AccuracyError(f"no gradient reaches {len(unreached)} tensor(s) that should learn, {unreached[0]} is one")


class Windows:
    """A learner's network at every window that a recipe asks for, and the samples shaped for it; the modules are shared.

    Attributes:
        networks, examples: by the window's side; 0: the network's own.
    """

    def __init__(self, learner: Learner, recipe: Recipe, samples: KeptSamples):
        own = learner.network
        self.networks = {0: own} | {side: learner.at_window(side) for side in recipe.sides if side}
        self.examples = {}
        for side, learner.network in self.networks.items():
            self.examples[side] = learner.examples(samples, recipe.geometry)
        learner.network = own


def _batches_of(windows: Windows, run: Run, ranks: Ranks) -> Callable[[int], list]:
    """A function from a step to its parts: (share of the step's pictures, batch) each."""

    def make(step: int) -> list:
        examples = windows.examples[run.recipe.window_at(step, run.steps)]
        mine = numbers_of_step(step, run.recipe.batch * ranks.world, len(run.data), run.seed)[ranks.rank :: ranks.world]
        draws = [np.random.Generator(np.random.PCG64([run.seed, step, ranks.rank, place, 1])) for place in range(len(mine))]
        size = -(-len(mine) // run.accumulate)
        starts = range(0, len(mine), size)
        return [(len(mine[at : at + size]) / len(mine), examples.batch(mine[at : at + size], draws[at : at + size], run.recipe.augmentation)) for at in starts]

    return make


def _validate(learner: Learner, run: Run, step: int, lines: list[dict], losses: list[float], on_message: Callable[[str], None]) -> bool:
    """Validate, keep the best weights so far, and say whether nothing got better for as long as the recipe's patience."""
    learner.network.eval()
    window = learner.network.contract.input.window[0]
    for key, samples in (("validation", run.held_out), ("chosen", run.chosen)):
        if samples is not None:
            found = learner.validate(samples, run.recipe.batch, run.device)
            lines.append({"step": step, key: found, "window": window})
            on_message(f"step {step}: loss {np.mean(losses[-50:]):.4f}, " + ", ".join(f"{name} {value:.4f}" for name, value in found.items()))
    scores = [_score(line["chosen"]) for line in lines if "chosen" in line]
    if scores and scores[-1] < min(scores[:-1], default=math.inf):
        _write_weights(best_path(run.output), learner.network, run)
    return bool(run.recipe.patience and scores) and len(scores) - 1 - int(np.argmin(scores)) >= run.recipe.patience


def _write_weights(path: Path, network: DepthNetwork, run: Run) -> None:
    write_tensors(path, dict(published_tensors(network, STORED_DTYPES[run.store])), trained_as(network).metadata())


def _score(found: dict[str, float]) -> float:
    """Lower is better: abs_rel of depth, 1 - mIoU of masks."""
    return found["abs_rel"] if "abs_rel" in found else 1 - found["mIoU"]


def best_path(output: Path) -> Path:
    """Where the weights of the best validation lie: beside ``output``."""
    return output.with_name(f"{output.stem}.best.safetensors")
