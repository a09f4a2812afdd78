"""The state of a training run on disk: weights, the optimiser's moments, and how far it is. Written whole or not at all, no pickle."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ...runtime.errors import AccuracyError, InputError, UsageError
from ...runtime.files import whole_file

WEIGHTS, MOMENTS, AVERAGES, LOSSES = "network/", "adamw/", "average/", "losses"


def state_path(output: Path) -> Path:
    """Where the state of the run that makes ``output`` lies: beside it."""
    return output.with_name(f"{output.stem}.state.safetensors")


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """A safetensors file, complete or absent; one that is there is replaced.

    Raises:
        AccuracyError: if a number is not finite.
        InputError: if the folder cannot be written.
    """
    broken = sorted(name for name, tensor in tensors.items() if tensor.is_floating_point() and not bool(tensor.isfinite().all()))
    if broken:
        raise AccuracyError(f"{len(broken)} tensor(s) are not finite, {broken[0]} is one", fix="train with a lower --lr")
    with whole_file(path, force=True) as part:
        save_file(tensors, part, metadata)


def save_state(
    path: Path,
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    names: dict[Tensor, str],
    step: int,
    wall_s: float,
    run: dict,
    averages: dict[str, Tensor],
    scaler: torch.amp.GradScaler,
    losses: list[float],
) -> None:
    """Everything that the next step needs.

    Args:
        names: of the parameters that learn.
        wall_s: time spent so far.
        averages: moving averages of the weights, if any; ``scaler``: of FP16's losses.
        losses: of every step so far.
        run: what the run was started with, as JSON values; ``load_state`` refuses a state of another run.
    """
    tensors = {WEIGHTS + name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    for parameter, values in optimiser.state.items():
        for key, value in values.items():
            tensors[f"{MOMENTS}{key}/{names[parameter]}"] = value.detach().cpu().contiguous()
    tensors |= {AVERAGES + name: tensor.detach().cpu().contiguous() for name, tensor in averages.items()}
    tensors[LOSSES] = torch.tensor(losses, dtype=torch.float64)
    scale = json.dumps(scaler.state_dict())
    write_tensors(path, tensors, {"scaler": scale, "step": str(step), "wall_s": str(wall_s), "run": json.dumps(run, sort_keys=True)})


def load_state(
    path: Path,
    network: nn.Module,
    optimiser: torch.optim.Optimizer,
    names: dict[Tensor, str],
    run: dict,
    averages: dict[str, Tensor],
    scaler: torch.amp.GradScaler,
) -> tuple[int, float, list[float]]:
    """Take a run up again; returns the number of steps that are done, the time they took, and the loss of each.

    Raises:
        InputError: if there is no such file, or it is broken.
        UsageError: if it belongs to a run that was started with other arguments.
    """
    if not path.is_file():
        raise InputError(f"there is no {path}", wanted="the state of an interrupted run", fix="leave out --resume")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (no mapping; cloned: aligned, and not the file itself)
        step, wall_s, earlier = int(metadata["step"]), float(metadata["wall_s"]), json.loads(metadata["run"])
        scale, losses = json.loads(metadata["scaler"]), tensors[LOSSES].tolist()
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise InputError(f"{path} is no state of a training run ({error})", fix="delete it and start again") from error
    now = json.loads(json.dumps(run))
    changed = sorted(key for key in now.keys() | earlier.keys() if now.get(key) != earlier.get(key))
    if changed:
        was = f"the interrupted run had another {changed[0]} ({earlier.get(changed[0])!r}, now {now.get(changed[0])!r})"
        raise UsageError(was, fix="repeat its arguments, or start again without --resume")
    network.load_state_dict({name.removeprefix(WEIGHTS): tensor for name, tensor in tensors.items() if name.startswith(WEIGHTS)})
    for parameter, name in names.items():
        kept = {key.split("/")[1]: value for key, value in tensors.items() if key.startswith(MOMENTS) and key.split("/", 2)[2] == name}
        if kept:
            optimiser.state[parameter] = {key: value if key == "step" else value.to(parameter.device) for key, value in kept.items()}
    averages.update({name: tensors[AVERAGES + name].to(tensor.device) for name, tensor in averages.items()})
    if scaler.is_enabled():
        scaler.load_state_dict(scale)
    return step, wall_s, losses
