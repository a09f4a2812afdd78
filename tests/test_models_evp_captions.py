"""EVP with a caption for every photo: CLIP stays in the network, and says what it says when one caption is folded; captions find their photos."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer

from fathom.datasets.captions import Captioned
from fathom.models.catalog import load
from fathom.models.diffusion.diffusion_checkpoint import published_name
from fathom.models.diffusion.evp import DEPTH_HEAD
from fathom.models.diffusion.evp_refer import TINY_TOKENIZER
from fathom.runtime.artefact.spec import check_chain
from fathom.runtime.errors import InputError, UsageError

CAPTION = "a red chair on the left of the table"
LIVE = {"captions": 1}


@pytest.fixture(scope="module")
def network():
    return load("evp-tiny", random_init=True, settings=LIVE)


@pytest.fixture(scope="module")
def file(network, tmp_path_factory):
    """In the published form of a checkpoint with captions per image."""
    tensors, path = {}, tmp_path_factory.mktemp("evp") / "model.safetensors"
    for own, tensor in network.state_dict().items():
        name = published_name(own, DEPTH_HEAD)
        squeezed = re.search(r"mid\.attn_1\.(q|k|v|proj_out)\.weight", name)
        tensors[name] = (tensor[..., None, None] if squeezed else tensor).clone()
    assert sum(name.startswith("encoder.clip_model.transformer.text_model.") for name in tensors) > 30 and "encoder.class_embeddings" not in tensors
    save_file(tensors, path)
    return path


def test_a_caption_at_run_time_gives_what_the_same_caption_folded_gives(file, tmp_path):
    live = load("evp-tiny", file, settings=LIVE)
    (tmp_path / "one.txt").write_text(CAPTION)
    folded = load("evp-tiny", file, texts=tmp_path / "one.txt")
    assert live.contract.text.kind == "prompt" and folded.contract.text is None
    said = Tokenizer.from_str(TINY_TOKENIZER.decode()).encode(CAPTION).ids
    ids = torch.full((1, 40), live.contract.text.pad_id)
    ids[0, : len(said)] = torch.tensor(said)
    inputs = {"image": live.example_inputs(1)["image"]}
    with torch.no_grad():
        wanted = folded.boundaries(inputs)
        values = {**inputs, "ids": ids}
        got = live.boundaries(values)
        for stage in live.stages():
            made = stage.module(*(values[tensor.name] for tensor in stage.spec.inputs))
            values |= zip((tensor.name for tensor in stage.spec.outputs), made if isinstance(made, tuple) else (made,), strict=True)
        other = live.boundaries({**inputs, "ids": live.example_inputs(1, 3)["ids"]})
    check_chain(tuple(stage.spec for stage in live.stages()))
    for found in (got, values):
        torch.testing.assert_close(found["context"], folded.text(), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found["depth"], wanted["depth"], atol=2e-3, rtol=1e-3)
    assert (other["depth"] - wanted["depth"]).abs().mean() > 0.01
    assert live.artefact_files() == {"tokenizer.json": TINY_TOKENIZER} and folded.artefact_files() == {}


def test_what_contradicts_is_refused(file, tmp_path, capsys):
    (tmp_path / "one.txt").write_text(CAPTION)
    with pytest.raises(UsageError, match="captions at run time and one text"):
        load("evp-tiny", file, texts=tmp_path / "one.txt", settings=LIVE)
    with pytest.raises(InputError, match=r"--set captions=1 keeps CLIP"):
        load("evp-tiny", file)
    with pytest.raises(UsageError, match="captions 2"):
        load("evp-tiny", random_init=True, settings={"captions": 2})
    with pytest.raises(UsageError, match="--tokenizer is for captions"):
        load("evp-tiny", file, tokenizer=tmp_path / "t.json")
    from fathom.models.training.train_command import main

    words = ["--model", "evp-tiny", "--data", "rooms:1", "--random-init", "-o", str(tmp_path / "w.safetensors")]
    for one_of_two in (["--set", "captions=1"], ["--captions", str(tmp_path / "one.txt")]):
        assert main([*words, *one_of_two]) == 2
        assert "both --set captions=1 and --captions FILE" in capsys.readouterr().err


def test_captions_find_photos_of_a_folder_by_their_paths(tmp_path):
    """Their ids have endings, and dots that are none."""
    from fathom.datasets.pairs import Images

    files = ("hall/r-1294.208.jpg", "hall/r-1294.209.jpg", "den/a.jpg", "den/a.png", "den/b.PNG", "one/c.jpg", "two/c.jpg")
    for name in files:
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 3)).save(tmp_path / "photos" / name)
    found = {"photos/hall/r-1294.208.jpg": "a hall", "hall/r-1294.209": "its door", "x/photos/den/a.jpg": "a desk", "x/photos/den/a.png": "a lamp"}
    found |= {"photos/den/b.jpg": "a bed", "c": "no one's", "old/c.jpg": "another's"}
    (tmp_path / "captions.json").write_text(json.dumps(found))
    said = {sample.id: sample.caption for sample in Captioned(Images(tmp_path / "photos"), tmp_path / "captions.json")}
    assert said == dict(zip(files, ("a hall", "its door", "a desk", "a lamp", "a bed", "", ""), strict=True))


def test_captions_find_their_photos_and_no_others(tmp_path):
    from fathom.benchmarks.accuracy.words import words_of
    from fathom.datasets.sample import Provenance, Sample

    ids = ("kitchen_0028b/rgb_00045", "bedroom_1/rgb_00045", "nyu_00007", "other")
    photo, depth = np.zeros((2, 2, 3), np.uint8), np.ones((2, 2), np.float32)

    class Few:
        provenance = Provenance("test", "four", "0", 4)

        def __len__(self):
            return len(ids)

        def __getitem__(self, number):
            return Sample(photo, depth, depth > 0, None, ids[number], "")

    found = {"nyu_depth_v2/sync/kitchen_0028b/rgb_00045.jpg": "a kitchen", "sync/bedroom_1/rgb_00045.jpg": "a bedroom", "nyu_00007": "a hall"}
    (tmp_path / "captions.json").write_text(json.dumps(found))
    source = Captioned(Few(), tmp_path / "captions.json")
    assert [sample.caption for sample in source] == ["a kitchen", "a bedroom", "a hall", ""]
    assert source.provenance.sha256 != Few.provenance.sha256
    asked = SimpleNamespace(text=SimpleNamespace(kind="prompt"))
    assert words_of(asked, source[0]) == "a kitchen"
    with pytest.raises(InputError, match=r"other has no caption.*--captions FILE"):
        words_of(asked, source[3])
    for broken in ("[]", "{", '{"a": 3}'):
        (tmp_path / "broken.json").write_text(broken)
        with pytest.raises(ValueError, match=r"broken\.json is"):
            Captioned(Few(), tmp_path / "broken.json")
