"""Cameras of photos: files of calibration tools, other sizes, and metres that hang on the focal length."""

import json

import numpy as np
import pytest
from noise_photos import depth_run, photo, picture
from other_contracts import with_output
from PIL import Image

from fathom.runtime.commands import inspection, run
from fathom.runtime.errors import InputError, UsageError
from fathom.runtime.photo.depth_map import Intrinsics
from fathom.runtime.photo.intrinsics_file import read_intrinsics
from fathom.runtime.pipeline import Pipeline
from fathom.runtime.scale.camera_scale import CameraScale


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
        pipeline.contract = dataclasses.replace(contract, output=dataclasses.replace(output, focal_px=32.0, focal_assumed=True))
        before = len(pipeline.remarks)
        np.testing.assert_allclose(pipeline.predict(shown, intrinsics=camera).depth_m, 225 / 32 * plain.depth_m, rtol=1e-6)
        assert len(pipeline.remarks) == before
        for _ in range(2):  # 64 columns at 32 pixels to the tangent of 45 degrees; said once
            assert np.array_equal(pipeline.predict(shown).depth_m, plain.depth_m)
        assert len(pipeline.remarks) == before + 1 and "sees 90 degrees across" in pipeline.remarks[-1]


@pytest.mark.parametrize("video", [False, True])
def test_a_camera_that_is_assumed_is_told(tiny, tmp_path, capsys, video):
    """At 64 columns a focal length of 32 pixels sees 90 degrees; a photo of 128 columns and 96 pixels of focal length shows things 1.5 times as far."""
    bundle = with_output(tiny.bundle, tmp_path / "bundle", focal_px=32.0, focal_assumed=True)
    shown = str(picture(tmp_path / "p.png", size=(96, 128)))
    if video:
        av = pytest.importorskip("av")
        with av.open(str(tmp_path / "v.mkv"), "w") as container:
            stream = container.add_stream("ffv1", rate=8)
            stream.width, stream.height, stream.pix_fmt = 128, 96, "bgr0"
            container.mux(stream.encode(av.VideoFrame.from_ndarray(photo(96, 128), format="rgb24")))
            container.mux(stream.encode(None))
        shown = str(tmp_path / "v.mkv")

    def run_on(out, *words):
        assert run.main(["--engine", str(bundle), "-o", str(tmp_path / out), "--save", "npy", *words, shown]) == 0
        found = capsys.readouterr()
        (depth,) = (tmp_path / out).rglob("*_depth.npy")
        return np.load(depth, allow_pickle=False), found.out, found.err

    assumed, lines, told = run_on("a")
    assert told.count("the camera is not known: metres are for one that sees 90 degrees across") == 1 and ("camera assumed" in lines) != video
    known, lines, told = run_on("b", "--intrinsics", "96,96,63.5,47.5")
    assert "is not known" not in told and "camera assumed" not in lines
    np.testing.assert_allclose(known, 1.5 * assumed, rtol=1e-6)
    if not video:
        assert inspection.main([str(bundle)]) == 0
        assert "\ncamera    metres for a focal length of 32 pixels: assumed without --intrinsics\n" in capsys.readouterr().out
        assert json.loads(run_on("c", "--json", "--save", "npy,png16")[1])["camera"] == "assumed"
        assert Image.open(tmp_path / "c" / "p_depth.png").text["Fathom-Camera"] == "assumed"
        assert "camera" not in json.loads(run_on("d", "--json", "--intrinsics", "96,96,63,47")[1])


def test_a_scale_is_refused_where_only_one_of_the_two_was_told_the_camera(tiny, tmp_path):
    """Metres hang on the camera then: a factor that was measured on those of an assumed one is none for those of the real one."""
    camera = Intrinsics(96.0, 96.0, 63.5, 47.5)
    with Pipeline.open(with_output(tiny.bundle, tmp_path / "bundle", focal_px=32.0, focal_assumed=True)) as pipeline:
        plain = {known: pipeline.predict(photo(96, 128), intrinsics=known).depth_m for known in (None, camera)}
        for told, at_run in ((camera, None), (None, camera), (camera, camera), (None, None)):
            fx = {"fx": 96.0, "width": 128} if told else {}
            pipeline.scale = CameraScale(1.5, name="hall.scale.json", network=pipeline.origin.network, protocol="single-image", **fx)
            if told is at_run:
                np.testing.assert_allclose(pipeline.predict(photo(96, 128), intrinsics=at_run).depth_m, 1.5 * plain[at_run], rtol=1e-6)
            else:
                with pytest.raises(InputError, match="measured with" + ("" if told else "out")):
                    pipeline.predict(photo(96, 128), intrinsics=at_run)
        pipeline.scale = CameraScale(2.0)  # typed: whoever types it knows for what
        assert pipeline.predict(photo(96, 128)).camera == "assumed" and pipeline.predict(photo(96, 128), intrinsics=camera).camera == "told"
