"""Distillation: a quantised chain of stages learns to give what the FP32 chain gives."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...runtime.errors import AccuracyError, UsageError
from .torch_graph import TorchGraph

EASE_IN = 0.1  # part of the steps in which the rates rise
LEAST_SIZE = 1e-3  # root mean square of a tensor that learns from nothing, such as biases of zero
SMALLEST = 1e-12


@dataclass(frozen=True)
class Recipe:
    """How the quantised chain learns: AdamW without decay, rates that rise and then fall to nothing along a cosine.

    Args:
        steps: of the optimiser.
        batch: windows of photos per step.
        rate: greatest learning rate of the weights, as a part of each tensor's root mean square (Shazeer and Stern 2018): a step of one size for all
            would be lost in some tensors and drown others.
        seed: of the draw of windows.
    """

    steps: int = 300
    batch: int = 4
    rate: float = 2e-5
    seed: int = 0

    def __post_init__(self):
        if self.steps < 1 or self.batch < 1 or self.seed < 0 or not 0 < self.rate < 1:
            raise UsageError("a number is out of range", wanted="--steps and --batch from 1, --seed from 0, --lr above 0 and below 1")

    def share_at(self, step: int) -> float:
        """Of the greatest rates, in a step counted from 0."""
        done = (step + 1) / (self.steps + 1)
        return min(1.0, done / EASE_IN) * 0.5 * (1 + math.cos(math.pi * done))


def run_chain(stages: list[TorchGraph], feeds: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every tensor that the stages make, by name; each stage is fed by those before it."""
    values, made = dict(feeds), {}
    for stage in stages:
        found = stage(values)
        values.update(found)
        made.update(found)
    return made


def difference(found: dict[str, Tensor], wanted: dict[str, Tensor], output: str) -> Tensor:
    """What is lowered: the mean |a - b| / mean |b| of the output, and of every floating-point tensor between the stages the mean squared error over the
    variance; their mean, with the output counting as much as all others together."""
    between = []
    for name, target in wanted.items():
        if name != output and target.is_floating_point():
            between.append((found[name] - target).square().mean() / torch.clamp(target.var(), min=SMALLEST))
    loss = (found[output] - wanted[output]).abs().mean() / torch.clamp(wanted[output].abs().mean(), min=SMALLEST)
    return loss + sum(between) / len(between) if between else loss


def distil(
    teacher: list[TorchGraph],
    student: list[TorchGraph],
    draw: Callable[[int], list[dict[str, Tensor]]],
    output: str,
    recipe: Recipe,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> list[float]:
    """Train the student's weights in place; returns the loss of every step.

    Args:
        teacher: the FP32 stages in running order.
        student: the same, quantised.
        draw: from a step to the network's inputs; where they are several, their gradients are averaged.
        output: name of the network's output tensor.
        on_step: called after every step with the number that is done, and its loss.

    Raises:
        AccuracyError: if a loss is not finite.
    """
    weights = [tensor for stage in student for tensor in stage.weights.values()]
    groups = [{"params": [tensor], "most": recipe.rate * max(float(tensor.detach().square().mean().sqrt()), LEAST_SIZE)} for tensor in weights]
    optimiser = torch.optim.AdamW(groups, lr=recipe.rate, weight_decay=0.0)
    losses = []
    for step in range(recipe.steps):
        for group in optimiser.param_groups:
            group["lr"] = group["most"] * recipe.share_at(step)
        optimiser.zero_grad(set_to_none=True)
        found, parts = 0.0, draw(step)
        for feeds in parts:
            with torch.no_grad():
                wanted = run_chain(teacher, feeds)
            loss = difference(run_chain(student, feeds), wanted, output) / len(parts)
            loss.backward()
            found += float(loss.detach())
        if not math.isfinite(found):
            raise AccuracyError(f"the loss of step {step} is {found}", wanted="a finite number", fix="learn with a lower --lr")
        optimiser.step()
        losses.append(found)
        on_step(step + 1, losses[-1])
    return losses
