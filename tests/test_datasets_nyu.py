"""NYU Depth v2 from small files in the real formats: MATLAB 7.3 HDF5 with reversed axes and cell strings, MATLAB 5 splits, folders."""

import io
import pickle

import numpy as np
import pytest
from PIL import Image

from fathom.datasets.nyu import INTRINSICS, NyuFolder, NyuLabeled

h5py = pytest.importorskip("h5py")
scipy_io = pytest.importorskip("scipy.io")
HEIGHT, WIDTH = 12, 20


def write_labeled(path, count, height=HEIGHT, width=WIDTH, seed=0):
    """As MATLAB writes it: every axis in reverse, strings as references to arrays of character codes."""
    draw = np.random.default_rng(seed)
    photos = draw.integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    raw = draw.uniform(0.7, 9.9, (count, height, width)).astype(np.float32)
    raw[draw.random(raw.shape) < 0.2] = 0
    filled = np.where(raw == 0, np.float32(2.5), raw)
    scenes = [f"kitchen_{number:04d}" for number in range(count)]
    with h5py.File(path, "w") as file:
        file["images"] = photos.transpose(0, 3, 2, 1)
        file["rawDepths"], file["depths"] = raw.transpose(0, 2, 1), filled.transpose(0, 2, 1)
        references = file.create_dataset("scenes", (1, count), dtype=h5py.ref_dtype)
        for number, scene in enumerate(scenes):
            codes = file.create_dataset(f"#refs#/{number}", data=np.array([[ord(letter)] for letter in scene], np.uint16))
            references[0, number] = codes.ref
    return photos, raw, filled, scenes


def write_splits(path, train, test):
    scipy_io.savemat(path, {"trainNdxs": np.array(train)[:, None].astype(np.uint16), "testNdxs": np.array(test)[:, None].astype(np.uint16)})


@pytest.fixture
def labeled(tmp_path):
    path = tmp_path / "nyu_depth_v2_labeled.mat"
    truth = write_labeled(path, 5)
    write_splits(tmp_path / "splits.mat", [3, 4, 5], [1, 2])
    return path, truth


@pytest.mark.parametrize(("split", "indices"), [("train", [2, 3, 4]), ("test", [0, 1]), ("all", [0, 1, 2, 3, 4])])
def test_raw_pairs_are_turned_upright_and_split(labeled, split, indices):
    path, (photos, raw, _, scenes) = labeled
    data = NyuLabeled(path, split, "raw")
    assert len(data) == len(indices)
    for sample, index in zip(data, indices, strict=True):
        assert np.array_equal(sample.rgb, photos[index])
        assert np.array_equal(sample.depth_m, raw[index]) and np.array_equal(sample.valid, raw[index] > 0)
        assert sample.id == f"nyu_{index:05d}" and sample.scene == scenes[index]
        assert sample.intrinsics is None  # known for 640x480 only


def test_inpainted_depth_is_the_filled_one(labeled):
    path, (_, _, filled, _) = labeled
    sample = NyuLabeled(path, "test", "inpainted")[1]
    assert np.array_equal(sample.depth_m, filled[1]) and sample.valid.all()


def test_official_extraction(tmp_path):
    path = tmp_path / "nyu_depth_v2_labeled.mat"
    photos, raw, _, _ = write_labeled(path, 1, 480, 640)
    sample = NyuLabeled(path, "all")[0]
    framed = photos[0].copy()
    framed[:7], framed[474:], framed[:, :7], framed[:, 632:] = 0, 0, 0, 0
    buffer = io.BytesIO()
    Image.fromarray(framed).save(buffer, "JPEG", quality=95, subsampling=2)
    assert np.array_equal(sample.rgb, np.array(Image.open(buffer)))
    millimetres = (raw[0].astype(np.float64) * 1000).astype(np.uint16)
    assert np.array_equal(sample.depth_m, (millimetres / 1000.0).astype(np.float32))
    assert sample.intrinsics == INTRINSICS


def test_reading_is_lazy_and_travels_between_processes(labeled):
    path, (photos, *_) = labeled
    data = pickle.loads(pickle.dumps(NyuLabeled(path, "test", "raw")))
    assert np.array_equal(data[0].rgb, photos[0])
    with pytest.raises(IndexError):
        data[2]


def test_provenance_tells_choices_apart(labeled):
    path, _ = labeled
    facts = [NyuLabeled(path, split, variant).provenance for split in ("train", "test") for variant in ("official", "raw", "inpainted")]
    assert len({fact.sha256 for fact in facts}) == 6 and {fact.count for fact in facts} == {2, 3}
    assert str(path.parent) not in str(facts)


def test_faults_are_named(tmp_path, labeled):
    path, _ = labeled
    with pytest.raises(OSError, match="does not exist"):
        NyuLabeled(tmp_path / "none.mat")
    with pytest.raises(ValueError, match="split"):
        NyuLabeled(path, "validation")
    (tmp_path / "text.mat").write_text("no HDF5")
    with pytest.raises(ValueError, match="no HDF5"):
        NyuLabeled(tmp_path / "text.mat", "all")
    with h5py.File(tmp_path / "other.mat", "w") as file:
        file["images"] = np.zeros((1, 3, 4, 4), np.uint8)
    with pytest.raises(ValueError, match="rawDepths"):
        NyuLabeled(tmp_path / "other.mat", "all")
    write_splits(tmp_path / "splits.mat", [1], [6])
    with pytest.raises(ValueError, match="from 1 to 5"):
        NyuLabeled(path, "test")
    (tmp_path / "splits.mat").write_bytes(b"not a MAT file at all, not at all")
    with pytest.raises(ValueError, match="testNdxs"):
        NyuLabeled(path, "test")
    (tmp_path / "splits.mat").unlink()
    with pytest.raises(OSError, match=r"splits\.mat"):
        NyuLabeled(path, "test")


def write_pair(folder, stem, millimetres):
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*millimetres.shape, 3), 90, np.uint8)).save(folder / f"rgb_{stem}.jpg")
    Image.fromarray(millimetres.astype(np.uint16)).save(folder / f"sync_depth_{stem}.png")


def test_folders_with_and_without_a_list(tmp_path):
    for scene, stem, value in (("bath_0001", "00002", 1500), ("bath_0001", "00010", 2500), ("cafe_0001", "00000", 0)):
        write_pair(tmp_path / "nyu" / "sync" / scene, stem, np.full((4, 6), value))
    data = NyuFolder(tmp_path / "nyu")
    assert [sample.id for sample in data] == ["sync/bath_0001/rgb_00002", "sync/bath_0001/rgb_00010", "sync/cafe_0001/rgb_00000"]
    assert data[0].depth_m[0, 0] == np.float32(1.5) and data[0].scene == "bath_0001" and not data[2].valid.any()
    listing = tmp_path / "list.txt"
    listing.write_text("/cafe_0001/rgb_00000.jpg /cafe_0001/sync_depth_00000.png\nbath_0001/rgb_00010.jpg bath_0001/sync_depth_00010.png 518.8579\n\n")
    assert [sample.scene for sample in NyuFolder(tmp_path / "nyu", listing)] == ["cafe_0001", "bath_0001"]
    listing.write_text("/cafe_0001/rgb_00001.jpg /cafe_0001/sync_depth_00001.png\n")
    with pytest.raises(OSError, match="rgb_00001"):
        NyuFolder(tmp_path / "nyu", listing)
    listing.write_text("../../etc/passwd /cafe_0001/sync_depth_00000.png\n")
    with pytest.raises(ValueError, match="outside"):
        NyuFolder(tmp_path / "nyu", listing)
    listing.write_text("one\n")
    with pytest.raises(ValueError, match="photo and a depth"):
        NyuFolder(tmp_path / "nyu", listing)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no rgb_"):
        NyuFolder(tmp_path / "empty")
