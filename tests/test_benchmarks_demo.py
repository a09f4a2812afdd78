"""The demo's pictures and pages: what the colours stand for, what the cards say, and that nothing is claimed of untrained weights."""

import base64
import json
import os
import re
import signal
import subprocess
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from fathom.benchmarks.demo import demo, plans
from fathom.benchmarks.demo import page as demo_page
from fathom.benchmarks.demo.commands import loaded_commands
from fathom.benchmarks.demo.contact_sheet import Column, MaskRow, column_lefts, draw_masks, draw_sheet, head_height
from fathom.benchmarks.demo.photos import PAIRS, ROOM_SEED, ROOMS, photos
from fathom.benchmarks.demo.pictures import Map, Row, error_map, row_range, said
from fathom.benchmarks.demo.viewer_data import TRUTH, cloud
from fathom.benchmarks.model_cards import WEIGHTS, read_card, trained
from fathom.benchmarks.our_commands import command_line
from fathom.benchmarks.studies import tiny_networks
from fathom.datasets.rooms.rooms import Rooms
from fathom.runtime.errors import OutOfMemoryError

REAL = """| data, use test | 12 | **x-tiny** | 0.250 | 1.200 | 0.300 |
| data, use test | 12 | mean depth map | 0.300 | 1.000 | 0.500 |"""
CARD = """# x-tiny: weights trained with `depth-train`

| data | images | who | abs_rel | rmse | delta1 |
|---|---|---|---|---|---|
| 50 rooms, 240x320, seed 7 | 50 | **x-tiny** | 0.123 | 0.456 | 0.812 |
| 50 rooms, 240x320, seed 7 | 50 | mean depth map | 0.278 | 0.900 | 0.554 |
| 50 rooms, 240x320, seed 7 | 50 | constant depth | 0.331 | 0.990 | 0.501 |
| data, use test | 12 | **x-tiny** | 0.400 | 2.000 | 0.300 |

abs_rel and rmse (metres): lower is better; delta1: higher is better.
"""


@pytest.fixture
def cards(tmp_path):
    (tmp_path / "x-tiny.md").write_text(CARD)
    return tmp_path


def test_cards_are_read_as_they_are_written(cards):
    rooms, pairs = read_card("x-tiny", cards)
    assert (rooms.data, rooms.images, rooms.network) == ("50 rooms, 240x320, seed 7", 50, {"abs_rel": 0.123, "rmse": 0.456, "delta1": 0.812})
    assert rooms.words() == "abs_rel 0.123, delta1 0.812" and rooms.blind_words() == "mean depth map: abs_rel 0.278, delta1 0.554"
    assert pairs.images == 12 and pairs.blind_words() == ""
    assert read_card("y-tiny", cards) == () and not trained("x-tiny", cards)


def test_every_card_that_ships_can_be_read():
    for weights in sorted(WEIGHTS.glob("*.safetensors")):
        results = read_card(weights.stem)
        assert results and all(np.isfinite(value) for result in results for value in result.network.values()), weights.stem
        assert results[0].blind, weights.stem


def _row(truth, *maps):
    return Row("a room", Image.new("RGB", (64, 48), (90, 90, 90)), truth, maps)


def test_a_row_has_the_range_of_its_truth():
    truth = np.tile(np.linspace(1, 5, 64, dtype=np.float32), (48, 1))
    row = _row(truth, Map(truth * 3, True))
    assert row_range(row) == pytest.approx(np.percentile(truth, [2, 98]))
    alone = _row(None, Map(truth * 2, False), Map(truth * 3, True))
    assert row_range(alone) == pytest.approx(np.percentile(truth * 3, [2, 98]))  # of the first that has metres


def test_what_is_written_below_a_map():
    truth = np.full((48, 64), 2, np.float32)
    truth[:4] = 0
    values, words = said(Map(np.full((48, 64), 2.2, np.float32), True), truth)
    assert words == ("2.2 to 2.2 m, median 2.2", "abs_rel 0.100   delta1 1.00") and values[0, 0] == np.float32(2.2)
    values, words = said(Map(np.full((48, 64), 0.5, np.float32), False), truth)
    assert values[8, 8] == pytest.approx(2) and "fitted" in words[0] and "abs_rel 0.000" in words[1]
    assert said(Map(np.full((48, 64), 0.5, np.float32), False), None)[1] == ("order only, no metres",)


def test_near_is_warm_and_far_is_cold():
    truth = np.tile(np.repeat(np.array([1, 2, 4, 5], np.float32), 16), (48, 1))
    columns = [Column("n", ("a", "b", "c")), Column("m", (), "coarse")]
    sheet = np.asarray(draw_sheet("x", ["y"], columns, [_row(truth, Map(truth, True), Map(truth, True))]))
    for left in column_lefts(columns)[1:4]:  # the truth and both networks
        near, far = sheet[head_height(["y"]) + 80, left + 80].astype(int), sheet[head_height(["y"]) + 80, left + 140].astype(int)
        assert near[0] > near[2] + 50 and far[2] > far[0] + 50
    photo, truth_at, first, second, bar = column_lefts(columns)
    assert first - truth_at == truth_at - photo < second - first  # groups stand apart
    assert sheet.shape[1] > bar


def test_an_error_map_is_dark_where_right_and_grey_where_unknown():
    truth = np.full((8, 12), 2, np.float32)
    truth[:, 8:] = 0
    found = truth.copy()
    found[:, 4:8] = 3  # half off
    found[:, 8:] = 9
    right, wrong, unknown = (np.asarray(error_map(Map(found, True), truth))[4, x].astype(int) for x in (1, 5, 10))
    assert right.sum() < 30 and wrong.sum() > 550 and np.ptp(unknown) < 12 and 60 < unknown.sum() < 600


def test_points_lie_where_the_camera_saw_them():
    """A wall at 2 m, one point per pixel: what JavaScript makes of the grid are its pixels times depth over focal length."""
    grid = cloud(Image.new("RGB", (112, 84), (10, 200, 30)), {"wall": np.full((84, 112), 2.0, np.float32), TRUTH: np.zeros((42, 56), np.float32)}, 100.0)
    assert (grid["w"], grid["h"], grid["focal"]) == (112, 84, 100.0)
    mm = np.frombuffer(base64.b64decode(grid["mm"]["wall"]), "<u2")
    assert mm.size == 112 * 84 and (mm == 2000).all() and not np.frombuffer(base64.b64decode(grid["mm"][TRUTH]), "<u2").any()
    assert base64.b64decode(grid["rgb"])[:3] == bytes((10, 200, 30))
    half = cloud(Image.new("RGB", (224, 168)), {}, None)
    assert half["focal"] == pytest.approx(0.5 * 112 / np.tan(np.deg2rad(30)), rel=1e-3)  # 60 degrees


def test_plans_are_kept_until_something_in_them_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("FATHOM_CACHE_DIR", str(tmp_path / "cache"))
    key = ["one"]
    monkeypatch.setattr(plans, "content_key", lambda name, words: key[0])
    for folder in "ab":
        (tmp_path / folder).mkdir()
    assert not plans.kept("x", (), tmp_path / "a")
    (tmp_path / "a" / "x.plan").write_text("a plan")
    plans.keep("x", (), tmp_path / "a")
    assert plans.kept("x", (), tmp_path / "b") and [path.name for path in (tmp_path / "b").iterdir()] == ["x.plan"]
    (tmp_path / "a" / plans.latency_file("x")).write_text("timed")
    plans.keep("x", (), tmp_path / "a")  # later, beside the same plan
    assert plans.kept("x", (), tmp_path / "b") and (tmp_path / "b" / plans.latency_file("x")).read_text() == "timed"
    key[0] = "two"
    assert not plans.kept("x", (), tmp_path / "b")
    plans.keep("x", (), tmp_path / "b")
    assert [path.name for path in (tmp_path / "cache" / "demo").iterdir()] == ["x-two"]  # the old one is gone
    monkeypatch.undo()
    (tmp_path / "x.safetensors").write_bytes(b"1")
    first = plans.content_key("x", ("a",), tmp_path, tmp_path)
    assert first == plans.content_key("x", ("a",), tmp_path, tmp_path) != plans.content_key("x", ("b",), tmp_path, tmp_path)
    (tmp_path / "x.safetensors").write_bytes(b"2")
    assert first != (second := plans.content_key("x", ("a",), tmp_path, tmp_path))
    monkeypatch.setattr(plans, "host", lambda: {"host_processor_model_name": "another"})
    assert second != plans.content_key("x", ("a",), tmp_path, tmp_path)


def test_masks_say_how_much_they_share():
    truth = np.zeros((48, 64), bool)
    truth[:, :32] = True
    picture = draw_masks([MaskRow("the left", Image.new("RGB", (64, 48), (90, 90, 90)), truth, ~truth)])
    assert picture.width == 10 + 3 * 234 and np.asarray(picture).std() > 5


def test_the_page_names_what_it_shows_once_and_says_what_is_worse_than_blind(monkeypatch, cards):
    for module in (demo_page, demo):
        monkeypatch.setattr(module, "read_card", lambda name: read_card(name, cards))
    (cards / "x-tiny.md").write_text(CARD.replace("| data, use test | 12 | **x-tiny** | 0.400 | 2.000 | 0.300 |", REAL))
    maps = {name: {"file": "p/x.png", "error": None, "words": ["1 to 2 m"]} for name in ("x-tiny", TRUTH)}
    photo = {"title": "a <room>", "folder": "p", "near": 1.0, "far": 2.0, "assumed": True, "maps": maps}
    text = demo_page.page([("", ["x-tiny"])], [photo], ["a <note>"], "", False)
    assert text.count("a &lt;note&gt;") == text.count("<h1>") == text.count("Depth of photos, by small networks") == 1
    assert "a &lt;room&gt;" in text and "mean depth map: abs_rel 0.278" in text and "masks.png" not in text
    assert "Worse than a blind guess on real pairs marked test, by rmse and delta1: x-tiny (rmse 1.200, mean depth map 1.000)." in text
    assert text.count("Worse than a blind guess") == 1  # not on the rooms, where it is better
    assert "report.html" in text and not re.search(r"(src|href)=.?(https?:)?//", text)  # works without a network
    assert 'class="alarm"' in demo_page.page([("", ["x-tiny"])], [photo], ["untrained"], "", True)
    column = demo._column("x-tiny", "")
    assert column.alarm and column.lines[1:] == ("photos: abs_rel 0.250 (blind 0.300)", "worse than blind: photos rmse, delta1")


def test_coarse_networks_stand_apart():
    groups = demo.grouped([*demo.NETWORKS])
    assert dict(groups)["coarse by design"] == ["depthclip-tiny", "depthblip2-tiny", "moa-depthclip-tiny"]
    assert sum(len(names) for _, names in groups) + 1 == len(tiny_networks.NETWORKS)  # and the one of masks: all seven


def test_a_room_with_its_exact_depth_is_always_shown(tmp_path):
    pair = tmp_path / "pairs" / PAIRS[0]
    pair.mkdir(parents=True)
    Image.new("RGB", (8, 6)).save(pair / "rgb.png")
    Image.fromarray(np.full((6, 8), 2500, np.uint16)).save(pair / "depth.png")
    (pair / "meta.json").write_text('{"depth_scale": 1000}')
    found = photos(tmp_path / "photos", tmp_path / "pairs")
    rooms = [photo for photo in found if photo.title.startswith("synthetic room")]
    assert len(rooms) == len(ROOMS) and all((photo.truth_m > 0).all() for photo in rooms)
    assert next(photo for photo in found if photo.title == PAIRS[0].replace("_", " ")).truth_m[0, 0] == 2.5
    assert all(photo.path.parent == tmp_path / "photos" and photo.path.is_file() for photo in found)


def test_commands_in_a_kept_process_end_as_those_of_their_own_do(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    missing, codes, said = str(tmp_path / "none.plan"), [], []
    with loaded_commands(1) as run:
        for words in (("depth-inspect", missing), ("depth-inspect", "--nonsense"), ("depth-inspect", "--version")):
            own = subprocess.run([*command_line(words[0]), *words[1:]], capture_output=True, text=True)
            try:
                code, out = 0, run(*words)
            except SystemExit as leaving:
                code, out = leaving.code, ""
            codes.append(code)
            said.append(capsys.readouterr().err.rstrip())
            assert (code, out, said[-1]) == (own.returncode, own.stdout, own.stderr.rstrip())
        os.kill(run._pool.submit(os.getpid).result(), signal.SIGKILL)
        with pytest.raises(OutOfMemoryError, match="depth-inspect"):
            run("depth-inspect", "--version")
    assert codes == [3, 2, 0] and missing in said[0] and os.environ["OMP_NUM_THREADS"] == "3"


def test_the_whole_demo(tmp_path, monkeypatch, capsys):
    """The flow with commands that write files at once; what is drawn comes from those files."""
    monkeypatch.setenv("FATHOM_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("fathom.benchmarks.demo.photos.ROOMS", (0,))
    monkeypatch.setattr("fathom.benchmarks.demo.photos.SKIMAGE_PHOTOS", ("coffee.png",))
    monkeypatch.setattr(demo, "networks", lambda: ["evp-tiny", "llm-mde-tiny"])
    monkeypatch.setattr(demo, "trained", lambda name: False)
    asked = []

    def command(name, *words):
        asked.append((name, *words))
        if name in ("depth-export", "depth-build") and words[words.index("-o") + 1].endswith(".plan"):
            Path(words[words.index("-o") + 1]).write_bytes(b"a plan")
        if words[0] == "latency":
            Path(words[words.index("-o") + 1]).write_text("{}")
        if name != "depth-run":
            return ""
        out, lines = tmp_path / "demo" / "depth" / re.sub(r".*/|\.plan", "", words[1]), []
        out.mkdir(parents=True, exist_ok=True)
        for photo in map(Path, words[2 : words.index("-o")]):
            with Image.open(photo) as image:
                depth = np.tile(np.linspace(1, 4, image.width, dtype=np.float32), (image.height, 1))
            np.save(out / f"{photo.stem}.npy", depth)
            kind = "relative" if "llm" in words[1] else "metric"
            lines.append(json.dumps({"photo": str(photo), "kind": kind, "untrained": True, "files": {"npy": str(out / f"{photo.stem}.npy")}}))
        return "\n".join(lines)

    def manifest(path):  # only EVP's metres are those of one camera
        return SimpleNamespace(contract=SimpleNamespace(output=SimpleNamespace(focal_px=130.0 if path.stem == "evp-tiny" else 0.0)))

    monkeypatch.setattr(demo, "loaded_commands", lambda jobs: nullcontext(command))
    monkeypatch.setattr(demo, "read_manifest", manifest)
    assert demo.main(tmp_path / "demo", tmp_path / "none") == 0
    shown = {tuple(map(Path, words[3 : words.index("-o")])): words for words in asked if words[0] == "depth-run"}
    (room,), (coffee,) = sorted(photos for photos in shown if len(photos) == 1)[::-1]
    fx = Rooms(1, ROOM_SEED)[0].intrinsics[0]
    assert f"--intrinsics {fx:g},{fx:g},159.5,119.5" in " ".join(shown[room,]) and coffee.name == "coffee.png" and "--intrinsics" not in shown[coffee,]
    assert len(shown) == 3 and "--intrinsics" not in shown[room, coffee]  # LLM-MDE gets both at once
    assert [words[0] for words in asked].count("depth-export") == 2
    assert sorted(words[1] for words in asked if words[0] == "depth-bench") == ["accuracy"] * 2 + ["latency"] * 2 + ["report"]
    assert "report.html" in " ".join(asked[-2]) and asked[-1][0] == "depth-inspect"
    page = (tmp_path / "demo" / "index.html").read_text()
    said = capsys.readouterr().out
    assert "UNTRAINED" in page and "UNTRAINED" in said and "left out" not in page + said
    assert said.strip().endswith("index.html")
    for source in set(re.findall(r'src="([^"]+)"', page)):
        assert (tmp_path / "demo" / source).is_file(), source
    shown = json.loads((tmp_path / "demo" / "viewer-data.js").read_text().removeprefix("const DEMO = ").rstrip(";\n"))
    assert list(shown["photos"][0]["maps"]) == [TRUTH, "evp-tiny", "llm-mde-tiny"] and TRUTH not in shown["photos"][1]["maps"]
    assert [shown["photos"][1]["maps"][name]["metres"] for name in ("evp-tiny", "llm-mde-tiny")] == [True, False]  # and no metres beside its colours
    with Image.open(tmp_path / "demo" / "overview.png") as image:
        assert image.width > 900 and np.asarray(image).std() > 10
    asked.clear()
    assert demo.main(tmp_path / "demo", tmp_path / "none") == 0
    assert not [words for words in asked if words[0] in ("depth-export", "depth-build") or words[1] in ("accuracy", "latency")]  # kept
