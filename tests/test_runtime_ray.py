"""depth-run on a real local Ray: the same files, exactly once in effect, whatever is killed."""

import errno
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("ray.data")
pytest.importorskip("pyarrow")

import pyarrow
import pyarrow.dataset
import pyarrow.fs
import pyarrow.parquet
from bucket_servers import SERVERS
from test_runtime_run import depth_run

from fathom.export.commands import build_command
from fathom.runtime.commands.run import SUFFIX, main
from fathom.runtime.errors import EnvironmentMismatchError, InputError
from fathom.runtime.fleet.job import RECORD, FleetJob
from fathom.runtime.fleet.places import FilesPlace, ParquetPlace
from fathom.runtime.fleet.plan_on_node import manifest_sha256, plan_on_node
from fathom.runtime.fleet.sources import Sources, find_sources
from fathom.runtime.scale.camera_scale import CameraScale

slow = pytest.mark.slow


def write_photos(folder, count, size=(60, 80)):
    rng = np.random.default_rng(4)
    for index in range(count):
        path = folder / f"scene{index % 7}" / f"{index:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        tiles = rng.integers(0, 256, (size[0] // 10, size[1] // 10, 3), dtype=np.uint8)
        Image.fromarray(np.kron(tiles, np.ones((10, 10, 1), np.uint8))).save(path)
    return folder


def contents(folder):
    """Every result by name; not the record of the run."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name[0] != "_"}


def json_of(done):
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("ray") / "photos", 60)


def test_names_of_files_lists_and_rows(photos, tmp_path):
    listed = tmp_path / "list.txt"
    listed.write_text(f"# two photos\n{photos}/scene0/0000.png\n\n{photos}/scene1/0001.png\n")
    assert list(find_sources([str(listed)]).names.values()) == ["0000", "0001"]
    assert set(find_sources([f"{photos}/**/*.png"]).names.values()) == {f"scene{index % 7}/{index:04d}" for index in range(60)}
    far = find_sources([f"file://{photos}/**/*.png"])  # pyarrow's file systems, as for s3://
    assert set(far.names.values()) == {f"scene{index % 7}/{index:04d}" for index in range(60)} and len(far.files[0][1]) == 60
    assert sorted(find_sources([f"file://{photos}/scene0"]).names.values())[0] == "0000"
    table = pyarrow.table({"image": [{"bytes": b"x", "path": "p"}] * 3, "id": ["a.1", "a.2", "b.jpg"]})
    pyarrow.parquet.write_table(table, tmp_path / "some.parquet")
    assert find_sources([str(tmp_path / "some.parquet")]).names == {"a.1": "a.1", "a.2": "a.2", "b.jpg": "b"}


def test_sources_that_are_none(photos, tmp_path):
    for columns, words in (
        ({"image": [b"x", b"y"], "id": ["a", "a"]}, "called 'a'"),
        ({"image": ["x"], "id": ["a"]}, "bytes of picture"),
        ({"x": [b""]}, "a name for"),
    ):
        pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "wrong.parquet")
        with pytest.raises(InputError, match=words):
            find_sources([str(tmp_path / "wrong.parquet")])
    for wrong in (f"file://{photos}/none", f"file://{photos}/*.jpg", "nonsense://bucket/x", "s3://"):
        with pytest.raises(InputError):
            find_sources([wrong])


def test_the_plan_is_read_once_and_travels_where_it_is_not(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    sha256, asked = manifest_sha256(tiny.plan), []

    def fetch():
        asked.append(1)
        return tiny.plan.read_bytes()

    assert plan_on_node(str(tiny.plan), sha256, "a", fetch) == (tiny.plan, 1) and not asked
    path, reads = plan_on_node("/not/here.plan", sha256, "b", fetch)
    assert path.read_bytes() == tiny.plan.read_bytes() and reads == 1
    assert plan_on_node("/not/here.plan", sha256, "b", fetch) == (path, 1) and asked == [1]
    other = tmp_path / "other.plan"
    other.write_bytes(tiny.gpu_plan.read_bytes())  # another plan under the name of this one is not taken
    assert plan_on_node(str(other), sha256, "b", fetch)[0] == path
    with pytest.raises(EnvironmentMismatchError, match="not on this machine"):
        plan_on_node("/not/here.plan", "0" * 64, "c", None)


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (["--ray", "photos"], 2, "write the inputs before --ray"),
        (["--ray", "--show"], 2, "--show"),
        (["--device", "cuda:1", "--ray"], 2, "a GPU of its own"),
        (["-o", "s3://bucket/out", "--ray"], 2, "ends in .parquet"),
        (["-o", "x.parquet", "--save", "npy", "--ray"], 2, "a row holds the map"),
        (["--protocol", "none", "--ray"], 2, "no protocol"),
        (["--save", "ply", "--ray"], 2, "intrinsics"),
        (["drive.mcap", "--ray"], 2, "without --ray"),
        (["clip.mp4", "--ray"], 2, "without --ray"),
    ],
)
def test_wrong_command_lines(tiny, photos, tmp_path, capsys, monkeypatch, flags, code, words):
    monkeypatch.chdir(tmp_path)
    assert main(["--engine", str(tiny.plan), str(photos / "scene0"), "-o", str(tmp_path / "out"), *flags]) == code
    assert words in capsys.readouterr().err


@slow
def test_the_same_files_as_without_ray_and_a_second_start_does_what_is_missing(tiny, photos, tmp_path):
    bad = photos / "scene0" / "broken.png"
    bad.write_bytes(b"no picture")
    common = ("--engine", tiny.plan, f"{photos}/**/*.png", "--save", "npy,png16,color", "--threads", 1, "--batch", 1, "--json")
    try:
        plain = depth_run(*common, "-o", tmp_path / "plain")
        first = depth_run(*common, "-o", tmp_path / "ray", "--ray")
        facts = json_of(first)
        assert plain.returncode == 3 and contents(tmp_path / "ray") == contents(tmp_path / "plain")
        assert (facts["photos"], facts["done"], facts["there"], facts["broken"]) == (61, 60, 0, 1) and "broken.png" in first.stderr
        assert list(facts["plan_reads"].values()) == [1]
        (row,) = pyarrow.parquet.read_table(tmp_path / "ray" / "_broken.parquet").to_pylist()
        assert row["photo"] == str(bad) and row["exit_code"] == 3 and "not a picture" in row["error"]
    finally:
        bad.unlink()
    (tmp_path / "ray/scene1/0001_depth.npy").unlink()
    facts = json_of(depth_run(*common, "-o", tmp_path / "ray", "--ray"))
    assert (facts["done"], facts["there"]) == (1, 59) and contents(tmp_path / "ray") == contents(tmp_path / "plain")
    assert not (tmp_path / "ray/_broken.parquet").exists()
    facts = json_of(depth_run(*common, "-o", tmp_path / "ray", "--ray"))
    assert (facts["done"], facts["there"], facts["actors"]) == (0, 60, 0)  # Ray was not even started
    refused = depth_run(*common, "-o", tmp_path / "ray", "--protocol", "windows", "--ray")
    assert refused.returncode == 3 and "another protocol" in refused.stderr
    refused = depth_run(*common, "-o", tmp_path / "plain", "--ray")
    assert refused.returncode == 3 and "nothing says what made it" in refused.stderr


@slow
def test_rows_in_and_out(tiny, photos, tmp_path):
    files = sorted(photos.rglob("*.png"))
    rows = [{"image": path.read_bytes(), "name": path.stem} for path in files] + [{"image": b"?", "name": "bad"}, {"image": None, "name": "empty"}]
    (tmp_path / "in.parquet").mkdir()
    for part in range(3):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows[part::3]), tmp_path / "in.parquet" / f"{part}.parquet")
    common = ("--engine", tiny.plan, tmp_path / "in.parquet", "-o", tmp_path / "out.parquet", "--scale", "1.4", "--threads", 1, "--json", "--ray")
    facts = json_of(depth_run(*common))
    assert (facts["done"], facts["broken"]) == (60, 2) and list(facts["plan_reads"].values()) == [1]
    plain = ("--engine", tiny.plan, f"{photos}/**/*.png", "-o", tmp_path / "plain", "--save", "npy", "--scale", "1.4", "--threads", 1, "--batch", 1)
    assert depth_run(*plain).returncode == 0

    def check():
        table = pyarrow.dataset.dataset(tmp_path / "out.parquet").to_table().to_pylist()
        assert sorted(row["name"] for row in table) == [path.stem for path in sorted(files, key=lambda path: path.stem)]
        for row in table:
            depth = np.float32(row["depth_m"]).reshape(row["height"], row["width"])
            (wanted,) = (tmp_path / "plain").rglob(f"{row['name']}_depth.npy")
            assert depth.tobytes() == np.load(wanted).tobytes() and (row["kind"], row["unit"], row["untrained"]) == ("metric", "m", False)
            assert row["correction"] == "depth_m = 1.4 * network (--scale 1.4)"

    check()
    victim = next(path for path in (tmp_path / "out.parquet").iterdir() if path.name[0] != "_")
    lost = len(pyarrow.parquet.read_table(victim))
    victim.write_bytes(victim.read_bytes()[: victim.stat().st_size // 2])  # as a killed run leaves it
    facts = json_of(depth_run(*common))
    assert (facts["done"], facts["there"]) == (lost, 60 - lost)
    check()
    (tmp_path / "out.parquet/mine.parquet").write_bytes(b"mine")
    refused = depth_run(*common[:-1], "--force", "--ray")
    assert refused.returncode == 3 and "did not write" in refused.stderr and (tmp_path / "out.parquet/mine.parquet").read_bytes() == b"mine"
    (tmp_path / "out.parquet/mine.parquet").unlink()
    facts = json_of(depth_run(*common[:-1], "--force", "--ray"))
    assert (facts["done"], facts["there"]) == (60, 0)
    check()


@slow
@pytest.mark.parametrize("kind", SERVERS)
def test_buckets(tiny, photos, tmp_path, monkeypatch, kind):
    with SERVERS[kind](monkeypatch) as (start, query):
        filesystem, bucket = pyarrow.fs.FileSystem.from_uri(f"{start}{query}")
        filesystem.create_dir(bucket)
        for path in photos.rglob("*.png"):
            with filesystem.open_output_stream(f"{bucket}/in/{path.parent.name}/{path.name}") as file:
                file.write(path.read_bytes())
        common = ("--engine", tiny.plan, f"{start}/in/**/*.png{query}", "--threads", 1, "--batch", 1, "--json")
        assert json_of(depth_run(*common, "--save", "npy", "-o", tmp_path / "far", "--ray"))["done"] == 60
        for there in (0, 60):
            facts = json_of(depth_run(*common, "-o", f"{start}/out.parquet{query}", "--ray"))
            assert (facts["done"], facts["there"]) == (60 - there, there)
        rows = pyarrow.dataset.dataset(f"{bucket}/out.parquet", filesystem=filesystem, format="parquet").to_table().to_pylist()
    near = depth_run("--engine", tiny.plan, f"{photos}/**/*.png", "--threads", 1, "--batch", 1, "--save", "npy", "-o", tmp_path / "near")
    assert near.returncode == 0 and contents(tmp_path / "far") == contents(tmp_path / "near") and len(rows) == 60
    for row in rows:
        depth = np.float32(row["depth_m"]).reshape(row["height"], row["width"])
        assert depth.tobytes() == np.load(tmp_path / "near" / f"{row['name']}_depth.npy").tobytes()


@slow
def test_every_kind_of_file_is_the_one_of_depth_run_and_names_the_correction(tiny, photos, tmp_path):
    pytest.importorskip("OpenEXR")
    flags = ("--save", "npy,png16,exr,color,ply", "--intrinsics", "60,60,40,30", "--scale", "1.4,0.05", "--mask-edges", "--threads", 1, "--batch", 1)
    common = ("--engine", tiny.plan, photos / "scene0", *flags)
    assert depth_run(*common, "-o", tmp_path / "plain").returncode == 0
    done = depth_run(*common, "-o", tmp_path / "ray", "--ray")
    assert done.returncode == 0 and "depth_m = 1.4 * network + 0.05" in done.stdout
    assert contents(tmp_path / "ray") == contents(tmp_path / "plain") and len(contents(tmp_path / "ray")) == 5 * 9 + 1  # and scale.json
    assert json.loads((tmp_path / "ray/scale.json").read_text())["shift_m"] == 0.05


@slow
def test_two_pipelines_against_plain_depth_run(tiny_bundle, tmp_path):
    """Seconds of both in one run, in turns; a machine with one core, or a busy one, gains nothing, so only equal files are asserted."""
    photos = write_photos(tmp_path / "photos", 200, (480, 640))
    plan, told = tmp_path / "evp.plan", {"ray": [], "plain": []}
    assert build_command.main([str(tiny_bundle("evp-tiny")), "-o", str(plan), "--quiet"]) == 0
    common = ("--engine", plan, f"{photos}/**/*.png", "--save", "npy,png16", "--batch", 1, "--json")
    for turn in range(2):
        for kind, flags in {"ray": ("--threads", 1, "--ray"), "plain": ()}.items():
            begun = time.monotonic()
            done = depth_run(*common, "-o", tmp_path / f"{kind}{turn}", *flags)
            told[kind].append(round(time.monotonic() - begun, 1))
            assert done.returncode == 0, done.stderr[-3000:]
            if kind == "ray":
                facts = json.loads(done.stdout)
                assert facts["actors"] == len(os.sched_getaffinity(0)) and list(facts["plan_reads"].values()) == [1]
        assert contents(tmp_path / f"ray{turn}") == contents(tmp_path / f"plain{turn}")
    print(f"200 photos of 640x480 through evp-tiny, seconds: {told}; the last start of Ray took {facts['starting_s']} s, load {os.getloadavg()[0]:.1f}")


@slow
def test_a_cluster_that_is_there_already(tiny, photos, tmp_path):
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        cluster.add_node(num_cpus=2)
        common = ("--engine", tiny.plan, f"{photos}/**/*.png", "--threads", 1, "--batch", 1, "--save", "npy")
        facts = json_of(depth_run(*common, "-o", tmp_path / "far", "--json", f"--ray={cluster.address}"))
        assert (facts["done"], facts["nodes"], facts["actors"]) == (60, 2, 3)
    finally:
        cluster.shutdown()
    assert depth_run(*common, "-o", tmp_path / "near").returncode == 0 and contents(tmp_path / "far") == contents(tmp_path / "near")


def test_no_ray_at_that_address_is_told_at_once(tiny, photos, tmp_path, capsys):
    assert main(["--engine", str(tiny.plan), str(photos / "scene0"), "-o", str(tmp_path / "none"), "--ray=127.0.0.1:1"]) == 6
    assert "no Ray at 127.0.0.1:1" in capsys.readouterr().err


# --- what is there already


NOWHERE = "--ray=127.0.0.1:1"  # a cluster that cannot be reached: what is done before it is joined


def place_of(out, plan="a", force=False, scale=None, save=("npy",)):
    """What a run does with a folder of files before its first photo."""
    kinds = tuple((kind, SUFFIX[kind]) for kind in save)
    return FilesPlace(str(out), FleetJob("0" * 16, "x.plan", plan, str(out), kinds, "whole", scale=scale, force=force), SUFFIX)


def results_of(out, plan, names, **how):
    """A folder of results of an earlier run."""
    place = place_of(out, plan, **how)
    place.missing(Sources({name: name for name in names}))
    place.begin()
    for name in names:
        for path in place.job.targets(name).values():
            path.write_text(f"{name} by {plan}")
    return Sources({name: name for name in names})


def test_results_of_two_plans_never_lie_under_one_record(tmp_path, monkeypatch):
    sources = results_of(tmp_path, "a", ["p", "q"], save=("npy", "color"))
    with pytest.raises(InputError, match="another manifest"):
        place_of(tmp_path, "b", save=("npy", "color")).missing(sources)
    place = place_of(tmp_path, "b", force=True)
    assert set(place.missing(sources)) == {"p", "q"} and (tmp_path / "p_depth.npy").read_text() == "p by a"  # Ray may not be there yet
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(FilesPlace, "_write_record", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        place.begin()
    assert json.loads((tmp_path / RECORD).read_text())["manifest_sha256"] == "a"  # of what may be left
    place.begin()  # and here the run is interrupted
    assert json.loads((tmp_path / RECORD).read_text())["manifest_sha256"] == "b" and [path.name for path in tmp_path.iterdir()] == [RECORD]
    assert set(place_of(tmp_path, "b").missing(sources)) == {"p", "q"}  # so the next start makes them, with or without --force


def test_force_makes_all_results_of_a_folder_again_or_none(tmp_path):
    both = results_of(tmp_path, "a", ["p", "q"], scale=CameraScale(1.4))
    one = Sources({"p": "p"})
    with pytest.raises(InputError, match=r"q_depth\.npy is of another plan"):
        place_of(tmp_path, "b", force=True).missing(one)
    place = place_of(tmp_path, "a", force=True, scale=CameraScale(1.4))  # the same again
    assert set(place.missing(one)) == {"p"}
    place.begin()
    assert (tmp_path / "q_depth.npy").read_text() == "q by a" and not (tmp_path / "p_depth.npy").exists()
    place = place_of(tmp_path, "a", force=True)
    place.missing(both)
    place.begin()
    assert [path.name for path in tmp_path.iterdir()] == [RECORD]  # the scale is not of these


def test_results_that_nothing_accounts_for_are_not_taken_over(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "q_depth.npy").write_text("somebody's")
    for force in (False, True):
        with pytest.raises(InputError, match="nothing says what made it"):
            place_of(tmp_path, force=force).missing(Sources({"p": "p"}))
    (tmp_path / "deep" / "q_depth.npy").unlink()
    (tmp_path / "scale.json").write_text("{}")
    with pytest.raises(InputError, match=r"scale\.json is there already"):
        place_of(tmp_path, scale=CameraScale(1.4)).missing(Sources({"p": "p"}))


def test_a_result_never_takes_the_place_of_a_photo(tiny, photos, tmp_path, capsys):
    for name in ("a.png", "a_depth.png"):
        (tmp_path / name).write_bytes((photos / "scene0/0000.png").read_bytes())
    words = ["--engine", str(tiny.plan), str(tmp_path / "a.png"), str(tmp_path / "a_depth.png"), "-o", str(tmp_path), "--save", "png16", "--force", NOWHERE]
    assert main(words) == 3 and "is itself one of the photos" in capsys.readouterr().err
    assert (tmp_path / "a_depth.png").read_bytes() == (photos / "scene0/0000.png").read_bytes()


def test_force_removes_no_parquet_of_others(tiny, photos, tmp_path, capsys):
    rows = pyarrow.table({"image": [(photos / "scene0/0000.png").read_bytes()], "name": ["a"]})
    (tmp_path / "in.parquet").mkdir()
    pyarrow.parquet.write_table(rows, tmp_path / "in.parquet/x.parquet")
    (tmp_path / "link.parquet").symlink_to("in.parquet")
    before = contents(tmp_path)
    common = ["--engine", str(tiny.plan), "--force", NOWHERE]
    for source, out in (("in", "in"), ("in", "link"), ("in.parquet/x", "in"), ("in", "in.parquet/out")):
        assert main([*common[:2], str(tmp_path / f"{source}.parquet"), "-o", str(tmp_path / f"{out}.parquet"), *common[2:]]) == 2
        assert "apart from what is read" in capsys.readouterr().err
    assert main([*common[:2], str(photos / "scene0"), "-o", str(tmp_path / "in.parquet"), *common[2:]]) == 3
    assert "did not write" in capsys.readouterr().err and contents(tmp_path) == before


def test_a_folder_of_rows_is_continued_without_touching_others(tmp_path):
    out = tmp_path / "out.parquet"
    job = FleetJob("f" * 16, "x.plan", "a", "", (), "whole")
    place = ParquetPlace(str(out), job, SUFFIX)
    sources = Sources({"p": "p", "q": "q"})
    assert set(place.missing(sources)) == {"p", "q"}
    place.begin()
    half = out / f"depth-run_{job.run}_0_000000-0.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"photo": ["p"]}), half)
    whole = half.read_bytes()
    assert set(ParquetPlace(str(out), job, SUFFIX).missing(sources)) == {"q"}
    half.write_bytes(whole[: len(whole) // 2])  # as a killed run leaves it
    place = ParquetPlace(str(out), job, SUFFIX)
    assert set(place.missing(sources)) == {"p", "q"} and half.exists()
    place.begin()
    assert not half.exists()
    for content in (b"no Parquet", None):
        pyarrow.parquet.write_table(pyarrow.table({"mine": [1]}), out / "mine.parquet")
        (out / "mine.parquet").write_bytes(content or (out / "mine.parquet").read_bytes())
        with pytest.raises(InputError, match=r"mine\.parquet is no whole Parquet with a column 'photo'"):
            ParquetPlace(str(out), job, SUFFIX).missing(sources)
        assert (out / "mine.parquet").exists()


@pytest.mark.parametrize(("number", "words"), [(errno.EWOULDBLOCK, "another depth-run is writing"), (errno.ENOLCK, "cannot be locked")])
def test_a_folder_that_cannot_be_locked_is_told_as_such(tiny, photos, tmp_path, capsys, monkeypatch, number, words):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", flock)
    assert main(["--engine", str(tiny.plan), str(photos / "scene0"), "-o", str(tmp_path / "out"), NOWHERE]) == 3
    told = capsys.readouterr().err
    assert words in told and (number == errno.EWOULDBLOCK) == ("another depth-run" in told)
    if number == errno.ENOLCK:
        with pytest.raises(EnvironmentMismatchError, match="cannot be locked"):
            plan_on_node(str(tiny.plan), manifest_sha256(tiny.plan), "a")


def descendants(pid):
    """Processes below one, by /proc."""
    parents = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal():
            try:
                parents[int(entry.name)] = int(Path(entry.path, "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, ValueError, IndexError):
                continue
    found, below = set(), {pid}
    while below:
        below = {child for child, parent in parents.items() if parent in below} - found
        found |= below
    return found


def workers(pid):
    found = []
    for child in descendants(pid):
        try:
            title = Path(f"/proc/{child}/cmdline").read_bytes()
        except OSError:
            continue
        if b"MapWorker" in title or b"ray::Map" in title:
            found.append(child)
    return found


@slow
def test_50_kills_change_nothing(tiny, tmp_path):
    photos, out = write_photos(tmp_path / "photos", 2000), tmp_path / "out"
    command = ["--engine", tiny.plan, f"{photos}/**/*.png", "--save", "npy,png16", "--threads", 1, "--batch", 1, "--json"]
    assert depth_run(*command, "-o", tmp_path / "calm").returncode == 0
    start, kills, rng = time.monotonic(), [], random.Random(1)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for number in itertools.count():
        assert number < 30 and time.monotonic() - start < 1500
        arguments = [sys.executable, "-m", "fathom.runtime.commands.run", *map(str, command), "-o", str(out), "--ray"]
        driver = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        last = sum(1 for _ in out.rglob("*_depth.png"))
        while driver.poll() is None:
            time.sleep(0.02)
            count = sum(1 for _ in out.rglob("*_depth.png"))
            if len(kills) < 50 and count - last >= 12:
                victims = workers(driver.pid)
                if len(kills) % 8 == 7:
                    kills.append("driver")
                    driver.kill()
                elif victims:
                    kills.append("worker")
                    os.kill(rng.choice(victims), signal.SIGKILL)
                last = count
        words, errors = driver.communicate()
        for path in out.rglob("*.np*"):
            assert path.name.startswith(".fathom-") or np.load(path).shape == (60, 80)  # whole or absent, at any time
        if driver.returncode == 0:
            break
        assert driver.returncode == -signal.SIGKILL, errors[-3000:]
        time.sleep(1)
    print(f"{kills.count('worker')} workers and {kills.count('driver')} drivers killed in {time.monotonic() - start:.0f} s, {number + 1} starts; {words}")
    assert len(kills) == 50 and contents(out) == contents(tmp_path / "calm")
    assert json.loads(words)["broken"] == 0  # and nothing else on stdout, whatever Ray has to say
