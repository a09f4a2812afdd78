"""depth-bench accuracy on words and masks: its numbers against loops over PyTorch's masks, interruptions, refusals."""

import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch
from PIL import Image
from test_benchmarks_report import unsupported
from tokenizers import Tokenizer
from torch import nn

import fathom
from fathom.benchmarks.bench_command import main
from fathom.benchmarks.record.record import read_record
from fathom.export.bundle.bundle import write_bundle
from fathom.models.diffusion.evp_refer import TINY, TINY_TOKENIZER
from fathom.models.network import DepthNetwork, Stage, WeightsOrigin
from fathom.runtime.artefact.contract import Contract, ImageInput, OutputContract, Protocol, Resize
from fathom.runtime.artefact.spec import StageSpec, TensorSpec
from fathom.runtime.artefact.text_input import TextInput
from fathom.runtime.photo.preprocess import network_inputs

WORDS = ("the cup on the left", "wall")
SIDE, TOKENS = 48, 12


class Masks(DepthNetwork):
    """Photo [B, 3, 48, 48] and ids [B, 12] to logits [B, 2, 24, 24]."""

    name, variant, tokenizer = "small-masks", "test", TINY_TOKENIZER

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.see, self.read, self.pad = nn.Conv2d(3, 8, 5, 2, 2), nn.Embedding(1024, 8), TINY.vocabulary - 1
        self.judge = nn.Conv2d(8, 2, 1)
        image = ImageInput("image", (SIDE, SIDE), (SIDE, SIDE), (0.5,) * 3, (0.5,) * 3)
        protocol = Protocol("single-image", (Resize(SIDE, SIDE, "bilinear-antialias"),), (0,), (), False, "a test")
        text = TextInput("prompt", "ids", "", TOKENS, self.pad, "constants/tokenizer.json", "{text}")
        self.contract = Contract(image, OutputContract("logits", "mask", "", 0.0, 1.0, "", "bilinear-corners"), (protocol,), text)
        self.origin = WeightsOrigin("random-init")
        self.eval().requires_grad_(False)

    def forward(self, image, ids):
        return self.judge(torch.tanh(3 * self.see(image)) * self.read(ids).mean(1)[..., None, None] * 4)

    def config_json(self):
        return {}

    def artefact_files(self):
        return {"constants/tokenizer.json": self.tokenizer}

    def example_inputs(self, batch=1, seed=0):
        ids = torch.randint(0, self.pad, (batch, TOKENS), generator=torch.Generator().manual_seed(seed))
        return {**super().example_inputs(batch, seed), "ids": ids}

    def boundaries(self, inputs):
        return {"logits": self(inputs["image"], inputs["ids"])}

    def stages(self):
        image, ids = TensorSpec("image", "float32", ("batch", 3, SIDE, SIDE)), TensorSpec("ids", "int64", ("batch", TOKENS))
        return (Stage(StageSpec("all", (image, ids), (TensorSpec("logits", "float32", ("batch", 2, SIDE // 2, SIDE // 2)),)), self),)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A bundle of a small network, and two photos of the published form."""
    folder = tmp_path_factory.mktemp("masks")
    network = Masks()
    write_bundle(network, folder / "bundle")
    for place in ("refcoco", "train2014"):
        (folder / place).mkdir()
    blobs = np.random.default_rng(4).integers(0, 255, (2, 6, 8, 3), np.uint8)
    images, things, refs = [], [], []
    for number, size in enumerate(((120, 90), (80, 100))):
        Image.fromarray(blobs[number]).resize(size, Image.BICUBIC).save(folder / "train2014" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": size[0], "height": size[1]})
        things.append({"id": 10 + number, "segmentation": [[5, 5, 60, 5, 60, 70, 5, 70]]})
        said = [{"sent_id": 9000 + 2 * number + k, "raw": words} for k, words in enumerate(WORDS)]
        refs.append({"ref_id": 7000 + number, "image_id": number, "ann_id": 10 + number, "split": "val", "sentences": said})
    (folder / "refcoco" / "instances.json").write_text(json.dumps({"images": images, "annotations": things}))
    (folder / "refcoco" / "refs(unc).json").write_text(json.dumps(refs))
    return network, folder


def run(*words):
    return main(["accuracy", *map(str, words), "--threads", "1", "--quiet"])


def by_hand(network, folder):
    """Published way: photo by Pillow to the window, mask by its nearest pixels, argmax of logits at the window."""
    window, overlaps, both, either = network.contract.input.canvas, [], 0, 0
    for number in range(2):
        photo = Image.open(folder / "train2014" / f"{number}.png")
        truth = np.zeros(photo.size[::-1], np.uint8)
        truth[5:70, 5:60] = 1
        truth = np.asarray(Image.fromarray(truth, "P").resize(window[::-1], Image.NEAREST)).astype(bool)
        small = np.asarray(photo.resize(window[::-1], Image.BILINEAR))
        image = torch.from_numpy(next(network_inputs(small, network.contract, network.contract.protocols[0], 1)))
        for words in WORDS:
            found = Tokenizer.from_str(network.tokenizer.decode()).encode(words).ids
            ids = torch.full((1, TOKENS), network.pad)
            ids[0, : len(found)] = torch.tensor(found)
            with torch.no_grad():
                logits = network.boundaries({"image": image, "ids": ids})["logits"]
            logits = torch.nn.functional.interpolate(logits, size=window, mode="bilinear", align_corners=True)[0]
            mask = (logits[1] > logits[0]).numpy()
            overlaps.append((mask & truth).sum() / (mask | truth).sum())
            both, either = both + (mask & truth).sum(), either + (mask | truth).sum()
    return {"oIoU": both / either, "mIoU": np.mean(overlaps), "P@0.5": np.mean([overlap >= 0.5 for overlap in overlaps])}


def test_numbers_are_those_of_a_loop_over_pytorch(made, tmp_path, capsys):
    network, folder = made
    words = ("--engine", folder / "bundle", "--engine", folder / "bundle", "--data", f"refer:{folder}:refcoco:unc:val", "-o", tmp_path / "r.json")
    assert run(*words) == 0
    record = read_record(tmp_path / "r.json", ("masks",))
    jsonschema.validate(record, json.loads((Path(fathom.__file__).parent / "benchmarks/record/schemas/result.schema.json").read_text()))
    assert [row["kind"] for row in record["rows"]] == ["engine"] * 2 and record["data"]["measured"] == 4
    for row in record["rows"]:
        for metric, number in by_hand(network, folder).items():
            assert row["means"][metric] == pytest.approx(number, abs=2e-3), metric
    assert abs(record["rows"][1]["difference"]["absolute"]["oIoU"]) < 2e-3
    out = capsys.readouterr().out
    assert "oIoU" in out and "P@0.9" in out and "published code" in out


def test_an_interrupted_measurement_goes_on(made, tmp_path, monkeypatch):
    from fathom.runtime.pipeline import Pipeline

    _, folder = made
    words = ("--engine", folder / "bundle", "--data", f"refer:{folder}:refcoco", "--evaluation", "refer-photo", "-o")
    assert run(*words, tmp_path / "whole.json") == 0
    real, asked = Pipeline.predict, []

    def predict(self, *arguments, **more):
        asked.append(more["prompt"])
        if len(asked) == 3:
            raise KeyboardInterrupt
        return real(self, *arguments, **more)

    monkeypatch.setattr(Pipeline, "predict", predict)
    assert run(*words, tmp_path / "parts.json") == 130
    assert run(*words, tmp_path / "parts.json") == 0 and len(asked) == 3 + 2
    whole, parts = (json.loads((tmp_path / name).read_text()) for name in ("whole.json", "parts.json"))
    assert whole["rows"] == parts["rows"] and not list(tmp_path.glob("*.journal"))


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        (["--evaluation", "nyu-eigen"], 2, "refer-window, refer-photo"),
        (["--budget", "abs_rel=1%"], 2, "--budget says nothing about masks"),
        (["--protocol", "nyu-benchmark"], 2, "single-image"),
    ],
)
def test_flags_of_depth_are_refused(made, capsys, more, code, message):
    _, folder = made
    assert run("--engine", folder / "bundle", "--data", f"refer:{folder}:refcoco", *more) == code
    assert message in capsys.readouterr().err


def test_other_networks_and_missing_files_are_told(made, tiny, capsys):
    _, folder = made
    assert run("--engine", tiny.bundle, "--data", f"refer:{folder}:refcoco") == 2
    assert "gives depth, not masks" in capsys.readouterr().err
    assert run("--engine", folder / "bundle", "--data", f"refer:{folder}:refcocog") == 3
    assert "refs(umd).p" in capsys.readouterr().err


@pytest.fixture(scope="module")
def measured(made, tmp_path_factory):
    """A folder made by depth-bench run of the referring network."""
    _, folder = made
    out = tmp_path_factory.mktemp("run") / "masks"
    words = ["run", str(folder / "bundle"), "--data", f"refer:{folder}:refcoco:unc:val", "--pytorch", "", "--quick"]
    assert main([*words, "--threads", "1", "--quiet", "-o", str(out)]) == 0
    return out


def two_rows(record, worse):
    """The record with two engines on 60 made-up sentences, in so many of which the second lost a tenth of what the first hits."""
    record = json.loads(json.dumps(record))
    draw = np.random.default_rng(1)
    union = draw.integers(500, 1500, 60)
    hit = (union * draw.uniform(0.2, 0.9, 60)).astype(int)
    rows = []
    for name, lost in (("first", 0), ("second", worse)):
        kept = hit - np.where(np.arange(60) < lost, hit // 10, 0)
        samples = [{"id": f"s{k:02}", "intersection": int(kept[k]), "union": int(union[k])} for k in range(60)]
        means = {"oIoU": float(kept.sum() / union.sum()), "mIoU": float((kept / union).mean())}
        means |= {f"P@{threshold}": float((kept / union >= threshold).mean()) for threshold in (0.5, 0.6, 0.7, 0.8, 0.9)}
        rows.append({**record["rows"][0], "name": name, "samples": samples, "means": means, "means_interval": None, "difference": None})
    record["rows"] = rows
    return record


def test_a_run_reports_masks_and_every_number_stands_in_a_result(measured):
    assert {path.name for path in measured.iterdir()} == {"run.json", "accuracy.json", "latency.json", "report.html", "report.md"}
    records = {kind: json.loads((measured / f"{kind}.json").read_text()) for kind in ("accuracy", "latency")}
    assert records["accuracy"]["kind"] == "masks"
    page, text = (measured / "report.html").read_text(), (measured / "report.md").read_text()
    assert unsupported(page, records) == []
    (row,) = records["accuracy"]["rows"]
    assert "reaches mIoU" in text and f"{row['means']['mIoU']:.4f}" in text and f"{row['means']['P@0.9']:.4f}" in text
    assert "The worst sentences" in text and "upper left is better" in page and "abs_rel" not in text


def test_masks_are_compared_gated_and_followed(measured, tmp_path, capsys):
    record = json.loads((measured / "accuracy.json").read_text())
    for name, lost in (("same.json", 0), ("worse.json", 45)):
        (tmp_path / name).write_text(json.dumps(two_rows(record, lost)))
    assert main(["compare", str(tmp_path / "same.json"), "--json"]) == 0
    assert {(v["quantity"], v["found"]["word"]) for v in map(json.loads, capsys.readouterr().out.splitlines())} == {("mIoU", "same"), ("oIoU", "same")}
    assert main(["compare", str(tmp_path / "worse.json"), "--json"]) == 0
    found = {v["quantity"]: v["found"] for v in map(json.loads, capsys.readouterr().out.splitlines())}
    first, second = two_rows(record, 45)["rows"]
    assert set(found) == {"mIoU", "oIoU"}
    for metric, verdict in found.items():
        change = second["means"][metric] / first["means"][metric] - 1
        assert verdict["word"] == "worse" and verdict["change"] == pytest.approx(change, rel=1e-6) and verdict["low"] < change < verdict["high"] < 0
    gate = tmp_path / "gate.json"
    for limits, code in (({"metric": "mIoU", "max_change": 0.01}, 4), ({"metric": "mIoU", "max_change": 0.2}, 0), ({"metric": "P@0.5", "min": 2}, 4)):
        gate.write_text(json.dumps({"gates": [{"row": "second", **limits}]}))
        assert main(["compare", str(tmp_path / "worse.json"), "--gate", str(gate), "--quiet"]) == code, limits
    capsys.readouterr()
    (tmp_path / "history").mkdir()
    for number, lost in enumerate((0, 45)):
        later = two_rows(record, lost)
        later["rows"], later["meta"]["date"], later["meta"]["commit"] = later["rows"][1:], f"2026-01-0{number + 1}T00:00:00+00:00", f"c{number}"
        (tmp_path / f"history/{number}.json").write_text(json.dumps(later))
    assert main(["history", str(tmp_path / "history")]) == 0
    assert "second got worse in mIoU with commit c1" in capsys.readouterr().out
