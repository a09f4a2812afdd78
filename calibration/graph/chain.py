"""The FP32 stages of a bundle, fed as the network is fed at run time."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...runtime.artefact.bundle import BundleDirectory
from ...runtime.artefact.contract import Contract, Protocol
from ...runtime.artefact.spec import StageSpec, network_inputs
from ...runtime.errors import InputError, UsageError
from ...runtime.photo.postprocess import Assembly
from ...runtime.photo.preprocess import Placed, Window, check_photo, check_windows, place_steps, shape_photo, window_tensor, windows_of
from ...runtime.text.encoder import TextEncoder
from .fold_batch_norm import fold_batch_norms
from .stage_graph import StageGraph


def check_prompts(contract: Contract, prompts: Sequence[str]) -> None:
    """Words, if and only if the network is asked in words.

    Raises:
        UsageError: if they are missing or not wanted.
    """
    text = contract.text
    if prompts and (text is None or not text.asked):
        raise UsageError("--prompt: this network is not asked in words", fix="leave it out")
    if unknown := [prompt for prompt in prompts if text.kind == "choice" and prompt not in text.classes]:
        raise UsageError(f"--prompt {unknown[0]}: this network knows no such scene", wanted=f"some of {', '.join(text.classes)}")
    if text is not None and text.kind == "prompt" and not prompts:
        raise UsageError("this network is asked in words, and so it is calibrated", fix='say what to look for, as in --prompt "the cup on the left"')


@dataclass(frozen=True)
class ShapedPhoto:
    """A photo on its way into the network: how it was shaped, so that its map can be put together again."""

    size: tuple[int, int]
    placed: tuple[Placed, ...]
    windows: tuple[Window, ...]


class Chain:
    """Graphs, contract and preprocessing of a bundle.

    Args:
        bundle: open and checked; its stages must be FP32.
        protocol: one of the contract's; None for its first.
        prompts: for a network that is asked in words; every photo is shown with one of them. Where there is a choice, all of it if
            none are given.

    Raises:
        UsageError: if there is no such protocol, or prompts are missing or not wanted.
        InputError: if a stage is not FP32.
    """

    def __init__(self, bundle: BundleDirectory, protocol: str | None = None, prompts: tuple[str, ...] = ()):
        manifest = bundle.manifest
        choice = manifest.contract.text is not None and manifest.contract.text.kind == "choice"
        self.manifest, self.contract, self.prompts = manifest, manifest.contract, prompts or (manifest.contract.text.classes if choice else ())
        self.protocol: Protocol = _choose(manifest.contract.protocols, protocol)
        self.specs: tuple[StageSpec, ...] = manifest.specs()
        self.graphs: dict[str, StageGraph] = {}
        for stage in manifest.stages:
            if stage.precision != "fp32":
                raise InputError(
                    f"stage {stage.spec.name} is {stage.precision} already", wanted="an FP32 bundle", fix="calibrate the bundle that depth-export made"
                )
            graph = StageGraph.load(bundle.path(stage.file))
            prepare(graph)
            self.graphs[stage.spec.name] = graph
        self.islands = {stage.spec.name: stage.fp32_islands for stage in manifest.stages}
        text = self.contract.text
        self._text = TextEncoder(text, self.contract.input, bundle.path(text.tokenizer).read_bytes() if text.tokenizer else b"") if text else None
        check_prompts(self.contract, prompts)
        first = next(tensor for spec in self.specs for tensor in spec.inputs if tensor.name == self.contract.input.tensor)
        self.batch = first.shape[0] if isinstance(first.shape[0], int) else 1

    def prompt_of(self, number: int) -> str | None:
        """The words a photo is shown with. They are dealt out by a hash of its number, so that those kept back for validation see all of them."""
        digest = hashlib.sha256(f"prompt of photo {number}".encode()).digest()
        return self.prompts[int.from_bytes(digest[:8], "big") % len(self.prompts)] if self.prompts else None

    def shaped(self, height: int, width: int) -> ShapedPhoto:
        """How a photo of a size is shaped."""
        return ShapedPhoto((height, width), place_steps(self.protocol.steps, height, width), windows_of(self.protocol))

    def inputs(self, photo: np.ndarray, number: int = 0) -> tuple[ShapedPhoto, list[dict[str, np.ndarray]]]:
        """What the first stages get for one photo, one dict of tensors [batch, ...] per window.

        Args:
            photo: uint8 [H, W, 3], RGB.
            number: of the photo in its data set.

        Raises:
            InputError: if the protocol does not apply to a picture of this size.
        """
        check_photo(photo)
        shaped = self.shaped(*photo.shape[:2])
        picture = shape_photo(photo, shaped.placed)
        check_windows(self.protocol, self.contract.input, *picture.shape[:2])
        feeds = []
        for window in shaped.windows:
            tensor = np.repeat(window_tensor(picture, window, self.contract.input)[None], self.batch, axis=0)  # [B, 3, h, w]
            feeds.append({self.contract.input.tensor: tensor, **(self._text(tensor, self.prompt_of(number)) if self._text else {})})
        return shaped, feeds

    def assemble(self, shaped: ShapedPhoto, outputs: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """The map on the photo's own pixels from the output tensor of every window: values float32 [H, W], valid bool [H, W].

        Raises:
            AccuracyError: if an output is NaN, infinite or constant.
        """
        whole = Assembly(self.contract, self.protocol, shaped.placed, shaped.size)
        for window, tensor in zip(shaped.windows, outputs, strict=True):
            whole.add(window, tensor[0])
        return whole.finish()

    def outside(self) -> set[str]:
        """Names of the tensors that no stage makes."""
        return set(network_inputs(self.specs))


def prepare(graph: StageGraph) -> None:
    """What calibration and typing both do to a stage first, in place, so that they speak of the same tensors."""
    graph.modernise()
    fold_batch_norms(graph)


def _choose(protocols: tuple[Protocol, ...], name: str | None) -> Protocol:
    for protocol in protocols:
        if name in (None, protocol.name):
            return protocol
    raise UsageError(f"there is no protocol {name!r}", wanted=" or ".join(p.name for p in protocols))
