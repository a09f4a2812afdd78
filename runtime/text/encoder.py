"""From a picture or the user's words to token ids, with the ``tokenizers`` library alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from ..artefact.contract import ImageInput
from ..artefact.spec import DTYPES
from ..artefact.text_input import TextInput
from ..errors import InputError, UsageError, missing_package
from .image_statistics import fullest_interval, level_statistics, levels, most_frequent, positions, shrink

MAX_TOKENIZER_BYTES = 16 << 20
MAX_PROMPT = 1000


class TextEncoder:
    """Makes the text tensors of a network.

    Args:
        text: how the text is made.
        image: how the picture became a tensor; the statistics look at its window.
        tokenizer_json: the ``tokenizer.json`` of the artefact; empty for a choice.
        ids: ``int64``, or ``int32`` for engines without int64 (TensorRT 8).

    Raises:
        EnvironmentMismatchError: if ``tokenizers`` is not installed.
        InputError: if the file is no tokenizer, or does not know the padding.
    """

    def __init__(self, text: TextInput, image: ImageInput, tokenizer_json: bytes, ids: str = "int64"):
        self.text, self.image, self._ids = text, image, DTYPES[ids]
        self._tokenizer = None if text.kind == "choice" else _open_tokenizer(tokenizer_json, text)

    @property
    def reads_picture(self) -> bool:
        """Whether the words depend on the picture."""
        return not self.text.asked

    def sentences(self, canvas: np.ndarray, prompt: str | None = None) -> list[str]:
        """One text per picture.

        Args:
            canvas: the network's input [batch, 3, canvas height, canvas width], normalised.
            prompt: the user's words; wanted for the kinds ``prompt`` and ``choice``, refused otherwise.

        Raises:
            UsageError: if the prompt is missing, empty, too long, none to choose from, or not wanted.
        """
        if self.text.kind == "choice":
            return [checked_choice(self.text, prompt)] * len(canvas)
        if self.text.kind == "prompt":
            return [self.text.fill({"text": _checked(prompt)})] * len(canvas)
        if prompt is not None:
            raise UsageError("this network writes its own prompt from the picture", fix="leave --prompt out")
        height, width = self.image.window
        return [self._describe(picture[:, :height, :width]) for picture in canvas]

    def __call__(self, canvas: np.ndarray, prompt: str | None = None) -> dict[str, np.ndarray]:
        """The ids [batch, length] and, if the network takes it, the mask [batch, length] float32, by tensor name.

        Raises:
            UsageError: see ``sentences``.
            InputError: if a text needs more tokens than the network takes.
        """
        return self.tokenize(self.sentences(canvas, prompt))

    def one_by_one(self, canvases: Iterable[np.ndarray], count: int, prompt: str | None = None) -> dict[str, np.ndarray]:
        """As ``__call__``, for ``count`` pictures that are not in memory together; they are not made if the words do not depend on them."""
        if not self.reads_picture:
            return self(np.empty((count, 0)), prompt)
        return self.tokenize([self.sentences(canvas[None], prompt)[0] for canvas in canvases])

    def tokenize(self, sentences: list[str]) -> dict[str, np.ndarray]:
        """As ``__call__``, from finished sentences."""
        if self.text.kind == "choice":
            return {self.text.ids: np.array([[self.text.classes.index(word)] for word in sentences], self._ids)}
        ids = np.full((len(sentences), self.text.length), self.text.pad_id, self._ids)  # [B, L]
        mask = np.zeros((len(sentences), self.text.length), np.float32)  # [B, L]
        for row, sentence in enumerate(sentences):
            found = self._tokenizer.encode(sentence).ids
            if len(found) > self.text.length:
                raise InputError(f"the text {sentence!r} has {len(found)} tokens", wanted=f"at most {self.text.length}", fix="say it in fewer words")
            ids[row, : len(found)] = found
            mask[row, : len(found)] = 1
        return {self.text.ids: ids, **({self.text.mask: mask} if self.text.mask else {})}

    def _describe(self, window: np.ndarray) -> str:
        if not np.isfinite(window).all():
            raise InputError("the picture has values that are NaN or infinite", wanted="finite pixels")
        picture = shrink(np.asarray(window, np.float32), self.text.size)
        if self.text.kind == "position-statistics":
            return self.text.fill({**positions(picture), "class": self.text.class_of(most_frequent(picture))})
        found = levels(picture, self.image.mean, self.image.std)
        return self.text.fill({**level_statistics(found), "class": self.text.class_of(fullest_interval(found, self.text.class_tops))})


def checked_choice(text: TextInput, word: str | None) -> str:
    """One of the words to choose from.

    Raises:
        UsageError: if it is missing or none of them.
    """
    if word not in text.classes:
        was = "this network must be told what kind of scene it sees" if word is None else f"this network knows no scene {word!r}"
        raise UsageError(was, wanted=f"one of {', '.join(text.classes)}", fix="give --scene NAME")
    return word


def _checked(prompt: str | None) -> str:
    words = " ".join((prompt or "").split())
    if not words:
        raise UsageError("this network is asked in words and no prompt was given", fix='say what to look for, as in --prompt "the cup on the left"')
    if len(words) > MAX_PROMPT:
        raise UsageError(f"the prompt has {len(words)} characters", wanted=f"at most {MAX_PROMPT}")
    return words


def _open_tokenizer(raw: bytes, text: TextInput) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise missing_package("tokenizers", "text", "the library that turns text into tokens") from error
    if len(raw) > MAX_TOKENIZER_BYTES:
        raise InputError(f"{text.tokenizer} has {len(raw)} bytes", wanted=f"at most {MAX_TOKENIZER_BYTES}")
    try:
        tokenizer = Tokenizer.from_str(raw.decode("utf-8"))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        known = tokenizer.id_to_token(text.pad_id) is not None
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library is Rust: it may panic, and its panics are no Exception
        raise InputError(f"{text.tokenizer} is no tokenizer ({error})", fix="export the network again") from error
    if not known:
        raise InputError(f"{text.tokenizer} has no token for the padding id {text.pad_id}", fix="export the network again")
    return tokenizer
