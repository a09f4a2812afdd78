"""The demo's pictures and pages: what the colours stand for, what the cards say, and that nothing is claimed of untrained weights."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from fathom.benchmarks.demo import demo
from fathom.benchmarks.demo import page as demo_page
from fathom.benchmarks.demo.contact_sheet import TOP, Column, Map, MaskRow, Row, draw_masks, draw_sheet, row_range, said
from fathom.benchmarks.model_cards import read_card, trained

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
    for weights in sorted(demo.networks.__globals__["read_card"].__defaults__[0].glob("*.safetensors")):
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
    sheet = np.asarray(draw_sheet("x", ["y"], [Column("n", ("a", "b", "c"))], [_row(truth, Map(truth, True), None)]))
    left = 10 + 234  # of the second column
    near, far = sheet[TOP + 80, left + 80].astype(int), sheet[TOP + 80, left + 140].astype(int)
    assert near[0] > near[2] + 50 and far[2] > far[0] + 50


def test_masks_say_how_much_they_share():
    truth = np.zeros((48, 64), bool)
    truth[:, :32] = True
    picture = draw_masks("words", [MaskRow("the left", Image.new("RGB", (64, 48), (90, 90, 90)), truth, ~truth)])
    assert picture.width == 10 + 3 * 234 and np.asarray(picture).std() > 5


def test_the_page_names_what_it_shows(monkeypatch, cards):
    monkeypatch.setattr(demo_page, "read_card", lambda name: read_card(name, cards))
    text = demo_page.page(["x-tiny"], ["a <note>"], "", False)
    assert "a &lt;note&gt;" in text and "abs_rel 0.123" in text and "mean depth map: abs_rel 0.278" in text and "masks.png" not in text
    assert 'class="alarm"' in demo_page.page(["x-tiny"], ["untrained"], "", True)


def test_a_room_with_its_exact_depth_is_always_shown(tmp_path):
    pair = tmp_path / "pairs" / demo.PAIRS[0]
    pair.mkdir(parents=True)
    Image.new("RGB", (8, 6)).save(pair / "rgb.png")
    Image.fromarray(np.full((6, 8), 2500, np.uint16)).save(pair / "depth.png")
    (pair / "meta.json").write_text('{"depth_scale": 1000}')
    found = demo.photos(tmp_path / "photos", tmp_path / "pairs")
    rooms = [photo for photo in found if photo.title.startswith("synthetic room")]
    assert len(rooms) == len(demo.ROOMS) and all((photo.truth_m > 0).all() for photo in rooms)
    assert next(photo for photo in found if photo.title == demo.PAIRS[0].replace("_", " ")).truth_m[0, 0] == 2.5
    assert all(photo.path.parent == tmp_path / "photos" and photo.path.is_file() for photo in found)


def test_the_whole_demo(tmp_path, monkeypatch, capsys):
    """The flow with commands that write files at once; what is drawn comes from those files."""
    monkeypatch.setattr(demo, "ROOMS", (0,))
    monkeypatch.setattr(demo, "networks", lambda: (["evp-tiny", "llm-mde-tiny"], ["moa-depthclip-tiny needs something."]))
    monkeypatch.setattr(demo, "trained", lambda name: False)
    asked = []

    def command(name, *words, threads):
        asked.append((name, *words))
        if name != "depth-run":
            return ""
        out, lines = tmp_path / "demo" / "depth" / re.sub(r".*/|\.plan", "", words[1]), []
        out.mkdir(parents=True)
        for photo in sorted((tmp_path / "demo" / "photos").iterdir()):
            with Image.open(photo) as image:
                depth = np.tile(np.linspace(1, 4, image.width, dtype=np.float32), (image.height, 1))
            np.save(out / f"{photo.stem}.npy", depth)
            kind = "relative" if "llm" in words[1] else "metric"
            lines.append(json.dumps({"photo": str(photo), "kind": kind, "untrained": True, "files": {"npy": str(out / f"{photo.stem}.npy")}}))
        return "\n".join(lines)

    monkeypatch.setattr(demo, "command", command)
    assert demo.main(tmp_path / "demo", tmp_path / "none") == 0
    assert [words[0] for words in asked].count("depth-run") == 2
    assert [words[1] for words in asked if words[0] == "depth-bench"] == ["accuracy", "latency"] * 2 + ["report"]
    assert "report.html" in " ".join(asked[-1]) and "report.html" in (tmp_path / "demo" / "index.html").read_text()
    page = (tmp_path / "demo" / "index.html").read_text()
    assert "UNTRAINED" in page and "needs something" in page and "UNTRAINED" in capsys.readouterr().out
    with Image.open(tmp_path / "demo" / "overview.png") as image:
        assert image.width > 900 and np.asarray(image).std() > 10
