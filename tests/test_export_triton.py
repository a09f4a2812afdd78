"""Triton repositories: configurations that Triton's own classes read, ensembles that give depth-run's map, photos through the Python backend."""

import dataclasses
import functools
import io
import json
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("tritonclient.grpc.model_config_pb2")

from fake_plans import gpu_plan
from google.protobuf import text_format
from test_runtime_run import depth_run
from triton_ensemble import ensemble_depth
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig, ModelInstanceGroup

import fathom
from fathom.export.commands import build_command
from fathom.export.commands.triton_command import main as depth_triton
from fathom.export.plan.plan_file import file_facts, write_plan
from fathom.export.triton.check import check_models
from fathom.export.triton.config_text import config_text, read_config
from fathom.export.triton.repository import write_repository
from fathom.runtime.artefact.bundle import BundleDirectory
from fathom.runtime.artefact.plan import PlanFile
from fathom.runtime.errors import InputError, UsageError
from fathom.runtime.pipeline import Pipeline
from fathom.runtime.serving.photo_service import OUTPUTS
from fathom.runtime.text.encoder import TextEncoder

PHOTO = np.random.default_rng(3).integers(0, 256, (60, 100, 3), dtype=np.uint8)


def config_of(repository, name):
    return text_format.Parse((repository / name / "config.pbtxt").read_text(), ModelConfig())


def png(photo):
    raw = io.BytesIO()
    Image.fromarray(photo).save(raw, "png")
    return raw.getvalue()


@pytest.fixture(scope="module")
def repository(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("triton") / "models"
    write_repository(tiny.plan, folder)
    return folder


def test_what_triton_finds(tiny, repository):
    assert sorted(path.name for path in repository.iterdir()) == ["tiny", "tiny-encoder", "tiny-head", "tiny-photo"]
    encoder, ensemble, photo = (config_of(repository, name) for name in ("tiny-encoder", "tiny", "tiny-photo"))
    assert (encoder.backend, encoder.max_batch_size, list(encoder.input[0].dims), DataType.Name(encoder.input[0].data_type)) == (
        "onnxruntime",
        4,
        [3, 48, 64],
        "TYPE_FP32",
    )
    assert list(encoder.dynamic_batching.preferred_batch_size) == [2] and encoder.instance_group[0].kind == ModelInstanceGroup.KIND_CPU
    assert list(encoder.model_warmup[0].inputs["image"].dims) == [3, 48, 64] and encoder.version_policy.latest.num_versions == 1
    assert ensemble.platform == "ensemble" and not ensemble.instance_group and not ensemble.model_warmup  # Triton refuses both in an ensemble
    steps = ensemble.ensemble_scheduling.step
    assert [(step.model_name, dict(step.input_map), dict(step.output_map)) for step in steps] == [
        ("tiny-encoder", {"image": "image"}, {"features": "features"}),
        ("tiny-head", {"features": "features"}, {"depth": "depth"}),
    ]
    for config in (ensemble, photo, encoder):
        facts = {key: value.string_value for key, value in config.parameters.items()}
        assert (facts["fathom.kind"], facts["fathom.unit"], facts["fathom.trained_range"]) == ("metric", "m", "0.1 to 10")
    assert (repository / "tiny-encoder/1/model.onnx/weights").read_bytes() == tiny.kernel.tobytes()
    assert (repository / "tiny-head/1/model.onnx").is_file() and (repository / "tiny-photo/1/network.plan").read_bytes() == tiny.plan.read_bytes()


def test_every_configuration_is_read_back_and_a_misspelt_field_is_refused(repository):
    for folder in repository.iterdir():
        text = (folder / "config.pbtxt").read_text()
        config = read_config(text, "config.pbtxt")
        assert config == config_of(repository, folder.name) and config_text(config) == text
        fields = sorted(set(re.findall(r"^\s*(\w+)(?=:| \{)", text, re.M)))
        assert len(fields) > 10
        for field in fields:
            wrong = re.sub(rf"\b{field}(?=:| \{{)", field[:-1] + ("x" if field[-1] != "x" else "y"), text, count=1)
            with pytest.raises(InputError, match=r"config.pbtxt:\d+:\d+"):
                read_config(wrong, "config.pbtxt")


@pytest.mark.parametrize("kind", ["plan", "bundle"])
@pytest.mark.parametrize("protocol", ["single-image", "windows"])
def test_the_ensemble_gives_the_map_of_depth_run_bit_for_bit(tiny, tmp_path, kind, protocol):
    source = getattr(tiny, kind)
    made = write_repository(source, tmp_path / "models")
    Image.fromarray(PHOTO).save(tmp_path / "photo.png")
    done = depth_run("--engine", source, tmp_path / "photo.png", "-o", tmp_path, "--save", "npy", "--protocol", protocol, "--threads", 1, "--batch", 1)
    assert done.returncode == 0, done.stderr
    with BundleDirectory.open(source) if kind == "bundle" else PlanFile.open(source) as artefact:
        depth = ensemble_depth(tmp_path / "models", made.ensemble, artefact, PHOTO, protocol)
    assert depth.tobytes() == np.load(tmp_path / "photo_depth.npy").tobytes()


NETWORKS = ("evp-tiny", "evp-refer-tiny", "vpd-tiny", "depthclip-tiny", "moa-depthclip-tiny", "depthblip2-tiny", "llm-mde-tiny")


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_the_ensembles_of_every_network_give_the_map_of_depth_run_bit_for_bit(tiny_bundle, tmp_path, name):
    bundle, plan = tiny_bundle(name), tmp_path / "network.plan"
    assert build_command.main([str(bundle), "-o", str(plan), "--quiet"]) == 0
    Image.fromarray(PHOTO).save(tmp_path / "photo.png")
    asked = ["--prompt", "the cup on the left"] if "refer" in name else []
    for source, kind in ((bundle, BundleDirectory), (plan, PlanFile)):
        made, out = write_repository(source, tmp_path / f"{kind.__name__}-models", ("ensemble",)), tmp_path / kind.__name__
        done = depth_run("--engine", source, tmp_path / "photo.png", "-o", out, "--save", "npy", "--threads", 1, "--batch", 1, *asked)
        assert done.returncode == 0, done.stderr
        with kind.open(source) as artefact:
            contract, words = artefact.manifest.contract, None
            if contract.text is not None:
                encoder = TextEncoder(contract.text, contract.input, artefact.read(contract.text.tokenizer) if contract.text.tokenizer else b"")
                words = functools.partial(encoder, prompt=asked[-1] if asked else None)
            depth = ensemble_depth(tmp_path / f"{kind.__name__}-models", made.ensemble, artefact, PHOTO, inputs=words)
        assert depth.tobytes() == np.load(out / "photo_depth.npy").astype(depth.dtype).tobytes()


def changed(folder, was, new, count=1):
    """Another text in a configuration; returns what undoes it."""
    path, text = folder / "config.pbtxt", (folder / "config.pbtxt").read_text()
    assert was in text
    path.write_text(text.replace(was, new, count))
    return lambda: path.write_text(text)


@pytest.mark.parametrize(
    ("model", "was", "new", "words"),
    [
        ("tiny", 'value: "features"', 'value: "featurex"', "tiny-head takes 'features', which no step before it makes"),
        ("tiny", 'key: "image"\n      value: "image"', 'key: "imagf"\n      value: "image"', "the step tiny-encoder maps image, imagf"),
        ("tiny", 'model_name: "tiny-head"', 'model_name: "tiny-haed"', "wants the model 'tiny-haed'"),
        ("tiny", "TYPE_FP32", "TYPE_FP16", "image is TYPE_FP16"),
        ("tiny-head", "dims: 8", "dims: 9", "tiny-head takes TYPE_FP32"),
        ("tiny-encoder", "dims: 48", "dims: 47", "tiny"),
        ("tiny-encoder", 'name: "features"', 'name: "feature"', "tiny"),
        ("tiny-head", "max_batch_size: 4", "max_batch_size: 3", "tiny batches 4"),
        ("tiny-head", 'name: "tiny-head"', 'name: "head"', "called 'head'"),
    ],
)
def test_one_letter_wrong_is_found(repository, model, was, new, words):
    folders = {path.name: path for path in repository.iterdir()}
    assert set(check_models(folders)) == set(folders)
    undo = changed(repository / model, was, new)
    try:
        with pytest.raises(InputError, match=re.escape(words)):
            check_models(folders)
    finally:
        undo()


def test_a_model_that_differs_from_its_graph_is_found(repository):
    only = {"tiny-encoder": repository / "tiny-encoder"}
    for was, new in (("dims: 48", "dims: 47"), ('name: "features"', 'name: "feature"'), ("TYPE_FP32", "TYPE_FP16")):
        undo = changed(only["tiny-encoder"], was, new)
        try:
            with pytest.raises(InputError, match="its graph"):
                check_models(only)
        finally:
            undo()


def test_tensorrt_engines_are_served_where_triton_can(tiny, tmp_path):
    plan = gpu_plan(tiny, tmp_path / "gpu.plan")
    write_repository(plan, tmp_path / "models")
    encoder = config_of(tmp_path / "models", "tiny-encoder")
    assert encoder.backend == "tensorrt" and encoder.instance_group[0].kind == ModelInstanceGroup.KIND_GPU
    with PlanFile.open(plan) as opened:
        assert (tmp_path / "models/tiny-encoder/1/model.plan").read_bytes() == opened.read("engines/encoder.plan")
    rtx = gpu_plan(tiny, tmp_path / "rtx.plan", "tensorrt-rtx")
    made = write_repository(rtx, tmp_path / "rtx")
    assert made.ensemble == "" and "no backend for tensorrt-rtx" in made.remarks[0] and [p.name for p in (tmp_path / "rtx").iterdir()] == ["tiny-photo"]
    with pytest.raises(UsageError, match="no backend for tensorrt-rtx"):
        write_repository(rtx, tmp_path / "none", ("ensemble",))
    with pytest.raises(UsageError, match="no fewer than 2"):
        write_repository(gpu_plan(tiny, tmp_path / "two.plan", batch=(2, 2, 4)), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_kernel_stages_are_no_engines_of_triton(tiny, tmp_path):
    plan = gpu_plan(tiny, tmp_path / "gpu.plan")
    with PlanFile.open(plan) as opened:
        encoder, head = opened.manifest.stages
        sources = {encoder.engine: opened.read(encoder.engine), "engines/head.kernel.json": b"{}"}
        stages = (encoder, dataclasses.replace(head, engine="engines/head.kernel.json"))
        manifest = dataclasses.replace(opened.manifest, stages=stages, files={name: file_facts(source) for name, source in sources.items()})
    write_plan(plan, manifest, sources, force=True)
    with pytest.raises(UsageError, match=r"kernel stages.*head.*--models photo"):
        write_repository(plan, tmp_path / "models", ("ensemble",))
    made = write_repository(plan, tmp_path / "models")
    assert made.ensemble == "" and "head" in made.remarks[0] and [p.name for p in (tmp_path / "models").iterdir()] == ["tiny-photo"]


def test_int8_is_not_left_to_an_onnxruntime_that_may_add_it_up_wrongly(tiny, tmp_path):
    with PlanFile.open(tiny.plan) as opened:
        encoder, head = opened.manifest.stages
        manifest = dataclasses.replace(opened.manifest, stages=(encoder, dataclasses.replace(head, precision="int8")), precision="int8")
        write_plan(tmp_path / "int8.plan", manifest, {name: opened.read(name) for name in manifest.files})
    with pytest.raises(UsageError, match=r"INT8.*--models photo"):
        write_repository(tmp_path / "int8.plan", tmp_path / "models", ("ensemble",))
    assert write_repository(tmp_path / "int8.plan", tmp_path / "models").ensemble == ""


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "a..b", "a b", "..", "a.", "", "x\ny", "a" * 129])
def test_a_name_that_is_no_name_of_a_model_writes_nothing(tiny, tmp_path, name):
    bundle = shutil.copytree(tiny.bundle, tmp_path / "in" / "bundle")
    manifest = json.loads((bundle / "bundle.json").read_text())
    manifest["network"]["name"] = name
    (bundle / "bundle.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"name|called"):
        write_repository(bundle, tmp_path / "out" / "models", force=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_a_fixed_batch_is_part_of_the_shape(tiny, tmp_path):
    from fathom.runtime.artefact.spec import StageSpec

    def fixed(spec):
        sides = ([dataclasses.replace(t, shape=(1, *t.shape[1:])) for t in side] for side in (spec.inputs, spec.outputs))
        return StageSpec(spec.name, *map(tuple, sides))

    engines = SimpleNamespace(plan=tiny.plan, bundle=tiny.bundle, specs=tuple(map(fixed, tiny.specs)))
    write_repository(gpu_plan(engines, tmp_path / "one.plan", batch=(1, 1, 1)), tmp_path / "models")
    encoder, ensemble = config_of(tmp_path / "models", "tiny-encoder"), config_of(tmp_path / "models", "tiny")
    assert encoder.max_batch_size == ensemble.max_batch_size == 0 and list(encoder.input[0].dims) == [1, 3, 48, 64]
    assert not encoder.HasField("dynamic_batching")


def test_nobodys_own_model_is_replaced(tiny, tmp_path, capsys):
    models = tmp_path / "models"
    (models / "other").mkdir(parents=True)
    assert depth_triton([str(tiny.plan), "-o", str(models), "--models", "photo", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["photo"] == "tiny-photo"
    assert sorted(path.name for path in models.iterdir()) == ["other", "tiny-photo"]
    assert depth_triton([str(tiny.plan), "-o", str(models)]) == 3 and "exists already" in capsys.readouterr().err
    assert sorted(path.name for path in models.iterdir()) == ["other", "tiny-photo"]  # nothing of the rest was left either
    assert depth_triton([str(tiny.plan), "-o", str(models), "--force", "-q"]) == 0
    (models / "tiny-head" / "config.pbtxt").write_text('name: "tiny-head"')
    assert depth_triton([str(tiny.plan), "-o", str(models), "--force"]) == 3 and "not written by depth-triton" in capsys.readouterr().err


class Backend:
    """``triton_python_backend_utils`` as far as a model uses it."""

    class TritonError:
        INVALID_ARG, INTERNAL = 3, 1

        def __init__(self, message, code=None):
            self.message, self.code = message, code

    class Tensor:
        def __init__(self, name, values):
            self.name, self.values = name, values

        def as_numpy(self):
            return self.values

    class InferenceResponse:
        def __init__(self, output_tensors, error=None):
            self.tensors, self.error = {tensor.name: tensor.values for tensor in output_tensors}, error

    @staticmethod
    def get_input_tensor_by_name(request, name):
        return Backend.Tensor(name, request.inputs[name]) if name in request.inputs else None


def request(wanted=(), **inputs):
    return SimpleNamespace(inputs=inputs, requested_output_names=lambda: list(wanted))


@pytest.fixture
def photo_model(repository, monkeypatch):
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", Backend)
    source = (repository / "tiny-photo/1/model.py").read_text()
    module = {}
    exec(compile(source, "model.py", "exec"), module)
    model = module["TritonPythonModel"]()
    parameters = {key: {"string_value": value.string_value} for key, value in config_of(repository, "tiny-photo").parameters.items()}
    model.initialize(
        {
            "model_config": json.dumps({"parameters": parameters}),
            "model_repository": str(repository / "tiny-photo"),
            "model_version": "1",
            "model_instance_kind": "CPU",
            "model_instance_device_id": "0",
        }
    )
    yield model
    model.finalize()


def bytes_of(*items):
    return np.array([[item] for item in items], dtype=np.object_)


def test_photos_of_many_callers_at_once(tiny, photo_model):
    other = PHOTO[:50, :70]
    with Pipeline.open(tiny.plan) as pipeline:
        wanted, smaller = (pipeline.predict(photo).depth_m for photo in (PHOTO, other))
    answers = photo_model.execute(
        [
            request(photo=bytes_of(png(PHOTO))),
            request(photo=bytes_of(b"no picture")),
            request(pixels=other[None], wanted=["depth_m"]),
            request(),
            request(photo=bytes_of(png(PHOTO)), pixels=other[None]),
            request(photo=bytes_of(png(PHOTO), png(PHOTO))),
            request(photo=bytes_of(png(PHOTO), png(other))),
            request(photo=bytes_of(png(PHOTO)), prompt=bytes_of(b"a cup")),
            request(photo=bytes_of(png(PHOTO)), camera=np.float32([[-1, 50, 50, 30]])),
            request(photo=bytes_of(png(PHOTO)), camera=np.float32([[70, 70, 50, 30]])),
        ]
    )
    assert answers[0].error is None and np.allclose(answers[0].tensors["depth_m"], wanted[None], atol=1e-6)
    facts = json.loads(answers[0].tensors["facts"][0, 0])
    assert (facts["kind"], facts["unit"], facts["network"], facts["width"], facts["untrained"]) == ("metric", "m", "tiny test", 100, False)
    assert list(answers[2].tensors) == ["depth_m"] and np.allclose(answers[2].tensors["depth_m"], smaller[None], atol=1e-6)
    assert answers[5].tensors["depth_m"].shape == (2, 60, 100) and answers[9].error is None
    said = {index: answers[index].error.message for index in range(10) if answers[index].error}
    assert set(said) == {1, 3, 4, 6, 7, 8} and {answers[index].error.code for index in said} == {3}
    for index, words in {
        1: "not a picture",
        3: "neither photo nor pixels",
        4: "both photo and pixels",
        6: "several sizes",
        7: "no words",
        8: "positive",
    }.items():
        assert words in said[index]


def test_pixels_that_are_none(photo_model):
    for pixels in (
        np.zeros((1, 60, 100, 4), np.uint8),
        np.zeros((1, 60, 100, 3), np.float32),
        np.zeros((1, 0, 9, 3), np.uint8),
        np.zeros((0, 9, 9, 3), np.uint8),
    ):
        (answer,) = photo_model.execute([request(pixels=pixels)])
        assert answer.error.code == 3
    (answer,) = photo_model.execute([request(pixels=PHOTO[None])])
    assert answer.error is None  # the model goes on


def test_the_deployments_of_the_documentation_fit_what_is_written():
    yaml = pytest.importorskip("yaml")
    page = (Path(fathom.__file__).parent / "docs" / "triton.md").read_text()
    compose, kserve = (yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", page, re.S))
    assert "--load-model=evp-photo" in compose["services"]["triton"]["command"] and kserve["kind"] == "InferenceService"
    assert all(f"`{name}`" in page for name in (*OUTPUTS.values(), "facts", "photo", "pixels", "camera", "prompt"))
