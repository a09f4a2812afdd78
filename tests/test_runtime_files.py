"""Outputs are whole or not there: full disks, killed runs, signals, rights."""

import os
import signal
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from noise_photos import depth_run, picture

from fathom.runtime.commands import photo_session
from fathom.runtime.errors import DiskFullError, InputError
from fathom.runtime.files import PART, PART_END, STALE_S, whole_directory, whole_file


def test_whatever_fails_on_a_full_disk_is_told_as_one(tmp_path, monkeypatch):
    for body in (OSError(28, "No space left on device"), OSError("307200 requested and 232416 written"), InputError("the graph is refused")):
        with monkeypatch.context() as full, pytest.raises(DiskFullError, match="the disk is full"), whole_directory(tmp_path / "b"):
            full.setattr("shutil.disk_usage", lambda path: os.terminal_size((0, 0)) and type("Usage", (), {"free": 0})())
            raise body
    with pytest.raises(InputError, match="the graph is refused"), whole_directory(tmp_path / "b"):
        raise InputError("the graph is refused")  # with room on the disk the error is its own
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounts a small disk")
def test_a_small_disk_that_fills_up(tiny, tmp_path, capsys):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("nothing may be mounted here")
    try:
        photos = [picture(tmp_path / f"{k}.png", k, (300, 400)) for k in range(4)]
        assert depth_run(tiny, *photos, "-o", disk, "--save", "npy", "-q") == 3
        assert "the disk is full" in capsys.readouterr().err
        assert all(path.stat().st_size > 480_000 for path in disk.iterdir())  # whole, or not there
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_outputs_have_the_rights_that_the_umask_leaves_in_every_thread(tmp_path, monkeypatch):
    umask = os.umask
    before = umask(0o027)
    monkeypatch.setattr(os, "umask", lambda mask: (umask(mask), time.sleep(0.002))[0])  # whoever changes it is met by another thread

    def write(number):
        for k in range(10):
            with whole_file(tmp_path / f"{number}-{k}") as part:
                part.write_bytes(b"")
            (tmp_path / f"{number}-{k}.other").touch()
            with whole_directory(tmp_path / f"{number}-{k}.folder") as part:
                (part / "in").touch()

    try:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(write, range(8)))
    finally:
        after = umask(before)
    assert after == 0o027
    assert {path.stat().st_mode & 0o777 for path in tmp_path.rglob("*") if path.is_file()} == {0o640}
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir() if path.is_dir()} == {0o750}


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_signals_leave_nothing_half_written(tiny, tmp_path, name, capsys, monkeypatch):
    read = photo_session.read_photo
    monkeypatch.setattr(photo_session, "read_photo", lambda path: time.sleep(0.02) or read(path))  # so that much is left to do at the first result
    photos = [picture(tmp_path / f"{k}.png", k) for k in range(300)]
    out = tmp_path / "out"

    def strike():  # at the first result, however fast or slow this machine is
        while not (out.is_dir() and any(out.iterdir())):
            time.sleep(0.001)
        os.kill(os.getpid(), getattr(signal, name))

    before = signal.signal(getattr(signal, name), signal.SIG_DFL)  # under nohup the tests themselves ignore SIGHUP, and the command respects that
    threading.Thread(target=strike, daemon=True).start()
    try:
        assert depth_run(tiny, *photos, "-o", out, "-q") == 130
    finally:
        signal.signal(getattr(signal, name), before)
    assert not list((tmp_path / "out").glob(f"{PART}*")) if (tmp_path / "out").exists() else True


def test_everything_that_killed_runs_leave_is_swept_once_it_is_old(tmp_path):
    folders = {
        ".fathom-1.part": True,
        ".fathom-2.old": True,
        ".fathom-3.part.d": True,
        f"{PART}old{PART_END}": True,
        ".fathom-4.old": False,
        ".other.old": True,
    }
    for name, old in folders.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").write_bytes(b"x")
        os.utime(tmp_path / name, (time.time() - (STALE_S + 60 if old else 60),) * 2)
    young = tmp_path / f"{PART}young{PART_END}"
    young.write_bytes(b"y")
    with whole_file(tmp_path / "x") as part:
        part.write_bytes(b"x")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([".fathom-4.old", ".other.old", young.name, "x"])


def test_a_folder_of_many_results_is_not_read_for_each_of_them(tmp_path, monkeypatch):
    looked, scandir = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda folder: looked.append(folder) or scandir(folder))
    for number in range(20):
        with whole_file(tmp_path / str(number)) as part:
            part.write_bytes(b"x")
    assert len(looked) == 1
