"""Plans and bundles from outside: whole ones are read as written, others are refused with the right code."""

import dataclasses
import json
import os
import shutil
import struct
import zipfile
from contextlib import suppress
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fathom
from fathom.export.plan.plan_file import file_facts, write_plan
from fathom.runtime.artefact.bundle import BundleDirectory
from fathom.runtime.artefact.contract import Contract, Crop, ImageInput, OutputContract, Pad, Protocol, Require, Resize
from fathom.runtime.artefact.manifest import (
    BundleManifest,
    BundleStage,
    Initializer,
    NetworkFacts,
    PlanManifest,
    PlanStage,
)
from fathom.runtime.artefact.manifest_json import manifest_bytes, manifest_from_bytes, manifest_to_json
from fathom.runtime.artefact.plan import PlanFile
from fathom.runtime.artefact.spec import StageSpec, TensorSpec
from fathom.runtime.errors import ChecksumError, FathomError, InputError

STEPS = (Require(480, 640), Crop(352, 480, "bottom-center"), Resize(440, 480, "bilinear-corners"), Pad(40, 0, 0, 0))
CONTRACT = Contract(
    ImageInput("image", (480, 480), (512, 512), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    OutputContract("depth", "metric", "m", 1e-3, 10.0, "far", "bilinear-corners"),
    (Protocol("single-image", STEPS, (0,), (), False, "here"), Protocol("windows", (), (0, 22, 44), (160,), True, "there")),
)
SPEC = StageSpec("all", (TensorSpec("image", "float32", ("batch", 3, 512, 512)),), (TensorSpec("depth", "float32", ("batch", 1, 480, 480)),))
NETWORK = NetworkFacts("n", "v", {"a": [1]}, 3, {"kind": "random-init", "file": "", "sha256": "", "licence": "x", "warnings": []})
WEIGHTS = np.arange(5000, dtype=np.float32)


def plan_manifest(sources):
    stage = PlanStage(SPEC, "engines/all.onnx", "fp32", "engines/all.weights", (Initializer(TensorSpec("w", "float32", (5000,)), 0),))
    facts = {name: file_facts(source) for name, source in sources.items()}
    return PlanManifest(NETWORK, CONTRACT, (stage,), facts, {"fathom": "0"}, bundle_sha256="0" * 64, targets=("cpu",))


@pytest.fixture
def plan(tmp_path):
    sources = {"engines/all.onnx": b"graph" * 100, "engines/all.weights": WEIGHTS.tobytes()}
    path = tmp_path / "x.plan"
    write_plan(path, plan_manifest(sources), sources)
    return path


@pytest.fixture
def bundle(tmp_path):
    folder = tmp_path / "b"
    (folder / "stages").mkdir(parents=True)
    (folder / "stages/all.onnx").write_bytes(b"graph")
    facts = {"stages/all.onnx": file_facts(folder / "stages/all.onnx")}
    stage = BundleStage(SPEC, "stages/all.onnx", "fp32", ("bins",), {"k": 2})
    (folder / "bundle.json").write_bytes(manifest_bytes(BundleManifest(NETWORK, CONTRACT, (stage,), facts, {"fathom": "0"})))
    return folder


def test_a_plan_is_an_ordinary_uncompressed_zip_with_page_aligned_entries(plan):
    with zipfile.ZipFile(plan) as archive:
        assert archive.testzip() is None
        assert json.loads(archive.read("plan.json"))["format"] == "fathom-plan"
        assert archive.read("engines/all.weights") == WEIGHTS.tobytes()
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}
    with PlanFile.open(plan) as opened:
        offset, size = opened.extent("engines/all.weights")
        assert offset % 4096 == 0 and size == WEIGHTS.nbytes
        assert np.array_equal(np.frombuffer(opened.view("engines/all.weights"), np.float32), WEIGHTS)
        assert opened.manifest.contract == CONTRACT


def test_the_same_plan_is_the_same_bytes(plan, tmp_path):
    sources = {"engines/all.onnx": b"graph" * 100, "engines/all.weights": WEIGHTS.tobytes()}
    write_plan(tmp_path / "y.plan", plan_manifest(sources), sources)
    assert (tmp_path / "y.plan").read_bytes() == plan.read_bytes()


@pytest.mark.slow
def test_a_plan_larger_than_four_gibibytes_is_read(tmp_path):
    big = tmp_path / "big"
    with open(big, "wb") as file:
        file.truncate((4 << 30) + 4096)
        file.seek(4 << 30)
        file.write(b"end")
    sources = {"engines/all.onnx": b"g", "engines/all.weights": big}
    facts = {"engines/all.onnx": file_facts(b"g"), "engines/all.weights": dataclasses.replace(file_facts(b""), size=big.stat().st_size)}
    manifest = dataclasses.replace(plan_manifest({"engines/all.onnx": b"g", "engines/all.weights": WEIGHTS.tobytes()}), files=facts)
    if shutil.disk_usage(tmp_path).free < 12 << 30:
        pytest.skip("needs 12 GiB of free disk")
    write_plan(tmp_path / "x.plan", manifest, sources)
    with PlanFile.open(tmp_path / "x.plan", verify=False) as opened:
        offset, size = opened.extent("engines/all.weights")
        assert offset % 4096 == 0 and size == big.stat().st_size
        assert bytes(opened.view("engines/all.weights")[4 << 30 :][:3]) == b"end"
    os.unlink(tmp_path / "x.plan")
    os.unlink(big)


def test_a_changed_letter_in_the_manifest_is_a_checksum_error(plan):
    raw = plan.read_bytes()
    plan.write_bytes(raw.replace(b'"source": "here"', b'"source": "hero"', 1))
    with pytest.raises(ChecksumError, match=r"plan\.json"):
        PlanFile.open(plan)


def test_a_changed_byte_is_a_checksum_error_and_a_cut_file_an_input_error(plan):
    raw = bytearray(plan.read_bytes())
    with PlanFile.open(plan) as opened:
        offset, _ = opened.extent("engines/all.weights")
    raw[offset + 77] ^= 1
    plan.write_bytes(raw)
    with pytest.raises(ChecksumError, match=r"engines/all\.weights") as caught:
        PlanFile.open(plan)
    assert caught.value.exit_code == 10
    plan.write_bytes(raw[: len(raw) // 2])
    with pytest.raises(InputError, match="not a whole plan") as caught:
        PlanFile.open(plan)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("name", ["../evil", "/etc/passwd", "a/../../b", "engines//x", "C:\\x", ".hidden", "a" * 200])
def test_unsafe_names_are_refused(plan, tmp_path, name):
    with zipfile.ZipFile(plan, "a") as archive:
        archive.writestr(name, b"x")
    with pytest.raises(InputError, match=r"unsafe name|differ"):
        PlanFile.open(plan)
    with pytest.raises(ValueError, match="unsafe file name"):
        sources = {"engines/all.onnx": b"g", "engines/all.weights": WEIGHTS.tobytes(), name: b"x"}
        plan_manifest(sources)


def test_extra_double_and_compressed_entries_are_refused(plan, tmp_path):
    extra, double, packed = (tmp_path / n for n in ("extra", "double", "packed"))
    for copy in (extra, double, packed):
        copy.write_bytes(plan.read_bytes())
    with zipfile.ZipFile(extra, "a") as archive:
        archive.writestr("more", b"x")
    with zipfile.ZipFile(double, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("engines/all.onnx", b"x")
    with zipfile.ZipFile(packed, "a") as archive:
        archive.writestr("more", b"x" * 1000, zipfile.ZIP_DEFLATED)
    for copy, message in ((extra, "differ"), (double, "twice"), (packed, "compressed")):
        with pytest.raises(InputError, match=message):
            PlanFile.open(copy)


def test_other_files_are_no_plans(tmp_path):
    for content in (b"", b"PK\x03\x04", b"not a zip at all" * 50):
        (tmp_path / "x").write_bytes(content)
        with pytest.raises(InputError):
            PlanFile.open(tmp_path / "x")
    with pytest.raises(InputError, match="does not exist"):
        PlanFile.open(tmp_path / "none")
    with pytest.raises(InputError):
        PlanFile.open(tmp_path)


def test_unknown_versions_and_keys_are_refused(plan):
    with PlanFile.open(plan) as opened:
        data = manifest_to_json(opened.manifest)
    for change, message in (({"version": 2}, "version 2"), ({"format": "zip"}, "format"), ({"surprise": 1}, "surprise"), ({"batch": [2, 1, 1]}, "batch")):
        with pytest.raises(InputError, match=message):
            manifest_from_bytes(json.dumps({**data, **change}).encode(), PlanManifest, "x")
    with pytest.raises(InputError, match="not JSON"):
        manifest_from_bytes(b'{"a": NaN}', PlanManifest, "x")
    with pytest.raises(InputError):
        manifest_from_bytes(b"[" * 100_000, PlanManifest, "x")


def test_a_network_is_called_nothing_that_leads_out_of_a_folder_or_moves_a_terminal(plan):
    with PlanFile.open(plan) as opened:
        data = manifest_to_json(opened.manifest)
    for name in ("../x", "/x", "a/b", "a\\b", "..", ".x", "", "a\nb", "\x1b[2J", "a" * 129):
        data["network"]["name"] = name
        with pytest.raises(InputError, match=r"name: .*(wanted up to|cannot be seen)"):
            manifest_from_bytes(json.dumps(data).encode(), PlanManifest, "x")
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(data, _schema("plan.schema.json"))
    for name in ("evp-tiny", "my network (2)", "深度_v1.2"):
        data["network"]["name"] = name
        assert manifest_from_bytes(json.dumps(data).encode(), PlanManifest, "x").network.name == name
        jsonschema.validate(data, _schema("plan.schema.json"))


def test_a_weight_outside_its_file_is_refused(plan):
    with PlanFile.open(plan) as opened:
        data = manifest_to_json(opened.manifest)
    for offset in (-4, 4, 1 << 62):
        data["stages"][0]["initializers"][0]["offset"] = offset
        with pytest.raises(InputError, match="outside its file"):
            manifest_from_bytes(json.dumps(data).encode(), PlanManifest, "x")


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_plans_never_pass_and_never_crash(plan, tmp_path_factory, data):
    raw = bytearray(plan.read_bytes())
    with PlanFile.open(plan) as opened:
        padding_free = [(o, o + s) for o, s in (opened.extent(n) for n in ("plan.json", *opened.manifest.files))]
    kind = data.draw(st.sampled_from(["flip", "cut", "insert", "zero", "field"]))
    place = data.draw(st.integers(0, len(raw) - 8))
    if kind == "flip":
        raw[place] ^= data.draw(st.integers(1, 255))
    elif kind == "cut":
        del raw[place : place + data.draw(st.integers(1, 5000))]
    elif kind == "insert":
        raw[place:place] = data.draw(st.binary(min_size=1, max_size=40))
    elif kind == "zero":
        raw[place : place + 64] = bytes(64)
    else:
        directory = raw.rfind(b"PK\x01\x02")
        struct.pack_into("<I", raw, directory + data.draw(st.sampled_from([16, 20, 24, 42])), data.draw(st.integers(0, 2**32 - 1)))
    damaged = tmp_path_factory.mktemp("fuzz") / "x.plan"
    damaged.write_bytes(raw)
    try:
        opened = PlanFile.open(damaged)
    except FathomError as error:
        assert error.exit_code in (3, 10)
        return
    with opened:  # only bytes that carry no fact (padding, dates) may have changed
        assert opened.manifest.files["engines/all.weights"].size == WEIGHTS.nbytes
        assert bytes(opened.view("engines/all.weights")) == WEIGHTS.tobytes()
        assert bytes(opened.view("engines/all.onnx")) == b"graph" * 100
        if kind == "flip":
            assert not any(a <= place < b for a, b in padding_free)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5), lambda x: st.lists(x, max_size=3), max_leaves=5
)


def _places(value, path=()):
    yield path
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from _places(item, (*path, key))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data(), JSON)
def test_mutated_manifests_are_read_or_refused_but_never_crash(plan, data, value):
    with PlanFile.open(plan) as opened:
        content = json.loads(manifest_bytes(opened.manifest))
    path = data.draw(st.sampled_from([place for place in _places(content) if place]))
    target = content
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    with suppress(InputError):
        manifest_from_bytes(json.dumps(content).encode(), PlanManifest, "x")


@pytest.mark.parametrize("words", ["n\nend_header", "\x1b[2K\rall is well", "a\x9b31m", "a\u202eb", "a\u2028b"])
def test_words_that_would_forge_lines_are_refused(plan, bundle, words):
    def refused(data, kind):
        with pytest.raises(InputError, match="cannot be seen") as caught:
            manifest_from_bytes(json.dumps(data).encode(), kind, "x")
        assert str(caught.value).isprintable()

    with PlanFile.open(plan) as opened:
        text = json.dumps(manifest_to_json(opened.manifest))
    for change in ({"backend_version": words}, {"targets": [words]}, {"made_with": {words: "1"}}, {"made_with": {"config": words}}):
        refused({**json.loads(text), **change}, PlanManifest)
    for name, value in [("name", words), ("variant", words), *(("weights", {**NETWORK.weights, key: words}) for key in ("file", "licence"))]:
        refused({**json.loads(text), "network": {**json.loads(text)["network"], name: value}}, PlanManifest)
    refused(json.loads(text.replace('"here"', json.dumps(words))), PlanManifest)  # where a protocol comes from
    data = json.loads((bundle / "bundle.json").read_bytes())
    refused({**data, "stages": [{**data["stages"][0], "folded": {words: 1}}]}, BundleManifest)
    seen = {**json.loads(text)["network"], "config": {"template": "two\nlines"}, "variant": "größe 東京 \u3000"}
    assert manifest_from_bytes(json.dumps({**json.loads(text), "network": seen}).encode(), PlanManifest, "x").network.variant == "größe 東京 \u3000"


def _schema(name):
    return json.loads((Path(fathom.__file__).parent / "runtime" / "artefact" / "schemas" / name).read_text())


def test_manifests_keep_to_their_published_schemas(plan, bundle):
    with PlanFile.open(plan) as opened:
        jsonschema.validate(manifest_to_json(opened.manifest), _schema("plan.schema.json"))
    jsonschema.validate(json.loads((bundle / "bundle.json").read_bytes()), _schema("bundle.schema.json"))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**json.loads((bundle / "bundle.json").read_bytes()), "surprise": 1}, _schema("bundle.schema.json"))


@pytest.mark.parametrize("more", [{"focal_px": 131.84}, {"focal_px": 300.0, "focal_assumed": True}])
def test_metres_of_one_camera_are_in_the_contract_and_its_schema(plan, bundle, more):
    contract = dataclasses.replace(CONTRACT, output=dataclasses.replace(CONTRACT.output, **more))
    data = contract.to_json()
    assert {name: data["output"][name] for name in more} == more and Contract.from_json(json.loads(json.dumps(data))) == contract
    assert not any(name.startswith("focal") for name in CONTRACT.to_json()["output"])
    jsonschema.validate({**json.loads((bundle / "bundle.json").read_bytes()), "contract": data}, _schema("bundle.schema.json"))
    with PlanFile.open(plan) as opened:
        jsonschema.validate({**manifest_to_json(opened.manifest), "contract": data}, _schema("plan.schema.json"))
    for wrong in ({"focal_assumed": True}, {"focal_px": 300.0, "focal_assumed": 1}, {"focal_px": 0.5}):
        with pytest.raises(ValueError, match=r"output\.focal_"):
            dataclasses.replace(CONTRACT.output, **wrong)


def test_a_bundle_is_read_and_its_damage_named(bundle, tmp_path):
    with BundleDirectory.open(bundle) as opened:
        assert opened.manifest.stages[0].folded == {"k": 2}
        assert opened.path("stages/all.onnx").read_bytes() == b"graph"
    (bundle / "stages/all.onnx").write_bytes(b"Graph")
    with pytest.raises(ChecksumError, match="SHA-256"):
        BundleDirectory.open(bundle)
    (bundle / "stages/all.onnx").write_bytes(b"graph and more")
    with pytest.raises(ChecksumError, match="14 bytes"):
        BundleDirectory.open(bundle, verify=False)
    (bundle / "stages/all.onnx").unlink()
    with pytest.raises(InputError, match="missing"):
        BundleDirectory.open(bundle)
    (tmp_path / "secret").write_bytes(b"graph")
    (bundle / "stages/all.onnx").symlink_to(tmp_path / "secret")
    with pytest.raises(InputError, match="link"):
        BundleDirectory.open(bundle)
    with pytest.raises(InputError, match="not a bundle"):
        BundleDirectory.open(tmp_path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data(), JSON)
def test_mutated_bundles_are_read_or_refused_but_never_crash(bundle, data, value):
    content = json.loads((bundle / "bundle.json").read_bytes())
    path = data.draw(st.sampled_from([place for place in _places(content) if place]))
    target = content
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    with suppress(InputError):
        manifest_from_bytes(json.dumps(content).encode(), BundleManifest, "x")
