"""A network that is told the kind of scene with every photo: artefact, depth-run --scene, accuracy by each sample's own scene."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fathom.benchmarks.bench_command import main as bench
from fathom.export.bundle.bundle import write_bundle
from fathom.export.plan.build import build_plan
from fathom.export.plan.build_options import BuildOptions
from fathom.models.network import DepthNetwork, Stage, WeightsOrigin
from fathom.runtime.artefact.contract import Contract, ImageInput, OutputContract, Protocol, Resize
from fathom.runtime.artefact.spec import StageSpec, TensorSpec
from fathom.runtime.artefact.text_input import TextInput
from fathom.runtime.commands.run import main as depth_run
from fathom.runtime.commands.scale_command import main as calibrate_scale
from fathom.runtime.errors import InputError, UsageError
from fathom.runtime.pipeline import Pipeline
from fathom.runtime.scale.camera_scale import read_scale

SCENES = ("study", "kitchen", "study_room")
PHOTO = np.repeat(np.linspace(0, 255, 40 * 60).reshape(40, 60, 1), 3, 2).astype(np.uint8)


class Told(DepthNetwork):
    """1 m in a study, 2 in a kitchen, 3 in a study_room, and a little of the picture."""

    name, variant = "told", "test"

    def __init__(self):
        super().__init__()
        self.near = nn.Embedding.from_pretrained(torch.tensor([[1.0], [2.0], [3.0]]))
        protocol = Protocol("single-image", (Resize(32, 32, "bilinear"),), (0,), (), False, "a test")
        text = TextInput("choice", "scene", "", 1, 0, "", "{text}", SCENES)
        image = ImageInput("image", (32, 32), (32, 32), (0.5,) * 3, (0.5,) * 3)
        self.contract = Contract(image, OutputContract("depth", "metric", "m", 0.1, 10.0, "far", "bilinear"), (protocol,), text)
        self.origin = WeightsOrigin("trained")
        self.eval().requires_grad_(False)

    def forward(self, image, scene):
        return self.near(scene)[..., None] + 0.01 * image.mean(1, keepdim=True)

    def config_json(self):
        return {}

    def example_inputs(self, batch=1, seed=0):
        return {**super().example_inputs(batch, seed), "scene": torch.arange(batch)[:, None] % 3}

    def boundaries(self, inputs):
        return {"depth": self(inputs["image"], inputs["scene"])}

    def stages(self):
        image, scene = TensorSpec("image", "float32", ("batch", 3, 32, 32)), TensorSpec("scene", "int64", ("batch", 1))
        return (Stage(StageSpec("all", (image, scene), (TensorSpec("depth", "float32", ("batch", 1, 32, 32)),)), self),)


class BuiltIn(Told):
    """The same, told once for all photos."""

    def __init__(self, scene):
        super().__init__()
        self.scene = scene
        self.contract = dataclasses.replace(self.contract, text=None)

    def forward(self, image):
        return self.near.weight[SCENES.index(self.scene)] + 0.01 * image.mean(1, keepdim=True)

    def config_json(self):
        return {"scene": self.scene}

    def example_inputs(self, batch=1, seed=0):
        return {"image": super().example_inputs(batch, seed)["image"]}

    def boundaries(self, inputs):
        return {"depth": self(inputs["image"])}

    def stages(self):
        (stage,) = super().stages()
        return (Stage(dataclasses.replace(stage.spec, inputs=stage.spec.inputs[:1]), self),)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("told")
    write_bundle(Told(), folder / "bundle")
    build_plan(folder / "bundle", folder / "x.plan", BuildOptions("onnxruntime", "fp32", (), (1, 2, 2)))
    Image.fromarray(PHOTO).save(folder / "photo.png")
    return folder


def test_one_plan_knows_every_scene(made):
    with Pipeline.open(made / "x.plan") as pipeline:
        for metres, scene in enumerate(SCENES, 1):
            assert np.abs(pipeline.predict(PHOTO, prompt=scene).depth_m - metres).max() < 0.011
        futures = [pipeline.submit(PHOTO, prompt=scene) for scene in SCENES]
        assert [round(float(future.result().depth_m.mean())) for future in futures] == [1, 2, 3]
        for wrong in (None, "attic", ""):
            with pytest.raises(UsageError, match="study, kitchen, study_room"):
                pipeline.predict(PHOTO, prompt=wrong)


def test_depth_run_is_told_the_scene(made, tmp_path, capsys, tiny):
    words = ["--engine", str(made / "x.plan"), str(made / "photo.png"), "--save", "npy", "--quiet", "-o"]
    assert depth_run([*words, str(tmp_path / "out"), "--scene", "kitchen"]) == 0
    assert np.abs(np.load(tmp_path / "out" / "photo_depth.npy", allow_pickle=False) - 2).max() < 0.011
    for more, message in (([], "must be told"), (["--scene", "attic"], "knows no scene 'attic'"), (["--prompt", "kitchen"], "instead of --prompt")):
        assert depth_run([*words, str(tmp_path / "none"), *more]) == 2
        assert message in capsys.readouterr().err and not (tmp_path / "none").exists()
    words[1] = str(tiny.plan)
    assert depth_run([*words, str(tmp_path / "none"), "--scene", "kitchen"]) == 2
    assert "takes no scene" in capsys.readouterr().err


def test_a_scale_is_measured_in_the_scene_that_is_told(made, tmp_path, capsys):
    (tmp_path / "m.csv").write_text("".join(f"{made / 'photo.png'},{column},20,2.8\n" for column in (10, 30, 50)))
    words = [str(tmp_path / "m.csv"), "--engine", str(made / "x.plan"), "-o", str(tmp_path / "s.json"), "--json"]
    assert calibrate_scale(words) == 2 and "must be told" in capsys.readouterr().err
    assert calibrate_scale([*words, "--scene", "attic"]) == 2 and "knows no scene 'attic'" in capsys.readouterr().err
    assert calibrate_scale([*words, "--scene", "kitchen"]) == 0  # 2 m
    assert json.loads(capsys.readouterr().out)["scale"] == pytest.approx(1.4, abs=0.01)
    words = ["--engine", str(made / "x.plan"), str(made / "photo.png"), "--save", "npy", "--quiet", "--scale", str(tmp_path / "s.json"), "-o"]
    assert depth_run([*words, str(tmp_path / "none"), "--scene", "study"]) == 3
    assert "s.json was measured with the scene kitchen" in capsys.readouterr().err and not (tmp_path / "none").exists()
    with Pipeline.open(made / "x.plan") as pipeline, pytest.raises(InputError, match="the scene kitchen"):
        pipeline.scale = read_scale(str(tmp_path / "s.json"))
        pipeline.predict(PHOTO, prompt="study")
    assert depth_run([*words, str(tmp_path / "out"), "--scene", "kitchen"]) == 0
    assert np.abs(np.load(tmp_path / "out" / "photo_depth.npy", allow_pickle=False) - 2.8).max() < 0.03


def test_a_scale_measured_with_a_scene_built_in_is_of_that_scene(made, tmp_path, capsys):
    for scene in ("kitchen", "study"):
        write_bundle(BuiltIn(scene), tmp_path / scene)
    (tmp_path / "m.csv").write_text("".join(f"{made / 'photo.png'},{column},20,2.8\n" for column in (10, 30, 50)))
    assert calibrate_scale([str(tmp_path / "m.csv"), "--engine", str(tmp_path / "kitchen"), "-o", str(tmp_path / "s.json")]) == 0
    assert json.loads((tmp_path / "s.json").read_text())["scene"] == "kitchen"
    words = [str(made / "photo.png"), "--save", "npy", "--quiet", "--scale", str(tmp_path / "s.json")]
    for engine, more, code in (("kitchen", (), 0), ("study", (), 3), (made / "x.plan", ("--scene", "kitchen"), 0), (made / "x.plan", ("--scene", "study"), 3)):
        out = tmp_path / f"out {code} {engine == 'kitchen'}"
        assert depth_run(["--engine", str(tmp_path / engine), *words, *more, "-o", str(out)]) == code
        assert (code == 3) == ("s.json was measured with the scene kitchen" in capsys.readouterr().err)
        assert code or np.abs(np.load(out / "photo_depth.npy", allow_pickle=False) - 2.8).max() < 0.03


def test_accuracy_tells_each_samples_own_scene(made, tmp_path):
    """The first of the list that the folder's name holds: study_room_0002 is a study, as in VPD's published evaluation."""
    for name, metres in (("study_room_0002", 1), ("kitchen_0001", 2), ("attic_0001", 2)):
        pair = tmp_path / "data" / name
        pair.mkdir(parents=True)
        Image.fromarray(PHOTO).save(pair / "rgb.png")
        Image.fromarray(np.full((40, 60), metres * 1000, np.uint16)).save(pair / "depth.png")
        (pair / "meta.json").write_text(json.dumps({"depth_scale": 1000}))
    words = ["accuracy", "--engine", str(made / "x.plan"), "--data", f"pairs:{tmp_path / 'data'}", "-o", str(tmp_path / "r.json"), "--quiet", "--details"]
    assert bench(words) == 0
    row = json.loads((tmp_path / "r.json").read_text())["rows"][0]
    assert row["images"] == 2 and row["means"]["abs_rel"] < 0.011
    assert [skipped["id"] for skipped in row["skipped"]] == ["attic_0001"] and "names none of the network's scenes" in row["skipped"][0]["reason"]


def test_latency_and_calibration_know_words_to_try(made, tmp_path):
    from fathom.calibration.graph.chain import Chain, check_prompts
    from fathom.runtime.artefact.bundle import BundleDirectory

    words = ["latency", str(made / "bundle"), "--onnxruntime", "cpu", "--rounds", "1", "--warm-up", "1", "--quiet", "-o", str(tmp_path / "l.json")]
    assert bench(words) == 0
    with BundleDirectory.open(made / "bundle") as bundle:
        chain = Chain(bundle)
        assert {chain.prompt_of(number) for number in range(50)} == set(SCENES)
        assert {Chain(bundle, None, ("kitchen",)).prompt_of(number) for number in range(9)} == {"kitchen"}
        with pytest.raises(UsageError, match="knows no such scene"):
            check_prompts(bundle.manifest.contract, ["attic"])


@pytest.mark.parametrize("change", [{"classes": ()}, {"length": 2}, {"mask": "m"}, {"tokenizer": "t.json"}, {"size": 3}, {"classes": ("A?",)}])
def test_a_choice_that_is_none_is_refused(change):
    facts = {"kind": "choice", "ids": "scene", "mask": "", "length": 1, "pad_id": 0, "tokenizer": "", "template": "{text}", "classes": SCENES}
    TextInput(**facts)
    with pytest.raises(ValueError, match="text"):
        TextInput(**{**facts, **change})


def test_every_kind_of_synthetic_room_is_a_scene_of_vpd():
    """Training and measuring on rooms leave none of them out."""
    from types import SimpleNamespace

    from fathom.benchmarks.accuracy.words import words_of
    from fathom.datasets.rooms.furniture import BY_THE_WALL
    from fathom.models.diffusion.vpd import SCENES as KNOWN

    contract = SimpleNamespace(text=TextInput("choice", "scene", "", 1, 0, "", "{text}", KNOWN))
    found = {kind: words_of(contract, SimpleNamespace(scene=kind, id="room_8_000003")) for kind in BY_THE_WALL}
    wanted = {"living": "living_room", "dining": "dining_room", "store": "furniture_store", "bedroom": "bedroom", "kitchen": "kitchen", "office": "office"}
    assert found == wanted
