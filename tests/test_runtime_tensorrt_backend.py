"""Plans for TensorRT and TensorRT-RTX through their whole life on a fake GPU, against the same network on ONNX Runtime."""

import dataclasses
import json
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import fake_cuda
import fake_plans
import fake_pycuda
import fake_tensorrt
import numpy as np
import pytest
from fake_tensorrt import nothing_left
from noise_photos import photo

from fathom.runtime.artefact.contract import Resize
from fathom.runtime.artefact.plan import PlanFile
from fathom.runtime.errors import FathomError, UsageError
from fathom.runtime.photo.raw_maps import RawMaps
from fathom.runtime.pipeline import Pipeline
from fathom.runtime.tensorrt.backend import TensorRTBackend

BOTH = ["tensorrt", "tensorrt-rtx"]


def run_inputs(batch, seed=0):
    return {"image": np.random.default_rng(seed).normal(size=(batch, 3, 48, 64)).astype(np.float32)}


@pytest.mark.parametrize("backend", BOTH)
def test_the_whole_life(gpu, tiny, tmp_path, backend):
    plan = fake_plans.gpu_plan(tiny, tmp_path / "x.plan", backend)
    photos = [photo(40 + 7 * k, 90 - 5 * k, k) for k in range(7)]
    with Pipeline.open(tiny.plan, threads=1) as pipeline:
        wanted = pipeline.predict_batch(photos)
        wanted_windows = pipeline.predict(photos[0], "windows")
    pipeline = Pipeline.open(plan)
    assert gpu.trt[backend].counts == {"engine": 2, "context": 2}
    for got, depth in zip(pipeline.predict_batch(photos), wanted, strict=True):
        np.testing.assert_allclose(got.depth_m, depth.depth_m, atol=1e-3)
        np.testing.assert_array_equal(got.valid, depth.valid)
    np.testing.assert_allclose(pipeline.predict(photos[0], "windows").depth_m, wanted_windows.depth_m, atol=1e-3)
    words = " | ".join(pipeline.remarks)
    assert "Fake GPU, sm86" in words and "device memory" in words and "warmed up with 2 runs" in words
    assert gpu.launches > 0 or gpu.host is None
    pipeline.close()
    pipeline.close()
    with pytest.raises(ValueError, match="closed"):
        pipeline.predict(photos[0])
    nothing_left(gpu)


@pytest.mark.parametrize("backend", BOTH)
@pytest.mark.parametrize("batch", [1, 3, 4])
def test_tensors_in_and_out(gpu, tiny, tmp_path, backend, batch):
    plan = fake_plans.gpu_plan(tiny, tmp_path / "x.plan", backend, lies={"encoder": {"layers": ["stem", "again", "again"]}})
    with PlanFile.open(plan) as file:
        engines = TensorRTBackend(file)
        inputs = run_inputs(batch)
        wanted = tiny.expected(tiny.kernel, inputs["image"])
        np.testing.assert_allclose(engines.run(inputs)["depth"], wanted, rtol=1e-4)
        strided = {"image": np.ascontiguousarray(inputs["image"].transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)}
        np.testing.assert_allclose(engines.run(strided)["depth"], wanted, rtol=1e-4)
        kept = engines.run(inputs, frozenset({"features", "depth"}))  # a tensor between stages, whose place is used again
        assert kept["features"].shape == (batch, 8, 24, 32)
        np.testing.assert_allclose(kept["features"].mean(axis=1, keepdims=True) + 1, wanted, rtol=1e-4)
        first = engines.run(inputs)["depth"]
        engines.run(run_inputs(batch, 1))
        np.testing.assert_allclose(first, wanted, rtol=1e-4)  # results belong to the caller
        for wrong, words in [
            ({"image": inputs["image"].astype(np.float64)}, "float64, wanted float32"),
            ({"image": inputs["image"][:, :2]}, "wanted"),
            ({"image": np.zeros((5, 3, 48, 64), np.float32)}, "1 to 4"),
            ({}, "wanted exactly"),
            ({"image": [1]}, "list"),
        ]:
            with pytest.raises(ValueError, match=words):
                engines.run(wrong)
        times_ms = engines.device_times_ms(inputs, 3)
        assert len(times_ms) == 3 and min(times_ms) > 0
        by_stage = engines.stage_times_ms(inputs, 4)
        assert list(by_stage) == ["encoder", "head"] and all(len(taken) == 4 and min(taken) > 0 for taken in by_stage.values())
        by_layer = engines.layer_times_ms(inputs, 2)
        assert by_layer == {
            "encoder": {"stem": [0.5, 0.5], "again": [1.5 + 2.5, 1.5 + 2.5]},
            "head": {"one layer": [0.5, 0.5]},
        }  # two layers of a name count as one
        np.testing.assert_allclose(engines.run(inputs)["depth"], wanted, rtol=1e-4)
        with pytest.raises(ValueError, match="no stage makes"):
            engines.run(inputs, frozenset({"nothing"}))
        engines.close()
        engines.close()
        with pytest.raises(ValueError, match="closed"):
            engines.run(inputs)
    nothing_left(gpu)


def test_one_thread_makes_all_cuda_calls(gpu, tiny, tmp_path):
    plan = fake_plans.gpu_plan(tiny, tmp_path / "x.plan")
    photos = [photo(seed=k) for k in range(16)]
    with Pipeline.open(tiny.plan, threads=1) as pipeline:
        wanted = [depth.depth_m for depth in pipeline.predict_batch(photos)]
    results = [None] * 16
    with Pipeline.open(plan, streams=2) as pipeline:

        def work(k):
            for index in (2 * k, 2 * k + 1):
                results[index] = pipeline.predict(photos[index]).depth_m

        threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
    for got, depth in zip(results, wanted, strict=True):
        np.testing.assert_allclose(got, depth, atol=1e-3)
    works, waits = sorted(gpu.threads.values(), key=len, reverse=True)  # of two threads one does nothing but sleep
    assert waits == {"cuCtxPushCurrent", "cuEventSynchronize", "cuCtxPopCurrent"} and "cuLaunchKernel" in works | {"cuLaunchKernel" if gpu.host is None else ""}
    assert threading.get_ident() not in gpu.threads
    nothing_left(gpu)


def test_many_frames_make_nothing_new(gpu, tiny, tmp_path):
    with Pipeline.open(fake_plans.gpu_plan(tiny, tmp_path / "x.plan", batch=(1, 1, 1))) as pipeline:
        made = []
        for _ in range(6):  # the second slot comes into use when two photos first overlap
            [future.result() for future in [pipeline.submit(photo(seed=k)) for k in range(100)]]
            made.append((dict(gpu.made), gpu.used()))
        assert made[-1] == made[-2] == made[-3]
    nothing_left(gpu)


def test_submitted_photos_come_back_as_asked(gpu, tiny, tmp_path):
    plan = fake_plans.gpu_plan(tiny, tmp_path / "x.plan")
    photos = [photo(50 + k, 80, k) for k in range(12)]
    with Pipeline.open(plan) as pipeline:
        wanted = [pipeline.predict(one).depth_m for one in photos]
        futures = [pipeline.submit(one) for one in photos]
        for future, depth in zip(futures, wanted, strict=True):
            np.testing.assert_allclose(future.result().depth_m, depth, rtol=1e-6)
        with pytest.raises(UsageError):
            pipeline.submit(photos[0], "no such protocol").result()
    with pytest.raises(ValueError, match="closed"):
        pipeline.submit(photos[0])
    nothing_left(gpu)


def test_two_pipelines_side_by_side(gpu, tiny, tmp_path):
    plan, other = fake_plans.gpu_plan(tiny, tmp_path / "x.plan"), fake_plans.gpu_plan(tiny, tmp_path / "y.plan", "tensorrt-rtx")
    with Pipeline.open(plan) as first:
        wanted = first.predict(photo()).depth_m
        with Pipeline.open(other) as second:
            np.testing.assert_allclose(second.predict(photo()).depth_m, wanted, atol=1e-5)
            assert gpu.retained == 2
        np.testing.assert_allclose(first.predict(photo()).depth_m, wanted, atol=0)
    nothing_left(gpu)


def test_pycuda_gives_the_same(monkeypatch, tiny, tmp_path, host):
    machine = fake_cuda.Machine(host=host)
    fake_pycuda.install(monkeypatch, machine)
    machine.trt = {"tensorrt": fake_tensorrt.install(monkeypatch, machine)}
    plan = fake_plans.gpu_plan(tiny, tmp_path / "x.plan", batch=(2, 2, 2))
    with Pipeline.open(tiny.plan, threads=1) as pipeline:
        wanted = pipeline.predict(photo()).depth_m
    with Pipeline.open(plan) as pipeline:
        np.testing.assert_allclose(pipeline.predict(photo()).depth_m, wanted, atol=1e-3)
        assert any("pycuda" in remark for remark in pipeline.remarks)
        assert any("without a CUDA graph" in remark for remark in pipeline.remarks)
    nothing_left(machine)


def test_memory_is_the_weights_and_the_largest_stage(gpu, tiny, tmp_path):
    plan = fake_plans.gpu_plan(
        tiny, tmp_path / "x.plan", batch=(1, 1, 1), lies={"encoder": {"activation_nbytes": 3 << 20}, "head": {"activation_nbytes": 1 << 20}}
    )
    with PlanFile.open(plan) as file:
        engines = TensorRTBackend(file)
        image, features, depth = 3 * 48 * 64 * 4, 8 * 24 * 32 * 4, 24 * 32 * 4
        assert depth < image  # the output lies where the input was
        assert gpu.used() == (3 << 20) + image + features
        engines.close()
        twice = TensorRTBackend(file, streams=2)
        assert gpu.used() == 2 * ((3 << 20) + image + features)
        assert any("x 2 streams" in remark for remark in twice.remarks)
        twice.close()
    nothing_left(gpu)


@pytest.mark.parametrize("graphs", [True, False])
def test_graph_and_no_graph_are_equal(gpu, tiny, tmp_path, graphs):
    plan = fake_plans.gpu_plan(tiny, tmp_path / "x.plan", batch=(2, 2, 2))
    with PlanFile.open(plan) as file:
        engines = TensorRTBackend(file, graphs=graphs)
        before = gpu.graph_launches
        for seed in range(3):
            inputs = run_inputs(2, seed)
            np.testing.assert_allclose(engines.run(inputs)["depth"], tiny.expected(tiny.kernel, inputs["image"]), rtol=1e-4)
        assert gpu.graph_launches - before == (3 if graphs else 0)
        assert any(("one CUDA graph" if graphs else "without a CUDA graph") in remark for remark in engines.remarks)
        engines.close()
    nothing_left(gpu)


def test_free_shapes_and_rtx_use_no_graph_of_ours(gpu, tiny, tmp_path):
    for backend, batch, words in (("tensorrt", (1, 2, 4), "without a CUDA graph"), ("tensorrt-rtx", (2, 2, 2), "TensorRT-RTX's own CUDA graphs")):
        plan = fake_plans.gpu_plan(tiny, tmp_path / "x.plan", backend, batch=batch)
        with Pipeline.open(plan) as pipeline:
            assert any(words in remark for remark in pipeline.remarks)
    assert gpu.made["graph"] == 0
    nothing_left(gpu)


def with_steps(tiny, *steps):
    contract = tiny_contract(tiny)
    return dataclasses.replace(contract, protocols=(dataclasses.replace(contract.protocols[0], steps=steps),))


def test_filtered_resizes_are_done_on_the_gpu(gpu, tiny, tmp_path):
    contract, photos = with_steps(tiny, Resize(48, 64, "bicubic-antialias")), [photo(90, 130, 1), photo(48, 100, 2), photo(48, 64, 3), photo(30, 64, 4)]
    with Pipeline.open(fake_plans.gpu_plan(tiny, tmp_path / "x.plan", contract=contract)) as pipeline:
        got = pipeline.predict_batch(photos)
        assert gpu.launches > 0 or gpu.host is None
        assert gpu.host is None or not any("on the CPU" in remark for remark in pipeline.remarks)
        pipeline._backend.predict_photos = lambda *_: RawMaps(why_cpu="a test")
        for one, other in zip(got, pipeline.predict_batch(photos), strict=True):
            np.testing.assert_allclose(one.depth_m, other.depth_m, atol=1e-4)
    nothing_left(gpu)


def test_what_the_gpu_cannot_do_is_told_once(gpu, tiny, tmp_path):
    contract = with_steps(tiny, Resize(96, 128, "bilinear"), Resize(48, 64, "bilinear"))
    with Pipeline.open(fake_plans.gpu_plan(tiny, tmp_path / "x.plan", contract=contract)) as pipeline:
        for _ in range(2):
            pipeline.predict(photo())
        (told,) = [remark for remark in pipeline.remarks if "shaped on the CPU" in remark]
        assert gpu.host is None or (gpu.launches == 0 and "the protocol single-image resizes more than once" in told)
    nothing_left(gpu)


def test_memory_for_photos_is_bounded(gpu, tiny, tmp_path):
    """On 256 MiB, 64 are for one group: what is more goes in parts, and a photo that is more alone is shaped on the CPU."""
    if gpu.host is None:
        pytest.skip("no C++ compiler")
    photos = [photo(1500, 2000, seed) for seed in range(4)]  # 24 MB each
    with Pipeline.open(fake_plans.gpu_plan(tiny, tmp_path / "x.plan", batch=(1, 4, 4))) as pipeline:
        assert any("at most 64 MiB of device memory for each of 2 groups" in remark for remark in pipeline.remarks)
        made = pipeline.predict_batch(photos)
        assert gpu.used() < 60e6 and not any("on the CPU" in remark for remark in pipeline.remarks)
        np.testing.assert_allclose(made[3].depth_m, pipeline.predict(photos[3]).depth_m, atol=1e-4)
        pipeline.predict(photo(3000, 3000))
        assert any("on the CPU: a photo takes 69 MiB" in remark for remark in pipeline.remarks) and gpu.used() < 60e6
    nothing_left(gpu)


def tiny_contract(tiny):
    with PlanFile.open(tiny.plan) as plan:
        return plan.manifest.contract


def test_without_kernels_for_this_gpu_it_still_works(monkeypatch, tiny, tmp_path):
    machine = fake_cuda.Machine(host=None)  # neither cubin nor PTX fits
    fake_cuda.install(monkeypatch, machine)
    machine.trt = {"tensorrt": fake_tensorrt.install(monkeypatch, machine)}
    with Pipeline.open(tiny.plan, threads=1) as pipeline:
        wanted = pipeline.predict(photo()).depth_m
    with Pipeline.open(fake_plans.gpu_plan(tiny, tmp_path / "x.plan")) as pipeline:
        np.testing.assert_allclose(pipeline.predict(photo()).depth_m, wanted, atol=1e-5)
        assert any("shaped on the CPU" in remark and "build_kernels" in remark for remark in pipeline.remarks)
    nothing_left(machine)


def test_interrupting_fails_what_waits_and_refuses_more(gpu, tiny, tmp_path):
    with PlanFile.open(fake_plans.gpu_plan(tiny, tmp_path / "x.plan")) as file:
        engines = TensorRTBackend(file)
        engines.interrupt()
        with pytest.raises(FathomError, match="interrupted"):
            engines.run(run_inputs(1))
        engines.close()
    nothing_left(gpu)


def test_the_kernel_cache_hits_and_says_why_it_misses(gpu, tiny, tmp_path):
    folder = tmp_path / "cache" / "tensorrt-rtx"

    def remark(backend="tensorrt-rtx", **more):
        with Pipeline.open(fake_plans.gpu_plan(tiny, tmp_path / "x.plan", backend, **more)) as pipeline:
            return next(words for words in pipeline.remarks if words.startswith("kernel cache"))

    assert "miss, the first run" in remark()
    assert folder.stat().st_mode & 0o777 == 0o700
    (kept,) = folder.glob("*.bin")
    assert kept.read_bytes() == b"kernels compiled here"
    assert "hit" in remark()
    assert gpu.trt["tensorrt-rtx"].caches[-1].raw == b"kernels compiled here"
    gpu.driver = 13010
    assert "miss, driver was 13.0 and is 13.1" in remark()
    kept.write_bytes(b"kernels from a stranger")
    assert "its bytes changed" in remark()
    kept.with_suffix(".json").write_text("[]")
    assert "its bytes changed" in remark()
    folder.chmod(0o777)
    assert "could be written by others" in remark()
    folder.chmod(0o700)
    lies = {"head": {"activation_nbytes": 701}}
    assert "first run" in remark(lies=lies)  # other engines, another entry
    assert len(list(folder.glob("*.bin"))) == 2
    nothing_left(gpu)


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
import fake_cuda, fake_tensorrt, numpy as np, threading
import pytest
patch = pytest.MonkeyPatch()
machine = fake_cuda.Machine()
fake_cuda.install(patch, machine)
trt = fake_tensorrt.install(patch, machine)
from fathom.runtime.pipeline import Pipeline
pipeline = Pipeline.open({plan!r})
pipeline.predict(np.zeros((48, 64, 3), np.uint8) + np.arange(64, dtype=np.uint8)[None, :, None])
import atexit, weakref
{end}
"""


@pytest.mark.parametrize("end", ["", "raise SystemExit(3)", "pipeline.submit(np.zeros((5000, 5000, 3), np.uint8))", "1 / 0", "del pipeline"])
def test_leaving_without_closing(tiny, tmp_path, end):
    """The interpreter ends soon, with its own exit code, and the device is given back."""
    plan = fake_plans.gpu_plan(tiny, tmp_path / "x.plan")
    script = textwrap.dedent(SCRIPT).format(
        tests=str(Path(__file__).parent), plan=str(plan), end="atexit.register(lambda: print('LEAKS', machine.leaks()))\n" + end
    )
    script = script.replace("import fake_cuda", "import atexit\natexit.register(lambda: print('LEAKS', machine.leaks()))\nimport fake_cuda", 1)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == {"raise SystemExit(3)": 3, "1 / 0": 1}.get(end, 0), done.stderr
    assert done.stdout.strip().splitlines()[-1] == "LEAKS {}", done.stdout + done.stderr
    assert "Traceback" not in done.stderr.replace("Traceback (most recent call last)", "", 1 if end == "1 / 0" else 0), done.stderr


@pytest.mark.parametrize("streams", ["1", "3"])
def test_depth_run_on_a_gpu_plan(gpu, tiny, tmp_path, capsys, streams):
    from PIL import Image

    from fathom.runtime.commands import run

    (tmp_path / "photos").mkdir()
    for k in range(9):
        Image.fromarray(photo(seed=k)).save(tmp_path / f"photos/{k}.png")
    plan = fake_plans.gpu_plan(tiny, tmp_path / "x.plan", batch=(1, 1, 2))
    words = ["--engine", str(plan), str(tmp_path / "photos"), "-o", str(tmp_path / "out"), "--save", "npy", "--json", "--streams", streams]
    assert run.main(words) == 0
    captured = capsys.readouterr()
    lines = [json.loads(line) for line in captured.out.splitlines()]
    assert [Path(line["photo"]).name for line in lines] == [f"{k}.png" for k in range(9)]  # in order, however many are under way
    assert "GPU 0: Fake GPU" in captured.err and "device memory" in captured.err
    with Pipeline.open(tiny.plan, threads=1) as pipeline:
        for k in range(9):
            saved = np.load(tmp_path / f"out/{k}_depth.npy", allow_pickle=False)
            np.testing.assert_allclose(saved, pipeline.predict(photo(seed=k)).depth_m, atol=1e-3)
    nothing_left(gpu)
    assert run.main([*words, "--force", "--quiet"]) == 0 and "Fake GPU" not in capsys.readouterr().err
    assert run.main([*words, "--force", "--device", "cpu"]) == 6
    assert run.main([*words, "--force", "--device", "cuda:3"]) == 6
    assert run.main([*words, "--force", "--device", "tpu"]) == 2
    assert run.main([*words, "--force", "--streams", "99"]) == 2
