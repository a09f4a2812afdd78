"""Live text: contract, statistics of a picture, tokenising without transformers or torch."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from fathom.models.prompt_tokens import DEPTH_CLASSES, bert_words, compact_words, sentence_ids, tokenizer_json
from fathom.runtime.artefact.contract import Contract, ImageInput, OutputContract, Protocol
from fathom.runtime.artefact.text_input import TextInput
from fathom.runtime.errors import EnvironmentMismatchError, InputError, UsageError
from fathom.runtime.text.encoder import TextEncoder
from fathom.runtime.text.image_statistics import fullest_interval, level_statistics, levels, most_frequent, positions, shrink

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGE = ImageInput("image", (48, 64), (48, 64), MEAN, STD)
SENTENCE = "min value on the x axis {min_x}, y axis {min_y}, max {max_x} {max_y}, median {median_x} {median_y}, the depth class is {class}"
WHERE = TextInput("position-statistics", "ids", "mask", 40, 0, "constants/tokenizer.json", SENTENCE, DEPTH_CLASSES, (1.0, 1.5, 2.0, 2.25, 2.5, 2.75, 3.0), 24)
LEVELS = TextInput(
    "level-statistics", "ids", "", 20, 0, "t.json", "min {min} max {max} median {median} class {class}", DEPTH_CLASSES, (36, 72, 109, 145, 182, 218, 255)
)
ASKED = TextInput("prompt", "ids", "", 8, 0, "t.json", "{text}")


@pytest.fixture
def picture():
    return torch.rand(2, 3, 48, 64, generator=torch.Generator().manual_seed(3)).sub(0.45).div(0.225)


def test_a_contract_with_text_survives_json():
    plain = Contract(IMAGE, OutputContract("depth", "relative", "", 0, 1, "far", "bilinear"), (Protocol("single-image", (), (0,), (), False, ""),))
    assert "text" not in plain.to_json()
    for text in (WHERE, LEVELS, ASKED):
        contract = replace(plain, text=text)
        assert Contract.from_json(json.loads(json.dumps(contract.to_json()))) == contract
    with pytest.raises(ValueError, match="picture and text"):
        replace(plain, text=replace(ASKED, ids="image"))


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "poem"},
        {"length": 0},
        {"length": True},
        {"ids": "a b"},
        {"mask": "ids"},
        {"tokenizer": "../up.json"},
        {"template": "no gaps"},
        {"template": SENTENCE + "{text}"},
        {"class_tops": (1, 1, 2, 3, 4, 5, 6)},
        {"class_tops": (1.0, 2.0)},
        {"class_tops": (1, 2, 3, 4, 5, 6, float("nan"))},
        {"classes": ("Giant", *DEPTH_CLASSES[1:])},
        {"size": -1},
    ],
)
def test_text_inputs_refuse_nonsense(change):
    with pytest.raises(ValueError, match="text"):
        replace(WHERE, **change)


def test_a_template_is_no_program():
    text = replace(ASKED, template="{text} {0.__class__} {text!r}")
    assert text.fill({"text": "a {text} cup"}) == "a {text} cup {0.__class__} {text!r}"


def test_positions_equal_torch(picture):
    """Against the operations that the published code is made of, on a picture without ties."""
    small = interpolate(picture, size=(24, 24), mode="bilinear", align_corners=False)
    for whole, torch_small in zip(picture.numpy(), small, strict=True):
        ours = shrink(whole, 24)
        np.testing.assert_allclose(ours, torch_small, atol=1e-6)
        found = positions(torch_small.numpy())
        for name, dim in (("x", 2), ("y", 1)):
            assert found[f"max_{name}"] == int(torch_small.max(dim).indices.min())
            assert found[f"min_{name}"] == int(torch_small.min(dim).indices.max())
            assert found[f"median_{name}"] == int(torch_small.median(dim).indices.median())
        values, counts = torch.unique(torch_small, return_counts=True)
        assert most_frequent(torch_small.numpy()) == float(values[counts.argmax()])


def test_positions_by_hand():
    picture = np.array([[[5, 1, 2], [0, 7, 3]]], np.float32)  # one channel, two rows, three columns
    # rows: maxima at 0 and 1, minima at 1 and 0, medians (2 and 3) at 2 and 2; columns: maxima at 0 1 1, minima at 1 0 0, lower medians likewise
    assert positions(picture) == {"max_x": 0, "min_x": 1, "median_x": 2, "max_y": 0, "min_y": 1, "median_y": 0}
    assert most_frequent(np.array([3.0, 1.0, 3.0, 1.0, 2.0])) == 1.0


def test_levels_by_hand():
    bytes_ = np.array([[[0, 10], [200, 255]]] * 3, np.uint8)
    normalised = (bytes_ / 255.0 - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))
    found = levels(normalised.astype(np.float32), MEAN, STD)
    np.testing.assert_array_equal(found, bytes_)
    assert level_statistics(found) == {"min": 0, "max": 255, "median": 10}
    assert fullest_interval(np.array([36, 37, 50, 72, 255]), LEVELS.class_tops) == 72  # 36 still belongs to the first interval
    assert LEVELS.class_of(72) == "extremely close"
    assert WHERE.class_of(99.0) == "unseen"


def test_a_picture_becomes_padded_ids(picture):
    encoder = TextEncoder(WHERE, IMAGE, tokenizer_json(bert_words()))
    tensors = encoder(picture.numpy())
    assert tensors["ids"].shape == tensors["mask"].shape == (2, 40)
    assert (tensors["ids"].dtype, tensors["mask"].dtype) == (np.int64, np.float32)
    for ids, mask, sentence in zip(tensors["ids"], tensors["mask"], encoder.sentences(picture.numpy()), strict=True):
        used = int(mask.sum())
        assert ids[0] == 101 and ids[used - 1] == 102 and not ids[used:].any() and mask[:used].all()
        assert f"the depth class is {DEPTH_CLASSES[0]}" in sentence
    with pytest.raises(UsageError, match="--prompt"):
        encoder(picture.numpy(), "a cup")
    with pytest.raises(InputError, match="NaN"):
        encoder(np.full((1, 3, 48, 64), np.nan, np.float32))
    assert list(TextEncoder(LEVELS, IMAGE, tokenizer_json(compact_words()))(picture.numpy())) == ["ids"]


def test_prompts():
    encoder = TextEncoder(ASKED, IMAGE, tokenizer_json(bert_words()))
    canvas = np.zeros((2, 3, 48, 64), np.float32)
    np.testing.assert_array_equal(encoder(canvas, "  This object\nis FAR ")["ids"], [[101, 2023, 4874, 2003, 2521, 102, 0, 0]] * 2)
    for prompt in (None, "   ", "x" * 2000):
        with pytest.raises(UsageError, match="prompt"):
            encoder(canvas, prompt)
    with pytest.raises(InputError, match="tokens"):
        encoder(canvas, "this object is not in the distance and far")


@pytest.mark.parametrize("raw", [b"", b"{}", b"\xff\xfe", b'{"model": {"type": "WordPiece", "vocab": 3}}', b"[" * 10_000])
def test_a_broken_tokenizer_is_bad_input(raw):
    with pytest.raises(InputError):
        TextEncoder(ASKED, IMAGE, raw)


def test_a_padding_id_must_be_known():
    with pytest.raises(InputError, match="padding"):
        TextEncoder(replace(ASKED, pad_id=999_999), IMAGE, tokenizer_json(bert_words()))


def test_without_the_library_the_mend_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(EnvironmentMismatchError, match=r"pip install 'fathom-depth\[text\]'"):
        TextEncoder(ASKED, IMAGE, b"{}")


def test_tokenising_loads_neither_torch_nor_transformers(tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(tokenizer_json(bert_words()))
    code = f"""
import json, sys
from pathlib import Path
import numpy as np
from fathom.runtime.artefact.contract import ImageInput
from fathom.runtime.text.encoder import TextEncoder
from fathom.runtime.artefact.text_input import TextInput
text = TextInput.from_json(json.loads({json.dumps(json.dumps(ASKED.to_json()))}))
image = ImageInput("image", (4, 4), (4, 4), (0.5,) * 3, (0.5,) * 3)
TextEncoder(text, image, Path({str(tmp_path / "tokenizer.json")!r}).read_bytes())(np.zeros((1, 3, 4, 4), np.float32), "far")
print(sorted({{"torch", "transformers", "onnx"}} & set(sys.modules)))
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_known_ids_of_bert():
    """Special ids and counts of the seven prompts as published (begin, end and words)."""
    words = bert_words()
    assert (words["[PAD]"], words["[UNK]"], words["[CLS]"], words["[SEP]"], words["the"]) == (0, 100, 101, 102, 1996)
    counts = [len(sentence_ids(f"this object is {word}", words)) for word in DEPTH_CLASSES]
    assert counts == [6, 7, 6, 8, 8, 6, 6]
    assert all(str(number) in words for number in range(256))
    with pytest.raises(ValueError, match="cup"):
        sentence_ids("this cup is far", words)


@pytest.mark.parametrize("words", [bert_words(), compact_words()])
def test_tokenizer_files_are_reproducible_and_agree_with_the_table(words):
    from tokenizers import Tokenizer

    raw = tokenizer_json(words)
    assert raw == tokenizer_json(dict(reversed(words.items())))
    tokenizer = Tokenizer.from_str(raw.decode())
    for word in DEPTH_CLASSES:
        assert tuple(tokenizer.encode(f"This object is {word}").ids) == sentence_ids(f"this object is {word}", words)


def test_ids_for_engines_that_know_nothing_wider_than_int32():
    texts = ["the chair", "the chair"]
    wide, narrow = (TextEncoder(ASKED, IMAGE, tokenizer_json(bert_words()), *more).tokenize(texts)["ids"] for more in ((), ("int32",)))
    assert wide.dtype == np.int64 and narrow.dtype == np.int32
    np.testing.assert_array_equal(wide, narrow)
