"""Text that goes into a network beside the picture, as data: where its words come from and how they become token ids."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from ..sequences import pairwise, zip_equal
from .spec import FILE_NAME, NAME, TENSOR_NAME, fields

PLACEHOLDERS = {
    "prompt": ("text",),
    "choice": ("text",),
    "position-statistics": ("min_x", "min_y", "max_x", "max_y", "median_x", "median_y", "class"),
    "level-statistics": ("min", "max", "median", "class"),
}
PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")
MAX_TOKENS = 1024
MAX_TEMPLATE = 4096


@dataclass(frozen=True)
class TextInput:
    """How the text of one picture is made and tokenised at run time.

    Args:
        kind: ``prompt`` (the user's words), ``choice`` (one of ``classes``, such as the kind of room; its number is the only id),
            ``position-statistics`` (where along the axes the picture is darkest, brightest and median, after normalisation) or
            ``level-statistics`` (its darkest, brightest and median 8-bit levels).
        ids: name of the int64 tensor of token ids [batch, length].
        mask: name of the float32 tensor [batch, length], 1 for a token and 0 for padding; ``""`` if the network takes none.
        length: tokens per text, special tokens and padding included. Longer texts are refused, never cut.
        pad_id: token id of the padding.
        tokenizer: path of the ``tokenizer.json`` in the artefact; ``""`` for a choice.
        template: the text, with ``{placeholders}`` of the kind (``PLACEHOLDERS``).
        classes: words for ``{class}``, or those to choose from; empty for a prompt.
        class_tops: for each class the largest value that still belongs to it, rising. Values are normalised pixels for positions, 8-bit
            levels for levels; what lies above the last belongs to the last class.
        size: pixels per side to which the window is resized (bilinear, unfiltered) before the statistics; 0 for the window as it is.

    Raises:
        ValueError: if a value is not of that form, or the template lacks or invents a placeholder.
    """

    kind: str
    ids: str
    mask: str
    length: int
    pad_id: int
    tokenizer: str
    template: str
    classes: tuple[str, ...] = ()
    class_tops: tuple[float, ...] = ()
    size: int = 0

    def __post_init__(self):
        if self.kind not in PLACEHOLDERS:
            raise ValueError(f"text.kind: {self.kind!r}, wanted one of {', '.join(PLACEHOLDERS)}")
        for name in (self.ids, self.mask) if self.mask else (self.ids,):
            if not isinstance(name, str) or not TENSOR_NAME.fullmatch(name):
                raise ValueError(f"text: {name!r} is no tensor name")
        if self.mask == self.ids:
            raise ValueError("text: ids and mask need different tensors")
        for what, value, least, most in (("length", self.length, 1, MAX_TOKENS), ("pad_id", self.pad_id, 0, 1 << 24), ("size", self.size, 0, 1 << 14)):
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
                raise ValueError(f"text.{what}: {value!r} is no number from {least} to {most}")
        if not isinstance(self.tokenizer, str) or not (self.tokenizer == "" if self.kind == "choice" else FILE_NAME.fullmatch(self.tokenizer)):
            raise ValueError(f"text.tokenizer: {self.tokenizer!r} is no file of an artefact")
        found = PLACEHOLDER.findall(self.template)
        if len(self.template) > MAX_TEMPLATE or set(found) != set(PLACEHOLDERS[self.kind]):
            raise ValueError(f"text.template: placeholders {found} in {len(self.template)} characters, wanted {', '.join(PLACEHOLDERS[self.kind])}")
        if self.kind == "prompt" and (self.classes or self.class_tops or self.size):
            raise ValueError("text: a prompt has no classes and no statistics")
        if self.kind == "choice" and (self.mask or self.length != 1 or self.class_tops or self.size or not 0 < len(self.classes) <= 256):
            raise ValueError("text: a choice is one id of up to 256 classes, without mask and statistics")
        if self.kind not in ("prompt", "choice"):
            tops = self.class_tops
            finite = all(isinstance(top, (int, float)) and not isinstance(top, bool) and math.isfinite(top) for top in tops)
            rising = finite and all(a < b for a, b in pairwise(tops))
            if not rising or len(tops) != len(self.classes) or not 0 < len(tops) <= 256:
                raise ValueError(f"text.class_tops: one rising number for each of {len(self.classes)} classes was wanted, got {tops!r}")
        if self.kind != "prompt" and not all(isinstance(word, str) and NAME.fullmatch(word.replace(" ", "_")) for word in self.classes):
            raise ValueError(f"text.classes: lower-case words were wanted, got {self.classes!r}")

    @property
    def asked(self) -> bool:
        """Whether the user has to give the words."""
        return self.kind in ("prompt", "choice")

    def some_words(self, prompt: str) -> str | None:
        """Words with which the network can be tried: ``prompt``, the first choice, or None where it writes its own."""
        return {"prompt": prompt, "choice": (*self.classes, "")[0]}.get(self.kind)

    def fill(self, values: dict[str, Any]) -> str:
        """The template with every placeholder replaced by its value; no other syntax is understood."""
        return PLACEHOLDER.sub(lambda match: str(values[match[1]]), self.template)

    def class_of(self, value: float) -> str:
        """The class a value belongs to."""
        return next((word for word, top in zip_equal(self.classes, self.class_tops) if value <= top), self.classes[-1])

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {name: list(v) if isinstance(v := getattr(self, name), tuple) else v for name in self.__dataclass_fields__}

    @classmethod
    def from_json(cls, data: Any) -> TextInput:
        """From JSON values.

        Raises:
            ValueError: if a key is missing, unknown or of the wrong kind.
        """
        kinds = {"kind": str, "ids": str, "mask": str, "length": int, "pad_id": int, "tokenizer": str, "template": str, "classes": list}
        *rest, classes, tops, size = fields(data, "text", **kinds, class_tops=list, size=int)
        return cls(*rest, tuple(classes), tuple(tops), size)
