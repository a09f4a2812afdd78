"""Files with stage times: what is written is read back, what is broken or of another network is refused."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fathom.calibration.artefact import model_fingerprint
from fathom.calibration.search.stage_times import StageTimes, read_stage_times, write_stage_times
from fathom.runtime.artefact.bundle import BundleDirectory
from fathom.runtime.errors import InputError

SHA = "0" * 64
numbers = st.floats(1e-6, 1e8, allow_nan=False)
stages = st.dictionaries(st.text(max_size=8), st.dictionaries(st.sampled_from(["fp32", "fp16", "bf16", "int8"]), numbers))


@pytest.fixture(scope="module")
def manifest(tiny):
    return BundleDirectory.open(tiny.bundle).manifest


@given(st.text(max_size=20), stages)
def test_json_keeps_every_number(device, times):
    found = StageTimes(device, times, SHA)
    assert StageTimes.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_what_is_written_is_read_back(manifest, tmp_path):
    times = StageTimes("a card", {"encoder": {"fp16": 1.5, "int8": 1.25}, "head": {"fp16": 0.5}}, model_fingerprint(manifest))
    write_stage_times(times, tmp_path / "t.json")
    assert read_stage_times(tmp_path / "t.json", manifest) == times
    assert times.compares("encoder") and not times.compares("head") and not times.compares("elsewhere")
    with pytest.raises(InputError, match="exists already"):
        write_stage_times(times, tmp_path / "t.json")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_sha256": SHA}, "was measured with the network 000000000000"),
        ({"stages": {"moon": {"fp16": 1.0}}}, "names the stage moon"),
        ({"stages": {"encoder": {"fp16": 0}}}, "no number of milliseconds"),
        ({"stages": {"encoder": {"fp16": True}}}, "no number of milliseconds"),
        ({"stages": {"encoder": {"fp16": float("nan")}}}, "no number of milliseconds"),
        ({"stages": {"encoder": {"fp4": 1.0}}}, "by precision"),
        ({"stages": {"encoder": 1.0}}, "by precision"),
        ({"stages": []}, "not of the wanted kind"),
        ({"version": 2}, "version 2"),
        ({"extra": 1}, "wanted exactly"),
    ],
)
def test_what_is_broken_or_foreign_is_refused_with_the_command_that_mends_it(manifest, tmp_path, change, words):
    times = StageTimes("a card", {"encoder": {"fp16": 1.5}}, model_fingerprint(manifest))
    (tmp_path / "t.json").write_text(json.dumps(times.to_json() | change))
    with pytest.raises(InputError, match=words) as error:
        read_stage_times(tmp_path / "t.json", manifest)
    assert "depth-build BUNDLE --backend tensorrt --stage-times" in error.value.fix


def test_no_file_and_no_json_are_refused(manifest, tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_stage_times(tmp_path / "none.json", manifest)
    (tmp_path / "t.json").write_text("{ torn")
    with pytest.raises(InputError, match="holds no stage times"):
        read_stage_times(tmp_path / "t.json", manifest)
