"""depth-run in the field: odd names, odd folders, odd cameras, damaged and odd videos, full disks, other people's files as engines."""

import json
import os
import signal
import struct
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from fathom.runtime.artefact.bundle import BundleDirectory
from fathom.runtime.artefact.plan import PlanFile
from fathom.runtime.commands import photo_session, run
from fathom.runtime.errors import DiskFullError, InputError, UsageError
from fathom.runtime.files import PART, PART_END, whole_directory, whole_file
from fathom.runtime.photo.depth_map import Intrinsics
from fathom.runtime.photo.intrinsics_file import read_intrinsics
from fathom.runtime.photo.photo import find_photos
from fathom.runtime.pipeline import Pipeline


def picture(path, seed=0, size=(60, 90)):
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
    return path


def depth_run(tiny, *words):
    return run.main(["--engine", str(tiny.plan), *map(str, words)])


# --- names and folders


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


# --- cameras


def test_a_camera_that_cannot_be_of_this_photo_is_refused(tiny, tmp_path, capsys):
    photo = picture(tmp_path / "p.png", size=(120, 160))
    assert depth_run(tiny, photo, "-o", tmp_path / "o", "--intrinsics", "518.9,519.5,325.6,253.7") == 3
    assert "325.6, 253.7 lies outside the photo of 160x120" in capsys.readouterr().err
    assert not list((tmp_path / "o").glob("*")) if (tmp_path / "o").exists() else True


def test_a_camera_of_another_size_is_scaled_when_its_size_is_known(tmp_path):
    """At half the size a pixel is twice as wide, and the picture's edge, half a pixel before the first centre, stays the edge."""
    camera = Intrinsics(500.0, 500.0, 319.5, 239.5, 640, 480)
    half = camera.on(320, 240)
    assert (half.fx, half.fy, half.cx, half.cy) == (250.0, 250.0, 159.5, 119.5)
    assert camera.on(640, 480) == camera
    with pytest.raises(InputError, match="another shape"):
        camera.on(480, 480)
    (tmp_path / "c.json").write_bytes(b"\xef\xbb\xbf" + json.dumps({"fx": 500, "fy": 500, "cx": 319.5, "cy": 239.5, "width": 640, "height": 480}).encode())
    assert read_intrinsics(str(tmp_path / "c.json")) == camera


@pytest.mark.parametrize(
    "content",
    [
        {"camera_matrix": [[700, 0, 320], [0, 710, 240], [0, 0, 1]], "image_width": 640, "image_height": 480},
        {"camera_matrix": {"rows": 3, "cols": 3, "data": [700, 0, 320, 0, 710, 240, 0, 0, 1]}, "image_width": 640, "image_height": 480},
        {"K": [700, 0, 320, 0, 710, 240, 0, 0, 1], "width": 640, "height": 480},
        {"name": "left", "intrinsics": {"fx": 700, "fy": 710, "cx": 320, "cy": 240, "width": 640, "height": 480}},
        {"intrinsics": {"camera_matrix": {"data": [700, 0, 320, 0, 710, 240, 0, 0, 1]}, "image_width": 640, "image_height": 480}, "width": 640, "height": 480},
    ],
    ids=["OpenCV", "ROS file", "ROS message", "inside", "inside, twice"],
)
def test_cameras_as_calibration_tools_write_them(tmp_path, content):
    (tmp_path / "c.json").write_text(json.dumps(content))
    assert read_intrinsics(str(tmp_path / "c.json")) == Intrinsics(700, 710, 320, 240, 640, 480)


def test_a_camera_of_two_sizes_is_refused(tmp_path):
    (tmp_path / "c.json").write_text(json.dumps({"width": 1280, "height": 960, "K": {"fx": 700, "fy": 710, "cx": 320, "cy": 240, "width": 640, "height": 480}}))
    with pytest.raises(InputError, match="1280x960 and 640x480"):
        read_intrinsics(str(tmp_path / "c.json"))


def test_what_is_no_camera_is_told_in_plain_words(tmp_path):
    (tmp_path / "c.yaml").write_text("camera_matrix:\n  rows: 3\n")
    with pytest.raises(InputError, match=r"c\.yaml is no JSON"):
        read_intrinsics(str(tmp_path / "c.yaml"))
    with pytest.raises(UsageError, match="there is no such file"):
        read_intrinsics("nothing.json")


def test_metres_by_focal_length(make_artefacts):
    """metres = value fx / focal_px, with fx in pixels of the picture as the network sees it: here the photo squeezed to 64 columns."""
    import dataclasses

    from fathom.runtime.photo.postprocess import focal_scale
    from fathom.runtime.photo.preprocess import place_steps

    made = make_artefacts()
    with Pipeline.open(made.bundle) as pipeline:
        contract, protocol = pipeline.contract, pipeline.protocol()
        plain = pipeline.predict(np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8))
        output = dataclasses.replace(contract.output, focal_px=300.0)
        camera = Intrinsics(450.0, 450.0, 64.0, 48.0)
        assert focal_scale(output, place_steps(protocol.steps, 96, 128), camera) == pytest.approx(450 * (64 / 128) / 300)
        assert focal_scale(contract.output, (), None) == 1
        with pytest.raises(UsageError, match="--intrinsics"):
            focal_scale(output, (), None)
        pipeline.contract = dataclasses.replace(contract, output=output)
        shown = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
        np.testing.assert_allclose(pipeline.predict(shown, intrinsics=camera).depth_m, 0.75 * plain.depth_m, rtol=1e-6)
        with pytest.raises(UsageError, match="focal length"):
            pipeline.predict(shown)


# --- other people's files as engines


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.onnx", b"\x08\x08\x12\x07pytorch", "depth-export --onnx"),
        ("a.engine", b"ftrt" + bytes(60), "TensorRT engine alone"),
        ("a.plan", b"ptrt" + bytes(60), "TensorRT engine alone"),
        ("a.safetensors", struct.pack("<Q", 2) + b"{}", "--weights"),
        ("a.pth", b"PK\x03\x04" + bytes(40), "--weights"),
        ("a.ckpt", b"\x80\x02" + bytes(40), "--weights"),
        ("a.plan", b"\x08\x08\x12\x07pytorch", "ONNX file.*depth-export --onnx"),
        ("pytorch_model.bin", b"PK\x03\x04" + bytes(26) + b"archive/data.pkl", "PyTorch checkpoint.*--weights"),
        ("a.plan", b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer.*git lfs pull"),
        ("a.plan", b"<!DOCTYPE html>", "web page"),
        ("a.plan", b"\x1f\x8b\x08" + bytes(30), "compressed file.*unpack"),
        ("a.xml", b"<?xml version='1.0'?>", "OpenVINO"),
        ("a.tflite", b"\x1c\0\0\0TFL3", "TensorFlow Lite"),
        ("a.gguf", b"GGUF\3\0\0\0", "GGUF"),
        ("a.jpg", b"\xff\xd8\xff\xe0", "a picture.*photos after it"),
        ("a.json", b"{}", "JSON"),
        ("b/bundle.json", b"{}", "give the whole bundle: .*/b$"),
    ],
)
def test_what_is_no_plan_is_recognised(tmp_path, name, content, words):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=words):
        PlanFile.open(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("model.onnx", "holds ONNX files .model.onnx.*depth-export --onnx"),
        ("model.safetensors", "holds checkpoints .model.safetensors.*--weights"),
        ("evp/bundle.json", "holds evp.*give .*evp"),
        ("evp.plan", "holds evp.plan"),
        ("readme.txt", "holds no bundle.json"),
    ],
)
def test_folders_that_are_no_bundle_are_recognised(tmp_path, name, words):
    (tmp_path / "f" / name).parent.mkdir(parents=True)
    (tmp_path / "f" / name).write_bytes(b"")
    with pytest.raises(InputError, match=words):
        BundleDirectory.open(tmp_path / "f")


def test_a_plan_or_an_onnx_file_is_no_bundle_to_build(tmp_path):
    (tmp_path / "x.plan").write_bytes(b"PK\x03\x04" + bytes(40))
    (tmp_path / "x.onnx").write_bytes(b"\x08\x08\x12\x07pytorch")
    for name, words in (("x.plan", "built already"), ("x.onnx", "depth-export --onnx"), ("nothing", "does not exist")):
        with pytest.raises(InputError, match=words):
            BundleDirectory.open(tmp_path / name)


# --- disks


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


def test_what_killed_runs_left_is_swept_after_a_day(tmp_path):
    old, young = tmp_path / f"{PART}old{PART_END}", tmp_path / f"{PART}young{PART_END}"
    old.mkdir()
    (old / "half").write_bytes(b"x")
    young.write_bytes(b"y")
    os.utime(old, (time.time() - 2 * 86_400,) * 2)
    with whole_file(tmp_path / "a") as part:
        part.write_bytes(b"a")
    assert sorted(path.name for path in tmp_path.iterdir()) == [young.name, "a"]


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


# --- videos

av = pytest.importorskip("av")


def frames(count, size=(96, 128)):
    ramp = np.linspace(0, 120, size[1])[None, :, None] + np.linspace(0, 60, size[0])[:, None, None]
    return [np.repeat(np.clip(ramp + 2 * k, 0, 255), 3, axis=2).astype(np.uint8) for k in range(count)]


def video(path, count=60, aspect=None, codec="libx264", rate=12, size=(96, 128), pts=None, pixels="yuv420p"):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt, stream.options = size[1], size[0], pixels, {"g": "6"}
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        for number, shown in enumerate(frames(count, size)):
            frame = av.VideoFrame.from_ndarray(shown, format="rgb24")
            if pts:
                frame.pts, frame.time_base = pts[number], Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def told(capsys):
    captured = capsys.readouterr()
    return json.loads(captured.out.splitlines()[0]), captured.err


def test_a_damaged_stretch_costs_its_frames_only(tiny, tmp_path, capsys):
    raw = bytearray(video(tmp_path / "whole.mp4").read_bytes())
    start = raw.find(b"mdat") + 2000
    raw[start : start + 1200] = bytes((k * 97 + 13) % 256 for k in range(1200))
    (tmp_path / "hole.mp4").write_bytes(raw)
    assert depth_run(tiny, tmp_path / "hole.mp4", "-o", tmp_path / "o", "--json", "-q") == 3
    facts, error = told(capsys)
    assert 0 < facts["damaged"] + facts["missing"] < 40 and facts["frames"] + facts["damaged"] + facts["missing"] == 60
    assert f"the {facts['frames']} that could be decoded are done" in error
    with av.open(str(tmp_path / "o" / "hole_color.mp4")) as container:
        assert len(list(container.decode(video=0))) == facts["frames"]


def test_frames_that_the_header_promised_are_missed(tiny, tmp_path, capsys):
    raw = video(tmp_path / "whole.avi", codec="mjpeg", pixels="yuvj420p").read_bytes()
    (tmp_path / "cut.avi").write_bytes(raw[: len(raw) // 2])
    assert depth_run(tiny, tmp_path / "cut.avi", "-o", tmp_path / "o", "--json", "-q") == 3
    facts, error = told(capsys)
    assert 10 < facts["frames"] < 60 and facts["frames"] + facts["missing"] + facts["damaged"] == 60 and "did not come" in error


@pytest.mark.parametrize(("size", "aspect"), [((96, 128), Fraction(2, 1)), ((180, 320), None), ((320, 180), None)], ids=["wide pixels", "wide", "tall"])
def test_a_colour_video_has_the_shape_of_its_video(tiny, tmp_path, size, aspect):
    video(tmp_path / "v.mp4", 6, aspect=aspect, size=size)
    assert depth_run(tiny, tmp_path / "v.mp4", "-o", tmp_path / "o", "-q") == 0
    with av.open(str(tmp_path / "o" / "v_color.mp4")) as container:
        stream = container.streams.video[0]
        assert Fraction(stream.sample_aspect_ratio or 1) == (aspect or 1)
        assert stream.width / stream.height == pytest.approx(size[1] / size[0], rel=0.01) and stream.height > size[0]  # the scale bar is there


def test_clocks_that_begin_again_go_on(tmp_path):
    from fathom.runtime.video.video import VideoSource

    for name in ("one.ts", "two.ts"):
        video(tmp_path / name, 6)
    (tmp_path / "both.ts").write_bytes((tmp_path / "one.ts").read_bytes() + (tmp_path / "two.ts").read_bytes())
    with VideoSource(str(tmp_path / "both.ts")) as source:
        times = np.array([frame.time_s for frame in source])
    assert len(times) == 12 and (np.diff(times) > 0.02).all() and times[-1] < 2.5


def test_folders_and_globs_of_videos(tiny, tmp_path, capsys):
    folder = tmp_path / "v"
    folder.mkdir()
    for name in ("2.mp4", "10.mp4"):
        video(folder / name, 3)
    for words in ([folder], [f"{folder}/*.mp4"]):
        assert depth_run(tiny, *words, "-o", tmp_path / "o", "-q", "--force", "--json") == 0
        lines = [json.loads(line)["video"] for line in capsys.readouterr().out.splitlines()]
        assert [os.path.basename(line) for line in lines] == ["2.mp4", "10.mp4"]


def test_a_video_of_one_pixel_is_one(tiny, tmp_path, capsys):
    video(tmp_path / "one.mkv", 3, codec="ffv1", size=(1, 1), pixels="bgr0")
    assert depth_run(tiny, tmp_path / "one.mkv", "-o", tmp_path / "o", "-q") == 0  # the scale bar makes it wide enough for a codec
    assert (tmp_path / "o" / "one_color.mp4").is_file() and not capsys.readouterr().err


def test_videos_that_are_called_the_same_are_told_apart(tiny, tmp_path):
    for name in ("v/a.mp4", "v/a.mkv", "w/b.mp4", "x/b.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        video(tmp_path / name, 3)
    assert depth_run(tiny, tmp_path / "v", f"{tmp_path}/[wx]/*.mp4", "-o", tmp_path / "o", "-q") == 0
    made = sorted(path.relative_to(tmp_path / "o").as_posix() for path in (tmp_path / "o").rglob("*.mp4"))
    assert made == ["a.mkv_color.mp4", "a.mp4_color.mp4", "w/b_color.mp4", "x/b_color.mp4"]


def test_videos_among_photos_are_told(tiny, tmp_path, capsys):
    folder = tmp_path / "DCIM"
    folder.mkdir()
    video(folder / "v.mp4", 3)
    picture(folder / "p.png")
    assert depth_run(tiny, folder, "-o", tmp_path / "o") == 0
    assert "1 videos among the photos" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "o").glob("*.png")) == ["p_color.png", "p_depth.png"]


def test_a_file_that_ends_before_its_headers_duration_is_told(tiny, tmp_path, capsys):
    """Matroska counts no frames, but says how long it lasts."""
    raw = video(tmp_path / "whole.mkv").read_bytes()
    (tmp_path / "cut.mkv").write_bytes(raw[: len(raw) // 2])
    assert depth_run(tiny, tmp_path / "whole.mkv", "-o", tmp_path / "o", "--json", "-q") == 0
    assert told(capsys)[0]["missing"] == 0
    assert depth_run(tiny, tmp_path / "cut.mkv", "-o", tmp_path / "o", "--json", "-q") == 3
    facts, error = told(capsys)
    assert 10 < facts["frames"] < 50 and facts["frames"] + facts["missing"] + facts["damaged"] == 60 and "did not come" in error


def test_a_recording_whose_size_changes_keeps_its_first_size(tiny, tmp_path):
    for name, size in (("one.ts", (96, 128)), ("two.ts", (144, 192))):
        video(tmp_path / name, 6, size=size)
    (tmp_path / "both.ts").write_bytes((tmp_path / "one.ts").read_bytes() + (tmp_path / "two.ts").read_bytes())
    assert depth_run(tiny, tmp_path / "both.ts", "-o", tmp_path / "o", "--save", "npy,color", "-q") == 0
    shapes = [np.load(tmp_path / "o" / "both" / f"{number:06d}_depth.npy").shape for number in range(12)]
    assert shapes == [(96, 128)] * 6 + [(144, 192)] * 6
    with av.open(str(tmp_path / "o" / "both_color.mp4")) as container:
        assert len({(frame.width, frame.height) for frame in container.decode(video=0)}) == 1


def test_a_cover_picture_is_not_the_video(tiny, tmp_path, capsys):
    with av.open(str(tmp_path / "c.mkv"), "w") as container:
        streams = [container.add_stream(codec, rate=12) for codec in ("mjpeg", "libx264")]
        for stream, (width, height), pixels in zip(streams, ((32, 32), (64, 48)), ("yuvj420p", "yuv420p"), strict=True):
            stream.width, stream.height, stream.pix_fmt = width, height, pixels
        for stream, size, count in zip(streams, ((32, 32), (48, 64)), (1, 5), strict=True):
            for shown in frames(count, size):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(shown, format="rgb24")))
            container.mux(stream.encode(None))
    assert depth_run(tiny, tmp_path / "c.mkv", "-o", tmp_path / "o", "--json", "-q") == 0
    assert told(capsys)[0]["frames"] == 5
