"""Every reader of foreign files under a few hundred damaged ones; ``make fuzz`` gives them a million."""

import json
import random
import struct

import numpy as np
import pytest
from hardening import artefact_readers, fuzz, mutate, readers
from hardening.readers import READERS

from fathom.benchmarks.record.record import read_study
from fathom.datasets.matlab5 import read_arrays
from fathom.runtime.errors import InputError


@pytest.mark.parametrize("kind", READERS)
def test_a_damaged_file_is_taken_or_refused_and_nothing_else(kind):
    pytest.importorskip({"MCAP": "rosbags", "NYU .mat": "h5py", "NYU splits.mat": "h5py"}.get(kind, "numpy"))
    found = fuzz.run_kind(kind, seed=1, first=0, cases=60, keep=None)
    assert found["told"] == [] and found["exit_3"] + found["exit_10"] >= 20 and found["cases"] == 60


def test_the_same_seed_damages_in_the_same_way():
    value = {"a": [1, 2.5, "x"], "b": {"c": None}}
    for damage, good in ((mutate.damage_json, value), (mutate.damage_bytes, b"0123456789" * 9)):
        made = [repr(damage(random.Random(f"1:{number}"), good)) for number in range(50)]
        assert made == [repr(damage(random.Random(f"1:{number}"), good)) for number in range(50)]
        assert len(set(made)) > 20
    assert value == {"a": [1, 2.5, "x"], "b": {"c": None}}


@pytest.mark.parametrize(
    ("fault", "told"),
    [("raise KeyError('x')", "KeyError"), ("os.kill(os.getpid(), 11)", "signal 11"), ("open('/dev/shm/outside', 'w')", "TrespassError")]
    + [("time.sleep(0) or [0 for _ in iter(int, 1)]", "hangs"), ("bytearray(600 << 20)", "MemoryError"), ("os.system('true')", "TrespassError")],
)
def test_what_a_reader_must_not_do_is_told(monkeypatch, fault, told):
    """A reader that does it in its fifth case."""

    def read(path):
        if path.read_bytes() == b"5":
            exec(fault, {"os": __import__("os"), "time": __import__("time")})

    count = iter(range(1000))
    reader = readers.Reader(lambda folder: [b"good"], lambda draw, seed: str(next(count)).encode(), read, "x", 1)
    monkeypatch.setitem(READERS, "made up", reader)
    monkeypatch.setattr(fuzz, "LIMIT_S", 0.3)
    found = fuzz.run_kind("made up", 1, 0, 8, None)
    assert found["faults"] == 1 and told in found["told"][0]["fault"] and found["told"][0]["case"] == 5


# --- what the fuzzer found first


def test_arrays_of_matlab_files_are_those_that_scipy_writes(tmp_path):
    scipy_io = pytest.importorskip("scipy.io")
    wanted = {"trainNdxs": np.arange(7, dtype=np.uint16)[:, None], "wide": np.arange(12.0).reshape(3, 4), "words": "text", "one": np.int8([[5]])}
    for packed in (False, True):
        scipy_io.savemat(tmp_path / "x.mat", wanted, do_compression=packed)
        found = read_arrays(tmp_path / "x.mat")
        assert set(found) == {"trainNdxs", "wide", "one"}
        for name, values in found.items():
            np.testing.assert_array_equal(values, wanted[name])
    whole = (tmp_path / "x.mat").read_bytes()
    for broken in (b"", whole[:100], whole[:-5], whole[:128] + struct.pack("<II", 14, 2**31) + whole[136:], b"\0" * 200):
        (tmp_path / "x.mat").write_bytes(broken)
        with pytest.raises(ValueError):
            read_arrays(tmp_path / "x.mat")


def test_a_small_picture_that_claims_to_be_large_costs_no_memory(tmp_path):
    from PIL import Image

    from fathom.datasets.reading import read_rgb
    from fathom.runtime.photo.photo import read_photo

    path = tmp_path / "p.png"
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(path)
    raw = bytearray(path.read_bytes())
    raw[16:24] = struct.pack(">II", 9000, 9000)
    import zlib

    raw[29:33] = struct.pack(">I", zlib.crc32(raw[12:29]))
    path.write_bytes(raw)
    with pytest.raises(InputError, match="cannot hold"):
        read_photo(path)
    with pytest.raises(ValueError, match="cannot hold"):
        read_rgb(path)
    Image.new("1", (9000, 9000)).save(path)  # what deflate can really do
    assert read_photo(path).shape == (9000, 9000, 3)


def test_broken_data_is_no_wrong_command_line(tmp_path):
    """Exit code 3 for a file, 2 for words."""
    pytest.importorskip("h5py")
    from fathom.benchmarks.accuracy.command import open_data
    from fathom.calibration.observation.images import Chosen
    from fathom.runtime.errors import UsageError

    (tmp_path / "x.mat").write_bytes(b"nothing")
    for read in (open_data, Chosen):
        with pytest.raises(InputError, match="no HDF5 file"):
            read(f"nyu:{tmp_path / 'x.mat'}:all")
        for text in ("kitti:x", "rooms:x", "what:x", f"nyu:{tmp_path / 'x.mat'}:count=-1"):
            with pytest.raises(UsageError):
                read(text)


def test_a_manifest_whose_picture_is_not_the_contracts_is_refused(tmp_path):
    members = mutate.unzipped(artefact_readers.plan_seeds(tmp_path)[0])
    from fathom.runtime.artefact.plan import PlanFile

    for shape in (["batch", 3, 32, 47], ["batch", 4, 32, 48], [3, 32, 48], [70000, 3, 32, 48], [2, 3, 32, 48]):
        manifest = json.loads(members["plan.json"])
        manifest["stages"][0]["inputs"][0]["shape"] = shape
        (tmp_path / "x.plan").write_bytes(mutate.zipped([("plan.json", json.dumps(manifest).encode()), *list(members.items())[1:]]))
        with pytest.raises(InputError, match=r"takes|contract"):
            PlanFile.open(tmp_path / "x.plan")


def test_the_page_shows_the_record():
    from hardening import table

    record = read_study(table.RECORD)
    page = table.PAGE.read_text()
    assert table.page_with(page, table.tables(record)) == page
    assert record["fuzz"]["cases"] >= 1_000_000 and record["fuzz"]["faults"] == record["faults"]["faults"] == 0
    assert sum(one["kills"] for name, one in record["faults"]["trials"]["kills"].items() if isinstance(one, dict)) >= 200
    assert record["soak"]["parts"]["video"]["done"] >= 10_000 and record["soak"]["parts"]["photos"]["done"] >= 5_000
    assert all(part["flat"] and not part["wrong"] for part in record["soak"]["parts"].values())
