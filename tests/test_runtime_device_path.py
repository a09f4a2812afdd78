"""What the GPU is given and when: words beside photos, full batches, copies beside the network, times; on the fake GPU."""

import dataclasses
import time

import fake_plans
import fake_tensorrt
import kernel_host
import numpy as np
import pytest
from noise_photos import photo

from fathom.benchmarks.latency.latency import Query
from fathom.benchmarks.latency.photo_parts import photo_parts
from fathom.runtime.artefact.contract import Resize
from fathom.runtime.artefact.manifest import PlanStage
from fathom.runtime.artefact.plan import PlanFile
from fathom.runtime.artefact.spec import StageSpec, TensorSpec
from fathom.runtime.artefact.text_input import TextInput
from fathom.runtime.errors import UsageError
from fathom.runtime.photo.raw_maps import RawMaps
from fathom.runtime.photo.shaped_photo import ShapedPhoto
from fathom.runtime.pipeline import Pipeline
from fathom.runtime.tensorrt.backend import TensorRTBackend

pytestmark = pytest.mark.skipif(not kernel_host.compiler(), reason="no C++ compiler")


def asked_plan(tiny, path, text, batch, flip):
    """A plan of two stages, the first of which takes words; what they compute is ``asked_network``'s business."""
    from fathom.export.plan.plan_file import file_facts, write_plan
    from fathom.models.prompt_tokens import bert_words, tokenizer_json

    image, depth = TensorSpec("image", "float32", ("batch", 3, 48, 64)), TensorSpec("depth", "float32", ("batch", 1, 24, 32))
    words = [TensorSpec("ids", "int64", ("batch", text.length))] + ([TensorSpec("mask", "float32", ("batch", text.length))] if text.mask else [])
    meaning = TensorSpec("meaning", "float32", ("batch", 1))
    specs = (StageSpec("words", tuple(words), (meaning,)), StageSpec("picture", (image, meaning), (depth,)))
    sources = {f"engines/{spec.name}.plan": fake_tensorrt.engine_bytes(spec, b"", fake_plans.RELEASES["tensorrt"], batch) for spec in specs}
    sources[text.tokenizer] = tokenizer_json(bert_words())
    with PlanFile.open(tiny.plan) as plan:
        manifest = plan.manifest
    protocol = dataclasses.replace(manifest.contract.protocols[0], steps=(Resize(48, 64, "bilinear-antialias"),), flip=flip)
    contract = dataclasses.replace(manifest.contract, text=text, protocols=(protocol,))
    facts = {
        "stages": tuple(PlanStage(spec, f"engines/{spec.name}.plan", "fp32") for spec in specs),
        "files": {name: file_facts(source) for name, source in sources.items()},
    }
    facts |= {"backend": "tensorrt", "backend_version": fake_plans.RELEASES["tensorrt"], "targets": ("sm86",), "batch": batch, "contract": contract}
    write_plan(path, dataclasses.replace(manifest, **facts), sources)
    return path


def asked_network(context):
    """depth = 1 + mean of the colours + a weighted sum of the ids that the mask lets through."""
    tensors = {name: context._tensor(name) for name in context.addresses}
    if "ids" in tensors:
        assert (tensors["ids"] >= 0).all() and (tensors["ids"] < 30522).all()  # also in warm-up: an engine would read outside its table
        ids = tensors["ids"] * tensors["mask"] if "mask" in tensors else tensors["ids"]
        tensors["meaning"][:, 0] = (ids * np.arange(1, ids.shape[1] + 1)).sum(axis=1) / 1e5
    else:
        tensors["depth"][:, 0] = 3 + tensors["image"].mean(axis=1)[:, ::2, ::2] / 4 + tensors["meaning"][:, :, None]


KINDS = {
    "prompt": TextInput("prompt", "ids", "", 8, 0, "t.json", "{text}"),
    "level-statistics": TextInput("level-statistics", "ids", "mask", 30, 0, "t.json", "min {min} max {max} median {median} class {class}", ("far",), (255,)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch", [(1, 2, 4), (3, 3, 3)])
def test_networks_that_take_words(gpu, tiny, tmp_path, kind, batch):
    gpu.execute = asked_network
    plan = asked_plan(tiny, tmp_path / "x.plan", KINDS[kind], batch, flip=True)
    photos, prompt = [photo(90, 120, 1), photo(40, 70, 2) // 2, photo(48, 64, 3) // 3], "the cup" if kind == "prompt" else None
    with Pipeline.open(plan) as pipeline:
        got = pipeline.predict_batch(photos, prompt=prompt)
        assert gpu.launches > 0 and not any("shaped on the CPU" in remark for remark in pipeline.remarks)
        assert any("words that describe a photo" in remark for remark in pipeline.remarks) == (kind != "prompt")
        pipeline.backend.predict_photos = lambda *_: RawMaps(why_cpu="a test")
        for one, other in zip(got, pipeline.predict_batch(photos, prompt=prompt), strict=True):
            np.testing.assert_allclose(one.depth_m, other.depth_m, atol=1e-4)
        assert any("on the CPU: a test" in remark for remark in pipeline.remarks)
        if kind == "prompt":
            with pytest.raises(UsageError, match="no prompt"):
                pipeline.predict(photos[0])
            assert np.abs(pipeline.predict(photos[0], prompt="this object").depth_m - got[0].depth_m).min() > 1e-3
    assert gpu.leaks() == {}


def test_submitted_photos_fill_a_fixed_batch(gpu, tiny, tmp_path):
    plan, photos = fake_plans.gpu_plan(tiny, tmp_path / "x.plan", batch=(4, 4, 4)), [photo(50 + k, 80, k) for k in range(15)]
    with Pipeline.open(plan) as pipeline:
        wanted = [pipeline.predict(one).depth_m for one in photos]
        before = gpu.graph_launches
        with gpu.lock:  # the GPU stands still while they come
            futures = [pipeline.submit(one) for one in photos]
            time.sleep(0.05)
        for future, depth in zip(futures, wanted, strict=True):
            np.testing.assert_allclose(future.result().depth_m, depth, atol=1e-6)
        assert gpu.graph_launches - before <= 7  # three threads begin at once, each with what is there; the rest goes in fours
    assert gpu.leaks() == {}


def test_copies_have_a_stream_of_their_own(gpu, tiny, tmp_path, monkeypatch):
    """Photos go up and maps come down beside the stream on which kernels and stages run."""
    with Pipeline.open(fake_plans.gpu_plan(tiny, tmp_path / "x.plan", batch=(1, 1, 1))) as pipeline:
        used = {"copies": set(), "kernels": set()}
        for name, kind in (("upload", "copies"), ("download", "copies"), ("launch", "kernels")):
            function = getattr(gpu, name)
            monkeypatch.setattr(gpu, name, lambda *arguments, function=function, kind=kind: used[kind].add(arguments[-1]) or function(*arguments))
        [future.result() for future in [pipeline.submit(photo(seed=k)) for k in range(20)]]
        assert len(used["kernels"]) == 1 and 1 <= len(used["copies"]) <= 2 and not used["kernels"] & used["copies"]
    assert gpu.leaks() == {}


def test_network_time_is_the_devices_and_the_rest_is_waiting(gpu, tiny, tmp_path):
    """The fake device's clock ticks once at each event: one run lies between two, whatever the host's clock says."""
    with Pipeline.open(fake_plans.gpu_plan(tiny, tmp_path / "x.plan", batch=(1, 2, 4))) as pipeline:
        depth = pipeline.predict(photo())
        assert depth.network_ms == 1.0 and depth.waiting_ms >= 0
        for depth in pipeline.predict_batch([photo(seed=k) for k in range(2)]):
            assert depth.network_ms == 0.5  # they shared a run
        pipeline.backend.predict_photos = lambda *_: RawMaps(why_cpu="a test")
        assert pipeline.predict(photo()).network_ms == 1.0
    with Pipeline.open(tiny.plan, threads=1) as pipeline:
        start = time.perf_counter()
        depth = pipeline.predict(photo())
        assert 0 < depth.network_ms < (time.perf_counter() - start) * 1e3


def test_where_the_time_of_a_photo_goes(gpu, tiny, tmp_path):
    """One tick of the fake device's clock from each mark to the next; the other maps are asked for as ever."""
    with Pipeline.open(fake_plans.gpu_plan(tiny, tmp_path / "x.plan", batch=(1, 2, 4))) as pipeline:
        shaped, protocol = ShapedPhoto(photo(), pipeline.contract, pipeline.protocol()), pipeline.protocol()
        parts = pipeline.backend.photo_parts_ms(shaped.photo, shaped.placed, protocol, 1, {})
        assert parts == dict.fromkeys(("copy_in", "shaping", "network", "finishing", "copy_out"), 1.0)
        assert pipeline.backend.predict_photos([shaped.photo], [shaped.placed], protocol, 1, {}).parts_ms == {}
        found = photo_parts(pipeline, Query({"image": np.zeros((1, 3, 48, 64), np.float32)}, photo()), 3, [9.0, 7.0, 8.0])
        assert found == {**parts, "host": 3.0}
    with PlanFile.open(tmp_path / "x.plan") as plan:
        backend = TensorRTBackend(plan, kernels=False)
        assert backend.photo_parts_ms(shaped.photo, shaped.placed, protocol, 1, {}) == {}  # shaped on the CPU
        backend.close()
    with Pipeline.open(tiny.plan, threads=1) as pipeline:
        assert photo_parts(pipeline, Query({}, photo()), 3, [1.0]) == {}
    assert gpu.leaks() == {}


def test_waiting_sleeps(gpu, tiny, tmp_path, monkeypatch):
    """While the device works for 0.3 s, the process takes next to no CPU time."""
    with Pipeline.open(fake_plans.gpu_plan(tiny, tmp_path / "x.plan")) as pipeline:
        pipeline.predict(photo())
        reached = gpu.event_reached
        waits = []

        def slowly(event):
            waits.append(event)
            gpu.lock.release()  # others may go on, as on a device
            time.sleep(0.3 if len(waits) == 1 else 0)
            gpu.lock.acquire()
            reached(event)

        monkeypatch.setattr(gpu, "event_reached", slowly)
        start = time.process_time()
        pipeline.predict(photo())
        assert time.process_time() - start < 0.2 and len(waits) == 2  # by the one who waits, and once more by the owner
    assert gpu.leaks() == {}
