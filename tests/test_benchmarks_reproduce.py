"""The papers' rows: their numbers against the papers' text, and their way from files in the published form to a table."""

import json
import os
import pickle
import re
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import fathom
from fathom.benchmarks.bench_command import main
from fathom.benchmarks.reproduce import command, page
from fathom.benchmarks.reproduce.papers import PAPERS, every_row, find_row
from fathom.benchmarks.reproduce.steps import Files, steps_of
from fathom.datasets.source import open_source
from fathom.models.catalog import NETWORKS

ROOT = Path(fathom.__file__).parent
SHARED = Path(os.environ.get("FATHOM_SHARED") or ROOT.parent / "shared")
ROWS = {f"{paper.name} {table.name} {row.name}": row for paper, table, row in every_row()}
TITLES = {"evp": "IMAFR", "depthblip2": "DepthBLIP-2: Leveraging", "llm-mde": "LLM-MDE", "moa-depthclip": "MoA-DepthCLIP"}
COLUMNS = {("llm-mde", "1"), ("llm-mde", "5")}  # printed with a column for each of ours
SCENES = ("bedroom", "kitchen", "bathroom", "dining_room", "living_room")


def numbers_of(line):
    return re.findall(r"(?<![\w.])\d+\.\d+(?![\w.])", re.sub(r"</?\w+>", "", line))


@pytest.mark.parametrize("name", PAPERS)
@pytest.mark.skipif(not (SHARED / "seeds").is_dir(), reason="the papers' text is not at hand")
def test_published_numbers_are_the_papers(name):
    texts = [path.read_text() for path in sorted((SHARED / "seeds").glob("*.txt"))]
    text = max(texts, key=lambda text: text.count(TITLES[name]))
    lines = [numbers_of(line) for line in text.splitlines()]
    for table in PAPERS[name].tables:
        wanted = [list(row.published.values()) for row in table.rows]
        if (name, table.name) in COLUMNS:  # every metric is a line, in our order
            block = [list(column) for column in zip(*wanted, strict=True)]
            assert any(lines[start : start + len(block)] == block for start in range(len(lines))), (name, table.name)
        else:
            starts = [n for n, line in enumerate(lines) if line[-len(wanted[0]) :] == wanted[0]]
            assert any(_follow(lines[start:], wanted) for start in starts), (name, table.name)


def _follow(lines, wanted):
    """Whether some lines end with these numbers, one after the other."""
    rest = iter(lines)
    return all(any(line[-len(numbers) :] == numbers for line in rest) for numbers in wanted)


def test_rows_name_networks_and_settings_that_exist():
    from fathom.benchmarks.evaluation.published import EVALUATIONS
    from fathom.benchmarks.reproduce.steps import DOWNLOADED

    assert {name for name, entry in NETWORKS.items() if entry.hub} == set(DOWNLOADED)
    for name, row in ROWS.items():
        entry = NETWORKS[row.network]
        assert set(row.settings) <= set(entry.settings) and (row.variant or entry.variants[0]) in entry.variants, name
        assert row.evaluation in EVALUATIONS or row.data == "refcoco", name
        assert set(row.options) <= set(entry.options), name
    assert len(ROWS) == sum(len(table.rows) for paper in PAPERS.values() for table in paper.tables)  # no name twice


def test_the_page_is_of_today():
    assert (ROOT / "docs" / "papers.md").read_text() == page.page()


def test_list(capsys):
    assert main(["reproduce"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert listed[0].startswith("evp 1 vpd ") and "rmse 0.254" in listed[0] and len(listed) == len(ROWS)
    assert main(["reproduce", "moa-depthclip", "2", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["row"] for row in rows] == ["1", "2", "4", "8", "16"] and rows[3]["published"] == {"abs_rel": "0.395", "rmse": "0.557", "delta1": "0.665"}


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["evp", "1", "evp"], 3, "nyu_depth_v2_labeled.mat"),
        (["evp", "1", "evp", "--data", "nyu:x.mat"], 3, "MykolaL/evp_depth/resolve/df101c7/model.safetensors is not here yet, and HF_HUB_OFFLINE"),
        (["evp", "1", "evp", "--data", "nyu:x.mat", "--device", "cpu"], 3, "model.safetensors of MykolaL/evp_depth"),
        (["evp", "2", "evp", "--data", "nyu:x.mat"], 2, "KITTI"),
        (["depthblip2", "1", "depthblip2", "--data", "nyu:x.mat", "--weights", "setup.py"], 3, "clip_vit_L.pth"),
        (["moa-depthclip", "2", "8", "--data", "nyu:x.mat:test", "--weights", "v.pt"], 3, "--train-data"),
        (["evp", "4", "9", "--data", "nyu:x.mat"], 3, "a caption for every picture"),
        (["evp", "4", "4", "--data", "nyu:x.mat"], 3, "v1-5-pruned-emaonly.safetensors of Stable Diffusion 1.5"),
        (["evp", "3", "vpd", "--data", "refer:x:refcoco"], 3, "VPD's RefCOCO weights"),
        (["llm-mde", "3", "apg", "--data", "nyu:x.mat", "--weights", "setup.py"], 3, "vit_base_patch16_224"),
        (["evp", "1", "nobody"], 2, "vpd, evp"),
        (["evp", "9"], 2, "no table '9'"),
        (["dpt"], 2, "no paper 'dpt'"),
    ],
)
def test_what_is_missing_is_named(words, code, message, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("FATHOM_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(command, "execute", in_process)
    assert main(["reproduce", *words]) == code
    assert message in capsys.readouterr().err


def test_full_size_depthblip2_exports_its_two_files_with_the_learned_bins():
    files = Files("nyu:N.mat", weights="q.pth", visual_weights="v.pth")
    train, export, accuracy = (step.arguments for step in steps_of(find_row("depthblip2", "4", "kitchen-5"), files, Path("out")))
    assert train[train.index("--shots") + 1] == "16" and train[train.index("--weights") + 1] == "q.pth"
    assert export[export.index("--weights") + 1] == "q.pth" and export[export.index("--bins") + 1] == "out/trained.safetensors"
    assert "nyu:N.mat:scene=kitchen" in accuracy


def test_llm_mde_stops_early_and_its_best_weights_are_measured_where_they_were_made():
    files = Files("nyu:N.mat", weights="b.safetensors", visual_weights="v.safetensors")
    train, export, accuracy = (" ".join(step.arguments) for step in steps_of(find_row("llm-mde", "5", "scheme-5"), files, Path("out"), device="cuda:1"))
    assert "--variant paper" in train and "--hold-back 79 --batch 16 --device cuda:1" in train and "--resume" not in train
    assert "--weights out/trained.best.safetensors" in export and "--visual-weights" not in export
    assert accuracy.startswith("accuracy --reference out/bundle --reference-weights out/trained.best.safetensors --device cuda:1 --data nyu:N.mat")
    one, *others = (steps_of(find_row("llm-mde", *name), files, Path("out")) for name in (("3", "apg"), ("4", "scheme-3"), ("5", "scheme-3")))
    assert others == [one, one]  # printed three times with the same numbers


def test_an_interrupted_training_goes_on(tmp_path, capsys):
    (tmp_path / "trained.state.safetensors").touch()
    row, words = find_row("evp", "4", "4"), ["reproduce", "evp", "4", "4", "--data", "nyu:N.mat", "--weights", "setup.py", "--show", "--quiet"]
    assert "--resume" in steps_of(row, Files("nyu:N.mat", weights="sd.ckpt"), tmp_path)[0].arguments
    assert main(words) == 0
    train, export, accuracy = capsys.readouterr().out.splitlines()
    assert (
        train.endswith(" -o trained.safetensors") and "--weights trained.safetensors" in export and "--engine bundle " in accuracy and "--resume" not in train
    )


@pytest.fixture(scope="module")
def nyu(tmp_path_factory):
    """The labelled file and splits.mat: of every kind of room some pictures to learn from and one to measure."""
    h5py, scipy_io = pytest.importorskip("h5py"), pytest.importorskip("scipy.io")
    folder = tmp_path_factory.mktemp("nyu")
    draw = np.random.default_rng(3)
    scenes = [f"{kind}_{number:04d}" for number in range(16) for kind in SCENES] + [f"bedroom_{number:04d}" for number in range(16, 76)]  # 75 to learn from
    rows = np.mgrid[0:480, 0:640][0]
    with h5py.File(folder / "nyu_depth_v2_labeled.mat", "w") as file:
        shape = (len(scenes), 640, 480)
        images = file.create_dataset("images", (len(scenes), 3, 640, 480), np.uint8, chunks=(1, 3, 640, 480), compression=1)
        depths = file.create_dataset("rawDepths", shape, np.float32, chunks=(1, 640, 480), compression=1)
        references = file.create_dataset("scenes", (1, len(scenes)), dtype=h5py.ref_dtype)
        for number, scene in enumerate(scenes):
            depth = (2 + rows / 240 + number % 5).astype(np.float32)
            images[number] = np.repeat((depth * 30 + draw.integers(0, 20)).astype(np.uint8)[None], 3, 0).transpose(0, 2, 1)
            depths[number] = depth.T
            codes = file.create_dataset(f"#refs#/{number}", data=np.array([[ord(letter)] for letter in scene], np.uint16))
            references[0, number] = codes.ref
    test = np.arange(1, len(SCENES) + 1)
    scipy_io.savemat(folder / "splits.mat", {"testNdxs": test[:, None], "trainNdxs": np.arange(len(SCENES) + 1, len(scenes) + 1)[:, None]})
    return f"nyu:{folder / 'nyu_depth_v2_labeled.mat'}"


@pytest.fixture(scope="module")
def kitti(tmp_path_factory):
    from PIL import Image

    folder = tmp_path_factory.mktemp("kitti")
    photo, depth = folder / "raw_data/d/v/image_02/data/0000000005.png", folder / "data_depth_annotated/val/v/proj_depth/groundtruth/image_02/0000000005.png"
    for path in (photo, depth):
        path.parent.mkdir(parents=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (375, 1242, 3), dtype=np.uint8)).save(photo)
    Image.fromarray(np.full((375, 1242), 20 * 256, np.uint16)).save(depth)
    (folder / "eigen.txt").write_text(f"/{photo.relative_to(folder)} /{depth.relative_to(folder)} 721.5377\n")
    return f"kitti:{folder}:{folder / 'eigen.txt'}"


@pytest.fixture(scope="module")
def refcoco(tmp_path_factory):
    from PIL import Image

    folder = tmp_path_factory.mktemp("refer")
    for place in ("refcoco", "images/mscoco/images/train2014"):
        (folder / place).mkdir(parents=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(folder / "images/mscoco/images/train2014/COCO_7.jpg")
    said = [{"sent_id": 1, "raw": "the left cup", "sent": "the left cup", "tokens": []}]
    (folder / "refcoco" / "refs(unc).p").write_bytes(pickle.dumps([{"ref_id": 3, "image_id": 7, "ann_id": 9, "split": "val", "sentences": said}], 2))
    image, thing = {"id": 7, "file_name": "COCO_7.jpg", "height": 48, "width": 64}, {"id": 9, "segmentation": [[8, 8, 40, 8, 40, 40, 8, 40]]}
    (folder / "refcoco" / "instances.json").write_text(json.dumps({"images": [image], "annotations": [thing]}))
    return f"refer:{folder}:refcoco"


@pytest.fixture(scope="module")
def begins(published_files, tmp_path_factory):
    """From a row to the flags with the files that it begins with, small and in the published form, each written once."""
    made = {}

    def find(row):
        key = (row.network, row.start, *(() if row.training else row.settings.items()))
        if key not in made:
            made[key] = published_files.start_of(tmp_path_factory.mktemp("start") / "files", row.network, row.start, {} if row.training else row.settings)
        return made[key]

    return find


@pytest.fixture(scope="module")
def captions(nyu, tmp_path_factory):
    """A caption for every picture of the file."""
    path = tmp_path_factory.mktemp("captions") / "captions.json"
    path.write_text(json.dumps({sample.id: f"a photo of a {sample.scene.split('_')[0]}" for sample in open_source(f"{nyu}:all")}))
    return str(path)


@pytest.fixture
def run(nyu, kitti, refcoco, begins, captions, tmp_path, capsys, monkeypatch):
    """A row from its small files to numbers, by ``depth-bench reproduce`` with more words; what is missing is missed first. Two pictures a step, and two
    held back."""
    from fathom.models.training.data.kept_samples import KeptSamples
    from fathom.models.training.recipes import recipes

    few, split = {model: replace(recipe, batch=2) for model, recipe in recipes.RECIPES.items()}, KeptSamples.split
    monkeypatch.setattr(recipes, "RECIPES", few)
    monkeypatch.setattr(KeptSamples, "split", lambda self, count, seed: split(self, min(count, 2), seed))

    def run(name, *more, steps="2"):
        row = ROWS[name]
        data = {"nyu": nyu, "kitti": kitti, "refcoco": refcoco}[row.data]
        words = ["reproduce", *name.split(), "--data", data, "--tiny", *begins(row), "--limit", "1", "--steps", steps, "-o", str(tmp_path / "out")]
        words += ["--json", "--quiet", *more]
        if row.captions:
            assert main(words) == 3 and "a caption for every picture" in capsys.readouterr().err
            words += ["--captions", captions]
        assert main(words) == 0
        found = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert found["published"] == row.published and found["images"] == 1 and found["tiny"]
        assert set(found["ours"]) == set(row.published) and all(np.isfinite(value) for value in found["ours"].values())
        record = json.loads((tmp_path / "out" / "accuracy.json").read_text())
        assert record["evaluation"]["name"] == (row.evaluation or "refer-window") and record["rows"][0]["protocol"] == (row.protocol or "single-image")
        network = json.loads((tmp_path / "out" / "bundle" / "bundle.json").read_text())["network"]
        assert {setting: network["config"][setting] for setting in row.settings} == row.settings
        if row.variant:
            assert network["variant"] == row.variant
        if "bins" in row.options:
            assert network["config"]["bins_m"] == [float(depth) for depth in row.options["bins"].split(",")]
        if row.part:
            assert row.part.removeprefix("scene=") in record["data"]["name"]
        if row.training and "hold-back" in row.training.flags:
            assert network["weights"]["file"] == "trained.best.safetensors"
        return record

    return run


def in_process(step, force, quiet):
    from fathom.export.commands import export_command
    from fathom.models.training import train_command

    mains = {"depth-train": train_command.main, "depth-export": export_command.main, "depth-bench": main}
    return mains[step.program]([*step.arguments, "--quiet"])


@pytest.fixture(scope="module")
def once():
    """A function from a kind of run to the steps in this process; what several rows train or export alike is made once of each kind."""
    made, histories = {}, {}

    def execute(kind, step, force, quiet):
        own = Path(step.arguments[step.arguments.index("-o") + 1]).parent
        history = (*histories.get(own, (kind,)), step.program, *(word.replace(str(own), "") for word in step.arguments))
        histories[own] = history
        if step.program == "depth-bench":
            return in_process(step, force, quiet)
        if history in made:
            others = "trained*" if step.program == "depth-export" else "bundle"
            shutil.copytree(made[history], own, dirs_exist_ok=True, ignore=shutil.ignore_patterns(others, "accuracy.json"))
            return 0
        made[history] = own
        return in_process(step, force, quiet)

    return lambda kind: partial(execute, kind)


def facts(row):
    """The kinds of facts that decide how a row is come by, whatever their values."""
    plain = {(kind, getattr(row, kind)) for kind in ("variant", "data", "protocol", "evaluation", "captions")} | {("part", bool(row.part))}
    flags = {("flag", flag) for flag in row.training.flags} | {("training", "")} if row.training else {("training", None)}
    return {(row.network, *fact) for fact in plain | flags | {("setting", name) for name in row.settings} | {("option", name) for name in row.options}}


def first_of_each_fact():
    """Rows in which every fact of a network's rows is met."""
    met, found = set(), set()
    for name, row in ROWS.items():
        if new := facts(row) - met:
            met |= new
            found.add(name)
    return found


FIRST = first_of_each_fact()


@pytest.mark.parametrize("name", [name if name in FIRST else pytest.param(name, marks=pytest.mark.slow) for name in ROWS])
def test_every_row_in_pytorch(name, once, run, monkeypatch):
    """All of the way but the graphs: training, the network read back, and numbers from it. ``--device`` measures with PyTorch. Rows without a kind of fact
    of their own are slow tests."""
    from fathom.export.bundle import bundle
    from fathom.export.parity.parity import ParityReport, Tolerances

    def no_graph(stage, folder):
        (folder / f"{stage.spec.name}.onnx").write_bytes(b"-")
        return SimpleNamespace(file=folder / f"{stage.spec.name}.onnx")

    monkeypatch.setattr(bundle, "export_graph", no_graph)
    monkeypatch.setattr(bundle, "measure_parity", lambda *_, **__: ParityReport((), 0.0, 0.0, Tolerances(), "", ""))
    monkeypatch.setattr(command, "execute", once("pytorch"))
    record = run(name, "--device", "cpu", steps="1")
    assert [row["kind"] for row in record["rows"]] == ["pytorch"]


REPRESENTATIVE = ("depthblip2 4 kitchen-4", pytest.param("evp 4 12", marks=pytest.mark.slow))  # fixed bins; training with settings and captions


@pytest.mark.parametrize("name", REPRESENTATIVE)
def test_a_row_runs_from_files_to_numbers(name, run, monkeypatch):
    monkeypatch.setattr(command, "execute", in_process)
    assert run(name)["rows"][0]["kind"] == "engine"


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_every_row_runs(name, once, run, monkeypatch):
    monkeypatch.setattr(command, "execute", once("engine"))
    run(name)


def test_the_papers_protocol_is_the_default_on_the_papers_data(nyu, tmp_path, capsys):
    from fathom.export.commands.export_command import main as export

    assert export(["--model", "depthclip-tiny", "-o", str(tmp_path / "b"), "--quiet"]) == 0
    words = ["accuracy", "--engine", str(tmp_path / "b"), "--data", nyu, "--limit", "1", "--threads", "1", "-o", str(tmp_path / "r.json")]
    assert main(words) == 0
    assert "papers' protocol, nyu-benchmark, not by single-image" in capsys.readouterr().err
    assert json.loads((tmp_path / "r.json").read_text())["rows"][0]["protocol"] == "nyu-benchmark"
    assert main([*words, "--protocol", "single-image", "--force"]) == 0
    assert "papers' protocol" not in capsys.readouterr().err


def test_a_part_of_the_data(nyu):
    part = open_source(f"{nyu}:train:scene=bedroom+kitchen:each=3:draw=5")
    kinds = [sample.scene.rpartition("_")[0] for sample in part]
    assert sorted(kinds) == ["bedroom"] * 3 + ["kitchen"] * 3
    again, other = (open_source(f"{nyu}:train:scene=bedroom+kitchen:each=3:draw={seed}") for seed in (5, 6))
    assert again.numbers == part.numbers and other.numbers != part.numbers and other.provenance.sha256 != part.provenance.sha256
    assert len(open_source(f"{nyu}:each=1")) == len(SCENES)
    wrongs = {"scene=attic": "no picture shows a attic", "each=99": "99 were asked for", "count=x": "no whole number", "count=1:count=2": "twice"}
    for wrong, message in wrongs.items():
        with pytest.raises(ValueError, match=message):
            open_source(f"{nyu}:{wrong}")
