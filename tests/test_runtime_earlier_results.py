"""``depth-run --skip-existing``: a long job is taken up where it was left, and never mixed with another network's results."""

import json

import numpy as np
import pytest
from PIL import Image

from fathom.runtime.commands import run


@pytest.fixture
def job(tiny, tmp_path):
    """(folder of four photos, function that runs depth-run on it)."""
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(4):
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(folder / f"{number}.png")

    def depth_run(*words, engine=tiny.plan, photos=(folder,)):
        return run.main(["--engine", str(engine), *map(str, photos), "-o", str(tmp_path / "o"), "--save", "png16,npy", "--json", *map(str, words)])

    return tmp_path, depth_run


def test_a_job_is_taken_up_where_it_was_left(job, capsys):
    folder, depth_run = job
    assert depth_run() == 0
    capsys.readouterr()
    whole = {path.name: path.read_bytes() for path in (folder / "o").iterdir()}
    (folder / "o" / "1_depth.npy").unlink()  # killed between the two files of a photo
    for name in ("3_depth.npy", "3_depth.png"):
        (folder / "o" / name).unlink()
    (folder / "o" / "0_depth.npy").write_bytes(b"not to be touched")
    assert depth_run("--skip-existing") == 0
    said = capsys.readouterr()
    assert [json.loads(line)["photo"][-5:] for line in said.out.splitlines()] == ["1.png", "3.png"]
    assert "2 of 4 photos are done already" in said.err
    assert (folder / "o" / "0_depth.npy").read_bytes() == b"not to be touched"
    assert {path.name: path.read_bytes() for path in (folder / "o").iterdir() if path.name != "0_depth.npy"} == {
        name: data for name, data in whole.items() if name != "0_depth.npy"
    }
    assert depth_run("--skip-existing") == 0 and capsys.readouterr().out == ""


def test_other_networks_protocols_and_scales_are_refused(job, make_artefacts, capsys):
    folder, depth_run = job
    assert depth_run() == 0
    (folder / "o" / "2_depth.png").unlink()
    for words, what in (
        ({"engine": make_artefacts(batch=(1, 1, 4)).plan}, "manifest sha256"),
        (["--protocol", "windows"], "protocol"),
        (["--scale", "1.5"], "scale"),
        (["--mask-edges"], "mask edges"),
        (["--intrinsics", "30,30,20,15"], "intrinsics"),
    ):
        code = depth_run("--skip-existing", **words) if isinstance(words, dict) else depth_run("--skip-existing", *words)
        assert code == 3 and f"were made with another {what}" in capsys.readouterr().err
    assert not (folder / "o" / "2_depth.png").exists() and not (folder / "o" / "scale.json").exists()
    assert depth_run("--skip-existing", "--force") == 2
    assert depth_run("--force", "--scale", "1.5") == 0
    (folder / "o" / "2_depth.png").unlink()
    assert depth_run("--skip-existing") == 3 and depth_run("--skip-existing", "--scale", "1.5") == 0


def test_maps_in_npy_alone_are_known_by_the_record_of_their_folder(job, make_artefacts, capsys):
    folder, depth_run = job
    assert depth_run("--save", "npy") == 0
    (folder / "o" / "2_depth.npy").unlink()
    assert depth_run("--save", "npy", "--skip-existing", engine=make_artefacts(batch=(1, 1, 4)).plan) == 3
    assert "another manifest" in capsys.readouterr().err
    (folder / "o" / "_depth-run.json").unlink()
    assert depth_run("--save", "npy", "--skip-existing") == 3 and "nothing says what made" in capsys.readouterr().err
    assert not (folder / "o" / "2_depth.npy").exists()


def test_files_that_were_put_into_the_folder_by_hand_are_known_by_their_words(job, make_artefacts, capsys):
    folder, depth_run = job
    other = folder / "other"
    assert depth_run() == 0 and depth_run("-o", other, engine=make_artefacts(batch=(1, 1, 4)).plan) == 0
    (other / "1_depth.png").replace(folder / "o" / "1_depth.png")
    assert depth_run("--skip-existing") == 3 and "1_depth.png is of another manifest" in capsys.readouterr().err


def test_a_folder_never_says_that_a_map_is_corrected_which_is_not(job, capsys):
    """scale.json is all that an NPY file has to say what corrected it."""
    folder, depth_run = job
    out = folder / "o"
    Image.new("RGB", (40, 30), 3).save(folder / "later.png")
    later = folder / "later.png"
    assert depth_run("--scale", "1.5") == 0 and (out / "scale.json").is_file()
    for words in ([], ["--scale", "2"], ["--force"], ["--force", "--scale", "2"]):  # the four of before would stay as they are
        assert depth_run(*words, photos=[later]) == 3 and "another scale" in capsys.readouterr().err
    assert not (out / "later_depth.npy").exists()
    assert depth_run("--scale", "1.5", photos=[later]) == 0
    plain = folder / "plain"
    assert depth_run("-o", plain) == 0 and depth_run("--scale", "1.5", "-o", plain, photos=[later]) == 3
    assert not (plain / "scale.json").exists() and not (plain / "later_depth.npy").exists()


def test_an_interrupted_second_run_leaves_no_claim(job, make_artefacts, monkeypatch, capsys):
    """With --force old maps are replaced one by one: until the last one, no word may say that all of them are the new plan's."""
    from fathom.runtime.commands import photo_session

    folder, depth_run = job
    assert depth_run("--scale", "1.5") == 0
    save_as = photo_session.save_as

    def interrupted(kind, depth, pixels, path, *rest):
        if path.name.startswith("2"):
            raise KeyboardInterrupt
        return save_as(kind, depth, pixels, path, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(photo_session, "save_as", interrupted)
        assert depth_run("--force") == 130
    assert "holds results of an earlier run" in capsys.readouterr().err
    assert not (folder / "o" / "scale.json").exists()
    for words in ([], ["--scale", "1.5"]):
        assert depth_run("--skip-existing", *words) == 3 and "another scale" in capsys.readouterr().err
    assert depth_run("--force") == 0 and depth_run("--skip-existing") == 0


def test_runs_of_two_meanings_in_one_folder_are_not_taken_for_one(job, capsys):
    folder, depth_run = job
    Image.new("RGB", (40, 30), 3).save(folder / "later.png")
    assert depth_run() == 0 and depth_run("--mask-edges", photos=[folder / "later.png"]) == 0
    for words in ([], ["--mask-edges"]):
        assert depth_run("--skip-existing", *words) == 3 and "another mask edges" in capsys.readouterr().err


def test_a_folder_without_results_says_nothing(job, tmp_path):
    _, depth_run = job
    (tmp_path / "broken.png").write_bytes(b"no picture")
    assert depth_run("-o", tmp_path / "none", photos=[tmp_path / "broken.png"]) == 3 and not (tmp_path / "none").exists()


def test_videos_that_are_done_are_left_out(tiny, tmp_path, capsys):
    av = pytest.importorskip("av")
    for name in ("a", "b"):
        with av.open(str(tmp_path / f"{name}.mp4"), "w") as container:
            stream = container.add_stream("mpeg4", rate=10)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for number in range(3):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((48, 64, 3), 40 * number, np.uint8), format="rgb24")))
            container.mux(stream.encode(None))
    words = ["--engine", str(tiny.plan), "-o", str(tmp_path / "o"), "-q", "--json"]
    assert run.main([*words, str(tmp_path / "a.mp4")]) == 0
    capsys.readouterr()
    both = [str(tmp_path / "a.mp4"), str(tmp_path / "b.mp4")]
    assert run.main([*words, *both, "--skip-existing"]) == 0
    assert [json.loads(line)["video"][-5:] for line in capsys.readouterr().out.splitlines()] == ["b.mp4"]
    assert run.main([*words, *both, "--skip-existing", "--save", "npy"]) == 2


def test_a_shorter_video_leaves_no_frame_of_the_longer_one(tiny, tmp_path, capsys):
    av = pytest.importorskip("av")

    def record(frames):
        with av.open(str(tmp_path / "a.mp4"), "w") as container:
            stream = container.add_stream("mpeg4", rate=10)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for number in range(frames):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((48, 64, 3), 20 * number, np.uint8), format="rgb24")))
            container.mux(stream.encode(None))

    words = ["--engine", str(tiny.plan), str(tmp_path / "a.mp4"), "-o", str(tmp_path / "o"), "-q", "--save", "npy"]
    record(6)
    assert run.main(words) == 0
    (tmp_path / "o" / "a" / "000009_notes.npy").write_bytes(b"the user's")
    record(3)
    assert run.main([*words, "--force"]) == 0
    left = sorted(path.name for path in (tmp_path / "o" / "a").iterdir())
    assert left == ["000000_depth.npy", "000001_depth.npy", "000002_depth.npy", "000009_notes.npy"]
