"""depth-bench accuracy: its numbers against a separate computation, interruptions, faults, budgets."""

import json
import math
import subprocess
import sys
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
from other_contracts import with_output
from PIL import Image

from fathom.benchmarks import pytorch_reference
from fathom.benchmarks.accuracy import accuracy, duration
from fathom.benchmarks.accuracy.journal import Journal
from fathom.benchmarks.bench_command import main
from fathom.benchmarks.evaluation.published import EVALUATIONS
from fathom.benchmarks.evaluation.shaping import shape_pair
from fathom.datasets.rooms.rooms import Rooms
from fathom.datasets.sample import Sample
from fathom.runtime.artefact.bundle import BundleDirectory
from fathom.runtime.errors import InputError, UsageError
from fathom.runtime.photo.depth_map import DepthMap
from fathom.runtime.pipeline import Pipeline

DATA = "rooms:5:3:48x64"


def run(*words):
    return main(["accuracy", *map(str, words), "--quiet", "--threads", "1"])


def by_hand(plan, samples, protocol=None):
    """Mean abs_rel and delta1 with plain loops over the maps."""
    abs_rel, delta1 = [], []
    with Pipeline.open(plan, threads=1) as pipeline:
        for sample in samples:
            depth = pipeline.predict(sample.rgb, protocol).values
            errors, hits, count = 0.0, 0, 0
            for p, g in zip(depth.reshape(-1).tolist(), sample.depth_m.reshape(-1).tolist(), strict=True):
                if g > 1e-3:
                    errors, hits, count = errors + abs(p - g) / g, hits + (max(p / g, g / p) < 1.25), count + 1
            abs_rel.append(errors / count)
            delta1.append(hits / count)
    return math.fsum(abs_rel) / len(abs_rel), math.fsum(delta1) / len(delta1)


@pytest.mark.parametrize("protocol", [None, "windows"])
def test_the_record_holds_what_a_loop_computes(tiny, tmp_path, capsys, protocol):
    flags = ["--protocol", protocol] if protocol else []
    assert run("--engine", tiny.plan, "--engine", tiny.bundle, "--data", DATA, "-o", tmp_path / "r.json", *flags) == 0
    record = json.loads((tmp_path / "r.json").read_text())
    samples = list(Rooms(5, 3, (48, 64)))
    wanted = by_hand(tiny.plan, samples, protocol)
    for row in record["rows"]:
        assert (row["means"]["abs_rel"], row["means"]["delta1"]) == pytest.approx(wanted, rel=1e-6)
        assert row["images"] == 5 and row["failed"] == row["uncovered"] == 0 and row["coverage"] == 1
        assert [name for group in row["groups"] for name in group["ids"]] == [sample.id for sample in samples]
        assert (row["protocol"], row["flip"]) == (protocol or "single-image", protocol == "windows")
    assert record["rows"][0]["difference"] is None
    assert all(value == pytest.approx(0, abs=1e-6) for value in record["rows"][1]["difference"]["relative"].values())
    assert record["evaluation"]["alignment"] == "none" and record["data"]["seed"] == 3 and record["data"]["measured"] == 5
    table = capsys.readouterr().out
    assert f"{wanted[0]:.4f}" in table and "alignment none" in table and "difference" in table
    assert not (tmp_path / "r.json.journal").exists() and str(tmp_path) not in json.dumps(record)


def test_metres_by_focal_length_are_scored_where_the_evaluation_shapes_the_photo(tiny, tmp_path, capsys):
    """metres = value fx / focal_px, fx in pixels of what the network sees: 304 of the 333 columns that FastDepth's evaluation enlarges photos to, as 64."""
    bundle = with_output(tiny.bundle, tmp_path / "bundle", focal_px=50.0)
    words = ["--engine", bundle, "--data", DATA, "--evaluation", "fastdepth-nyu", "-o", tmp_path / "r.json"]
    assert run(*words) == 0
    (row,) = json.loads((tmp_path / "r.json").read_text())["rows"]
    wanted = []
    with Pipeline.open(tiny.bundle, threads=1) as pipeline:
        for sample in Rooms(5, 3, (48, 64)):
            rgb, truth_m, valid = shape_pair(sample.rgb, sample.depth_m, sample.valid, EVALUATIONS["fastdepth-nyu"].shape)
            metres = pipeline.predict(rgb).values * (sample.intrinsics[0] * (333 / 64) * (224 / 304) * (64 / 224) / 50)
            counts = valid & (truth_m > 0.1) & (truth_m < 9.99)
            wanted.append(np.mean(np.abs(metres - truth_m)[counts] / truth_m[counts]))
    assert row["means"]["abs_rel"] == pytest.approx(np.mean(wanted), rel=1e-6)


def test_json_lines(tiny, capsys):
    assert run("--engine", tiny.plan, "--data", DATA, "--json", "--limit", 2) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["images"] == 2


@pytest.mark.parametrize("evaluation", ["full", "adadepthclip-nyu"])
def test_an_interruption_costs_one_part_and_counts_nothing_twice(tiny, tmp_path, monkeypatch, capsys, evaluation):
    draw = np.random.default_rng(0)
    for number in range(12):
        pair = tmp_path / "pairs" / f"p{number}"
        pair.mkdir(parents=True)
        Image.fromarray(draw.integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(pair / "rgb.png")
        Image.fromarray(draw.integers(0, 6000, (48, 64), dtype=np.uint16)).save(pair / "depth.png")
        (pair / "meta.json").write_text('{"depth_scale": 1000}')
    words = ["--engine", tiny.plan, "--engine", tiny.bundle, "--data", f"pairs:{tmp_path / 'pairs'}", "--evaluation", evaluation]
    assert run(*words, "-o", tmp_path / "whole.json") == 0
    calls, predict = [], Pipeline.predict

    def interrupted(self, image, *rest):
        calls.append(1)
        if len(calls) == 18:
            raise KeyboardInterrupt
        return predict(self, image, *rest)

    monkeypatch.setattr(Pipeline, "predict", interrupted)
    assert run(*words, "-o", tmp_path / "r.json") == 130
    journal = tmp_path / "r.json.journal"
    assert journal.exists() and not (tmp_path / "r.json").exists()
    with journal.open("a") as file:
        file.write('{"row": 1, "group": 11, "sco')  # the machine went down in the middle of a line
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join([*lines[:2], lines[1], *lines[2:]]))  # and a line is there twice
    assert run(*words, "-o", tmp_path / "r.json") == 0
    assert len(calls) == (18 + 24 - 17 if evaluation == "full" else 18 + 24 - 12)
    records = [json.loads((tmp_path / name).read_text()) for name in ("r.json", "whole.json")]
    for record in records:
        del record["meta"]["date"]
    assert records[0] == records[1]
    assert not journal.exists()


def test_a_journal_of_another_measurement_is_refused(tiny, tmp_path, monkeypatch, capsys):
    with Journal(tmp_path / "r.json.journal", {"other": 1}) as journal:
        journal.add(0, 0, {})
    assert run("--engine", tiny.plan, "--data", DATA, "-o", tmp_path / "r.json") == 3
    assert "another measurement" in capsys.readouterr().err
    assert run("--engine", tiny.plan, "--data", DATA, "-o", tmp_path / "r.json", "--force") == 0
    (tmp_path / "x.json.journal").write_text("somebody's notes\n")
    assert run("--engine", tiny.plan, "--data", DATA, "-o", tmp_path / "x.json") == 3
    assert (tmp_path / "x.json.journal").read_text() == "somebody's notes\n"


def test_the_journal_refuses_to_count_twice(tmp_path):
    with Journal(tmp_path / "j", {"run": 1}) as journal:
        journal.add(0, 0, {"scores": []})
        with pytest.raises(ValueError, match="already"):
            journal.add(0, 0, {"scores": []})
    with Journal(tmp_path / "j", {"run": 1}) as journal:
        assert list(journal.done) == [(0, 0)]
    with pytest.raises(InputError, match="another"):
        Journal(tmp_path / "j", {"run": 2})
    with Journal(tmp_path / "empty", {"run": 1}):
        pass
    assert not (tmp_path / "empty").exists()


def test_nan_fails_with_its_row_in_the_table(make_artefacts, tmp_path, capsys):
    broken = make_artefacts(poison=np.nan)
    assert run("--engine", broken.plan, "--data", DATA, "-o", tmp_path / "r.json") == 4
    out = capsys.readouterr()
    assert "FAILED" in out.out and "NaN" in out.err
    (row,) = json.loads((tmp_path / "r.json").read_text())["rows"]
    assert row["means"] is None and row["failed"] == 5 and len(row["failures"]) == 5


def test_depths_that_are_not_above_zero_fail(tiny, monkeypatch, capsys):
    def negative(self, image, *_):
        values = np.full(image.shape[:2], 2, np.float32)
        values[3, 4], values[5, 6] = -1, 3
        return DepthMap.of(values, np.ones(values.shape, bool), self.contract.output)

    monkeypatch.setattr(Pipeline, "predict", negative)
    assert run("--engine", tiny.plan, "--data", DATA) == 4
    assert "1 pixels of the map are not above zero" in capsys.readouterr().err


def test_relative_maps_are_not_metres(make_artefacts, tmp_path, capsys):
    relative, metric = make_artefacts(kind="relative"), make_artefacts()
    assert run("--engine", metric.plan, "--engine", relative.plan, "--data", DATA) == 2
    assert "not metres" in capsys.readouterr().err
    assert run("--engine", relative.plan, "--data", DATA, "--alignment", "none") == 2
    assert run("--engine", relative.plan, "--data", DATA, "--alignment", "scale-shift") == 2
    assert run("--engine", relative.plan, "--data", DATA, "--alignment", "scale-shift-inverse", "-o", tmp_path / "r.json") == 0
    record = json.loads((tmp_path / "r.json").read_text())
    assert record["evaluation"]["alignment"] == "scale-shift-inverse"
    assert "alignment scale-shift-inverse" in capsys.readouterr().out
    assert main(["accuracy", "--engine", str(relative.plan), "--data", DATA, "--threads", "1", "-o", str(tmp_path / "chosen.json")]) == 0
    chosen = capsys.readouterr()
    assert "each is fitted to the truth (scale-shift-inverse)" in chosen.err and "alignment scale-shift-inverse" in chosen.out
    assert json.loads((tmp_path / "chosen.json").read_text())["rows"][0]["means"] == record["rows"][0]["means"]


def write_pairs(folder, sizes):
    draw = np.random.default_rng(1)
    for number, (height, width) in enumerate(sizes):
        pair = folder / f"p{number}"
        pair.mkdir(parents=True)
        Image.fromarray(draw.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(pair / "rgb.png")
        Image.fromarray(draw.integers(1000, 6000, (height, width), dtype=np.uint16)).save(pair / "depth.png")
        (pair / "meta.json").write_text('{"depth_scale": 1000}')
    return f"pairs:{folder}"


def test_pictures_of_many_sizes(tiny, tmp_path, capsys):
    """The default takes them all; an evaluation made for one size leaves the others out, and says which."""
    data = write_pairs(tmp_path / "pairs", [(24, 32), (480, 640), (375, 1242), (224, 224), (480, 640)])
    assert run("--engine", tiny.plan, "--data", data, "-o", tmp_path / "all.json") == 0
    everything = json.loads((tmp_path / "all.json").read_text())["rows"][0]
    assert everything["images"] == 5 and everything["skipped"] == [] and everything["protocol"] == "single-image"
    assert run("--engine", tiny.plan, "--engine", tiny.bundle, "--data", data, "-o", tmp_path / "nyu.json", "--evaluation", "nyu-eigen") == 0
    out = capsys.readouterr()
    rows = json.loads((tmp_path / "nyu.json").read_text())["rows"]
    for row in rows:
        assert row["images"] == 2 and [entry["id"] for entry in row["skipped"]] == ["p0", "p2", "p3"] and not row["failed"]
        assert "480" in row["skipped"][0]["reason"]
    assert rows[1]["difference"]["relative"]["abs_rel"] == pytest.approx(0, abs=1e-6)
    assert "3 of 5 images were left out, the first: p0" in out.err and "left out: p2" in out.out
    alone = [score["values"]["abs_rel"] for group in rows[0]["groups"] for score in group["scores"]]
    assert rows[0]["means"]["abs_rel"] == pytest.approx(sum(alone) / 2) and len(alone) == 2


def test_rows_of_other_images_are_not_compared(tiny, tmp_path, monkeypatch, capsys):
    data, predict = write_pairs(tmp_path / "pairs", [(24, 32), (30, 40), (48, 64)]), Pipeline.predict

    def narrow(self, image, *rest):
        if self.origin.sha256 == bundle and image.shape[0] == 30:
            raise InputError("the photo is 30x40", wanted="another")
        return predict(self, image, *rest)

    with Pipeline.open(tiny.bundle, threads=1) as pipeline:
        bundle = pipeline.origin.sha256
    monkeypatch.setattr(Pipeline, "predict", narrow)
    words = ["--engine", tiny.plan, "--engine", tiny.bundle, "--data", data]
    assert run(*words, "-o", tmp_path / "r.json") == 0
    out = capsys.readouterr()
    plan, other = json.loads((tmp_path / "r.json").read_text())["rows"]
    assert (plan["images"], other["images"]) == (3, 2) and other["skipped"][0]["id"] == "p1" and "relative" not in other["difference"]
    assert "not compared with tiny.plan" in out.out and "does not fit the protocol single-image" in out.err
    assert run(*words, "--budget", "abs_rel=1%") == 3 and "cannot be compared" in capsys.readouterr().err


def test_budgets(tiny, make_artefacts, capsys):
    other = make_artefacts(poison=2.0)
    words = ["--engine", tiny.plan, "--engine", tiny.bundle, "--engine", other.plan, "--data", DATA, "--limit", 2]
    assert run(*words[:4], *words[6:], "--budget", "abs_rel=0.1%", "--budget", "delta1=0.1%") == 0
    assert run(*words, "--budget", "abs_rel=0.1%") == 4
    assert "off tiny.plan" in capsys.readouterr().err
    for wrong in ("abs_rel", "abs_rel=1", "height=1%", "abs_rel=-1%"):
        with pytest.raises(SystemExit):
            run(*words, "--budget", wrong)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--data", DATA], 2, "nothing to measure"),
        (["--engine", "PLAN"], 2, "no data"),
        (["--engine", "PLAN", "--data", "photos:x"], 2, "names no data"),
        (["--engine", "PLAN", "--data", "rooms:many"], 2, "rooms:N"),
        (["--engine", "PLAN", "--data", "nyu:none.mat"], 3, "does not exist"),
        (["--engine", "PLAN", "--data", DATA, "--evaluation", "best"], 2, "no evaluation"),
        (["--engine", "PLAN", "--data", DATA, "--alignment", "best"], 2, "no alignment"),
        (["--engine", "PLAN", "--data", DATA, "--protocol", "best"], 2, "no protocol"),
        (["--engine", "PLAN", "--data", DATA, "--evaluation", "nyu-eigen"], 3, "does not fit the evaluation"),
        (["--engine", "none.plan", "--data", DATA], 3, "none.plan"),
        (["--engine", "PLAN", "--data", DATA, "--reference-weights", "x"], 2, "without --reference"),
        (["--reference", "BUNDLE", "--data", DATA], 2, "no PyTorch form"),
        (["--reference", "PLAN", "--data", DATA], 2, "is no folder"),
        (["--engine", "PLAN", "--data", DATA, "-o", "none/r.json"], 3, "does not exist"),
    ],
)
def test_faults_have_their_exit_codes(tiny, tmp_path, monkeypatch, capsys, words, code, message):
    monkeypatch.chdir(tmp_path)
    names = {"PLAN": tiny.plan, "BUNDLE": tiny.bundle}
    assert run(*[names.get(word, word) for word in words]) == code
    error = capsys.readouterr().err
    assert message in error and "internal" not in error
    assert not list(tmp_path.iterdir())


def test_photos_without_depth_are_refused(tiny, tmp_path, capsys):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    assert run("--engine", tiny.plan, "--data", f"images:{tmp_path}") == 2


def test_evaluations_can_be_listed(capsys):
    assert run("--evaluation", "list") == 0
    assert capsys.readouterr().out.count("\n") == len(EVALUATIONS)


def test_pytorch_stands_behind_the_same_pipeline(tiny, tmp_path, monkeypatch):
    """The row of a reference is PyTorch's own convolution; its map has to equal the plan's to rounding."""
    torch = pytest.importorskip("torch")
    kernel = torch.from_numpy(tiny.kernel)

    class Network:
        contract = BundleDirectory.open(tiny.bundle).manifest.contract

        def boundaries(self, inputs):
            features = torch.relu(torch.nn.functional.conv2d(inputs["image"], kernel, stride=2, padding=2))
            return {"features": features, "depth": features.mean(1, keepdim=True) + 1}

    monkeypatch.setattr(pytorch_reference, "load_network", lambda artefact, weights, given=None: Network())
    assert run("--reference", tiny.bundle, "--engine", tiny.plan, "--data", DATA, "-o", tmp_path / "r.json", "--budget", "abs_rel=0.001%") == 0
    reference, engine = json.loads((tmp_path / "r.json").read_text())["rows"]
    assert reference["kind"] == "pytorch" and engine["difference"]["to"] == reference["name"] == "tiny test (PyTorch)"
    assert reference["means"]["abs_rel"] == pytest.approx(by_hand(tiny.plan, Rooms(5, 3, (48, 64)))[0], rel=1e-5)


def test_a_reference_needs_the_weights_it_was_exported_from(tiny, tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="no PyTorch form"):
        pytorch_reference.open_reference(tiny.bundle)


class Endless:
    """A source that makes a sample when it is asked for one."""

    def __getitem__(self, number):
        draw = np.random.default_rng(number)
        rgb = draw.integers(0, 256, (96, 128, 3), dtype=np.uint8)
        depth = draw.uniform(1, 5, (96, 128)).astype(np.float32)
        return Sample(rgb, depth, depth > 0, None, str(number), "")


def test_memory_is_flat(tiny):
    def peak(count):
        row = accuracy.Row("x", "engine", lambda: Pipeline.open(tiny.plan, threads=1), {"protocol": "single-image"})
        tracemalloc.start()
        with Journal(None, {}) as journal:
            accuracy.measure([row], Endless(), count, EVALUATIONS["full"], journal, lambda done: None)
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    peak(2)
    assert peak(44) < peak(4) + 3 * 96 * 128 * 8  # forty more samples (8 bytes a pixel each) cost less than three


def test_help_starts_without_heavy_imports():
    code = "import sys; from fathom.benchmarks.bench_command import main\ntry: main(['accuracy', '--help'])\nexcept SystemExit: pass\n"
    code += "print([name for name in ('numpy', 'torch', 'onnx', 'onnxruntime', 'scipy', 'h5py', 'PIL') if name in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "[]", out


@pytest.mark.slow
def test_pytorch_and_a_real_bundle_agree(tmp_path):
    from fathom.export.bundle.bundle import write_bundle
    from fathom.models import catalog

    write_bundle(catalog.load("evp-tiny", random_init=True), tmp_path / "evp")
    assert run("--reference", tmp_path / "evp", "--engine", tmp_path / "evp", "--data", "rooms:2:1", "--budget", "abs_rel=0.1%") == 0


def test_a_long_measurement_is_announced_before_its_first_image(tiny, monkeypatch, capsys):
    """Five days of a large network on a CPU are told at once, not after the first picture."""
    clock = iter(range(0, 10**6, 1800))  # every look at it is half an hour later
    monkeypatch.setattr(duration, "time", SimpleNamespace(monotonic=lambda: next(clock)))

    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(accuracy, "_measure_group", interrupted)
    words = ["accuracy", "--engine", str(tiny.plan), "--data", DATA, "--threads", "1", "--protocol"]
    assert main([*words, "windows"]) == 130
    assert "5 images will take about 15 hours; --limit N measures fewer" in capsys.readouterr().err  # 2 windows and one more, each mirrored: 30 looks
    assert main([*words, "single-image"]) == 130
    assert "will take" not in capsys.readouterr().err  # five looks are not worth a sixth
    assert [duration.duration(seconds) for seconds in (90, 121, 7300, 432000)] == ["90 seconds", "2 minutes", "2 hours", "5 days"]
