"""What every network offers: a contract, an unfolded reference, and stages ready for export."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..runtime.artefact.contract import Contract
from ..runtime.artefact.spec import StageSpec


@dataclass(frozen=True)
class Stage:
    """One exportable part of a network.

    Args:
        spec: name and tensors. ``spec.inputs`` are the module's positional arguments in order, ``spec.outputs`` its results.
        module: in eval mode, constants folded; its submodule names become the node names of the ONNX graph.
        fp32_islands: regular expressions over module paths (``bins.log_binomial``); ops there stay FP32 when the stage is
            typed FP16. Norms and softmaxes stay FP32 everywhere and need not be listed.
        folded: what became a constant, as counts by kind (``{"cross_attention_kv": 32, ...}``); empty if nothing did.
    """

    spec: StageSpec
    module: nn.Module
    fp32_islands: tuple[str, ...] = ()
    folded: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class WeightsOrigin:
    """Where a network's numbers come from; written into every artefact.

    Args:
        kind: ``published``, ``trained``, ``demo`` or ``random-init``.
        file: file name (never a path), or ``""``.
        sha256: of that file, or ``""``.
        licence: of the weights, or ``"unknown"``.
        warnings: signs that something is odd with them, as full sentences.
    """

    kind: str
    file: str = ""
    sha256: str = ""
    licence: str = "unknown"
    warnings: tuple[str, ...] = ()

    def __post_init__(self):
        if self.kind not in ("published", "trained", "demo", "random-init"):
            raise ValueError(f"unknown kind of weights {self.kind!r}")


class DepthNetwork(nn.Module):
    """Base of all networks. Always in eval mode with ``requires_grad=False`` unless it is being trained.

    Attributes:
        name: the command-line name (``evp``, ``evp-tiny``).
        variant: which published set of constants (``nyu``, ``kitti``, ``refcoco``), or ``""``.
        contract: input, output and protocols.
        origin: where the weights come from.
    """

    name: str
    variant: str
    contract: Contract
    origin: WeightsOrigin

    @abstractmethod
    def config_json(self) -> dict[str, Any]:
        """The config as JSON values, for the bundle."""

    @abstractmethod
    def boundaries(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Every tensor at a stage boundary, by name, computed by the *unfolded* network: the reference that exported stages are compared with.

        Args:
            inputs: the tensors that come from outside; the image as [batch, 3, canvas height, canvas width] float32, normalised.
        """

    @abstractmethod
    def stages(self) -> tuple[Stage, ...]:
        """The network cut at named tensors, constants folded, in running order. Weights are shared with the network, not copied."""

    def artefact_files(self) -> dict[str, bytes]:
        """Files that the bundle must hold beside the stages, by path (``contract.text.tokenizer``); none for most networks."""
        return {}

    def forward(self, *inputs: Tensor) -> Tensor:
        """The output tensor of the unfolded network, from the picture and, where it takes text, the text's tensors in the contract's order."""
        text = self.contract.text
        names = [self.contract.input.tensor, *(name for name in ((text.ids, text.mask) if text else ()) if name)]
        return self.boundaries(dict(zip(names, inputs, strict=True)))[self.contract.output.tensor]

    def example_inputs(self, batch: int = 1, seed: int = 0) -> dict[str, Tensor]:
        """Smooth seeded pictures as network input (random noise would not exercise a trained network), float32."""
        image = self.contract.input
        height, width = image.canvas
        generator = torch.Generator().manual_seed(seed)
        coarse = torch.rand(batch, 3, max(2, height // 48), max(2, width // 48), generator=generator)
        picture = nn.functional.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=True)
        mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (image.mean, image.std))
        canvas = torch.zeros(batch, 3, height, width)
        inside = (..., slice(0, image.window[0]), slice(0, image.window[1]))
        canvas[inside] = ((picture - mean) / std)[inside]
        return {image.tensor: canvas}
