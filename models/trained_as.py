"""What a file of trained weights was trained as. The same tensors give other metres under another variant or other settings, so the file says
them itself; published files do not, and are loaded as asked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..runtime.errors import InputError

KEY = "fathom"  # one key of the file's metadata: the format's own writer puts several in another order each time


@dataclass(frozen=True)
class TrainedAs:
    """A network of the catalog as weights were trained in it.

    Args:
        model, variant: names of the catalog.
        settings: every setting that the network has; None: the variant's own number.
        fitted_to: SHA-256 of the weights that a part of the network (bins) was fitted to; empty for weights of the whole.
    """

    model: str
    variant: str
    settings: Mapping[str, int | None]
    fitted_to: str = ""

    def metadata(self) -> dict[str, str]:
        """For the header of a safetensors file."""
        facts = {"model": self.model, "variant": self.variant, "settings": dict(self.settings)}
        return {KEY: json.dumps(facts | ({"fitted_to": self.fitted_to} if self.fitted_to else {}), sort_keys=True)}

    def refuse_other_weights(self, file: str, sha256: str) -> None:
        """Refuse a part that was fitted to other weights than those it is put beside.

        Args:
            file: how to call the part's file.
            sha256: of the weights that it is put beside.

        Raises:
            InputError: if they are others.
        """
        if self.fitted_to and self.fitted_to != sha256:
            was = f"{file} was fitted to other weights (SHA-256 {self.fitted_to[:12]}, here {sha256[:12] or 'random ones'})"
            raise InputError(was, wanted="what was fitted to these", fix="fit it again to these weights with depth-train, or give the weights it was fitted to")

    def settle(
        self, file: str, model: str, variant: str | None, settings: Mapping[str, int | None], retrain: bool = False
    ) -> tuple[str, dict[str, int | None]]:
        """Variant and settings to load the file with: what was not asked for is as the file was trained.

        Args:
            file: how to call it.
            model, variant, settings: that were asked for.
            retrain: the weights learn on: what was asked for may differ.

        Raises:
            InputError: if the file was trained as another network, or otherwise than asked.
        """
        if model != self.model:
            raise InputError(f"{file} was trained as {self.model}", wanted=f"weights of {model}", fix=f"use --model {self.model}, or give other weights")
        asked = {"variant": variant or self.variant, **settings}
        own = {"variant": self.variant, **self.settings}
        other = [name for name, value in asked.items() if value != own.get(name, value)]
        if other and not retrain:
            was, wanted = (", ".join(_said(name, facts[name]) for name in other) for facts in (own, asked))
            fix = f"leave out {' and '.join('--variant' if name == 'variant' else f'--set {name}' for name in other)}: the file says it; or give other weights"
            raise InputError(f"{file} was trained with {was}", wanted=f"{wanted}, as asked", fix=fix)
        return asked["variant"], {**self.settings, **settings}


def read_trained_as(path: str | Path) -> TrainedAs | None:
    """What a file says of itself; None if it says nothing, or cannot be read, which is for the reader of its tensors to say.

    Raises:
        InputError: if what it says is of another form.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            text = (file.metadata() or {}).get(KEY)
    except (SafetensorError, OSError):
        return None
    if text is None:
        return None
    try:
        found = json.loads(text)
        return TrainedAs(str(found["model"]), str(found["variant"]), dict(found["settings"]), str(found.get("fitted_to", "")))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise InputError(
            f"{Path(path).name} says of itself what is no network of Fathom: {text[:80]}", wanted="model, variant and settings", fix="train it again"
        ) from error


def _said(name: str, value: str | int | None) -> str:
    if name == "variant":
        return f"variant {value}"
    return f"{name}={value}" if value is not None else f"the variant's own {name}"
