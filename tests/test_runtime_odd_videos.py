"""Damaged and odd videos: what they cost, and what is told of it."""

import json
import os
from fractions import Fraction

import numpy as np
import pytest
from noise_photos import depth_run, picture

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
