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

    def depth_run(*words, engine=tiny.plan):
        return run.main(["--engine", str(engine), str(folder), "-o", str(tmp_path / "o"), "--save", "png16,npy", "--json", *map(str, words)])

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
    assert depth_run("--skip-existing", engine=make_artefacts(batch=(1, 1, 4)).plan) == 3
    assert "is of another manifest" in capsys.readouterr().err
    assert depth_run("--skip-existing", "--protocol", "windows") == 3 and "is of another protocol" in capsys.readouterr().err
    assert depth_run("--skip-existing", "--scale", "1.5") == 3 and "is of another correction" in capsys.readouterr().err
    assert not (folder / "o" / "2_depth.png").exists() and not (folder / "o" / "scale.json").exists()
    assert depth_run("--skip-existing", "--force") == 2
    assert depth_run("--force", "--scale", "1.5") == 0
    (folder / "o" / "2_depth.png").unlink()
    assert depth_run("--skip-existing") == 3 and depth_run("--skip-existing", "--scale", "1.5") == 0


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
