"""depth-run as a user meets it: real processes, real files."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fathom.runtime.commands.show import open_picture, viewer
from fathom.runtime.errors import InputError, UsageError
from fathom.runtime.photo.intrinsics_file import read_intrinsics


def depth_run(*arguments, **how):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "fathom.runtime.commands.run", *map(str, arguments)], capture_output=True, text=True, timeout=120, env=environment, **how
    )


def names(folder):
    """Files under a folder, without the record of what made them."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.name != "_depth-run.json")


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for k in range(3):
        Image.fromarray(np.random.default_rng(k).integers(0, 256, (60 + k, 100, 3), dtype=np.uint8)).save(folder / f"{k}.png")
    return folder


def test_a_photo_becomes_files_and_one_line(tiny, photos, tmp_path):
    done = depth_run("--engine", tiny.plan, photos / "0.png", "-o", tmp_path / "out")
    assert done.returncode == 0 and done.stderr == ""
    assert names(tmp_path / "out") == ["0_color.png", "0_depth.png"]
    (line,) = done.stdout.splitlines()
    least, middle, most = map(float, re.search(r"60 *m|100x60  ([\d.]+) / ([\d.]+) / ([\d.]+) m  valid 100.0%", line).groups())
    mm = np.asarray(Image.open(tmp_path / "out" / "0_depth.png"))
    assert mm.shape == (60, 100) and line.endswith(f"ms  {tmp_path / 'out' / '0_color.png'}")
    assert (least, most) == pytest.approx((mm.min() / 1000, mm.max() / 1000), abs=0.001) and middle == pytest.approx(np.median(mm) / 1000, abs=0.001)


def test_show_tiles_photos_beside_their_maps_where_there_is_no_display(tiny, photos, tmp_path, monkeypatch):
    for variable in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(variable, raising=False)
    done = depth_run("--engine", tiny.plan, photos, "-o", photos, "--show", "--save", "npy")
    assert done.returncode == 0, done.stderr
    *lines, last = done.stdout.splitlines()
    assert len(lines) == 3 and Path(last) == photos / "depth-run-show.png" and "2_color.png" in lines[2]
    sheet = np.asarray(Image.open(last))
    assert sheet.shape[1] > 2 * 2 * 320 and all(sheet[20:150, left : left + 320].std() > 10 for left in (8, 336, 664, 992))  # photo, map, photo, map
    again = depth_run("--engine", tiny.plan, photos, "-o", photos, "--show")
    assert again.returncode == 3 and "exist" in again.stderr  # nothing is replaced unasked
    forced = depth_run("--engine", tiny.plan, photos, "-o", photos, "--show", "--json", "--force")
    assert forced.returncode == 0 and len(forced.stdout.splitlines()) == 3 and "depth-run-show.png" in forced.stderr  # and it was no photo itself


def test_the_viewer_is_the_desktops(tmp_path):
    program = tmp_path / "xdg-open"
    program.write_text(f'#!/bin/sh\necho "$1" > {tmp_path}/seen\n')
    program.chmod(0o755)
    assert viewer("linux", {}) is None and viewer("darwin", {"SSH_CONNECTION": "x"}) is None
    assert open_picture(tmp_path / "a.png", str(program)) and not open_picture(tmp_path / "a.png", str(tmp_path / "none"))
    for _ in range(100):
        if (tmp_path / "seen").exists() and (tmp_path / "seen").read_text():
            break
        time.sleep(0.05)
    assert (tmp_path / "seen").read_text().strip() == str(tmp_path / "a.png")


def test_everything_at_once_as_json(tiny, photos, tmp_path):
    (tmp_path / "camera.json").write_text('{"name": "x", "intrinsics_fx_fy_cx_cy": [50.0, 50.0, 49.5, 29.5]}')
    flags = [
        "--save",
        "png16,npy,color,ply",
        "--intrinsics",
        tmp_path / "camera.json",
        "--json",
        "--protocol",
        "windows",
        "--colormap",
        "magma",
        "--near",
        "0",
        "--far",
        "4",
    ]
    done = depth_run("--engine", tiny.bundle, photos, "-o", tmp_path / "out", *flags)
    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert [Path(result["photo"]).name for result in results] == ["0.png", "1.png", "2.png"]
    first = results[0]
    assert first["unit"] == "m" and first["width"] == 100 and first["protocol"] == "windows" and first["untrained"] is False and first["time_ms"] > 0
    depth = np.load(first["files"]["npy"], allow_pickle=False)
    assert (first["min_m"], first["max_m"]) == pytest.approx((depth.min(), depth.max()), abs=1e-5)
    assert f"element vertex {depth.size}\n".encode() in Path(first["files"]["ply"]).read_bytes()
    assert len(names(tmp_path / "out")) == 12


def test_a_broken_photo_is_reported_at_the_end_and_the_rest_goes_on(tiny, photos, tmp_path):
    (photos / "1.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    done = depth_run("--engine", tiny.plan, photos, "-o", tmp_path / "out", "--batch", "2")
    assert done.returncode == 3
    assert names(tmp_path / "out") == ["0_color.png", "0_depth.png", "2_color.png", "2_depth.png"]
    assert len(done.stdout.splitlines()) == 2
    assert "1.png" in done.stderr and done.stderr.splitlines()[-1] == "1 of 3 photos failed" and "Traceback" not in done.stderr


def test_broken_photos_are_json_objects_too(tiny, photos, tmp_path):
    (photos / "1.png").write_bytes(b"")
    done = depth_run("--engine", tiny.plan, photos, "-o", tmp_path / "out", "--json")
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 3 and [("error" in result) for result in results].count(True) == 1
    assert next(result for result in results if "error" in result)["exit_code"] == 3


def test_folders_globs_and_equal_names(tiny, photos, tmp_path):
    (photos / "deep").mkdir()
    (photos / "0.png").rename(photos / "deep" / "2.png")
    done = depth_run("--engine", tiny.plan, f"{photos}/**/*.png", "-o", tmp_path / "out", "--save", "npy")
    assert done.returncode == 0 and names(tmp_path / "out") == ["1_depth.npy", "2_depth.npy", "deep/2_depth.npy"]


def test_names_that_are_no_text(tiny, photos, tmp_path):
    odd = os.fsencode(photos) + b"/caf\xe9 \xff.png"
    try:
        os.rename(photos / "0.png", odd)
    except OSError:
        pytest.skip("this file system takes no such names")
    done = depth_run("--engine", tiny.plan, photos, "-o", tmp_path / "out", "--save", "npy")
    assert done.returncode == 0 and len(names(tmp_path / "out")) == 3, done.stderr


def test_names_do_not_steer_the_terminal(tiny, photos, tmp_path):
    """A name may hold what clears a screen or begins a line; results and errors write it out, JSON as JSON does."""
    folder = tmp_path / "odd"
    folder.mkdir()
    for name, content in (("a\x1b[2J\nb.png", (photos / "0.png").read_bytes()), ("c\x1b[31m.png", b"no picture")):
        (folder / name).write_bytes(content)
    done = depth_run("--engine", tiny.plan, folder, "-o", tmp_path / "out")
    assert done.returncode == 3 and r"a\x1b[2J\x0ab.png" in done.stdout and len(done.stdout.splitlines()) == 1
    assert r"c\x1b[31m.png" in done.stderr and "\x1b" not in done.stdout + done.stderr


def test_existing_outputs_are_refused_before_any_work(tiny, photos, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "2_depth.png").write_text("mine")
    done = depth_run("--engine", tiny.plan, photos, "-o", out)
    assert done.returncode == 3 and "2_depth.png exists already" in done.stderr and "--force" in done.stderr
    assert names(out) == ["2_depth.png"] and (out / "2_depth.png").read_text() == "mine"
    assert depth_run("--engine", tiny.plan, photos, "-o", out, "--force").returncode == 0
    assert Image.open(out / "2_depth.png").size == (100, 62)


def test_untrained_weights_are_loud(make_artefacts, photos, tmp_path):
    made = make_artefacts(weights="random-init")
    done = depth_run("--engine", made.plan, photos / "0.png", "-o", tmp_path / "out", "--json", "--quiet")
    assert done.returncode == 0 and "UNTRAINED" in done.stderr and json.loads(done.stdout)["untrained"] is True
    with Image.open(tmp_path / "out" / "0_color.png") as image:
        assert "UNTRAINED" in image.text["Warning"] and image.getpixel((1, 1)) == (200, 30, 30)


def test_relative_output_is_never_metres(make_artefacts, photos, tmp_path):
    made = make_artefacts(kind="relative")
    done = depth_run("--engine", made.plan, photos / "0.png", "-o", tmp_path / "out", "--json")
    result = json.loads(done.stdout)
    assert done.returncode == 0 and result["unit"] == "" and "min" in result and not any(key.endswith("_m") for key in result)
    assert "(relative)" in depth_run("--engine", made.plan, photos / "0.png", "-o", tmp_path / "b").stdout
    refused = depth_run("--engine", made.plan, photos / "0.png", "-o", tmp_path / "c", "--intrinsics", "1,1,1,1")
    assert refused.returncode == 3 and "relative" in refused.stderr and not (tmp_path / "c").exists()


def test_nan_maps_are_not_written(make_artefacts, photos, tmp_path):
    done = depth_run("--engine", make_artefacts(poison=np.nan).plan, photos, "-o", tmp_path / "out", "--batch", "4")
    assert done.returncode == 4 and done.stderr.count("in tensor features") == 3 and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (["--save", "png8"], 2, "wanted some of png16,npy,exr,color,ply"),
        (["--batch", "0"], 2, "1 to 1024"),
        (["--batch", "9"], 2, "1 to 4"),
        (["--protocol", "kitti"], 2, "single-image or windows"),
        (["--save", "ply"], 2, "--intrinsics fx,fy,cx,cy"),
        (["--intrinsics", "gone.json"], 2, "neither four numbers nor a file"),
        (["--near", "5", "--far", "2"], 2, "near below far"),
        (["--near", "nan"], 2, "wanted a finite number"),
        (["--far", "inf"], 2, "wanted a finite number"),
        (["--prompt", "a cup"], 2, "no words"),
        (["--nonsense"], 2, "unrecognized"),
        (["--colormap", "jet"], 2, "invalid choice"),
        (["--quiet", "gone.jpg"], 3, "gone.jpg does not exist"),
    ],
)
def test_wrong_command_lines(tiny, photos, tmp_path, flags, code, words):
    done = depth_run("--engine", tiny.plan, photos / "0.png", "-o", tmp_path / "out", *flags)
    assert done.returncode == code and words in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert not (tmp_path / "out").exists()


def test_wrong_engines(tiny, photos, tmp_path):
    (tmp_path / "cut.plan").write_bytes(tiny.plan.read_bytes()[:-200])
    changed = bytearray(tiny.plan.read_bytes())
    changed[changed.index(tiny.kernel.tobytes()) + 5] ^= 1
    (tmp_path / "changed.plan").write_bytes(changed)
    for engine, code, words in [
        (tmp_path / "gone.plan", 3, "does not exist"),
        (photos / "0.png", 3, "is a picture, not a plan"),
        (photos, 3, "not a bundle"),
        (tmp_path / "cut.plan", 3, "not a whole plan"),
        (tmp_path / "changed.plan", 10, "SHA-256"),
        (tiny.gpu_plan, 6, "NVIDIA GPU"),
    ]:
        done = depth_run("--engine", engine, photos / "0.png", "-o", tmp_path / "out")
        assert done.returncode == code and words in done.stderr and "Traceback" not in done.stderr, done.stderr
        assert not (tmp_path / "out").exists()


def test_outputs_that_cannot_be_written(tiny, photos, tmp_path):
    (tmp_path / "file").write_text("")
    done = depth_run("--engine", tiny.plan, photos / "0.png", "-o", tmp_path / "file" / "out")
    assert done.returncode == 3 and "cannot be written" in done.stderr
    done = depth_run("--engine", tiny.plan, photos / "0.png", "-o", "/proc/fathom")
    assert done.returncode == 3 and "cannot be written" in done.stderr and "Traceback" not in done.stderr


def test_a_full_disk_ends_the_run_with_one_message(tiny, photos, tmp_path):
    code = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))\nimport signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    code += "from fathom.runtime.commands.run import main; sys.exit(main(sys.argv[1:]))"
    arguments = ["--engine", tiny.plan, photos / "0.png", "-o", tmp_path / "out", "--save", "npy"]
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 3 and "0_depth.npy cannot be written" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupting_leaves_only_whole_files(tiny, tmp_path, number):
    folder, out = tmp_path / "photos", tmp_path / "out"
    folder.mkdir()
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8))
    for k in range(150):
        picture.save(folder / f"{k}.png", compress_level=0)
    arguments = [sys.executable, "-m", "fathom.runtime.commands.run", "--engine", str(tiny.plan), str(folder), "-o", str(out), "--save", "png16,npy,color"]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for _ in range(3):
        process.stdout.readline()
    start = time.monotonic()
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130 and "interrupted" in err and "Traceback" not in err
    assert time.monotonic() - start < 5
    written = names(out)
    assert 0 < len(written) < 450 and not [name for name in written if name.endswith(".part")]
    for name in written:
        if name.endswith(".npy"):
            assert np.load(out / name, allow_pickle=False).shape == (200, 300)
        else:
            with Image.open(out / name) as image:
                image.load()


def test_memory_stays_flat(tiny, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8))
    for k in range(300):
        picture.save(folder / f"{k:03}.png", compress_level=0)
    code = """
import os, re, sys
from fathom.runtime.commands import photo_session, run
os.fsync = lambda handle: None  # 300 photos would wait for the disk 1800 times
def resident(): return int(re.search(r"VmRSS:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
seen, count = [], 0
original = photo_session.PhotoSession._print
def watched(self, *rest):
    global count
    count += 1
    if count in (60, 300): seen.append(resident())
    original(self, *rest)
photo_session.PhotoSession._print = watched
code = run.main(sys.argv[1:])
print(code, *seen, file=sys.stderr)
"""
    arguments = ["--engine", tiny.plan, folder, "-o", tmp_path / "out", "--save", "png16,npy,color", "--quiet"]
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, timeout=120)
    exit_code, early, late = map(float, done.stderr.split())
    assert exit_code == 0 and len(done.stdout.splitlines()) == 300
    assert late - early < 8, f"{early:.0f} MB after 60 photos, {late:.0f} MB after 300"


@pytest.mark.parametrize(
    "content",
    [
        '{"fx": 1, "fy": 2, "cx": 3, "cy": 4}',
        "[1, 2, 3, 4]",
        '{"intrinsics": {"fx": 1, "fy": 2, "cx": 3, "cy": 4}}',
        '{"intrinsics_fx_fy_cx_cy": [1, 2, 3, 4], "size": [9, 9]}',
        '{"intrinsics": [[1, 0, 3], [0, 2, 4], [0, 0, 1]]}',
    ],
)
def test_intrinsics_files(tmp_path, content):
    (tmp_path / "camera.json").write_text(content)
    camera = read_intrinsics(str(tmp_path / "camera.json"))
    assert (camera.fx, camera.fy, camera.cx, camera.cy) == (1, 2, 3, 4)
    camera = read_intrinsics("1, 2,3e0,4.0")
    assert (camera.fx, camera.fy, camera.cx, camera.cy) == (1, 2, 3, 4)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "null",
        '{"intrinsics_fx_fy_cx_cy": null}',
        "[1, 2, 3]",
        '{"fx": "a"}',
        "[0, 1, 2, 3]",
        "[1, NaN, 2, 3]",
        "[[1, 2, 3], [0, 2, 4], [0, 0, 1]]",
        "[" * 5000,
    ],
)
def test_files_without_intrinsics(tmp_path, content):
    (tmp_path / "camera.json").write_text(content)
    with pytest.raises(InputError, match=r"holds no intrinsics|is no JSON"):
        read_intrinsics(str(tmp_path / "camera.json"))
    with pytest.raises(UsageError):
        read_intrinsics("1,2,3")
