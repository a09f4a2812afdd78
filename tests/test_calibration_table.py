"""Table and plan files: what is written is read back, what is broken or foreign is refused; budgets; warnings about images."""

import json
import subprocess
import sys

import numpy as np
import pytest

from fathom.calibration.artefact import model_fingerprint
from fathom.calibration.observation.journal import Journal
from fathom.calibration.observation.photo import Photo
from fathom.calibration.observation.split import split
from fathom.calibration.precision.precision_plan import Choice, PrecisionPlan, RegionPlan, Variant, mark_pareto, read_plan, write_plan
from fathom.calibration.ranges.table import CalibrationTable, TensorRange, read_table, write_table
from fathom.calibration.search.bootstrap import bootstrap_errors
from fathom.calibration.search.objective import Budget, Score, failed
from fathom.runtime.artefact.bundle import BundleDirectory
from fathom.runtime.errors import InputError, UsageError

SHA = "0" * 64


def table(sha=SHA):
    ranges = {"encoder": {"x": TensorRange(1.5, "mse", 2.0), "y": TensorRange(3.0, "max", 3.0, (1.0, 3.0))}}
    return CalibrationTable(
        sha, {"kind": "pairs", "count": 8}, "single-image", 8, 8, ("8 images are few.",), ranges, {"encoder": {"x": 2.0}}, {"encoder": {"b/M_0": (0.25, -1.5)}}
    )


def plan(sha=SHA):
    regions = (
        RegionPlan("encoder", "a", "norm", ("a/N_0",), Choice("fp32"), "because", {"fp16": failed("overflow").to_json()}, 0),
        RegionPlan("encoder", "b", "feed-forward", ("b/M_0",), Choice("int8", "mse", 0.5, True), "", {}, 12),
    )
    variants = (Variant("all fp32", 2.0, Score(0.1, 0.9, 0.0, 0.0, 0.0).to_json(), True),)
    overflows = ({"stage": "encoder", "tensor": "t", "region": "a", "peak": 1e6},)
    return PrecisionPlan(sha, Budget().to_json(), "ground truth", {"kind": "modelled", "device": "x"}, regions, ("f",), {"encoder": "s."}, overflows, variants)


@pytest.mark.parametrize(("make", "write", "read"), [(table, write_table, read_table), (plan, write_plan, read_plan)])
def test_files_are_read_back_and_hostile_ones_refused(make, write, read, tmp_path, tiny):
    path = tmp_path / "x.json"
    write(make(), path)
    assert read(path) == make()
    with pytest.raises(InputError, match="exists already"):
        write(make(), path)
    manifest = BundleDirectory.open(tiny.bundle).manifest
    with pytest.raises(InputError, match=r"made on the network 000000000000"):
        read(path, manifest)
    write(make(model_fingerprint(manifest)), path, force=True)
    read(path, manifest)
    good = json.loads(path.read_text())
    for change in ({"version": 9}, {"extra": 1}, {"model_sha256": "zz"}, {"format": "fathom-plan"}):
        path.write_text(json.dumps(good | change))
        with pytest.raises(InputError, match="depth-calibrate"):
            read(path)
    for text in ("", "[]", "{", "nul", "[" * 100_000):
        path.write_text(text)
        with pytest.raises(InputError):
            read(path)
    with pytest.raises(InputError, match="cannot be read"):
        read(tmp_path / "none.json")


def test_broken_ranges_and_choices_are_refused(tmp_path):
    for bad in ((-1.0, "max", 1.0), (float("nan"), "max", 1.0), (2.0, "max", 1.0), (1.0, "guess", 1.0)):
        with pytest.raises(ValueError):
            TensorRange(*bad)
    for bad in (("int8",), ("fp16", "mse"), ("int9",), ("fp16", "", 0.5), ("int8", "mse", 1.0), ("fp16", "", 0.0, True)):
        with pytest.raises(ValueError):
            Choice(*bad)
    with pytest.raises(ValueError, match="two regions"):
        PrecisionPlan(SHA, {}, "", {}, plan().regions + plan().regions[:1], (), {}, (), ())
    write_table(table(), tmp_path / "t.json")
    data = json.loads((tmp_path / "t.json").read_text())
    data["stages"]["encoder"]["x"]["amax"] = True
    (tmp_path / "t.json").write_text(json.dumps(data))
    with pytest.raises(InputError, match="amax"):
        read_table(tmp_path / "t.json")


def test_the_fingerprint_follows_the_network_and_not_the_calibration(tiny, make_artefacts):
    import dataclasses

    manifest = BundleDirectory.open(tiny.bundle).manifest
    more = dataclasses.replace(manifest, files={**manifest.files, "calibration.json": next(iter(manifest.files.values()))})
    assert model_fingerprint(more) == model_fingerprint(manifest)
    other = BundleDirectory.open(make_artefacts(kind="relative").bundle).manifest
    assert model_fingerprint(other) != model_fingerprint(manifest)


def test_the_lowest_precision_of_a_stage():
    assert plan().precision("encoder") == "int8" and plan().precision("head") == "fp32"


def test_budgets_are_parsed_and_nonsense_refused():
    assert Budget.parse("abs_rel=0.5%,delta1=0.2pp") == Budget(0.005, 0.002)
    assert Budget.parse(" abs_rel = 1% ") == Budget(0.01, 0.002, 0.02) and Budget.parse("moved=3%").moved == 0.03
    for bad in ("", "abs_rel", "abs_rel=1", "abs_rel=1pp", "delta1=1%", "abs_rel=0%", "rmse=1%", "abs_rel=1%,abs_rel=2%", "abs_rel=-1%", "abs_rel=nan%"):
        with pytest.raises(UsageError, match="abs_rel=NUMBER%"):
            Budget.parse(bad)


def test_a_budget_counts_gains_doubts_and_failures():
    budget = Budget(0.01, 0.005)
    assert Score(0.1, 0.9, 0.009, -0.004, 0.0).within(budget)
    assert not Score(0.1, 0.9, -0.02, 0.0, 0.0).within(budget)
    assert not Score(0.1, 0.9, 0.0, 0.006, 0.0).within(budget)
    assert not Score(0.1, 0.9, 0.008, 0.0, 0.0, 0.003, 0.0).within(budget)
    assert not Score(0.1, 0.9, 0.0, 0.0, 0.03).within(budget)
    assert not failed("NaN").within(budget) and failed("NaN").harm == float("inf")


def test_pareto_marks_what_nothing_beats():
    def variant(name, cost, moved):
        return Variant(name, cost, Score(0, 0, 0, 0, moved).to_json(), True)

    marked = mark_pareto(
        [variant("slow", 3.0, 0.0), variant("worse", 2.0, 0.5), variant("fast", 1.0, 0.3), Variant("broken", 0.5, failed("x").to_json(), False)]
    )
    assert [(v.name, v.pareto) for v in marked] == [("broken", False), ("fast", True), ("worse", False), ("slow", True)]


def photos(*hashes, scenes=None):
    return [Photo(number, f"p{number}", digest, 1, scenes[number] if scenes else "") for number, digest in enumerate(hashes)]


def parts(found):
    """Names of the photos of the three parts."""
    return [{photo.id for photo in some} for some in (found.observe, found.select, found.prove)]


def test_what_is_odd_about_images_is_said():
    found = split(photos("a", "b", "a", "c", "d"), {"p3"}, "pairs")
    assert [len(part) for part in parts(found)] == [2, 1, 1] and "p2" not in set().union(*parts(found))
    text = " ".join(found.warnings)
    assert "4 different images are few" in text and "p2 = p0" in text and "evaluation split" in text and "p3" in text and "1 scene(s)" in text
    assert any("no photographs" in warning for warning in split(photos("a", "b", "c"), set(), "rooms").warnings)
    assert split(photos(*map(str, range(64)), scenes=[str(k // 4) for k in range(64)]), set(), "pairs").warnings == ()
    with pytest.raises(InputError, match="at least 3"):
        split(photos("a", "a", "b"), set(), "pairs")


@pytest.mark.parametrize("count", [12, 64, 512])
def test_three_parts_share_no_photo_and_the_proof_no_scene(count):
    """Photos in the order of a video set: three of every scene in a row."""
    scenes = [f"bedroom_{k // 3:04d}" for k in range(count)]
    everything = photos(*map(str, range(count)), scenes=scenes)
    for seed in range(5):
        found = split(everything, set(), "nyu", seed=seed)
        observe, select, prove = parts(found)
        assert not observe & select and not observe & prove and not select & prove and observe and select and prove
        shown = [{photo.scene for photo in some} for some in (found.observe, found.select, found.prove)]
        assert not shown[2] & (shown[0] | shown[1])
        assert len(select) <= 16 and len(prove) <= 32 and len(observe) >= count // 3
        assert len(shown[1]) == len(select) or len(shown[1]) == len(set(scenes)) - len(shown[2])  # a second of a scene only after one of each
        assert found == split(everything, set(), "nyu", seed=seed)
        assert found.to_json()["prove"] == [photo.id for photo in found.prove] and found.to_json()["seed"] == seed
    first, second = (split(everything, set(), "nyu", seed=seed).prove for seed in (0, 1))
    assert first != second


@pytest.mark.parametrize("sizes", [(100, 1, 1, 1), (1, 1, 1, 100), (50, 50, 1, 1, 1), (30, 2, 2, 2, 2, 2, 2, 2)])
def test_one_large_scene_leaves_no_part_a_single_photo(sizes):
    scenes = [f"scene {number}" for number, size in enumerate(sizes) for _ in range(size)]
    for seed in range(8):
        found = split(photos(*map(str, range(len(scenes))), scenes=scenes), set(), "pairs", seed=seed)
        counts = [len(part) for part in parts(found)]
        assert counts[0] >= len(scenes) // 4 and min(counts) >= 2
        assert not {photo.scene for photo in found.prove} & {photo.scene for photo in (*found.observe, *found.select)}
        assert any(f"prove the result: {counts[2]}; at least 4" in text for text in found.warnings) == (counts[2] < 4)


def test_every_part_with_few_photos_is_warned_of():
    text = " ".join(split(photos("a", "b", "c"), set(), "pairs").warnings)
    assert all(f"{words}: 1; at least {few} are wanted" in text for words, few in (("give the ranges", 16), ("are selected by", 4), ("prove the result", 4)))


def test_errors_by_bootstrap_are_those_of_a_mean_and_grow_where_photos_of_a_scene_agree():
    random = np.random.default_rng(1)
    values = random.normal(size=(40, 2))
    alone = bootstrap_errors(values, [str(k) for k in range(40)])
    assert alone == pytest.approx(values.std(axis=0, ddof=1) / np.sqrt(40), rel=0.1)
    one_scene = bootstrap_errors(values, ["s"] * 40)
    assert one_scene == pytest.approx(alone, rel=0.1)  # of one scene nothing better is known
    repeated = np.repeat(values[:10], 4, axis=0)
    scenes = [str(k // 4) for k in range(40)]
    assert bootstrap_errors(repeated, scenes) == pytest.approx(values[:10].std(axis=0, ddof=1) / np.sqrt(10), rel=0.15)
    assert bootstrap_errors(values[:1], ["a"]) is None  # an error of 0 would be a lie


def test_a_journal_whose_first_line_was_cut_off_is_begun_again(tmp_path):
    folder = tmp_path / "j"
    folder.mkdir()
    (folder / ".fathom-0123456789abcdef.part").write_text("{ to")
    assert not Journal(folder, {"model": "a"}).resumed and Journal(folder, {"model": "a"}).resumed
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "photo.jpg").write_bytes(b"x")
    with pytest.raises(InputError, match="no journal"):
        Journal(tmp_path / "other", {"model": "a"})


def test_two_calibrations_of_one_bundle_do_not_mix(tmp_path):
    mine = Journal(tmp_path / "j", {"model": "a"})
    code = "import sys; from pathlib import Path; from fathom.calibration.observation.journal import Journal; Journal(Path(sys.argv[1]), {'model': 'a'})"
    other = [sys.executable, "-c", code, str(tmp_path / "j")]
    assert "another calibration of this bundle is running" in subprocess.run(other, capture_output=True, text=True).stderr
    del mine
    assert subprocess.run(other).returncode == 0


def test_a_journal_is_taken_up_only_by_the_same_calibration(tmp_path):
    folder = tmp_path / "j"
    journal = Journal(folder, {"model": "a", "hours": 2.5})
    journal.note("stage", [1, 2])
    journal.put("x", {"t:0/a": np.arange(3), "u": np.float32(2)})
    again = Journal(folder, {"model": "a", "hours": 2.5})
    assert again.resumed and again.fact("stage") == [1, 2] and (again.get("x")["t:0/a"] == np.arange(3)).all()
    with pytest.raises(InputError, match=r"other settings: model; hours 2.5, now None; .* --force"):
        Journal(folder, {"model": "b"})
    assert Journal(folder, {"model": "a", "hours": 2.5}).fact("stage") == [1, 2]  # nothing was lost
    other = Journal(folder, {"model": "b"}, force=True)
    assert not other.resumed and other.fact("stage") is None and other.get("x") == {}
    (folder / "journal.json").write_text("{ torn")
    assert not Journal(folder, {"model": "b"}).resumed
    other.remove()
    assert not folder.exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match="no journal"):
        Journal(tmp_path / "mine", {})
    assert (tmp_path / "mine" / "thesis.txt").exists()
