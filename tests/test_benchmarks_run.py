"""Runs of depth-bench over many engines: what each part is handed, engines that fail, the data of the papers."""

import dataclasses
import json

import numpy as np
import pytest
from other_contracts import with_contract
from PIL import Image

from fathom.benchmarks import pytorch_reference
from fathom.benchmarks.bench_command import main
from fathom.benchmarks.latency import first_query
from fathom.benchmarks.report.build import build_report
from fathom.runtime.artefact.contract import Crop, Protocol, Require, Resize
from fathom.runtime.artefact.plan import PlanFile
from fathom.runtime.commands.inspection import read_manifest
from fathom.runtime.errors import FathomError

DATA = "rooms:7:3:48x64"


def test_a_run_hands_pytorchs_files_and_device_to_all_parts(tiny, tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    kernel, asked = torch.from_numpy(tiny.kernel), []

    class Network(torch.nn.Module):
        contract = read_manifest(tiny.bundle).contract

        def boundaries(self, inputs):
            features = torch.relu(torch.nn.functional.conv2d(inputs["image"], kernel, stride=2, padding=2))
            return {"features": features, "depth": features.mean(1, keepdim=True) + 1}

        def forward(self, image):
            return self.boundaries({"image": image})["depth"]

    def load(artefact, weights, given=None):
        asked.append((weights, dict(given or {})))
        return Network()

    def cold(artefact, device, threads, protocol, mode, weights, options):
        asked.append((weights, options))
        raise FathomError("not started here")

    monkeypatch.setattr(pytorch_reference, "load_network", load)
    monkeypatch.setattr(first_query, "first_query", cold)
    words = ["run", str(tiny.bundle), "--data", DATA, "--quick", "--threads", "1", "--quiet", "--reference-weights", "w.safetensors"]
    words += ["--reference-bins", "bins.json"]
    assert main([*words, "-o", str(tmp_path / "out")]) == 0
    assert len(asked) >= 4 and all(given == ("w.safetensors", {"bins": "bins.json"}) for given in asked)  # estimate, accuracy, latency, cold start
    argv = [json.loads((tmp_path / "out" / f"{kind}.json").read_text())["meta"]["argv"] for kind in ("accuracy", "latency")]
    for words_of, flags in zip(argv, (("--reference-weights", "--reference-bins", "--reference-device"), ("--weights", "--bins", "--device")), strict=True):
        assert [words_of[words_of.index(flag) + 1] for flag in flags] == ["w.safetensors", "bins.json", "cpu"]
    lines = (tmp_path / "out" / "report.md").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("| pytorch eager-fp32 | ") and "first row | " in line)
    assert " - " not in line  # timed and scored in one row
    assert main([*words, "--pytorch", "", "-o", str(tmp_path / "none")]) == 2


@pytest.fixture
def sunken(tiny, tmp_path):
    """The plan with a last stage that adds too little, so that many depths are below zero: it runs, and fails on every image."""
    import onnx
    from onnx import numpy_helper

    from fathom.export.plan.plan_file import file_facts, write_plan

    with PlanFile.open(tiny.plan) as plan:
        sources = {name: bytes(plan.view(name)) for name in plan.manifest.files}
        head = onnx.load_from_string(sources["engines/head.onnx"])
        (one,) = (item for item in head.graph.initializer if item.name == "one")
        one.CopyFrom(numpy_helper.from_array(np.float32(-0.1), "one"))
        sources["engines/head.onnx"] = head.SerializeToString()
        facts = {name: file_facts(source) for name, source in sources.items()}
        write_plan(tmp_path / "sunken.plan", dataclasses.replace(plan.manifest, files=facts), sources)
    return tmp_path / "sunken.plan"


def test_an_engine_that_failed_is_never_recommended_and_a_second_run_says_the_same(tiny, sunken, tmp_path, capsys):
    words = ["run", str(tiny.bundle), "--engine", str(sunken), "--engine", str(tiny.bundle), "--data", "rooms:6:3:48x64", "--pytorch", "", "--quick"]
    words += ["--threads", "1", "-o", str(tmp_path / "out")]
    for call in ("first", "second"):
        assert main(words) == 4, call
        said = capsys.readouterr().err
        assert "sunken.plan: 6 of 6 images gave no usable depth" in said and said.count("is there already") == (0 if call == "first" else 2)
    text = (tmp_path / "out" / "report.md").read_text()
    assert "**sunken.plan FAILED: 6 of 6 images gave nothing that can be used.**" in text
    latency = json.loads((tmp_path / "out" / "latency.json").read_text())
    for row, ms in zip(latency["rows"], (1.0, 40.0), strict=True):  # the broken one is by far the fastest
        assert not row["is_skipped"]
        row["latency_ms"]["photo"]["p50"] = ms
    (tmp_path / "latency.json").write_text(json.dumps(latency))

    def shown(*paths):
        return "".join(part if isinstance(part, str) else part.text for part in build_report(paths).sections[0].blocks[0].parts)

    accuracy = json.loads((tmp_path / "out" / "accuracy.json").read_text())
    assert "The most exact, tiny, takes 40.0 ms" in shown(tmp_path / "out" / "accuracy.json", tmp_path / "latency.json")
    assert shown(tmp_path / "out" / "accuracy.json").endswith(f"The most exact, tiny, reaches abs_rel {accuracy['rows'][1]['means']['abs_rel']:.4f}.")
    accuracy["rows"] = accuracy["rows"][:1]
    (tmp_path / "accuracy.json").write_text(json.dumps(accuracy))
    assert shown(tmp_path / "accuracy.json", tmp_path / "latency.json") == "No engine can be recommended: none passed."


def write_pair(photo, depth, size, scale):
    """A photo of noise and a depth map of 2 to 6 metres in steps of 1 / ``scale``."""
    draw = np.random.default_rng(5)
    for path in (photo, depth):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(draw.integers(0, 256, (*size, 3), dtype=np.uint8)).save(photo)
    Image.fromarray(draw.integers(2 * scale, 6 * scale, size, dtype=np.uint16)).save(depth)


def nyu_data(folder):
    write_pair(folder / "nyu" / "study_0001" / "rgb_1.png", folder / "nyu" / "study_0001" / "sync_depth_1.png", (480, 640), 1000)
    return f"nyu-folder:{folder / 'nyu'}"


def kitti_data(folder):
    write_pair(folder / "kitti" / "raw_data" / "a" / "b" / "c" / "photo.png", folder / "kitti" / "depth.png", (375, 1242), 256)
    (folder / "kitti.txt").write_text("a/b/c/photo.png depth.png 721.5377\n")
    return f"kitti:{folder / 'kitti'}:{folder / 'kitti.txt'}"


@pytest.mark.parametrize(("data", "protocol", "photo"), [(nyu_data, "nyu-benchmark", [480, 640]), (kitti_data, "kitti-benchmark", [375, 1242])])
def test_a_run_on_a_papers_data_shows_photos_as_the_paper_did(tiny, tmp_path, data, protocol, photo):
    """Scored and timed alike, or the report would refuse them."""
    own = read_manifest(tiny.bundle).contract
    shapes = {"nyu-benchmark": Require(480, 640), "kitti-benchmark": Crop(352, 1216, "bottom-center")}
    more = tuple(Protocol(name, (shape, Resize(48, 96, "bilinear")), (0, 32), (), True, "a test") for name, shape in shapes.items())
    bundle = with_contract(tiny.bundle, tmp_path / "bundle", dataclasses.replace(own, protocols=(*own.protocols, *more)))
    words = ["run", str(bundle), "--data", data(tmp_path), "--pytorch", "", "--quick", "--threads", "1", "--quiet"]
    assert main([*words, "-o", str(tmp_path / "out")]) == 0
    accuracy, latency = (json.loads((tmp_path / "out" / f"{kind}.json").read_text()) for kind in ("accuracy", "latency"))
    assert accuracy["rows"][0]["protocol"] == latency["protocol"] == protocol and latency["photo_shape"] == photo
    assert not latency["rows"][0]["is_skipped"] and not latency["rows"][0]["cold_start_ms"]["is_skipped"]
    assert main([*words, "--protocol", "other", "-o", str(tmp_path / "none")]) == 2 and not (tmp_path / "none").exists()
