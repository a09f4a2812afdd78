"""``depth-calibrate``: what it writes into a bundle, the data it takes, and what it says of arguments and pictures it cannot use."""

import dataclasses
import json

import pytest

from fathom.calibration.calibrate import PLAN, TABLE
from fathom.calibration.calibrate_command import main
from fathom.calibration.graph.chain import Chain
from fathom.calibration.observation.images import Chosen
from fathom.calibration.precision.precision_plan import read_plan
from fathom.calibration.ranges.table import read_table
from fathom.runtime.artefact.bundle import BundleDirectory
from fathom.runtime.errors import InputError, UsageError

DATA = "rooms:6:1:48x64"
pytestmark = pytest.mark.usefixtures("rooms_once")


def test_the_command_puts_table_and_plan_into_the_bundle(token_bundle, capsys):
    path = token_bundle()
    assert main([str(path), "--data", DATA, "--budget", "abs_rel=5%,delta1=5pp", "--json", "-q"]) == 0
    out, err = capsys.readouterr()
    lines = [json.loads(line) for line in out.splitlines()]
    assert {line["kind"] for line in lines} == {"calibration", "proof", "verdict", "region", "variant"} and "no photographs" in err
    opened = BundleDirectory.open(path)
    table, plan = read_table(opened.path(TABLE), opened.manifest), read_plan(opened.path(PLAN), opened.manifest)
    assert plan.budget == {"abs_rel": 0.05, "delta1": 0.05, "moved": 0.02} and table.data["seed"] == 1
    assert not list(path.parent.glob(".*.calibration"))
    assert main([str(path), "--data", DATA, "-q"]) == 3 and "calibrated already" in capsys.readouterr().err
    assert main([str(path), "--data", DATA, "--budget", "abs_rel=5%,delta1=5pp", "--force"]) == 0
    assert "INT8" in capsys.readouterr().out


def test_what_cannot_be_written_is_refused_before_the_work(token_bundle, capsys):
    path = token_bundle()
    (path / TABLE).write_text("{}")  # by hand, or by a run that was killed: the manifest does not list it
    words = [str(path), "--data", DATA, "-q"]
    assert main(words) == 3 and "calibrated already (calibration.json)" in capsys.readouterr().err
    (path / TABLE).unlink()
    (path / PLAN).mkdir()
    assert main([*words, "--force"]) == 3 and "is a directory" in capsys.readouterr().err
    assert not list(path.parent.glob(".*.calibration"))


def test_a_result_that_could_not_be_written_is_not_lost(token_bundle, capsys, monkeypatch):
    from fathom.calibration import calibrate as module
    from fathom.calibration.search.evaluate import Evaluator

    path, measured, measure, write = token_bundle(), [], Evaluator._measure, module.write_plan
    monkeypatch.setattr(Evaluator, "_measure", lambda self, plan: measured.append(plan) or measure(self, plan))

    def full(plan, target, force=False):
        raise InputError("the disk is full")

    monkeypatch.setattr(module, "write_plan", full)
    words = [str(path), "--data", DATA, "--budget", "abs_rel=5%,delta1=5pp", "-q"]
    assert main(words) == 3 and "disk is full" in capsys.readouterr().err and measured
    monkeypatch.setattr(module, "write_plan", write)
    measured.clear()
    assert main([*words, "--force"]) == 0 and not measured  # all of it is still known
    assert not list(path.parent.glob(".*.calibration"))


def test_several_data_sets_are_looked_at_together(token_bundle, capsys):
    path = token_bundle()
    words = ["--data", "rooms:3:1:48x64", "--data", "rooms:3:2:48x64", "--budget", "abs_rel=5%,delta1=5pp", "-q"]
    assert main([str(path), *words]) == 0
    opened = BundleDirectory.open(path)
    table = read_table(opened.path(TABLE), opened.manifest)
    assert table.data["count"] == 6 and "seed 1" in table.data["name"] and "seed 2" in table.data["name"] and table.images == 5


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--data", "noise:12"], 2, "names no data"),
        (["--data", "images:/nowhere/at/all"], 3, "nowhere"),
        (["--data", DATA, "--budget", "rmse=1"], 2, "abs_rel=NUMBER%"),
        (["--data", DATA, "--precisions", "fp32,fp8"], 2, "fp8"),
        (["--data", DATA, "--protocol", "moon"], 2, "no protocol"),
        (["--data", DATA, "--memory", "nan"], 2, "out of range"),
        (["--data", "rooms:2"], 3, "at least 3"),
        (["--data", DATA, "--images", "2"], 2, "--images from 3"),
    ],
)
def test_bad_arguments_end_with_one_message(token_bundle, capsys, arguments, code, words):
    assert main([str(token_bundle()), *arguments, "-q"]) == code
    err = capsys.readouterr().err
    assert words in err and "Traceback" not in err


def test_a_typed_bundle_and_an_unknown_protocol_are_refused(tiny, tmp_path):
    import shutil

    from fathom.runtime.artefact.manifest_json import manifest_bytes

    path = tmp_path / "b"
    shutil.copytree(tiny.bundle, path)
    manifest = BundleDirectory.open(path).manifest
    stages = tuple(dataclasses.replace(stage, precision="fp16") for stage in manifest.stages)
    (path / "bundle.json").write_bytes(manifest_bytes(dataclasses.replace(manifest, stages=stages)))
    with pytest.raises(InputError, match="fp16 already"):
        Chain(BundleDirectory.open(path))
    with pytest.raises(UsageError, match="no protocol"):
        Chain(BundleDirectory.open(tiny.bundle), "none")


def test_words_are_wanted_only_where_a_network_is_asked_in_words(token_bundle, capsys):
    assert main([str(token_bundle()), "--data", DATA, "--prompt", "the chair", "-q"]) == 2
    assert "not asked in words" in capsys.readouterr().err


def test_pictures_that_cannot_be_read_are_left_out_and_named(token_bundle, tmp_path, capsys):
    from PIL import Image

    folder, path = tmp_path / "photos", token_bundle()
    folder.mkdir()
    (folder / "a_torn.png").write_bytes(b"\x89PNG\r\n\x1a\n torn")
    words = [str(path), "--data", f"images:{folder}", "--budget", "abs_rel=5%,delta1=5pp", "-q"]
    assert main(words) == 3
    assert "none of the 1 images can be used; the first: " in (err := capsys.readouterr().err) and "a_torn.png" in err
    for number, sample in enumerate(Chosen(DATA).source):
        Image.fromarray(sample.rgb).save(folder / f"room_{number}.png")
    (folder / "room_9.png").write_bytes(b"")
    assert main(words) == 0
    assert "2 images are left out: " in (err := capsys.readouterr().err) and "a_torn.png" in err and "room_9.png" in err
    opened = BundleDirectory.open(path)
    table = read_table(opened.path(TABLE), opened.manifest)
    assert table.images == 5 and any("a_torn.png" in warning for warning in table.warnings)
