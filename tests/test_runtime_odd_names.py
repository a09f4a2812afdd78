"""Photos with odd names in odd folders, and what is no photo at all."""

import os
import subprocess
import sys

import pytest
from noise_photos import depth_run, picture
from PIL import Image

from fathom.runtime.commands import run
from fathom.runtime.errors import InputError
from fathom.runtime.photo.photo import find_photos


def test_a_name_that_grows_too_long_stops_no_other_photo(tiny, tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a", "b" + "y" * 230, "c", "d" + "z" * 247):
        picture(folder / f"{name}.png")
    assert depth_run(tiny, folder, "-o", tmp_path / "out", "-q") == 3
    captured = capsys.readouterr()
    assert "has 258 bytes; wanted: at most 255" in captured.err and "1 of 4 photos failed" in captured.err
    made = sorted(path.name[:1] for path in (tmp_path / "out").glob("*.png"))
    assert made == ["a", "a", "b", "b", "c", "c"]  # 242 bytes are legal, whatever the temporary file is called


@pytest.mark.parametrize("name", ["-dash.png", "[1].png", "a b.png", "ü-é.png", os.fsdecode(b"\xff\xfe.png")])
def test_any_name_the_system_allows_works(tiny, tmp_path, monkeypatch, name, capsys):
    monkeypatch.chdir(tmp_path)
    try:
        picture(tmp_path / name)
    except OSError:
        pytest.skip("this file system takes no such name")
    assert run.main(["--engine", str(tiny.plan), "-o", "out", "-q", "--", name]) == 0
    assert (tmp_path / "out" / f"{name[:-4]}_depth.png").is_file()


def test_nothing_after_the_dashes_is_a_usage_error(tiny, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        run.main(["--engine", str(tiny.plan), "-o", str(tmp_path / "o"), "--"])
    assert caught.value.code == 2 and "INPUT" in capsys.readouterr().err


def test_pictures_that_cannot_be_read_are_told(tiny, tmp_path, capsys):
    folder = tmp_path / "phone"
    folder.mkdir()
    for k in range(3):
        (folder / f"IMG_{k}.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    with pytest.raises(InputError, match=r"only 3 of HEIC.*convert them to JPEG"):
        find_photos([str(folder)])
    picture(folder / "one.png")
    (folder / "x.DNG").write_bytes(b"II*\0")
    assert depth_run(tiny, folder, "-o", tmp_path / "out") == 0
    assert "4 files are pictures that cannot be read here (DNG, HEIC)" in capsys.readouterr().err


def test_results_of_an_earlier_run_are_no_photos(tiny, tmp_path, capsys):
    folder = tmp_path / "d"
    folder.mkdir()
    photos = ["a.jpg", "a.png", "a_color.png", "room_depth.png"]  # all somebody's photos: there is no room.png
    for name in photos:
        picture(folder / name)
    assert depth_run(tiny, folder, "-o", folder, "--show", "-q") == 0  # also a.png_depth.png, whose photo is not called a.png.png
    capsys.readouterr()
    assert depth_run(tiny, folder, "-o", folder / "out") == 0
    assert "9 results of an earlier run are not taken for photos" in capsys.readouterr().err
    (folder / "a.jpg").unlink()  # its results stay
    for inputs in ([str(folder / "**" / "*.*g")], sorted(map(str, folder.rglob("*.*g")))):  # expanded here, or by the shell
        assert sorted(photo.path.name for photo in find_photos(inputs)) == photos[1:]
    for inputs in (folder / "a.png_depth.png", folder / "out"):
        with pytest.raises(InputError, match="is a result of depth-run"):
            find_photos([str(inputs)])


def test_a_result_never_replaces_a_photo(tiny, tmp_path, capsys):
    before = [picture(tmp_path / name).read_bytes() for name in ("a.png", "a_color.png")]
    assert depth_run(tiny, tmp_path, "-o", tmp_path, "--force") == 3 and "is itself one of the photos" in capsys.readouterr().err
    assert [(tmp_path / name).read_bytes() for name in ("a.png", "a_color.png")] == before and len(list(tmp_path.iterdir())) == 2


def test_a_depth_cameras_picture_beside_its_photo_is_no_photo(tmp_path):
    told = []
    for name in ("a.jpg", "a_depth.png"):
        picture(tmp_path / name)
    assert [photo.path.name for photo in find_photos([str(tmp_path)], told.append)] == ["a.jpg"] and "a_depth.png" in told[0]
    assert [photo.stem for photo in find_photos([str(tmp_path / "a_depth.png")])] == ["a_depth"]  # named outright, it is one


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
@pytest.mark.parametrize("words", [["fathom.runtime.commands.run", "--help"], ["fathom.export.commands.export_command", "--list"]])
def test_help_in_a_narrow_terminal(encoding, words):
    done = subprocess.run([sys.executable, "-m", *words], capture_output=True, env={**os.environ, "PYTHONIOENCODING": encoding})
    assert done.returncode == 0 and done.stdout and not done.stderr


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_closed_streams_cost_no_result(tiny, tmp_path, closed):
    """As a service or cron may start it; and no output file may get the number of a stream."""
    picture(tmp_path / "a.png")
    words = f"{sys.executable} -m fathom.runtime.commands.run --engine {tiny.plan} -o {tmp_path / 'out'} {tmp_path / 'a.png'} {closed}"
    assert subprocess.run(["sh", "-c", words]).returncode == 0
    assert Image.open(tmp_path / "out" / "a_depth.png").size == (90, 60)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_a_pipe_keeps_nobody_waiting(tiny, tmp_path, capsys):
    os.mkfifo(tmp_path / "a.png")
    assert depth_run(tiny, tmp_path / "a.png", "-o", tmp_path / "out") == 3
    assert run.main(["--engine", str(tmp_path / "a.png"), "-o", str(tmp_path / "out"), str(tiny.plan)]) == 3
    assert capsys.readouterr().err.count("is no plain file") == 2
