"""Videos through the network: order, overlap, what is dropped, what is left behind."""

import json
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from fathom.runtime.commands import run
from fathom.runtime.errors import AccuracyError, EnvironmentMismatchError, FathomError, InputError
from fathom.runtime.files import PART_END
from fathom.runtime.outputs.colormap import colorize
from fathom.runtime.pipeline import Pipeline
from fathom.runtime.video.color_video import ColorVideo
from fathom.runtime.video.video import Frame, VideoSource, find_videos, is_live, is_video, shown, stem_of
from fathom.runtime.video.video_run import run_video

av = pytest.importorskip("av")
COUNT = 12


def pictures(count=COUNT, height=48, width=64):
    """Frames whose brightness rises with their number, over a ramp."""
    ramp = np.linspace(0, 60, width)[None, :, None] + np.linspace(0, 40, height)[:, None, None]
    return [np.repeat(np.clip(ramp + 10 * k, 0, 255), 3, axis=2).astype(np.uint8) for k in range(count)]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Twelve lossless frames at 8 per second."""
    path = tmp_path_factory.mktemp("video") / "clip.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "bgr0"
        for picture in pictures():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def decoded(path):
    with av.open(str(path)) as container:
        return [(float(frame.time), frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]


def test_what_is_a_video():
    assert all(map(is_video, ["a.mp4", "b.MKV", "/dev/video0", "rtsp://cam/1", "https://host/x.m3u8"]))
    assert not any(map(is_video, ["a.png", "/dev/null", "folder", "rtsp:/broken"]))
    assert is_live("/dev/video2") and is_live("rtsp://u:p@h/x") and not is_live("a.mp4")
    assert shown("rtsp://user:secret@host:554/one") == "rtsp://host:554/one"
    assert stem_of("rtsp://user:secret@host:554/one") == "host_554_one" and stem_of("/dev/video0") == "video0" and stem_of("x/clip.mp4") == "clip"


def test_a_folder_of_videos_holds_no_photo_of_any_format_but_results_are_none(tiny, tmp_path):
    for name in ("a.mp4", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    for suffix in ("avif", "jp2", "gif", "ppm", "dib", "jfif", "JPG", "png"):
        photo, told = tmp_path / f"b.{suffix}", []
        photo.write_bytes(b"")
        assert find_videos([str(tmp_path)], told.append) == [str(tmp_path)] and "1 videos among the photos" in told[0]
        photo.unlink()
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(tmp_path / "elsewhere.png")
    assert run.main(["--engine", str(tiny.plan), str(tmp_path / "elsewhere.png"), "-o", str(tmp_path), "-q"]) == 0
    (tmp_path / "elsewhere.png").unlink()
    assert (tmp_path / "elsewhere_color.png").is_file() and find_videos([str(tmp_path)]) == [str(tmp_path / "a.mp4")]


def test_frames_come_in_order_with_their_times(clip):
    with VideoSource(str(clip)) as source:
        assert source.rate == 8 and not source.live
        frames = list(source)
    assert [frame.number for frame in frames] == list(range(COUNT))
    np.testing.assert_allclose([frame.time_s for frame in frames], np.arange(COUNT) / 8, atol=2e-3)
    for frame, picture in zip(frames, pictures(), strict=True):
        np.testing.assert_array_equal(frame.pixels, picture)


def test_broken_videos(tmp_path, clip):
    with pytest.raises(InputError, match="does not exist"):
        VideoSource(str(tmp_path / "no.mp4"))
    (tmp_path / "junk.mp4").write_bytes(b"not a video" * 100)
    with pytest.raises(InputError, match="cannot be opened"):
        VideoSource(str(tmp_path / "junk.mp4"))
    with av.open(str(tmp_path / "sound.mkv"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
    with pytest.raises(InputError, match="no pictures"):
        VideoSource(str(tmp_path / "sound.mkv"))


def test_a_missing_package_is_named(monkeypatch, clip):
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(EnvironmentMismatchError, match=r"fathom-depth\[video\]"):
        VideoSource(str(clip))


def test_written_videos_appear_when_they_are_whole(tmp_path):
    path = tmp_path / "out.mp4"
    video = ColorVideo(path, Fraction(8))
    for k, picture in enumerate(pictures(height=49, width=65)):
        video.write(picture, k / 8)
    assert not path.exists()
    video.close()
    video.close()
    frames = decoded(path)
    assert len(frames) == COUNT and frames[0][1].shape == (48, 64, 3)
    np.testing.assert_allclose([at for at, _ in frames], np.arange(COUNT) / 8, atol=2e-3)
    for (_, got), picture in zip(frames, pictures(height=49, width=65), strict=True):
        assert abs(got.astype(float).mean() - picture[:48, :64].mean()) < 4
    with pytest.raises(InputError, match="exists already"):
        ColorVideo(path, Fraction(8))
    dropped = ColorVideo(tmp_path / "dropped.mp4", Fraction(8))
    dropped.write(pictures()[0], 0.0)
    dropped.drop()
    dropped.drop()
    with pytest.raises(InputError, match="no frame"):
        ColorVideo(tmp_path / "empty.mp4", Fraction(8)).close()
    assert [file.name for file in tmp_path.iterdir()] == ["out.mp4"]


class Source:
    """Frames at a pace, without a file."""

    rate = Fraction(100)

    def __init__(self, count, live=False, every_s=0.0, error=None):
        self.count, self.live, self.every_s, self.error = count, live, every_s, error

    def __iter__(self):
        for number in range(self.count):
            time.sleep(self.every_s)
            yield Frame(number, number / 100, np.full((2, 2, 3), number % 256, np.uint8))
        if self.error:
            raise self.error


def test_stages_overlap_and_order_is_kept():
    """Each of decoding, network and writing takes 20 ms for each of 15 frames; one after the other it would be 900 ms."""
    threads, order = set(), []

    def predict(pixels):
        def work():
            threads.add(threading.current_thread().name)
            time.sleep(0.02)
            return int(pixels[0, 0, 0])

        return pool.submit(work)

    def write(frame, depth):
        threads.add(threading.current_thread().name)
        time.sleep(0.02)
        order.append((frame.number, depth))

    with ThreadPoolExecutor(2) as pool:
        facts = run_video(Source(15, every_s=0.02), predict, write, lambda: None)
    assert order == [(k, k) for k in range(15)]
    assert facts.frames == 15 and facts.dropped == 0 and facts.fps == pytest.approx(15 / facts.seconds)
    assert facts.seconds < 0.75
    assert "fathom-write" in threads


def done(value):
    future = Future()
    future.set_exception(value) if isinstance(value, Exception) else future.set_result(value)
    return future


def test_a_live_source_drops_what_nobody_has_time_for():
    numbers = []

    def predict(pixels):
        time.sleep(0.02)
        return done(int(pixels[0, 0, 0]))

    facts = run_video(Source(60, live=True, every_s=0.001), predict, lambda frame, depth: numbers.append(frame.number), lambda: None)
    assert facts.dropped > 10 and facts.frames + facts.dropped == 60
    assert numbers == sorted(set(numbers)) and len(numbers) == facts.frames


def test_ctrl_c_ends_a_live_source_and_keeps_what_was_written():
    written, interrupted = [], []

    def predict(pixels):
        if pixels[0, 0, 0] >= 5:
            raise KeyboardInterrupt
        return done(1)

    facts = run_video(Source(200, live=True, every_s=0.005), predict, lambda frame, depth: written.append(frame.number), lambda: interrupted.append(1))
    assert facts.frames == len(written) == 5 and not interrupted
    with pytest.raises(KeyboardInterrupt):
        run_video(Source(200), predict, lambda frame, depth: None, lambda: interrupted.append(1))
    assert interrupted == [1]


def test_failed_frames_are_counted_and_other_errors_end_the_run():
    seen = []
    results = [done(1), done(AccuracyError("output tensor depth is 1 everywhere")), done(2)]
    facts = run_video(Source(3), lambda pixels: results[pixels[0, 0, 0]], lambda frame, depth: seen.append(depth), lambda: None)
    assert seen == [1, None, 2] and facts.failed == 1 and "everywhere" in str(facts.first_failure)

    def broken(frame, depth):
        raise InputError("the disk is full")

    for source, predict, write, words in [
        (Source(50), lambda pixels: done(1), broken, "disk is full"),
        (Source(50), lambda pixels: done(FathomError("stage x failed")), lambda frame, depth: None, "stage x failed"),
        (Source(3, error=InputError("it breaks off")), lambda pixels: done(1), lambda frame, depth: None, "breaks off"),
    ]:
        with pytest.raises(FathomError, match=words):
            run_video(source, predict, write, lambda: None)
    assert not [thread for thread in threading.enumerate() if thread.name == "fathom-write"]


def test_depth_run_on_a_video(tiny, clip, tmp_path, capsys):
    out = tmp_path / "out"
    assert run.main(["--engine", str(tiny.plan), "-o", str(out), "--json", "--save", "color,npy,png16", "--near", "1", "--far", "2", str(clip)]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["frames"] == COUNT and said["failed"] == said["dropped"] == 0 and said["fps"] > 0
    assert sorted(path.name for path in out.iterdir()) == ["_depth-run.json", "clip", "clip_color.mp4"]
    with Pipeline.open(tiny.plan) as pipeline:
        for number, picture in enumerate(pictures()):
            frame = np.load(out / f"clip/{number:06d}_depth.npy", allow_pickle=False)
            np.testing.assert_allclose(frame, pipeline.predict(picture).depth_m, rtol=1e-6)
            assert (out / f"clip/{number:06d}_depth.png").is_file()
    assert len(decoded(out / "clip_color.mp4")) == COUNT
    assert run.main(["--engine", str(tiny.plan), "-o", str(out), str(clip)]) == 3
    assert "exists already" in capsys.readouterr().err
    assert run.main(["--engine", str(tiny.plan), "-o", str(out), "--force", "--quiet", str(clip)]) == 0
    assert "12 frames in" in (said := capsys.readouterr().out) and "fps end to end" in said


def test_what_a_format_could_not_hold_is_told_once_for_all_frames(tiny, clip, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("fathom.runtime.outputs.writers.MAX_MM", 1010)  # the tiny network's depth begins at 1 m
    words = ["--engine", str(tiny.plan), "-o", str(tmp_path / "out"), "--save", "png16", "--quiet", str(clip)]
    assert run.main(words) == 0
    warnings = [line for line in capsys.readouterr().err.splitlines() if "warning:" in line]
    assert len(warnings) == 1 and f"in {COUNT} of {COUNT} frames" in warnings[0] and "became 0" in warnings[0]


def test_depth_run_refuses_photos_beside_videos(tiny, clip, tmp_path, capsys):
    assert run.main(["--engine", str(tiny.plan), "-o", str(tmp_path / "out"), str(clip), "a.png"]) == 2
    assert "photos and videos together" in capsys.readouterr().err
    twice = tmp_path / "clip.mp4"
    twice.write_bytes(b"")
    assert run.main(["--engine", str(tiny.plan), "-o", str(tmp_path / "out"), str(clip), str(twice), "-q"]) == 3  # the empty one does not stop the other
    assert [path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.mp4")] == [f"{clip.name}_color.mp4"]


def test_a_video_that_breaks_off_leaves_no_half_video(tiny, clip, tmp_path, capsys):
    raw = clip.read_bytes()
    (tmp_path / "junk.mkv").write_bytes(raw[:100] + bytes(200))
    out = tmp_path / "out"
    assert run.main(["--engine", str(tiny.plan), "-o", str(out), str(tmp_path / "junk.mkv"), str(clip)]) == 3
    captured = capsys.readouterr()
    assert "junk.mkv" in captured.err and "12 frames" in captured.out  # the other one was run
    assert sorted(path.name for path in out.iterdir()) == ["_depth-run.json", "clip_color.mp4"]


@pytest.mark.parametrize("kinds", ["npy", "color"])
def test_a_full_disk_ends_the_whole_run(tiny, clip, tmp_path, capsys, monkeypatch, kinds):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    if kinds == "npy":
        monkeypatch.setattr(np.lib.format, "write_array", full)
    else:
        monkeypatch.setattr(ColorVideo, "_open", full)
    (tmp_path / "other.mkv").write_bytes(clip.read_bytes())
    assert run.main(["--engine", str(tiny.plan), "-o", str(tmp_path / "out"), "--save", kinds, "-q", str(clip), str(tmp_path / "other.mkv")]) == 3
    captured = capsys.readouterr()
    assert captured.err.count("error: ") == 1 and "the disk is full" in captured.err and "other" not in captured.err and not captured.out
    assert not [path for path in (tmp_path / "out").rglob("*") if path.suffix in (".npy", ".mp4", PART_END)]


def test_colours_keep_the_scale_of_the_first_second_over_the_whole_video(tiny, clip, tmp_path):
    """One scale for all frames, from what the first second shows, with its bar below; --near and --far decide where they are given."""
    with Pipeline.open(tiny.plan) as pipeline:
        maps = [pipeline.predict(picture) for picture in pictures()]
    first = maps[: min(8, COUNT)]
    low, high = (float(end([np.percentile(one.values[one.valid], share) for one in first])) for end, share in ((min, 1), (max, 99)))
    out = tmp_path / "out"
    assert run.main(["--engine", str(tiny.plan), "-o", str(out), "--save", "color", "--colormap", "grey", "-q", str(clip)]) == 0
    frames = [shown for _, shown in decoded(out / "clip_color.mp4")]
    height, width = pictures()[0].shape[:2]
    assert len(frames) == COUNT and all(frame.shape == frames[0].shape and frame.shape[0] > height for frame in frames)
    left = (frames[0].shape[1] - width) // 2
    for frame, depth in zip(frames, maps, strict=True):
        shown = frame[:height, left : left + width].astype(float).mean(axis=-1)
        wanted = colorize(depth.values, depth.valid, low, high, "grey", reverse=depth.larger_is == "far").astype(float).mean(axis=-1)
        assert np.abs(shown - wanted).mean() < 12  # the codec's loss


def test_colours_go_as_asked_where_the_first_frames_have_no_depth(tiny, clip, tmp_path, monkeypatch):
    """Nothing says then how far the depth goes; --near and --far, one of them or both, still hold."""
    submit, count = Pipeline.submit, [0]

    def at_first_none(self, *given):
        count[0] += 1
        return done(AccuracyError("output tensor depth is 1 everywhere")) if count[0] <= 3 else submit(self, *given)

    with Pipeline.open(tiny.plan) as pipeline:
        last, trained = pipeline.predict(pictures()[-1]), pipeline.contract.output
    middle = float(np.median(last.values))
    monkeypatch.setattr(Pipeline, "submit", at_first_none)
    monkeypatch.setattr("fathom.runtime.commands.video_command.RANGE_S", 0.2)  # of which all are without depth
    for asked, ends in ((["--near", f"{middle}"], (middle, trained.far)), (["--near", f"{middle}", "--far", f"{2 * middle}"], (middle, 2 * middle))):
        count[0], out = 0, tmp_path / f"out{len(asked)}"
        assert run.main(["--engine", str(tiny.plan), "-o", str(out), "--save", "color", "--colormap", "grey", "-q", *asked, str(clip)]) == 4
        frame = decoded(out / "clip_color.mp4")[-1][1]
        height, width = pictures()[0].shape[:2]
        left = (frame.shape[1] - width) // 2
        wanted = colorize(last.values, last.valid, *ends, "grey", reverse=last.larger_is == "far").astype(float)
        assert np.abs(frame[:height, left : left + width] - wanted).mean() < 12  # the codec's loss


def test_progress_without_an_end(capsys):
    from fathom.runtime.commands.progress import Progress

    with Progress(0, "frames", every_s=0.0) as progress:
        for k in range(1, 4):
            progress.advance_to(k)
    assert capsys.readouterr().err == "1 frames\n2 frames\n3 frames\n"
