"""A camera's scale and shift: what measured distances prove, and what depth-run does with it."""

import csv
import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from fathom.datasets.pairs import Pairs
from fathom.runtime.commands import run, scale_command
from fathom.runtime.errors import InputError, UsageError
from fathom.runtime.photo.depth_map import DepthMap, Intrinsics
from fathom.runtime.pipeline import Pipeline
from fathom.runtime.scale.camera_scale import CameraScale, read_scale
from fathom.runtime.scale.fit import critical_t, fit_scale
from fathom.runtime.scale.measurements import Measured, compare, read_measurements

_spec = importlib.util.spec_from_file_location("calibration_bundles_for_scale", Path(__file__).with_name("calibration_bundles.py"))
bundles = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(bundles)


def map_of(values, intrinsics=None):
    values = np.asarray(values, np.float32)
    return DepthMap(values, values > 0, "metric", "m", 0.1, 10.0, "far", intrinsics)


@pytest.fixture(scope="module")
def real_pairs():
    if not bundles.have_fastdepth():
        pytest.skip("the real pairs are not here")
    return [sample.depth_m for sample in Pairs(bundles.PAIRS)]


def spots(truths, draw, photos, each, per_photo=0.06, per_spot=0.05):
    """What a network without a bias says at some pixels of real depth pictures, and the truth there."""
    said, real, owner = [], [], []
    for number in draw.choice(len(truths), photos, replace=False):
        known = truths[number][truths[number] > 0]
        some = draw.choice(known, each).astype(float)
        said.append(some * np.exp(draw.normal(0, per_photo) + draw.normal(0, per_spot, each)))
        real.append(some)
        owner.append(np.full(each, number))
    return np.concatenate(said), np.concatenate(real), np.concatenate(owner)


@pytest.mark.parametrize("freedom", [4, 5, 6, 9, 20, 60])
def test_critical_values_are_those_of_students_t(freedom):
    assert critical_t(freedom) == pytest.approx(stats.t.ppf(0.995, freedom), rel=3e-3)


@pytest.mark.parametrize(("photos", "each"), [(2, 1), (3, 2), (6, 3), (12, 6), (1, 3)])
def test_metres_that_are_right_are_left_alone(real_pairs, photos, each):
    draw = np.random.default_rng(photos * 100 + each)
    told = sum(fit_scale(*spots(real_pairs, draw, photos, each, 0.0 if photos == 1 else 0.06)).changed for _ in range(100))
    assert told <= 5


@pytest.mark.parametrize("planted", [0.7, 1.4])
def test_a_planted_factor_on_real_depth_is_found(real_pairs, planted):
    draw, found = np.random.default_rng(5), []
    for _ in range(20):
        said, real, owner = spots(real_pairs, draw, 20, 4, 0.02, 0.02)
        fit = fit_scale(said * planted, real, owner)
        assert fit.changed and fit.interval[0] < 1 / planted < fit.interval[1]
        found.append((fit.scale, fit.shift_m))
    assert all(shift == 0 for _, shift in found)
    assert np.abs(np.array([scale for scale, _ in found]) * planted - 1).max() < 0.02


@pytest.mark.parametrize("planted", [0.7, 1.4])
def test_two_distances_suffice_for_a_factor(planted):
    fit = fit_scale(np.array([2.0, 6.0]) * planted * np.exp([0.01, -0.01]), np.array([2.0, 6.0]), np.array([0, 1]))
    assert fit.changed and fit.scale == pytest.approx(1 / planted, rel=0.02)


def test_a_shift_is_found_and_outliers_are_not_believed():
    draw = np.random.default_rng(1)
    real = draw.uniform(1, 8, 40)
    said = (real - 0.4) / 1.25 * np.exp(draw.normal(0, 0.01, 40))
    said[:3] *= [3, 0.4, 2.5]
    fit = fit_scale(said, real, np.arange(40))
    assert (fit.scale, fit.shift_m) == (pytest.approx(1.25, rel=0.02), pytest.approx(0.4, abs=0.05))


def test_one_photo_alone_does_not_count_as_many():
    owner = np.repeat([0, 1], 50)
    said = np.exp(np.where(owner == 0, 0.16, 0.0)) * np.full(100, 2.0)  # one photo is 16 % off, the other right
    assert not fit_scale(said, np.full(100, 2.0), owner).changed


def test_what_the_real_network_says_is_found_again_after_planting(tmp_path, real_pairs):
    """FastDepth on real photos with its output multiplied: each planted factor comes back relative to what the network was off by itself."""
    folder = bundles.write_fastdepth(tmp_path / "fastdepth")
    with Pipeline.open(folder) as pipeline:
        data = Pairs(bundles.PAIRS)
        samples = [data[k] for k, pair in enumerate(data.pairs) if pair.name.startswith("nyu_")]  # one camera
        pairs = [(pipeline.predict(sample.rgb), sample.depth_m) for sample in samples]
    points, owner = [], []
    for number, (depth, truth) in enumerate(pairs):
        np.save(tmp_path / "truth.npy", truth.astype(np.float32))
        some = compare(Measured(Path("x"), depth_file=tmp_path / "truth.npy"), depth)
        points, owner = points + some, owner + [number] * len(some)
    said, real = np.array(points).T
    bare = [np.median(np.log(real[np.array(owner) == one] / said[np.array(owner) == one])) for one in set(owner)]
    for planted in (0.7, 1.4):
        fit = fit_scale(said * planted, real, np.array(owner))
        assert fit.changed and fit.shift_m == 0 and fit.scale * planted == pytest.approx(np.exp(np.median(bare)), rel=0.02)


def test_a_tape_is_longer_than_the_depth_beside_the_axis():
    camera = Intrinsics(100.0, 100.0, 50.0, 50.0)
    depth = map_of(np.full((100, 200), 2.0), camera)
    assert compare(Measured(Path("x"), 150, 50, 2 * np.sqrt(2)), depth, ray=True)[0] == pytest.approx((2.0, 2.0))
    assert compare(Measured(Path("x"), 150, 50, 2.0), depth)[0] == pytest.approx((2.0, 2.0))
    with pytest.raises(InputError, match="outside"):
        compare(Measured(Path("x"), 200, 50, 2.0), depth)
    with pytest.raises(InputError, match="no depth"):
        compare(Measured(Path("x"), 5, 5, 2.0), map_of(np.zeros((10, 10))))


def test_a_depth_cameras_picture_gives_points_without_bending(tmp_path):
    draw = np.random.default_rng(0)
    truth = draw.uniform(1, 6, (120, 160)).astype(np.float32)
    Image.fromarray(np.rint(truth * 1000).astype(np.uint16)).save(tmp_path / "d.png")
    points = compare(Measured(Path("x"), depth_file=tmp_path / "d.png"), map_of(truth * np.exp(draw.normal(0, 0.1, truth.shape)) / 1.4))
    assert [real / said for said, real in points] == pytest.approx([1.4] * 6, rel=0.03)
    with pytest.raises(InputError, match="160x120"):
        compare(Measured(Path("x"), depth_file=tmp_path / "d.png"), map_of(truth[:50]))


@pytest.mark.parametrize("text", ["", "a.jpg,1,2\n", "a.jpg,1,2,-3\n", "a.jpg,1.5,2,3\n", "a.jpg,1,2,nan\n", "a.jpg,1,2,3,4\n"])
def test_lines_that_are_no_measurement_are_refused(tmp_path, text):
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises(InputError):
        read_measurements(tmp_path / "m.csv")


@pytest.mark.parametrize("text", ["x", "0", "-1", "1,2,3", "nan", "1.4,99", "1000"])
def test_no_camera_has_such_a_scale(text):
    with pytest.raises(UsageError):
        read_scale(text)


def test_numbers_and_files_are_scales(tmp_path):
    assert (read_scale("1.4").scale, read_scale("1.4,-0.1").shift_m) == (1.4, -0.1)
    CameraScale(0.7, 0.1, network="evp nyu").write(tmp_path / "left.scale.json")
    assert read_scale(str(tmp_path / "left.scale.json")).words == "depth_m = 0.7 * network + 0.1 (left.scale.json)"
    (tmp_path / "other.json").write_text('{"form": "fathom-scale/1", "scale": "1.4"}')
    with pytest.raises(InputError, match="holds no scale"):
        read_scale(str(tmp_path / "other.json"))


@pytest.fixture
def hall(tiny, tmp_path):
    """Three photos and a plan of its own; returns the plan and what the network says at pixel 30,20 of each."""
    plan = tmp_path / "hall.plan"
    shutil.copy(tiny.plan, plan)
    said = {}
    with Pipeline.open(plan) as pipeline:
        for k in range(3):
            pixels = np.random.default_rng(k).integers(0, 256, (60, 80, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"{k}.png")
            said[f"{k}.png"] = float(np.median(pipeline.predict(pixels).values[18:23, 28:33]))
    return plan, said


def measure(path, said, factor):
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([photo, 30, 20, f"{value * factor:.4f}"] for photo, value in said.items())
    return path


def test_from_a_tape_to_corrected_maps_that_say_so(hall, tmp_path, capsys):
    plan, said = hall
    before = plan.read_bytes()
    assert scale_command.main([str(measure(tmp_path / "m.csv", said, 1.4)), "--engine", str(plan), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["scale"] == pytest.approx(1.4, rel=1e-3) and facts["shift_m"] == 0 and facts["error_after"] < 1e-3
    assert plan.read_bytes() == before
    scale = tmp_path / "hall.scale.json"
    words = ["--engine", str(plan), str(tmp_path / "0.png"), "--save", "npy,png16,color,ply", "--intrinsics", "50,50,40,30", "--json"]
    assert run.main([*words, "-o", str(tmp_path / "plain")]) == 0
    noted = capsys.readouterr()
    assert "hall.scale.json is not used" in noted.err and "correction" not in json.loads(noted.out)
    assert run.main([*words, "-o", str(tmp_path / "out"), "--scale", str(scale)]) == 0
    line = json.loads(capsys.readouterr().out)
    assert "hall.scale.json" in line["correction"]
    plain, now = np.load(tmp_path / "plain/0_depth.npy"), np.load(tmp_path / "out/0_depth.npy")
    np.testing.assert_allclose(now, plain * 1.4, rtol=2e-3)
    for picture in ("0_depth.png", "0_color.png"):
        assert "hall.scale.json" in Image.open(tmp_path / "out" / picture).text["Fathom-Correction"]
        assert "Fathom-Correction" not in Image.open(tmp_path / "plain" / picture).text
    assert b"comment depth_m = " in (tmp_path / "out/0.ply").read_bytes()[:800]
    assert json.loads((tmp_path / "out/scale.json").read_text())["scale"] == facts["scale"] and not (tmp_path / "plain/scale.json").exists()
    assert run.main(["--engine", str(plan), str(tmp_path / "1.png"), "-o", str(tmp_path / "out"), "--scale", "0.9"]) == 3  # one scale per folder


def test_right_metres_write_no_file(hall, tmp_path, capsys):
    plan, said = hall
    assert scale_command.main([str(measure(tmp_path / "m.csv", said, 1.0)), "--engine", str(plan)]) == 0
    assert "no change" in capsys.readouterr().out and not (tmp_path / "hall.scale.json").exists()


def test_measurements_that_no_camera_explains_are_refused(hall, tmp_path, capsys):
    plan, said = hall
    assert scale_command.main([str(measure(tmp_path / "m.csv", said, 100)), "--engine", str(plan)]) == 3  # centimetres
    assert "ask for a scale of 100" in capsys.readouterr().err and not (tmp_path / "hall.scale.json").exists()
    for name, content in (("empty.npy", b""), ("many.npy", b"PK\x05\x06" + b"\0" * 18), ("cut.png", b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR"), ("a\0.png", None)):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        (tmp_path / "m.csv").write_text(f"0.png,{name}\n")
        assert scale_command.main([str(tmp_path / "m.csv"), "--engine", str(plan)]) == 3
        assert "holds no depth" in capsys.readouterr().err


def test_a_bundle_may_be_the_folder_one_is_in(tiny, tmp_path, monkeypatch, capsys):
    shutil.copytree(tiny.bundle, tmp_path / "net")
    (tmp_path / "net.scale.json").write_text("")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path / "net")
    assert run.main(["--engine", ".", "../a.png", "-o", "../out"]) == 0 and f"{tmp_path}/net.scale.json is not used" in capsys.readouterr().err


@pytest.mark.parametrize("other", [{"network": "evp nyu"}, {"protocol": "windows"}, {"fx": 90.0, "width": 80}])
def test_a_scale_of_something_else_is_refused(hall, tmp_path, capsys, other):
    plan, _ = hall
    CameraScale(1.4, **other).write(tmp_path / "s.json")
    words = ["--engine", str(plan), str(tmp_path / "0.png"), "--intrinsics", "50,50,40,30", "-o", str(tmp_path / "out"), "--scale", str(tmp_path / "s.json")]
    assert run.main(words) == 3
    assert "s.json was measured with" in capsys.readouterr().err


def test_relative_maps_have_no_scale(make_artefacts, hall, tmp_path, capsys):
    relative = make_artefacts("relative")
    assert run.main(["--engine", str(relative.plan), str(tmp_path / "0.png"), "-o", str(tmp_path / "out"), "--scale", "1.4"]) == 3
    assert "without a unit" in capsys.readouterr().err
