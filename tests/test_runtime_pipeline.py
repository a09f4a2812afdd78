"""From photos to maps through a real (tiny) network, against the same worked out by hand."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from noise_photos import photo

from fathom.runtime.artefact.plan import PlanFile
from fathom.runtime.errors import AccuracyError, ChecksumError, EnvironmentMismatchError, InputError, UsageError
from fathom.runtime.photo.depth_map import Intrinsics
from fathom.runtime.pipeline import Pipeline
from fathom.runtime.serving.photo_service import Ask, PhotoService

PLANS = Path(__file__).parent / "data" / "plans"


def by_hand(made, picture):
    """Resize to 48x64, normalise, network, back to the photo's size: all PyTorch and NumPy."""
    x = F.interpolate(torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255, (48, 64), mode="bilinear", align_corners=False)
    depth = torch.from_numpy(made.expected(made.kernel, ((x - 0.5) / 0.5).numpy())).float()
    depth = F.interpolate(depth, (48, 64), mode="bilinear", align_corners=False)
    return F.interpolate(depth, picture.shape[:2], mode="bilinear", align_corners=False)[0, 0].numpy()


@pytest.mark.parametrize("which", ["plan", "bundle"])
def test_one_photo(tiny, which):
    with Pipeline.open(getattr(tiny, which), threads=1) as pipeline:
        depth = pipeline.predict(photo(), intrinsics=(50, 50, 49.5, 29.5))
    np.testing.assert_allclose(depth.depth_m, by_hand(tiny, photo()), rtol=1e-4)
    assert depth.valid.all() and depth.unit == "m" and depth.protocol == "single-image"
    assert depth.intrinsics == Intrinsics(50.0, 50.0, 49.5, 29.5)
    assert depth.origin.network == "tiny test" and len(depth.origin.sha256) == 64 and not depth.origin.untrained


def test_a_request_with_half_a_camera_is_told_and_costs_no_other(tiny):
    with Pipeline.open(tiny.plan, threads=1) as pipeline:
        for camera in ((50, 50, 49.5), (50, 50, 49.5, 29.5, 100), ()):
            with pytest.raises(ValueError, match="fx, fy, cx and cy were wanted"):
                pipeline.predict(photo(), intrinsics=camera)
        service = PhotoService(pipeline)
        half, whole = service.answer([Ask((photo(),), camera=(50.0, 50.0, 49.5)), Ask((photo(),), camera=(50.0, 50.0, 49.5, 29.5))])
        service.close()
    assert isinstance(half, InputError) and "got 3 numbers" in str(half)
    np.testing.assert_allclose(whole[0][1].depth_m, by_hand(tiny, photo()), rtol=1e-4)


def test_many_photos_of_different_sizes_share_batches(tiny):
    photos = [photo(40 + 7 * k, 90 - 5 * k, k) for k in range(7)]
    with Pipeline.open(tiny.plan, batch=3) as pipeline:
        counts = []
        together = pipeline.predict_batch(photos, on_progress=counts.append)
        assert counts == [3, 6, 7]
        for picture, depth in zip(photos, together, strict=True):
            np.testing.assert_allclose(depth.depth_m, by_hand(tiny, picture), rtol=1e-4)
        assert pipeline.predict_batch([]) == []


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_windows_and_flips_do_not_depend_on_the_batch(tiny, batch):
    with Pipeline.open(tiny.plan, batch=1) as pipeline:
        wanted = pipeline.predict(photo(), "windows")
    with Pipeline.open(tiny.plan, batch=batch) as pipeline:
        got = pipeline.predict(photo(), "windows")
    np.testing.assert_allclose(got.depth_m, wanted.depth_m, rtol=1e-5)
    assert got.valid.all() and got.protocol == "windows"


def test_an_engine_with_a_least_batch_is_fed(make_artefacts):
    made = make_artefacts(batch=(4, 4, 4))
    with Pipeline.open(made.plan) as pipeline:
        assert pipeline.batch == 4
        np.testing.assert_allclose(pipeline.predict(photo()).depth_m, by_hand(made, photo()), rtol=1e-4)


def test_batches_outside_the_plans_range_are_refused(tiny):
    with pytest.raises(UsageError, match="1 to 4"):
        Pipeline.open(tiny.plan, batch=5)


def test_several_threads_use_one_pipeline(tiny):
    photos = [photo(seed=k) for k in range(8)]
    results = [None] * 8
    with Pipeline.open(tiny.plan) as pipeline:

        def work(k):
            results[k] = pipeline.predict(photos[k]).depth_m

        threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
    for k in range(8):
        np.testing.assert_allclose(results[k], by_hand(tiny, photos[k]), rtol=1e-4)


def test_closing_twice_is_fine(tiny):
    pipeline = Pipeline.open(tiny.plan)
    pipeline.close()
    pipeline.close()
    with pytest.raises(ValueError, match="closed"):
        pipeline.predict(photo())


def test_nan_weights_name_the_first_bad_tensor(make_artefacts):
    made = make_artefacts(poison=np.nan)
    with Pipeline.open(made.plan) as pipeline, pytest.raises(AccuracyError, match=r"stage encoder puts out \d+ NaN .* in tensor features"):
        pipeline.predict(photo())


def test_a_constant_map_is_refused(tiny):
    class Flat:
        stages, concurrent, remarks = tiny.specs, 1, ()

        def run(self, inputs, keep):
            return {"depth": np.ones((len(inputs["image"]), 1, 24, 32), np.float32)}

        def close(self):
            pass

    with PlanFile.open(tiny.plan) as plan, Pipeline(plan, Flat()) as pipeline, pytest.raises(AccuracyError, match="depth is 1 everywhere"):
        pipeline.predict(photo())


def test_wrong_arguments(tiny):
    with Pipeline.open(tiny.plan) as pipeline:
        with pytest.raises(ValueError, match="uint8"):
            pipeline.predict(photo().astype(np.float32))
        with pytest.raises(UsageError, match="single-image or windows"):
            pipeline.predict(photo(), "kitti")
        with pytest.raises(UsageError, match="no words"):
            pipeline.predict(photo(), prompt="the cup")


def test_what_is_no_artefact(tiny, tmp_path):
    (tmp_path / "x.plan").write_bytes(b"no plan")
    for path in (tmp_path / "x.plan", tmp_path / "gone.plan", tmp_path):
        with pytest.raises(InputError):
            Pipeline.open(path)
    data = bytearray(tiny.plan.read_bytes())
    with PlanFile.open(tiny.plan) as plan:
        data[plan.extent("engines/encoder.data")[0] + 100] ^= 1
    (tmp_path / "changed.plan").write_bytes(data)
    with pytest.raises(ChecksumError, match=r"encoder\.data"):
        Pipeline.open(tmp_path / "changed.plan")
    with pytest.raises(EnvironmentMismatchError, match="NVIDIA GPU"):
        Pipeline.open(tiny.gpu_plan)


def test_relative_output_has_no_metres(make_artefacts):
    with Pipeline.open(make_artefacts(kind="relative").plan) as pipeline:
        depth = pipeline.predict(photo())
    assert depth.unit == "" and depth.kind == "relative"
    with pytest.raises(ValueError, match="without a unit"):
        depth.depth_m


def test_the_front_door(tiny):
    import fathom.runtime

    with fathom.runtime.Pipeline.open(tiny.plan) as pipeline:
        assert isinstance(pipeline(photo()), fathom.runtime.DepthMap)
    with pytest.raises(AttributeError):
        fathom.runtime.nothing


def test_a_plan_of_the_first_release_gives_the_depth_it_gave_then():
    """Plans outlive the files that write them: this one and its depth come from version 0.1.0, before the folders got their rooms."""
    photo = np.random.default_rng(11).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    wanted = np.load(PLANS / "small-0.1.0.depth_m.npy", allow_pickle=False)
    with Pipeline.open(PLANS / "small-0.1.0.plan") as pipeline:
        np.testing.assert_allclose(pipeline.predict(photo).depth_m, wanted, rtol=1e-5)
