"""depth-bench latency: what is timed is what is said, fairly, and what cannot run says why."""

import json
import time
import types

import numpy as np
import pytest
import torch
from other_contracts import with_output

from fathom.benchmarks import bench_command, pytorch_reference
from fathom.benchmarks.latency import latency
from fathom.benchmarks.latency.layers import layer_lines, layer_rows
from fathom.runtime.errors import FathomError

QUERY = latency.Query({})


class Slow:
    """A backend that takes a known time, on the host and, as it claims, on the device."""

    stages, concurrent, remarks = (), 1, ("a remark",)

    def __init__(self, seconds, log=None, name="", fails_at=None):
        self.seconds, self.log, self.name, self.left = seconds, log, name, fails_at

    def run(self, inputs, keep=frozenset()):
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise FathomError("it broke")
        if self.log is not None:
            self.log.append(self.name)
        time.sleep(self.seconds)
        return {}

    def device_times_ms(self, inputs, runs):
        return [1e3 * self.seconds / 2] * runs

    def close(self):
        pass


def test_samples_are_the_time_that_passed():
    subjects = [latency.Subject("a", Slow(0.004)), latency.Subject("b", Slow(0.012))]
    start = time.monotonic()
    latency.take_turns(subjects, QUERY, rounds=10, warm_up=2)
    passed_ms = 1e3 * (time.monotonic() - start)  # a busy machine sleeps longer than it was told to
    assert sum(ms for subject in subjects for ms in subject.samples_ms["host"]) <= passed_ms - 2 * (4 + 12)  # without the warm-up
    for subject, ms in zip(subjects, (4, 12), strict=True):
        assert len(subject.samples_ms["host"]) == len(subject.samples_ms["device"]) == 10
        assert ms <= min(subject.samples_ms["host"])
        assert subject.samples_ms["device"] == [ms / 2] * 10
        assert "photo" not in subject.samples_ms


def test_subjects_take_turns_in_changing_order():
    log = []
    subjects = [latency.Subject(name, Slow(0, log, name)) for name in "abc"]
    latency.take_turns(subjects, QUERY, rounds=20, warm_up=1)
    rounds = ["".join(log[k : k + 3]) for k in range(0, len(log), 3)]
    assert len(rounds) == 21 and all(sorted(turn) == ["a", "b", "c"] for turn in rounds) and len(set(rounds)) > 2


def test_a_subject_that_breaks_does_not_stop_the_others():
    subjects = [latency.Subject("good", Slow(0)), latency.Subject("bad", Slow(0, fails_at=4))]
    latency.take_turns(subjects, QUERY, rounds=10, warm_up=0)
    assert len(subjects[0].samples_ms["host"]) == 10
    assert subjects[1].samples_ms == {} and "it broke" in subjects[1].skip_reason
    rows = latency.to_json(subjects)
    assert "it broke" in latency.table(rows) and rows[1]["is_skipped"] and rows[1]["skip_reason"] == "it broke"


def test_percentiles():
    found = latency.summary([float(k) for k in range(1, 101)])
    assert found["p50"] == 50.5 and found["p90"] == pytest.approx(90.1) and found["p99"] == pytest.approx(99.01)
    assert (found["min"], found["max"], found["mean"]) == (1.0, 100.0, 50.5)


class Network(torch.nn.Module):
    """Stands in for the network of the small bundle."""

    def __init__(self, kernel, contract):
        super().__init__()
        self.kernel, self.contract = torch.nn.Parameter(torch.from_numpy(kernel)), contract

    def forward(self, image):
        return torch.nn.functional.conv2d(image, self.kernel, stride=2, padding=2).relu().mean(1, keepdim=True) + 1


def test_the_command(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pytorch_reference, "load_network", lambda artefact, weights, given=None: Network(tiny.kernel, artefact.manifest.contract))
    out = tmp_path / "latency.json"
    words = ["latency", str(tiny.bundle), "--engine", str(tiny.plan), "--engine", str(tiny.gpu_plan), "--onnxruntime", "cpu,cuda"]
    words += ["--pytorch", "eager-fp32,eager-fp16,eager-autocast", "--rounds", "4", "--warm-up", "1", "--threads", "1", "-o", str(out)]
    assert bench_command.main(words) == 0
    record = json.loads(out.read_text())
    rows = {row["name"]: row for row in record["rows"]}
    assert set(rows) == {"pytorch eager-fp32", "pytorch eager-fp16", "pytorch eager-autocast", "onnxruntime cpu", "onnxruntime cuda", "tiny.plan", "gpu.plan"}
    for name in ("pytorch eager-fp32", "onnxruntime cpu", "tiny.plan"):
        assert len(rows[name]["sample_times_ms"]["host"]) == len(rows[name]["sample_times_ms"]["photo"]) == 4
        assert "device" not in rows[name]["sample_times_ms"] and not rows[name]["is_skipped"]
    assert "CUDA" in rows["onnxruntime cuda"]["skip_reason"] and "GPU" in rows["gpu.plan"]["skip_reason"]
    assert record["input_shape"] == [1, 3, 48, 64] and record["system"]["other_software_stack"]["numpy"] == np.__version__
    assert str(tmp_path) not in json.dumps(record) and str(tiny.folder) not in json.dumps(record)
    first, last = rows["pytorch eager-fp32"]["sample_times_ms"]["host"], rows["tiny.plan"]["sample_times_ms"]["host"]
    assert rows["tiny.plan"]["difference"]["to"] == "pytorch eager-fp32"
    assert rows["tiny.plan"]["difference"]["ratio"]["host"]["p50"] == pytest.approx(np.median(np.divide(last, first)), abs=2e-3)
    shown = capsys.readouterr().out
    assert "onnxruntime cpu" in shown and "photo ms p50/p90/p99" in shown
    assert bench_command.main(words) == 3  # not overwritten without --force
    assert bench_command.main(["latency", str(tiny.bundle)]) == 2
    assert bench_command.main(["latency", str(tiny.bundle), "--engine", str(tiny.gpu_plan), "--rounds", "1"]) == 6


def test_a_network_whose_metres_need_a_camera_is_timed(tiny, tmp_path):
    bundle = with_output(tiny.bundle, tmp_path / "bundle", focal_px=500.0)
    words = ["latency", str(bundle), "--onnxruntime", "cpu", "--rounds", "3", "--threads", "1", "--details", "-o", str(tmp_path / "r.json")]
    assert bench_command.main(words) == 0
    (row,) = json.loads((tmp_path / "r.json").read_text())["rows"]
    assert len(row["sample_times_ms"]["photo"]) == 3 and not row["cold_start_ms"]["is_skipped"]


def test_pytorch_gives_the_numbers_of_the_network(tiny, monkeypatch):
    from fathom.benchmarks.latency.pytorch_latency import open_torch
    from fathom.runtime.errors import UsageError

    monkeypatch.setattr(pytorch_reference, "load_network", lambda artefact, weights, given=None: Network(tiny.kernel, artefact.manifest.contract))
    tensor = np.random.default_rng(0).normal(size=(1, 3, 48, 64)).astype(np.float32)
    for mode, tolerance in (("eager-fp32", 1e-5), ("eager-fp16", 1e-2), ("eager-autocast", 1e-2)):
        with open_torch(tiny.bundle, mode, "cpu", 1) as pipeline:
            got = pipeline.backend.run({"image": tensor})["depth"]
            np.testing.assert_allclose(got, tiny.expected(tiny.kernel, tensor), rtol=tolerance)
            assert ("real half" in pipeline.remarks[0]) == (mode == "eager-fp16")
            assert (pipeline.backend._network.kernel.dtype == torch.float16) == (mode == "eager-fp16")
    with pytest.raises(UsageError, match="eager-fp32"):
        open_torch(tiny.bundle, "eager", "cpu")


def test_layers_are_told_by_how_long_they_take():
    backend = types.SimpleNamespace(
        layer_times_ms=lambda inputs, runs: {"vae": {"conv": [1.0, 9.0, 2.0][:runs]}, "unet": {"norm + silu": [6.0] * runs, "copy": [0.0] * runs}}
    )
    rows = layer_rows(backend, {}, 3)
    assert [(row["stage"], row["name"], row["p50_ms"], row["share"]) for row in rows] == [
        ("unet", "norm + silu", 6, 0.75),
        ("vae", "conv", 2, 0.25),
        ("unet", "copy", 0, 0),
    ]
    assert layer_rows(object(), {}, 3) == []  # ONNX Runtime
    lines = layer_lines([{"name": "x.plan", "layers": rows}, {"name": "y.plan"}, {"name": "z.plan", "layers": []}])
    assert lines == ["x.plan: of the time of all 3 layers 75.0 % unet: norm + silu; 25.0 % vae: conv; 0.0 % unet: copy"]
