"""The RefCOCO family from files in the published form; masks against what pycocotools drew."""

import json
import pickle

import numpy as np
import pytest
from PIL import Image

from fathom.datasets.referring.coco_mask import polygon, referred_mask
from fathom.datasets.referring.refer import Referring, open_referring
from fathom.datasets.source import open_source

STAR = [2.3, 1.1, 9.7, 2.2, 8.1, 7.9, 5.0, 4.5, 1.2, 8.8]
STAR_MASK = """
............
..###.......
..########..
..#######...
..#######...
..##..###...
..#....##...
.#..........
............
............"""  # drawn by pycocotools 2.0 from STAR on 10 rows of 12
STAR_LETTERS = "a01351O1O2O01O1O00Lf0"  # the same, as it encodes it
HOLED_LETTERS = (  # rows 3 to 89 and columns 5 to 119 of 97 x 130, without rows 20 to 39 of columns 30 to 59
    "X?g2:000000000000000000000000000000000000000000000000jM:" + "Q1FoN:" * 28 + "Q1FU1" + "0" * 119 + "Wn0"
)


def pixels(text):
    return np.array([[letter == "#" for letter in line] for line in text.split()])


def test_polygons_are_drawn_as_pycocotools_draws_them():
    assert np.array_equal(polygon(STAR, 10, 12), pixels(STAR_MASK))
    square = np.zeros((30, 40), bool)
    square[10:20, 5:25] = True
    assert np.array_equal(polygon([5, 10, 25, 10, 25, 20, 5, 20], 30, 40), square)
    assert polygon([-9, -9, 50, -9, 50, 50, -9, 50], 30, 40).all()  # the picture's edge cuts it off


def test_run_lengths_in_numbers_and_in_letters():
    assert np.array_equal(referred_mask({"size": [10, 12], "counts": STAR_LETTERS}, 10, 12), pixels(STAR_MASK))
    assert np.array_equal(referred_mask([{"size": [2, 3], "counts": [1, 2, 3]}], 2, 3), [[False, True, False], [True, False, False]])


def test_where_polygons_of_one_thing_overlap_there_is_no_mask():
    """As the published loaders keep what counts exactly one."""
    found = referred_mask([[0, 0, 6, 0, 6, 4, 0, 4], [4, 0, 9, 0, 9, 4, 4, 4]], 4, 10)
    assert found[0].tolist() == [True] * 4 + [False] * 2 + [True] * 3 + [False]


@pytest.mark.parametrize(
    "broken",
    [[], [[1, 2, 3, 4]], [[1, 2, 3, 4, 5]], [[0, 0, 1, 1, float("nan"), 2]], {"size": [4, 4], "counts": [99]}, {"size": [5, 4], "counts": [20]}, 7]
    + [{"size": [4, 4], "counts": "\x7f"}, {"size": [4, 4], "counts": "Q"}, {"size": [4, 4]}, ["x"]],
)
def test_broken_segmentations_are_refused(broken):
    with pytest.raises(ValueError):
        referred_mask(broken, 4, 4)


@pytest.fixture
def folder(tmp_path):
    home, photos = tmp_path / "refcoco+", tmp_path / "train2014"
    home.mkdir()
    photos.mkdir()
    for number in (1, 2):
        Image.fromarray(np.random.default_rng(number).integers(0, 255, (10, 12, 3), np.uint8)).save(photos / f"COCO_{number}.png")
    images = [{"id": n, "file_name": f"COCO_{n}.png", "height": 10, "width": 12} for n in (1, 2)]
    things = [{"id": 11, "segmentation": [STAR]}, {"id": 22, "segmentation": {"size": [10, 12], "counts": [50, 20, 50]}}]
    (home / "instances.json").write_text(json.dumps({"images": images, "annotations": things}))
    refs = [
        {
            "ref_id": 5,
            "image_id": 1,
            "ann_id": 11,
            "split": "val",
            "sentences": [{"sent_id": 1, "raw": "The Star!", "sent": "the star"}, {"sent_id": 2, "sent": "it"}],
        },
        {"ref_id": 6, "image_id": 2, "ann_id": 22, "split": "testA", "sentences": [{"sent_id": 3, "raw": "stripe", "sent": "stripe"}]},
    ]
    (home / "refs(unc).p").write_bytes(pickle.dumps(refs, 0))
    return tmp_path


def test_every_sentence_is_a_sample(folder):
    data = Referring(folder, "refcoco+")
    assert [(sample.id, sample.prompt) for sample in data] == [("5/1", "The Star!"), ("5/2", "it")]
    assert all(np.array_equal(sample.mask, pixels(STAR_MASK)) for sample in data)
    assert np.array_equal(data[0].rgb, np.asarray(Image.open(folder / "train2014" / "COCO_1.png")))
    other = open_referring(f"refer:{folder}:refcoco+:unc:testA")
    assert len(other) == 1 and other[0].mask.sum() == 20 and other.provenance.sha256 != data.provenance.sha256
    assert other.provenance.name == "refcoco+, division unc, split testA"


def test_the_json_form_says_the_same(folder):
    wanted = [sample.digest() for sample in Referring(folder, "refcoco+")]
    path = folder / "refcoco+" / "refs(unc).p"
    path.with_suffix(".json").write_text(json.dumps(pickle.loads(path.read_bytes())))  # written by this test
    path.unlink()
    assert [sample.digest() for sample in Referring(folder, "refcoco+")] == wanted


def test_what_is_wrong_is_said(folder):
    with pytest.raises(ValueError, match="has no split testB; there are testA, val"):
        open_referring(f"refer:{folder}:refcoco+:testB")
    with pytest.raises(OSError, match=r"refs\(umd\)\.p does not exist"):
        open_referring(f"refer:{folder}:refcoco+:umd")
    with pytest.raises(ValueError, match="wanted refer:DIR"):
        open_referring("refer:refcoco")
    with pytest.raises(ValueError, match="depth-bench accuracy"):
        open_source(f"refer:{folder}:refcoco+")
    (folder / "refcoco+" / "refs(unc).p").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(ValueError, match="only plain data is read"):
        Referring(folder, "refcoco+")
    (folder / "refcoco+" / "refs(unc).p").write_bytes(pickle.dumps([{"split": "val", "sentences": [{}]}], 2))
    with pytest.raises(ValueError, match="not of REFER's form"):
        Referring(folder, "refcoco+")


def test_photos_must_be_those_of_the_list(folder):
    data = Referring(folder, "refcoco+")
    Image.new("RGB", (5, 5)).save(folder / "train2014" / "COCO_1.png")
    with pytest.raises(ValueError, match=r"5x5 pixels, instances\.json says 12x10"):
        data[0]


def test_a_photo_stays_as_its_masks_see_it_whatever_exif_says(folder):
    """COCO's size, polygons and run lengths are of the stored pixels, as everybody's loaders read them."""
    exif, stored = Image.Exif(), np.random.default_rng(7).integers(0, 255, (10, 12, 3), np.uint8)
    for turn in (3, 6):
        exif[0x0112] = turn
        Image.fromarray(stored).save(folder / "train2014" / "COCO_1.png", exif=exif)
        assert np.array_equal(Referring(folder, "refcoco+")[0].rgb, stored)
